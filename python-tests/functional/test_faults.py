"""Failing system calls: whatever fails is survived and told, and all is well again after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from support import faults
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))

WHY_NOT = faults.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# A question is answered within this, whatever fails.
PATIENCE = 45.0


def numbers(limit: int) -> Iterator[int]:
    """Which calls of a kind fail, one after the other."""
    yield from range(1, limit + 1) if TORTURE else (n for n in (1, 2, 4, 9, 20) if n <= limit)


class Patient:
    """A daemon that has to answer although calls of it fail."""

    def __init__(self, daemon: TestDaemon) -> None:
        self.daemon = daemon
        self.session: Session | None = None

    def ready(self) -> Session:
        """Return a session that works, made anew if the last one died."""
        if self.session is None:
            self.session = self.daemon.new()
            self.session.out("x = 41")
        return self.session

    def ask(self, text: str) -> str:
        """Ask on a new connection; a connection that breaks is an answer too."""
        try:
            return self.daemon.ask(text, PATIENCE)
        # The library asserts that a connection it opens is not closed at once.
        except (WebSocketException, ConnectionError, AssertionError) as broken:
            return f"broken: {broken}"

    def exercise(self, number: int) -> list[str]:
        """Do a little of everything; what fails has to be told, and in time."""
        name, other = self.ready().name, f"other{number}"
        answers = [
            self.ask(f"run {name} --json\nx + 1"),
            self.ask(f"new {other} --json"),
            self.ask(f"run {other} --json\nopen('file', 'w').write('text')"),
            self.ask(f"fire {name} --json\nprint('beside')"),
            self.ask(f"fork {name} --json\ny = 1"),
            self.ask(f"wait {name} --json --timeout=20"),
            self.ask(f"run {name} --json\nsubprocess.run(['true']).returncode"),
            self.ask(f"vars {name} --json"),
            self.ask(f"attach {name} 24 80 --json"),
            self.ask("ls --json"),
            self.ask(f"kill {other} --json"),
        ]
        for answer in answers:
            assert answer.startswith(("broken: ", "{")), answer
            assert answer.startswith("broken: ") or isinstance(json.loads(answer), dict), answer
        return answers

    def is_well(self) -> None:
        """Check that everything works on the same and on another session."""
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None
        session = self.ready()
        state = self.daemon.json(f"status {session.name} --json", PATIENCE)["state"]
        if state == "dead":
            assert self.daemon.list()[session.name]["cause"]
            self.session = None
        else:
            assert session.submit("run", "x + 1")["result"] == "42"
            assert session.ended(session.fire("print('beside')"))["stdout"] == "beside\n"
        with self.daemon.session() as another:
            assert another.out("6 * 7") == "42\n"
            assert another.name in self.daemon.ask("ls")
        assert another.name not in self.daemon.ask("ls")

    def stop(self, name: str) -> None:
        """End a session of the exercise that is still there."""
        self.ask(f"kill {name}")


@pytest.fixture(scope="module")
def patient(module_daemon: TestDaemon) -> Iterator[Patient]:
    """The daemon of this file."""
    yield Patient(module_daemon)
    module_daemon.stop()
    # A zygote that lost its lane to the daemon ends by itself after a minute.
    wait_until(lambda: not module_daemon.processes(), 90, what="nothing is left")


def zygotes(daemon: TestDaemon) -> list[int]:
    """Return the process ids of the zygotes; one that lost its lane is followed by another."""
    return [zygote["pid"] for zygote in daemon.info()["zygotes"]]


# What each process calls while it serves; the errors are those of its manual page.
OF_THE_DAEMON = [
    ("accept4", "EMFILE"),
    ("accept4", "ECONNABORTED"),
    ("accept4", "ENFILE"),
    ("accept4", "ENOMEM"),
    ("connect", "EAGAIN"),
    ("connect", "ENOMEM"),
    ("epoll_ctl", "ENOMEM"),
    ("epoll_ctl", "ENOSPC"),
    ("epoll_wait", "EINTR"),
    ("fcntl", "EMFILE"),
    ("getrandom", "EINTR"),
    ("getsockopt", "ENOBUFS"),
    ("mmap", "ENOMEM"),
    ("openat", "EMFILE"),
    ("openat", "ENFILE"),
    ("pidfd_open", "EMFILE"),
    ("read", "EIO"),
    ("recvfrom", "ENOMEM"),
    ("sendto", "ENOBUFS"),
    ("socket", "EMFILE"),
    ("statx", "ENOMEM"),
]
OF_THE_ZYGOTE = [
    ("clone", "EAGAIN"),
    ("mmap", "ENOMEM"),
    ("openat", "EMFILE"),
    ("pipe2", "EMFILE"),
    ("ppoll", "ENOMEM"),
    ("renameat", "EIO"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "ENOBUFS"),
    ("socket", "EMFILE"),
    ("socketpair", "EMFILE"),
    ("bind", "ENOSPC"),
    ("ftruncate", "ENOSPC"),
    ("epoll_create1", "EMFILE"),
    ("epoll_ctl", "ENOSPC"),
    ("clone3", "EAGAIN"),
    ("unshare", "ENOMEM"),
    ("wait4", "EINTR"),
]
OF_A_HOST = [
    ("accept4", "EMFILE"),
    ("accept4", "ECONNABORTED"),
    ("clone", "EAGAIN"),
    ("clone3", "EAGAIN"),
    ("ftruncate", "ENOSPC"),
    ("mmap", "ENOMEM"),
    ("openat", "ENOSPC"),
    ("openat", "EMFILE"),
    ("pidfd_open", "EMFILE"),
    ("pipe2", "EMFILE"),
    ("ppoll", "ENOMEM"),
    ("recvfrom", "ENOMEM"),
    ("renameat", "EIO"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "ENOBUFS"),
    ("socketpair", "EMFILE"),
    ("write", "ENOSPC"),
]


def identify(case: object) -> str:
    """Name a case of a parametrized test."""
    return "-".join(case) if isinstance(case, tuple) else str(case)


def fail_each(
    patient: Patient,
    pids: Callable[[], list[int]],
    call: str,
    error: str,
    path: Path | None = None,
) -> None:
    """Let the n-th call fail, for one n after the other, and look after each."""
    reached = 0
    for number in numbers(200):
        patient.ready()
        with faults.injected(pids(), call, error, str(number), path) as injection:
            patient.exercise(number)
        patient.stop(f"other{number}")
        patient.is_well()
        if not injection.happened:
            break
        reached = number
    if not reached:
        pytest.skip(f"{call} was not called, so that nothing could fail")
    print(f"{call} {error}: failed up to number {reached}")
    wait_until(
        lambda: (
            not any(
                "other" in name and entry["state"] != "dead"
                for name, entry in patient.daemon.list().items()
            )
        ),
        what="nothing of the exercise is left",
    )


@pytest.mark.timeout(3600 if TORTURE else 300)
@pytest.mark.parametrize("case", OF_THE_DAEMON, ids=identify)
def test_a_call_of_the_daemon_that_fails_is_survived(
    patient: Patient, case: tuple[str, str]
) -> None:
    fail_each(patient, lambda: [patient.daemon.pid], *case)


# Other writes of the daemon go to descriptors that cannot fail so.
@pytest.mark.timeout(3600 if TORTURE else 300)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_log_that_cannot_be_written_costs_its_lines_and_nothing_else(
    patient: Patient, error: str
) -> None:
    log = patient.daemon.access_log()
    fail_each(patient, lambda: [patient.daemon.pid], "write", error, log)
    before = log.stat().st_size
    patient.daemon.ask("ls")
    wait_until(lambda: log.stat().st_size > before, what="lines are written again")


@pytest.mark.timeout(3600 if TORTURE else 300)
@pytest.mark.parametrize("case", OF_THE_ZYGOTE, ids=identify)
def test_a_call_of_the_zygote_that_fails_is_survived(
    patient: Patient, case: tuple[str, str]
) -> None:
    fail_each(patient, lambda: zygotes(patient.daemon), *case)


@pytest.mark.timeout(3600 if TORTURE else 300)
@pytest.mark.parametrize("case", OF_A_HOST, ids=identify)
def test_a_call_of_a_host_that_fails_is_survived(patient: Patient, case: tuple[str, str]) -> None:
    fail_each(patient, lambda: [patient.ready().pid], *case)
