"""Failing system calls while the daemon starts: it serves, or says why it cannot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from support import faults
from support.daemon import TestDaemon
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))

WHY_NOT = faults.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# What it calls until it serves; the errors are those of its manual page. Not here:
# `mmap`, `sigaltstack` and `rt_sigaction`, with which the loader and the language's
# runtime end the program before it begins, and `prlimit64`, which cannot fail where a
# process asks for its own limits.
CALLS = [
    ("bind", "EADDRINUSE"),
    ("bind", "ENOSPC"),
    ("clone3", "EAGAIN"),
    ("connect", "ECONNREFUSED"),
    ("epoll_create1", "EMFILE"),
    ("epoll_ctl", "ENOSPC"),
    ("eventfd2", "EMFILE"),
    ("fchmod", "EPERM"),
    ("fcntl", "EMFILE"),
    ("flock", "ENOLCK"),
    ("fstat", "EIO"),
    ("ftruncate", "EIO"),
    ("getdents64", "EIO"),
    ("getrandom", "ENOSYS"),
    ("listen", "EADDRINUSE"),
    ("mkdir", "ENOSPC"),
    ("newfstatat", "EACCES"),
    ("openat", "EMFILE"),
    ("openat", "EACCES"),
    ("pidfd_open", "EMFILE"),
    ("read", "EIO"),
    ("socket", "EMFILE"),
    ("socketpair", "EMFILE"),
    ("statx", "EIO"),
    ("unlinkat", "EACCES"),
    ("write", "ENOSPC"),
]

FILES = ["daemon.lock", "access.log", "daemon.log"]
"""What it writes, in its directory."""


def numbers() -> Iterator[int]:
    """Which calls of a kind fail, one after the other."""
    yield from range(1, 60) if TORTURE else (1, 2, 3, 5, 9)


def serves(daemon: TestDaemon, process: subprocess.Popen) -> bool:
    """Wait until the daemon answers or has ended."""

    def decided() -> str | None:
        if process.poll() is not None:
            return "ended"
        try:
            with daemon.connect() as wire:
                return "serves" if wire.ask("ls", 30).startswith("(no sessions)") else None
        except (WebSocketException, OSError, AssertionError):
            return None

    return wait_until(decided, 60, what="it serves or ends") == "serves"


def works(daemon: TestDaemon) -> None:
    """Use a session; what is asked for once more works, whatever failed before."""
    failures = 0

    def asked(request: str) -> dict[str, Any]:
        nonlocal failures
        try:
            answer = daemon.json(request)
            if answer["ok"]:
                return answer
            assert answer["error"]["code"] != "internal", answer
            why = str(answer)
        except (WebSocketException, OSError) as error:
            why = repr(error)
        # One call fails, so that one request does.
        failures += 1
        assert failures == 1, why
        return daemon.json(request)

    made = asked("new work --json")
    assert made["ok"] or made["error"]["code"] == "session_exists", made
    assert asked("run work --json\n6 * 7")["result"] == "42"
    killed = asked("kill work --json")
    assert killed["ok"] or killed["error"]["code"] == "no_session", killed


@pytest.mark.parametrize("case", CALLS, ids="-".join)
def test_a_call_that_fails_at_the_start_is_survived_or_named(
    make_daemon: Callable[[], TestDaemon], case: tuple[str, str]
) -> None:
    call, error = case
    happened = False
    for number in numbers():
        daemon = make_daemon()
        trace = daemon.root / "trace"
        daemon.wrapper = ["strace", "-D", "-f", "-b", "execve", "-qq", "-o", str(trace)]
        daemon.wrapper += ["-e", f"trace={call}", "-e", "signal=none"]
        daemon.wrapper += ["-e", f"inject={call}:error={error}:when={number}"]
        if call == "write":
            # Writing elsewhere, to an event counter for one, cannot fail like this.
            for file in (
                daemon.log,
                *(daemon.socket.with_name("d.sock.d") / name for name in FILES),
            ):
                daemon.wrapper += ["-P", str(file)]
        daemon.process = daemon.spawn()
        if serves(daemon, daemon.process):
            works(daemon)
            assert daemon.stop() == 0, daemon.log_tail()
        else:
            assert daemon.process.wait() != 0, daemon.log_tail()
            assert "panicked" not in daemon.log_tail()
            assert daemon.log_tail().strip(), "it says nothing"
        happened |= "(INJECTED)" in trace.read_text()
        # The next start finds nothing in its way.
        daemon.wrapper = []
        daemon.start()
        works(daemon)
        assert daemon.stop() == 0, daemon.log_tail()
        if "(INJECTED)" not in trace.read_text():
            break
    if not happened:
        pytest.skip(f"the daemon does not call {call} while it starts")
