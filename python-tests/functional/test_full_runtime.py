"""A runtime directory that is full: sessions go on, and new ones come or are refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from support.daemon import TestDaemon
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@pytest.fixture
def small(make_daemon: Callable[..., TestDaemon]) -> Iterator[TestDaemon]:
    """A daemon, not started, whose runtime directory has room for 8 MiB."""
    daemon = make_daemon()
    place = str(daemon.runtime)
    words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", place]
    subprocess.run(words, check=True, capture_output=True)
    try:
        yield daemon
        with contextlib.suppress(OSError):
            free(daemon)
        daemon.stop()
        wait_until(lambda: not daemon.processes(), what="nothing is left")
    finally:
        subprocess.run(["umount", "-l", place], check=True, capture_output=True)


def fill(daemon: TestDaemon) -> None:
    """Leave no block free."""
    with contextlib.suppress(OSError), (daemon.runtime / "ballast").open("ab", 0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(daemon.runtime).f_bfree == 0


def free(daemon: TestDaemon) -> None:
    """Make room again."""
    (daemon.runtime / "ballast").unlink()


def test_sessions_go_on_while_it_is_full_and_after_it(small: TestDaemon) -> None:
    daemon = small.start()
    session, mortal = daemon.new("work"), daemon.new("mortal")
    session.out("x = 41")
    fill(daemon)
    for number in range(200):
        assert session.value(f"os.system('echo text'); {number}") == str(number)
    assert len(session.out("print('y' * 300_000)")) == 300_001
    assert session.ended(session.fire("print('beside')"))["stdout"] == "beside\n"
    assert session.submit("fork", "z = x + 1")["ok"]
    wait_until(lambda: session.value("globals().get('z')") == "42", what="the fork is merged")
    # A death that cannot be written down is known to this daemon and to the next.
    os.kill(mortal.pid, signal.SIGKILL)
    assert "SIGKILL" in mortal.wait_for_state("dead")["death"]["cause"]
    daemon.crash()
    daemon.start()
    assert session.value("x") == "41"
    assert mortal.status()["state"] == "dead"
    for number in range(3):
        reply = daemon.json(f"new other{number} --json")
        if reply["ok"]:
            assert daemon.json(f"run other{number} --json\n1")["result"] == "1"
        else:
            assert "space" in reply["error"]["message"], reply
    free(daemon)
    with daemon.session() as later:
        assert later.value("6 * 7") == "42"
    assert session.value("x") == "41"


def test_a_daemon_that_starts_there_serves_or_says_why_not(small: TestDaemon) -> None:
    fill(small)
    small.process = small.spawn()

    def decided() -> bool:
        if small.process.poll() is not None:
            return True
        with contextlib.suppress(OSError), small.connect() as wire:
            return bool(wire.ask("ls"))
        return False

    wait_until(decided, what="it serves or ends")
    if small.process.poll() is not None:
        assert small.process.returncode > 0
        assert "No space left on device" in small.log_tail()
    free(small)
    if small.process.poll() is not None:
        small.start()
    with small.session() as session:
        assert session.value("6 * 7") == "42"
