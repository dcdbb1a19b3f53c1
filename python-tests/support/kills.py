"""Ending a process at a chosen system call, and looking for what nobody owns any more."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from . import processes
from .daemon import TestDaemon
from .faults import tracers
from .waiting import wait_until


def _is_dying(pid: int) -> bool:
    """Tell whether SIGKILL is pending for a process."""
    with contextlib.suppress(OSError):
        pending = re.findall(
            r"^(?:SigPnd|ShdPnd):\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
        return processes.is_alive(pid) and any(int(word, 16) >> 8 & 1 for word in pending)
    return False


@contextlib.contextmanager
def _traced(pid: int, *words: str, kills: bool) -> Iterator[None]:
    """Let strace follow the first thread of a process, or whatever of it is left."""
    strace = subprocess.Popen(
        ["strace", "-qq", "-e", "signal=none", *words, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def attached() -> bool:
        # It ends with the process, which may meet its end at once.
        if strace.poll() is None and processes.is_alive(pid):
            return strace.pid in tracers(pid)
        assert not processes.is_alive(pid), strace.stderr and strace.stderr.read()
        return True

    try:
        wait_until(attached, what="strace is attached")
        yield
    finally:
        # It writes what it counted. One that has killed may wait for ever for
        # threads that ended with their process, and has nothing more to say.
        if not kills:
            strace.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                strace.wait(20)
        strace.kill()
        strace.wait()
        wait_until(lambda: not _is_dying(pid), what=f"process {pid} lives or is gone")


@contextlib.contextmanager
def counted(pid: int, *words: str) -> Iterator[Counter[str]]:
    """Count the system calls of a process's first thread, by name; with `-f` of all it has."""
    by_thread: dict[str, Counter[str]] = {}
    calls: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        with _traced(pid, *words, "-o", log.name, kills=False):
            yield calls
        for line in log.read().splitlines():
            # With `-f` each line begins with the thread that calls.
            found = re.match(r"(\d+ +)?(\w+)\(", line)
            if found:
                by_thread.setdefault(found[1] or "", Counter())[found[2]] += 1
    for of_thread in by_thread.values():
        # Calls are counted for each thread alone.
        calls |= of_thread


@contextlib.contextmanager
def killed_at(pid: int, call: str, number: int, *words: str) -> Iterator[None]:
    """End a process with SIGKILL as its first thread makes the n-th call of a name.

    With `-f` it is any of its threads, or a process that they start.
    """
    inject = f"inject={call}:signal=KILL:when={number}"
    with _traced(pid, *words, "-o", "/dev/null", "-e", inject, kills=True):
        yield


def steps(calls: Counter[str], thorough: bool) -> list[tuple[str, int]]:
    """Return at which calls to end a process: the first and the last of each name, or all.

    One more of each is no harm: a call that does not come ends nobody.
    """
    return [
        (call, number)
        for call, count in sorted(calls.items())
        for number in (range(1, count + 2) if thorough else sorted({1, count}))
    ]


def _descriptors(pid: int) -> set[tuple[str, str]]:
    """Return a process's descriptors, of all its threads' tables, and what they are of."""
    found = set()
    for table in Path(f"/proc/{pid}/task").glob("*/fd"):
        with contextlib.suppress(OSError):
            for entry in os.scandir(table):
                with contextlib.suppress(OSError):
                    found.add((entry.name, os.readlink(entry.path)))
    return found


def _field(pid: int, number: int) -> int:
    """Return a numeric field of proc_pid_stat(5), counted after the name."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number])
    return 0


def spares(daemon: TestDaemon) -> list[int]:
    """Return the processes that wait to become sessions, oldest first."""
    zygotes = {zygote["pid"] for zygote in daemon.info()["zygotes"]}
    found = []
    for pid in daemon.processes():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name == "pythond-spare" and _field(pid, 1) in zygotes:
                found.append(pid)
    # The oldest is handed out first (field 22 of proc_pid_stat(5): its start).
    return sorted(found, key=lambda pid: (_field(pid, 19), pid))


def wait_for_spares(daemon: TestDaemon) -> list[int]:
    """Wait until the one environment has all its spares, and return them."""

    def look() -> list[int] | None:
        found = spares(daemon)
        return found if len(found) == 3 else None

    return wait_until(look, what="there are three spares")


def wait_for_spares_or_end(daemon: TestDaemon, zygote: int) -> None:
    """Wait until a zygote has all its spares again, or is gone."""
    wait_until(lambda: not processes.is_alive(zygote) or len(spares(daemon)) == 3)


def strays(daemon: TestDaemon) -> list[str]:
    """Return what belongs to nothing that the daemon knows: processes, terminals, files.

    Known are the daemon, its zygotes, three spares for each, and living sessions.
    """
    info = daemon.info()
    zygotes = {zygote["pid"] for zygote in info["zygotes"]}
    listed = daemon.list().items()
    sessions = {entry["pid"]: name for name, entry in listed if entry["state"] != "dead"}
    dead = len(listed) - len(sessions)
    parked = spares(daemon)
    known = {daemon.pid, *zygotes, *sessions, *parked}
    found = [f"process {pid}: {c}" for pid, c in daemon.processes().items() if pid not in known]
    if len(parked) > 3 * len(zygotes):
        found.append(f"{len(parked)} spares of {len(zygotes)} zygotes")
    for pid in sessions:
        if not processes.is_alive(pid):
            found.append(f"session without a process: {sessions[pid]}")
    for pid in {*sessions, *parked}:
        leaders = [target for _, target in _descriptors(pid) if target.endswith("ptmx")]
        # Its one terminal is held twice.
        if len(leaders) > 2:
            found.append(f"{len(leaders)} descriptors of terminals in process {pid}")
    files = os.listdir(info["runtime_dir"])
    ends = Counter(file.rpartition(".")[2] for file in files if file.startswith("h-"))
    expected = {"sock": len(sessions), "parked": len(parked), "journal": len({*sessions, *parked})}
    expected |= {"session": len(sessions), "tombstone": dead}
    for end, count in ends.items():
        # A spare's files are there a moment before its process has its name.
        if count != expected.get(end):
            found.append(f"{count} files h-*.{end}, not {expected.get(end)}: {sorted(files)}")
    of_zygotes = [file for file in files if file.startswith("z-") and file.endswith(".sock")]
    if len(of_zygotes) != len(zygotes):
        found.append(f"{of_zygotes} for {len(zygotes)} zygotes")
    # A number follows the key of an environment that has, or had, more than one.
    keys = Counter(re.split("[-.]", file)[1] for file in of_zygotes)
    found += [f"{count} zygotes of {key}" for key, count in keys.items() if count > 1]
    usual = ("h-", "z-", "access.log", "daemon.log", "daemon.lock")
    found += [f"file {file}" for file in files if not file.startswith(usual)]
    return found


def wait_until_nothing_strays(daemon: TestDaemon) -> None:
    """Wait until everything that is there belongs to something."""
    last: list[str] = []

    def look() -> bool:
        last[:] = strays(daemon)
        return not last

    try:
        wait_until(look, every=0.03)
    except AssertionError:
        raise AssertionError(f"left behind: {last}") from None
