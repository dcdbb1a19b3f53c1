"""`pyctl restart` and `pyctl stop --keep-sessions`: sessions outlast the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.attached import attach
from support.daemon import EXECUTABLES, Session, TestDaemon
from support.waiting import wait_until

LIBRARY = "libpythond_host.so"


@pytest.fixture
def daemon(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that the test may stop."""
    return make_daemon().start()


@pytest.fixture
def session(daemon: TestDaemon) -> Iterator[Session]:
    """A session of it."""
    with daemon.session() as session:
        yield session


def boot(daemon: TestDaemon) -> str:
    """Return what tells one daemon from the next."""
    return daemon.json("info --json")["boot"]


def test_a_restart_keeps_process_sessions_and_cells(
    daemon: TestDaemon, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    session.out("kept = [1, 2, 3]")
    code = f"print('in')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n'over'"
    client = daemon.popen("pysh", "run", session.name, code, bufsize=0)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    before, pid = boot(daemon), daemon.process.pid
    done = daemon.pyctl("restart")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"OK restarted pythond 0.1.0 pid={pid}; 1 session kept\n"
    assert boot(daemon) != before
    assert daemon.process.poll() is None
    assert session.status()["pid"] == session.pid
    go.touch()
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out, err) == (0, b"over\n", b"")
    assert session.value("kept") == "[1, 2, 3]"


def test_nobody_finds_no_daemon_during_restarts(daemon: TestDaemon, session: Session) -> None:
    session.out("count = 0")
    over = threading.Event()
    failed: list[subprocess.CompletedProcess] = []
    ran = 0

    def ask() -> None:
        nonlocal ran
        while not over.is_set():
            done = daemon.pysh("run", session.name, "count += 1")
            ran += 1
            if done.returncode != 0:
                failed.append(done)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(10):
            assert daemon.pyctl("restart").returncode == 0
    finally:
        over.set()
        asking.join()
    assert not failed
    assert session.value("count") == str(ran)


