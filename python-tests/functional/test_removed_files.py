"""Sockets and directories that somebody removes, as what cleans up temporary files does."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

MakeDaemon = Callable[..., TestDaemon]

THERE_AGAIN = "was removed, and is there again"


def test_a_socket_that_is_removed_is_there_again(daemon: TestDaemon, session: Session) -> None:
    session.out("kept = 1")
    for path in [daemon.socket, *Path(daemon.info()["runtime_dir"]).glob("*.sock")]:
        path.unlink()
    wait_until(daemon.socket.exists, what="the socket is there again")
    assert session.value("kept") == "1"
    words = "was removed, and is there again"
    wait_until(lambda: words in daemon.log_tail(), what="the log tells of it")
    daemon.crash()
    daemon.start()
    assert session.value("kept") == "1"
    with daemon.session() as another:
        assert another.value("6 * 7") == "42"
    os.kill(session.pid, signal.SIGKILL)
    assert "SIGKILL" in session.wait_for_state("dead")["death"]["cause"]


def test_new_goes_on_when_the_sockets_of_spares_are_removed(daemon: TestDaemon) -> None:
    daemon.new("first")
    runtime = Path(daemon.info()["runtime_dir"])
    wait_until(lambda: len(list(runtime.glob("*.parked"))) >= 3, what="there are spares")
    for path in runtime.glob("*.parked"):
        path.unlink()
    for number in range(4):
        with daemon.session(f"next{number}") as session:
            assert session.value("6 * 7") == "42"


@pytest.fixture
def session(daemon: TestDaemon) -> Session:
    """Make a session of a daemon that nobody else uses."""
    return daemon.new()


@pytest.fixture
def runtime(daemon: TestDaemon) -> Path:
    """Where the daemon keeps its sockets."""
    return Path(daemon.info()["runtime_dir"])


def remove(directory: Path) -> None:
    """Remove a directory at once, whatever processes still write into it."""
    aside = directory.with_name(f"{directory.name}.removed")
    directory.rename(aside)

    def is_gone() -> bool:
        shutil.rmtree(aside, ignore_errors=True)
        return not aside.exists()

    wait_until(is_gone, what="the directory is removed")


def exchange(one: Path, other: Path) -> None:
    """Let two paths change places in one step, so that neither is missing for a moment."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) != 0:
        raise OSError(ctypes.get_errno(), f"cannot exchange {one} and {other}")


def test_a_runtime_directory_that_is_removed_is_there_again(
    daemon: TestDaemon, session: Session, runtime: Path
) -> None:
    session.out("kept = 1")
    zygotes = daemon.info()["zygotes"]
    remove(runtime)
    # It does not wait until somebody has looked.
    another = daemon.new()
    assert another.value("6 * 7") == "42"
    wait_until(lambda: THERE_AGAIN in daemon.log_tail(), what="the log tells of it")
    # Before the next daemon makes one.
    wait_until((runtime / "access.log").exists, what="requests are logged")
    wait_until(lambda: len(list(runtime.glob("h-*.sock"))) == 2, what="both listen again")
    daemon.crash()
    daemon.start()
    assert session.value("kept") == "1"
    assert another.value("6 * 7") == "42"
    assert [it["pid"] for it in daemon.info()["zygotes"]] == [it["pid"] for it in zygotes]
    log = runtime / "access.log"
    wait_until(lambda: another.name in log.read_text(), what="requests are logged")
    os.kill(session.pid, signal.SIGKILL)
    assert "SIGKILL" in session.wait_for_state("dead")["death"]["cause"]


def test_a_second_daemon_is_refused_where_the_directory_was_removed(
    daemon: TestDaemon, runtime: Path
) -> None:
    remove(runtime)
    wait_until(lambda: (runtime / "daemon.lock").exists(), what="it is locked again")
    second = daemon.pyctl("start")
    assert second.returncode == 4
    assert f"a daemon is running already (pid {daemon.pid})" in second.stderr


def test_a_directory_that_is_removed_with_its_daemon_is_made_by_the_sessions(
    daemon: TestDaemon, session: Session, runtime: Path
) -> None:
    session.out("kept = 1")
    remove(runtime)
    daemon.crash()
    wait_until(lambda: len(list(runtime.glob("*.sock"))) == 2, what="both listen again")
    assert runtime.stat().st_mode & 0o777 == 0o700
    daemon.start()
    assert session.value("kept") == "1"


def test_a_directory_that_is_removed_while_there_is_no_daemon_is_made_again(
    daemon: TestDaemon, session: Session, runtime: Path
) -> None:
    session.out("kept = 1")
    pid = session.pid
    daemon.crash()
    wait_until(lambda: not processes.is_alive(daemon.pid), what="the daemon is gone")
    remove(runtime)
    wait_until(lambda: len(list(runtime.glob("*.sock"))) == 2, what="both listen again")
    daemon.start()
    assert session.value("kept") == "1"
    assert session.pid == pid
    with daemon.session() as another:
        assert another.value("6 * 7") == "42"


def test_a_directory_that_cannot_be_made_again_is_told_once(
    daemon: TestDaemon, session: Session, runtime: Path
) -> None:
    # The daemon makes again what is missing faster than a file could be written there.
    aside = runtime.with_name("aside")
    aside.write_text("somebody's file")
    exchange(runtime, aside)
    remove(aside)
    wait_until(lambda: "is not a directory" in daemon.log_tail(), what="the log tells of it")
    assert session.value("6 * 7") == "42"
    refused = daemon.pysh("new", "more")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    runtime.unlink()
    wait_until(lambda: THERE_AGAIN in daemon.log_tail(), what="it is there again")
    assert daemon.log_tail().count("is not a directory") <= 2
    with daemon.session() as another:
        assert another.value("6 * 7") == "42"


BREAKS_LANES = """
import os
for fd in range(3, 1024):
    try:
        os.set_blocking(fd, False); os.write(fd, b'garbage' * 100)
    except OSError:
        pass
"""


@pytest.mark.parametrize("name", ["its own", "another"])
def test_a_session_whose_socket_is_gone_when_its_lanes_break_lives_on(
    daemon: TestDaemon, session: Session, runtime: Path, name: str
) -> None:
    session.out("kept = 1")
    pid = session.pid
    if name == "another":
        session.out("open('/proc/self/comm', 'w').write('mine')")
    for path in runtime.glob("h-*.sock"):
        path.unlink()
    session.fire(BREAKS_LANES)
    wait_until(lambda: list(runtime.glob("h-*.sock")), what="it listens again")
    assert session.value("kept") == "1"
    assert session.pid == pid
    daemon.crash()
    daemon.start()
    assert session.value("kept") == "1"


def test_a_session_that_talks_when_its_daemon_dies_listens_again(
    daemon: TestDaemon, session: Session, runtime: Path
) -> None:
    session.out("kept = 1")
    for _ in range(5):
        with daemon.connect() as wire:
            for number in range(300):
                wire.send(f"run {session.name} --tag={number}\nprint('word')")
            for path in runtime.glob("h-*.sock"):
                path.unlink()
            daemon.crash()
        daemon.start()
        assert session.value("kept") == "1"
