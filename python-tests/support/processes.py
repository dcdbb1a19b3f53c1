"""Finding the processes that a test caused, and only those."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

MARK = "TEST_RUN_MARK"
"""Name of the environment variable that every process of a test run inherits."""


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended and only waits to be reaped."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    return stat.rpartition(b")")[2].split()[:1] == [b"Z"]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    return Path(f"/proc/{pid}").exists() and not is_zombie(pid)


def command_line(pid: int) -> str:
    """Return a process's arguments, joined by blanks."""
    return (
        _read(Path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    )


def marked(*needles: str) -> dict[int, str]:
    """Find living processes whose start environment or arguments hold a needle.

    Returns:
        Command lines by process id; the calling process is left out.
    """
    wanted = [needle.encode() for needle in needles]
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        text = _read(entry / "environ") + b"\0" + _read(entry / "cmdline")
        if any(needle in text for needle in wanted) and is_alive(int(entry.name)):
            found[int(entry.name)] = command_line(int(entry.name)) or entry.name
    return found


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_files(pid: int) -> list[str]:
    """Return what the descriptors of a process are of."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry.path))
    return found


def socket_between(pid: int, other: int) -> Path:
    """The one unix socket of a process whose other end a second one has, as /proc names it."""
    listed = subprocess.run(["ss", "-xpH"], capture_output=True, text=True, check=True).stdout
    # Kind, state, two queues, address and inode here, address and inode there, users.
    sockets = [line.split() for line in listed.splitlines()]
    theirs = {words[5] for words in sockets if f"pid={other}," in words[-1]}
    mine = [words for words in sockets if f"pid={pid}," in words[-1]]
    (found,) = [words[5] for words in mine if words[7] in theirs]
    return Path(f"socket:[{found}]")


def threads(pid: int) -> int:
    """Count the threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def memory(pid: int) -> int:
    """Return the resident memory of a process that is its own, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"the kernel does not tell the memory of process {pid}")


def children(pid: int) -> set[int]:
    """Return the living descendants of a process."""
    by_parent: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _read(entry / "stat").rpartition(b")")[2].split()
            if len(fields) > 1 and fields[0] != b"Z":
                by_parent.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in by_parent.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def end(pids: list[int] | set[int] | dict[int, str]) -> None:
    """Kill processes by id; those that are gone already are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