def test_a_restart_runs_the_program_that_is_there_now(
    make_daemon: Callable[..., TestDaemon], binaries: Path, mark: str, tmp_path: Path
) -> None:
    """An upgrade: other files under the same names."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in [*EXECUTABLES, LIBRARY]:
        shutil.copy2(binaries / name, programs / name)
    daemon = TestDaemon(programs, mark)
    try:
        daemon.start()
        with daemon.session() as session:
            session.out("kept = 7")
            inode = os.stat(f"/proc/{daemon.process.pid}/exe").st_ino
            copy = programs / "pythond.new"
            shutil.copy2(binaries / "pythond", copy)
            copy.rename(programs / "pythond")
            assert daemon.pyctl("restart").returncode == 0
            now = os.stat(f"/proc/{daemon.process.pid}/exe").st_ino
            assert now == (programs / "pythond").stat().st_ino != inode
            assert session.value("kept") == "7"

            # One that cannot start takes nothing over.
            before = boot(daemon)
            (programs / "pythond").unlink()
            (programs / "pythond").write_text("#!/bin/sh\necho 'error: not today' >&2; exit 4\n")
            (programs / "pythond").chmod(0o755)
            refused = daemon.pyctl("restart")
            assert refused.returncode == 4
            assert "cannot take over: not today" in refused.stderr
            assert "was not touched" in refused.stderr
            assert boot(daemon) == before
            assert session.value("kept") == "7"
    finally:
        left = daemon.destroy()
    assert not left


def test_a_restart_refuses_a_configuration_that_is_broken(
    daemon: TestDaemon, session: Session
) -> None:
    place = daemon.home / ".config" / "pythond"
    place.mkdir(parents=True)
    (place / "config.toml").write_text("[limits]\nsessions = 'many'\n")
    refused = daemon.pyctl("restart")
    assert refused.returncode == 4
    assert "config.toml" in refused.stderr
    assert session.value("1 + 1") == "2"


def test_a_restart_without_a_daemon_says_so(make_daemon: Callable[..., TestDaemon]) -> None:
    done = make_daemon().pyctl("restart")
    assert done.returncode == 3
    assert "pyctl start -d" in done.stderr


def test_stop_can_keep_sessions(daemon: TestDaemon, session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    session.out("kept = 7")
    cell = session.fire(f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('fired')")
    done = daemon.pyctl("stop", "--keep-sessions")
    assert (done.returncode, done.stdout) == (0, "OK stopping daemon; 1 session kept\n")
    assert daemon.process.wait(20) == 0
    assert not daemon.socket.exists()
    assert session.pid in daemon.processes()
    go.touch()
    daemon.start()
    assert session.value("kept") == "7"
    assert session.ended(cell)["stdout"] == "fired\n"


def test_stop_says_how_many_sessions_it_ends(daemon: TestDaemon) -> None:
    for name in ["one", "two"]:
        assert daemon.pysh("new", name).returncode == 0
    done = daemon.pyctl("stop", "--json")
    assert json.loads(done.stdout) == {"ok": True, "sessions": 2, "kept": False}
    assert daemon.process.wait(20) == 0
    assert not daemon.processes()


def test_environments_that_end_after_a_restart_are_reaped(
    daemon: TestDaemon, session: Session
) -> None:
    assert daemon.pyctl("restart").returncode == 0
    (zygote,) = daemon.json("info --json")["zygotes"]
    os.kill(zygote["pid"], 9)
    wait_until(lambda: not Path(f"/proc/{zygote['pid']}").exists(), what="it is reaped")
    assert session.value("1 + 1") == "2"
    with daemon.session() as another:
        assert another.value("2 + 2") == "4"


def test_terminals_are_told_nothing_of_an_end(daemon: TestDaemon, session: Session) -> None:
    """The session goes on: whoever is attached attaches again."""
    with attach(session) as person:
        person.run("'typed'")
        assert daemon.pyctl("restart").returncode == 0
        person.wait_closed()
        assert person.close_code == 1012
        assert not [event for event in person.events if event["event"] == "terminal_closed"]
    with attach(session) as person:
        person.wait_for("'typed'\n'typed'\n>>>")


def test_who_follows_events_follows_those_of_the_next_daemon(
    daemon: TestDaemon, session: Session
) -> None:
    events = daemon.popen("pysh", "events", session.name, "--json", bufsize=0)
    assert events.stdout is not None
    read = events.stdout.readline
    assert json.loads(read())["event"] == "ready"
    assert daemon.pyctl("restart").returncode == 0
    # The log of events is another daemon's.
    assert {json.loads(read())["event"] for _ in range(2)} == {"reset", "ready"}
    session.out("1")
    seen = [json.loads(read())["event"] for _ in range(2)]
    assert seen == ["cell_started", "cell_done"]
    events.send_signal(signal.SIGINT)
    assert events.wait(30) in (0, 130)


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_a_run_in_a_session_that_is_stopped_meanwhile_gives_its_result(
    daemon: TestDaemon, session: Session, tmp_path: Path, how: str
) -> None:
    go = tmp_path / "go"
    code = f"print('in')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n6 * 7"
    client = daemon.popen("pysh", "run", session.name, code, bufsize=0)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    os.kill(session.pid, signal.SIGSTOP)
    try:
        if how == "restart":
            done = daemon.pyctl("restart")
            assert done.returncode == 0
            assert done.stdout.endswith(f"; 1 session kept; {session.name} is stopped\n")
        else:
            daemon.crash()
            daemon.start()
        wait_until(
            lambda: daemon.list().get(session.name, {}).get("state") == "stopped",
            what="it is listed",
        )
        # It has asked the next daemon, and been told.
        assert client.stderr is not None
        assert any(b"still waiting" in line for line in client.stderr)
    finally:
        os.kill(session.pid, signal.SIGCONT)
    go.touch()
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out) == (0, b"42\n"), err
    assert session.value("1") == "1"


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_a_long_queue_does_not_keep_the_next_daemon_waiting(
    daemon: TestDaemon, session: Session, tmp_path: Path, how: str
) -> None:
    go = tmp_path / "go"
    session.out("seen = []")
    running = session.detach(f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
    session.wait_for_state("running")
    with daemon.connect() as wire:
        for number in range(600):
            wire.ask(f"run {session.name} --json --detach\nseen.append({number})")
    if how == "restart":
        assert daemon.pyctl("restart").returncode == 0
    else:
        daemon.crash()
        daemon.start()
    status = session.status()
    assert (status["state"], status["running"]) == ("running", [running])
    assert len(status["queued"]) == 600
    go.touch()
    assert session.value("seen == list(range(600))") == "True"


def test_what_a_restart_did_not_begin_is_asked_for_again(daemon: TestDaemon) -> None:
    daemon.new("warm")
    wrong: list[object] = []
    enough = threading.Event()

    def go_on(number: int) -> None:
        name = f"client{number}"
        while not enough.is_set():
            for words in (["new", name], ["int", name], ["kill", name]):
                done = daemon.pysh(*words)
                if done.returncode:
                    wrong.append((words, done))

    clients = [threading.Thread(target=go_on, args=[number]) for number in range(3)]
    for client in clients:
        client.start()
    for _ in range(8):
        assert daemon.pyctl("restart").returncode == 0
    enough.set()
    for client in clients:
        client.join()
    assert not wrong
    assert set(daemon.list()) == {"warm"}


def test_a_daemon_whose_queue_of_clients_is_full_takes_its_socket_over(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    daemon.socket.parent.mkdir(mode=0o700, exist_ok=True)
    clients = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.socket))
        daemon.socket.chmod(0o600)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.setblocking(False)
                client.connect(str(daemon.socket))
        taken = daemon.popen("pythond", "daemon", "--inherit", stdin=listener)
    try:
        assert "alive: True" in daemon.pyctl("status").stdout
    finally:
        for client in clients:
            client.close()
        taken.terminate()
        assert taken.wait(20) == 0


def test_a_stop_soon_after_a_restart_leaves_no_process(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    # The zygote that the first daemon started may not have come up yet.
    daemon.ask("restart")
    daemon.wait_until_it_answers()
    daemon.stop()
    wait_until(lambda: not daemon.processes(), what="nothing is left")
