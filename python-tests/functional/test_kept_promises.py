"""What users rely on and would notice late: nothing is ended for nothing, loops go on, nothing leaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support.daemon import Session, TestDaemon
from support.pythons import version_parameters
from support.waiting import wait_until


@pytest.fixture(params=version_parameters())
def every(
    shared_daemon: TestDaemon, pythons: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Session]:
    """A fresh session of each supported version."""
    with shared_daemon.session(python=str(pythons[request.param])) as session:
        yield session


def test_replace_with_a_broken_environment_keeps_the_old_session(
    shared_daemon: TestDaemon,
) -> None:
    with shared_daemon.session() as session:
        session.out("precious = 1")
        body = json.dumps({"preload": ["no_such_module_anywhere"], "replace": True})
        reply = shared_daemon.json(f"new {session.name} --json\n{body}")
        assert reply["error"]["code"] == "environment"
        assert "preload" in reply["error"]["hint"]
        assert session.out("precious") == "1\n"


def test_a_server_in_the_event_loop_answers_while_no_cell_runs(session: Session) -> None:
    port = int(
        session.out(
            "import asyncio\nasync def h(r, w):\n    w.write(b'hello'); await w.drain(); w.close()\n"
            "srv = await asyncio.start_server(h, '127.0.0.1', 0)\nsrv.sockets[0].getsockname()[1]"
        )
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        assert peer.recv(10) == b"hello"


def test_another_thread_reaches_the_event_loop_while_no_cell_runs(session: Session) -> None:
    session.out(
        "import asyncio, threading\nasync def five(): return 5\nawait asyncio.sleep(0)\nloop = asyncio.get_event_loop()\n"
        "def ask():\n    global got\n"
        "    got = asyncio.run_coroutine_threadsafe(five(), loop).result(30)\n"
        "t = threading.Thread(target=ask); t.start()"
    )
    wait_until(
        lambda: session.value("globals().get('got')") == "5", 30, what="the thread has its answer"
    )


def test_a_handler_of_the_users_sees_one_interrupt_once(session: Session) -> None:
    session.out(
        "import signal\nseen = []\nsignal.signal(signal.SIGINT, lambda *a: seen.append(a[0]))"
    )
    replies = []
    waiting = threading.Thread(
        target=lambda: replies.append(
            session.run("started = 1\nimport time\nend = time.monotonic() + 1\n"
                        "while time.monotonic() < end: time.sleep(0.01)\nlen(seen)")
        )
    )  # fmt: skip
    waiting.start()
    session.wait_for_state("running")
    session.daemon.json(f"int {session.name} --json")
    waiting.join(60)
    assert replies[0]["result"] == "1", replies


def test_a_stop_does_not_wait_for_an_environment_that_comes_up(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    (tmp_path / "sleeps_for_ever.py").write_text("import time\nwhile True: time.sleep(1)\n")
    daemon = make_daemon().start()
    daemon.new("ready")
    asked = threading.Event()

    def ask() -> None:
        with daemon.connect() as wire:
            body = {"preload": ["sleeps_for_ever"], "env": {"PYTHONPATH": str(tmp_path)}}
            asked.set()
            # The daemon may go while it waits.
            with suppress(OSError, ConnectionClosed):
                wire.ask(f"new stuck --json\n{json.dumps(body)}")

    waiting = threading.Thread(target=ask)
    waiting.start()
    asked.wait(20)
    wait_until(lambda: "stuck" in daemon.access_log().read_text(), 20, what="the request is there")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 5
    waiting.join(30)


def test_a_fork_in_a_cell_is_no_reason_for_a_warning(every: Session) -> None:
    reply = every.run("p = os.fork()\nif p == 0: os._exit(0)\nos.waitpid(p, 0)[1]")
    assert (reply["stdout"], reply["stderr"]) == ("0\n", "")


def test_long_outputs_of_an_ended_session_leave_no_files(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        session.run("print('x' * 3_000_000)")
        directory = shared_daemon.session_directory(session.name)
        assert list(directory.glob("*.out"))
        shared_daemon.ask(f"kill {session.name}")
        with shared_daemon.session(session.name) as again:
            assert again.out("1") == "1\n"
            assert not list(directory.glob("*.out"))


def test_sessions_do_not_hold_descriptors_of_whoever_started_the_daemon(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    daemon = make_daemon()
    try:
        done = daemon.pyctl("start", "-d", close_fds=False)
        assert done.returncode == 0, done
        session = daemon.new()
        target = os.readlink(f"/proc/self/fd/{writing}")
        held = session.value(
            "[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.islink(f'/proc/self/fd/{n}')]"
        )
        assert target not in (held or "")
    finally:
        os.close(reading)
        os.close(writing)
        daemon.pyctl("stop")


def test_the_configuration_gives_back_the_new_of_older_versions(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    settings = daemon.home / ".config" / "pythond"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("[compat]\nnew_replaces = true\n[limits]\nsessions = 1\n")
    (settings / "config.toml").chmod(0o600)
    daemon.start()
    first = daemon.json("new work --json")
    second = daemon.json("new work --json")
    assert second["replaced"] is True
    assert second["gen"] == first["gen"] + 1
    assert daemon.json("new other --json")["error"]["code"] == "limit"


def test_a_configuration_that_is_not_understood_is_refused_with_its_line(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    settings = daemon.home / ".config" / "pythond"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("[compat]\nnew_replace = true\n")
    (settings / "config.toml").chmod(0o600)
    done = daemon.client("pythond", "daemon")
    assert done.returncode not in (0, 3)
    assert "line 2" in done.stderr
    assert "new_replace" in done.stderr


def test_a_signal_to_a_stopping_daemon_ends_it(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    daemon.new("work")
    os.kill(daemon.pid, signal.SIGTERM)
    wait_until(lambda: not daemon.processes(), 20, what="nothing is left")
