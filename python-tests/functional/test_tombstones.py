"""What is told of sessions that died, also by daemons that come later."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import DEADLINE, wait_until

ONLY = "import threading; threading.Event().wait()"


def tombstones(daemon: TestDaemon) -> list[Path]:
    """Return the files that tell of dead sessions, finished or not."""
    return [path for path in daemon.runtime.rglob("*tombstone*") if path.is_file()]


def kill_and_see(session: Session, number: int = signal.SIGKILL) -> dict:
    """End a session's process from outside and return what is left of it."""
    os.kill(session.pid, number)
    return session.wait_for_state("dead")["death"]


def next_daemon(daemon: TestDaemon) -> None:
    """Kill the daemon and start another."""
    daemon.crash()
    daemon.start()


def test_a_later_daemon_tells_the_same_of_a_dead_session(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    cell = session.detach(ONLY)
    death = kill_and_see(session)
    assert death["cell_id"] == cell
    for _ in range(2):
        next_daemon(daemon)
        assert session.status()["death"] == death
        reply = session.run("1")
        assert reply["error"]["code"] == "session_died"
        assert "SIGKILL" in reply["error"]["message"]
    assert daemon.list()["work"]["session_id"] == session.created["session_id"]


def test_the_moment_of_a_death_without_a_daemon_is_its_own(daemon: TestDaemon) -> None:
    with daemon.session() as session:
        daemon.crash()
        os.kill(session.pid, signal.SIGSEGV)
        written = wait_until(lambda: tombstones(daemon), what="word of the death")
        told = json.loads(written[0].read_text())
        daemon.start()
        death = session.status()["death"]
        assert "SIGSEGV" in death["cause"]
        assert death["died_at"] == told["died_at"]


def test_a_name_that_is_used_again_has_no_past(daemon: TestDaemon) -> None:
    kill_and_see(daemon.new("work"))
    assert tombstones(daemon)
    daemon.new("work")
    assert not tombstones(daemon)
    next_daemon(daemon)
    assert daemon.list()["work"]["state"] == "idle"


def test_who_was_ended_on_purpose_is_not_told_of(daemon: TestDaemon) -> None:
    # It does not end when it is asked to, so that it is killed.
    stubborn = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\n"
    session = daemon.new("work")
    session.detach(f"{stubborn}open('/dev/zero').read(0)\nwhile True: pass")
    session.kill()
    assert not tombstones(daemon)
    kill_and_see(daemon.new("other"))
    daemon.ask("kill other")
    next_daemon(daemon)
    assert daemon.list() == {}


def test_the_reason_of_who_ended_it_outlives_the_daemon(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    cell = session.detach(
        "import signal; signal.signal(signal.SIGINT, lambda *_: None); print('in'); time.sleep(60)"
    )
    session.wait_for_output(cell, "in")
    assert session.interrupt(cell, kill=True)
    death = session.wait_for_state("dead")["death"]
    assert death["cause"] == "ended by `int --kill`"
    next_daemon(daemon)
    assert session.status()["death"] == death


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid":1}', b"\xff" * 4096, b"[" * 100_000])
def test_a_damaged_tombstone_is_named_and_goes(daemon: TestDaemon, content: bytes) -> None:
    kill_and_see(daemon.new("work"))
    daemon.crash()
    [file] = tombstones(daemon)
    file.write_bytes(content)
    (file.parent / f".{file.name}.999999999.0").write_bytes(b"half")
    daemon.start()
    assert daemon.list() == {}
    assert not tombstones(daemon)
    words = f"{file.name} tells of no session"
    wait_until(lambda: words in daemon.log_tail(), what="the log names the file")


def test_each_cell_of_a_dead_session_is_told_how_far_it_came(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    ended = session.detach("6 * 7")
    assert session.ended(ended)["status"] == "done"
    beside = session.fire(ONLY)
    running = session.detach("print('here', flush=True)\n" + ONLY)
    session.wait_for_output(running, "here")
    waiting = session.detach("1")
    with daemon.connect() as client:
        client.send(f"run work --json --id=mine\nopen({str(daemon.work / 'ran')!r}, 'w')")
        wait_until(lambda: len(session.cells()) == 5, what="all cells are there")
        kill_and_see(session)
        reply = json.loads(client.receive())
    assert reply["error"]["message"].endswith(f"; cell {reply['cell_id']} had not started")
    assert "it never ran" in reply["error"]["hint"]
    assert reply["started_at"] is None

    def words() -> dict[str, str]:
        told = {}
        for cell in [ended, beside, running, waiting]:
            error = session.ask("wait", cell)["error"]
            assert error["code"] == "session_died"
            assert f"died: killed by SIGKILL while cell {running} ran" in error["message"]
            told[cell] = error["message"].partition(f"cell {running} ran")[2]
        return told

    expected = {
        ended: f"; cell {ended} had ended, and its result went with the session",
        beside: f"; cell {beside} was running",
        running: "",
        waiting: f"; cell {waiting} had not started",
    }
    assert words() == expected
    next_daemon(daemon)
    assert words() == expected
    assert not (daemon.work / "ran").exists()


def test_what_died_with_all_who_could_tell_is_not_forgotten(daemon: TestDaemon) -> None:
    seen, unseen = daemon.new("seen"), daemon.new("unseen")
    alive = {session.name: session.status() for session in (seen, unseen)}
    zygotes = [zygote["pid"] for zygote in daemon.info()["zygotes"]]
    for zygote in zygotes:
        os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: not daemon.info()["zygotes"], what="the zygote is gone")
    kill_and_see(seen)
    daemon.crash()
    os.kill(unseen.pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(unseen.pid), what="the host is gone")
    told = {}
    for _ in range(2):
        daemon.start()
        for session in (seen, unseen):
            status = session.status()
            assert status["state"] == "dead"
            assert told.setdefault(session.name, status["death"]) == status["death"]
            assert status["session_id"] == session.created["session_id"]
            assert status["death"]["cause"] == "gone, and nobody saw how it ended"
            for what in ("python", "cwd", "created_at", "start"):
                assert status[what] == alive[session.name][what]
        daemon.crash()
    daemon.start()
    daemon.new("seen")
    daemon.ask("kill unseen")
    [file] = tombstones(daemon) + list(daemon.runtime.rglob("h-*.session"))
    assert file.suffix == ".session"


def test_a_death_beside_the_main_thread_names_its_cell(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    cell = session.fire("import ctypes; ctypes.string_at(0)")
    death = session.wait_for_state("dead")["death"]
    assert "SIGSEGV" in death["cause"]
    assert death["cell_id"] == cell


@pytest.mark.parametrize("alone", [False, True], ids=["with a daemon", "without"])
def test_a_process_that_ends_itself_well_is_a_death_too(daemon: TestDaemon, alone: bool) -> None:
    session = daemon.new("work")
    cwd = session.status()["cwd"]
    if alone:
        session.detach("while not os.path.exists('go'): time.sleep(0.01)\nos._exit(0)")
        daemon.crash()
        Path(cwd, "go").touch()
        wait_until(lambda: not processes.is_alive(session.pid), what="the host is gone")
        daemon.start()
    else:
        session.detach("os._exit(0)")
        session.wait_for_state("dead")
    for _ in range(2):
        status = session.status()
        assert status["death"]["cause"] == "exited with status 0", status
        assert status["cwd"] == cwd
        next_daemon(daemon)


def test_a_death_between_the_look_of_a_daemon_and_its_greeting_is_told(
    daemon: TestDaemon,
) -> None:
    session = daemon.new("work")
    zygote = daemon.info()["zygotes"][0]["pid"]
    daemon.crash()
    # As a daemon does that ends a session and is ended itself.
    for path in daemon.runtime.rglob("h-*.session"):
        path.unlink()
    os.kill(zygote, signal.SIGSTOP)
    os.kill(session.pid, signal.SIGKILL)
    daemon.start()
    try:
        # Its zygote writes it down before it hears of this daemon.
        assert daemon.list() == {}
        assert tombstones(daemon) == []
    finally:
        os.kill(zygote, signal.SIGCONT)
    wait_until(lambda: "work" in daemon.list(), what="it is listed")
    assert "SIGKILL" in session.status()["death"]["cause"]
    assert daemon.ask("kill work").startswith("OK")
    assert tombstones(daemon) == []


def test_a_zygote_that_is_late_is_waited_for(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    zygote = daemon.info()["zygotes"][0]["pid"]
    log = daemon.access_log()
    daemon.crash()
    logged = len(log.read_text())
    (living,) = daemon.runtime.rglob("h-*.session")
    before = living.read_bytes()
    os.kill(session.pid, signal.SIGKILL)
    wait_until(lambda: tombstones(daemon), what="its zygote has written it down")
    os.kill(zygote, signal.SIGSTOP)
    try:
        # The daemon looks between the death and the writing.
        (word,) = daemon.runtime.rglob("h-*.tombstone")
        after = word.read_bytes()
        word.unlink()
        living.write_bytes(before)
        living.chmod(0o600)
        told = ThreadPoolExecutor(1).submit(lambda: daemon.start() and session.status())
        wait_until(
            lambda: "cmd=ls" in log.read_text()[logged:],
            what="the first client asks",
        )
        word.write_bytes(after)
        word.chmod(0o600)
    finally:
        os.kill(zygote, signal.SIGCONT)
    assert "SIGKILL" in told.result(DEADLINE)["death"]["cause"]


def test_a_session_that_was_told_to_end_leaves_no_word(daemon: TestDaemon) -> None:
    daemon.new("killed")
    assert daemon.ask("kill killed").startswith("OK")
    daemon.new("replaced")
    daemon.new("replaced", replace=True)
    assert daemon.stop() == 0
    assert not [path for path in daemon.runtime.rglob("h-*") if path.is_file()]
    daemon.start()
    assert daemon.list() == {}


def test_a_session_that_cannot_listen_again_is_not_buried(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    session.out("kept = 1")
    runtime = Path(daemon.info()["runtime_dir"])
    os.kill(session.pid, signal.SIGSTOP)
    daemon.crash()
    for path in runtime.glob("h-*.sock"):
        path.unlink()
    daemon.start()
    try:
        wait_until(lambda: "work" in daemon.list(), what="it is listed")
        assert session.status()["state"] == "stopped"
        assert "already exists" in daemon.ask("new work")
    finally:
        os.kill(session.pid, signal.SIGCONT)
    wait_until(lambda: session.status()["state"] == "idle", what="it answers")
    assert session.value("kept") == "1"
