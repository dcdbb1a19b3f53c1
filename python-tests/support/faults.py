"""Failing system calls, by strace's fault injection."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .waiting import wait_until


def why_not() -> str | None:
    """Say why no fault can be injected here; None if they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=getppid", "-e", "inject=getppid:error=EPERM", "true"],
        capture_output=True,
        text=True,
    )
    return f"strace cannot work here: {tried.stderr.strip()}" if tried.returncode else None


def tracers(pid: int) -> list[int]:
    """Return who traces each thread of a process."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("TracerPid:"))
            found.append(int(line.split()[1]))
    return found


class Injection:
    """What was injected."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def happened(self) -> bool:
        """Whether a call failed because of us."""
        return bool(self.calls)


@contextlib.contextmanager
def traced(pids: Iterable[int], *options: str) -> Iterator[list[str]]:
    """Write down system calls of running processes, and of those they fork.

    Args:
        pids: The processes.
        options: Which calls, in strace's words.

    Yields:
        A list that has a line for each call afterwards.
    """
    calls: list[str] = []
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        words = ["strace", "-f", "-qq", "-o", log.name, *options, "-e", "signal=none"]
        pids = list(pids)
        for pid in pids:
            words += ["-p", str(pid)]
        strace = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

        def attached() -> bool:
            assert strace.poll() is None, strace.stderr and strace.stderr.read()
            return all(set(tracers(pid)) == {strace.pid} for pid in pids)

        try:
            wait_until(attached, what="strace is attached")
            yield calls
        finally:
            strace.send_signal(signal.SIGINT)
            # Where a traced process of many threads is ending at this moment,
            # strace 6.1 waits for its first thread, which ends after the
            # others, which wait for strace: for ever. Killed, it lets them go.
            with contextlib.suppress(subprocess.TimeoutExpired):
                strace.wait(5)
            strace.kill()
            strace.wait()
            calls += log.read().splitlines()


@contextlib.contextmanager
def injected(
    pids: Iterable[int], call: str, error: str, when: str, path: Path | None = None
) -> Iterator[Injection]:
    """Let calls of running processes, and of those they fork, fail.

    Args:
        pids: The processes.
        call: Name of the system call.
        error: Name of the errno.
        when: Which calls of each thread, in strace's words: `3`, `2+`, `1..5`.
        path: The file that they are about; none for any.
    """
    injection = Injection()
    calls: list[str] = []
    options = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
    options += ["-P", str(path)] if path else []
    try:
        with traced(pids, *options) as calls:
            yield injection
    finally:
        injection.calls = [line for line in calls if "(INJECTED)" in line]
