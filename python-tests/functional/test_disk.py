"""Disks that are full, read-only, without inodes, slow or broken: cells go on."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


class Disk:
    """A file system of its own under a session's directory."""

    def __init__(self, place: Path, options: str) -> None:
        self.place = place
        for directory in (place.parent.parent, place.parent, place):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.mount("-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", str(place))

    @staticmethod
    def mount(*words: str) -> None:
        """Call mount, which must succeed."""
        subprocess.run(["mount", *words], check=True, capture_output=True)

    def again(self, options: str) -> None:
        """Mount it with other options."""
        self.mount("-o", f"remount,{options}", str(self.place))

    def fill(self) -> None:
        """Leave no block free."""
        with contextlib.suppress(OSError), (self.place / "ballast").open("ab", 0) as file:
            while True:
                file.write(bytes(4096))
        assert os.statvfs(self.place).f_bfree == 0

    def free(self) -> None:
        """Make room again."""
        (self.place / "ballast").unlink()

    def leave(self) -> None:
        """Take it away, also while a session still uses it."""
        subprocess.run(["umount", "-l", str(self.place)], check=True, capture_output=True)

    def history(self) -> str:
        """Return what is recorded, which must parse whenever one looks."""
        path = self.place / "history.py"
        text = path.read_text() if path.exists() else ""
        ast.parse(text)
        return text

    def parses(self) -> bool:
        """Whether what is recorded parses."""
        with contextlib.suppress(SyntaxError):
            self.history()
            return True
        return False

    def log(self) -> str:
        """Return the session's log."""
        path = self.place / "session.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def disk(daemon: TestDaemon) -> Iterator[Callable[[str, str], Disk]]:
    """Mount disks under sessions' directories."""
    made: list[Disk] = []

    def make(name: str, options: str) -> Disk:
        made.append(Disk(daemon.session_directory(name), options))
        return made[-1]

    yield make
    for disk in made:
        if disk.place.is_mount():
            disk.leave()


def told(session: Session, *why: str) -> None:
    """Wait until reply and status say that nothing is recorded, and why."""
    # The last page of a file may have room for a short one.
    long = "1 # " + "x" * 9000

    def says(reply: dict) -> bool:
        assert reply["ok"], reply
        return reply.get("not_recorded", "").startswith(why)

    wait_until(lambda: says(session.run(long)), what=f"a reply says {why!r}")
    wait_until(lambda: says(session.status()), what=f"the status says {why!r}")


def resumes(session: Session, disk: Disk) -> None:
    """Wait until recording goes on by itself."""

    def recorded() -> bool:
        session.out("back = 1")
        return "back = 1" in disk.history() and "back = 1" in disk.log()

    wait_until(recorded, what="recording goes on")
    wait_until(lambda: "not_recorded" not in session.status(), what="status is well again")


@needs_root
def test_a_full_disk_is_told_and_recording_resumes_with_a_mark(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    full = disk("work", "size=256k")
    session = daemon.new("work")
    session.out("before = 1")
    wait_until(lambda: "before = 1" in full.log(), what="the first cell is recorded")
    full.fill()
    for number in range(20):
        session.out("lost = [\n" + f"    {number},\n" * 300 + "]")
        full.history()
    told(session, "no space")
    done = daemon.pysh("run", "work", "2 + 2 # " + "x" * 9000)
    assert done.stdout == "4\n"
    assert "not recorded: no space" in done.stderr
    history, log = full.history(), full.log()
    assert log.count("\n# [") == log.count("OK\n")
    full.free()
    resumes(session, full)
    assert full.history().startswith(history)
    assert full.log().startswith(log)
    assert "NOT RECORDED: " in full.history()
    assert re.search(
        r"NOT RECORDED: \d+ cells?: no space \(cannot write `session.log`\)\n", full.log()
    )


@needs_root
def test_no_record_is_torn_at_any_size_of_a_full_disk(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    """The disk is full at another byte of a record each time."""
    small = disk("work", "size=128k")
    session = daemon.new("work")
    for number in range(60):
        session.out(f"n{number} = '''\n" + "x\n" * (700 * (number % 9)) + "'''")
        # One that is longer than a page is seen in part while it is written.
        wait_until(small.parses, what="the history parses")
    told(session, "no space")
    records = small.log().split("\n# [")[1:]
    for record in records:
        assert record.count("'''") in (0, 2), record[:80]


@needs_root
def test_a_read_only_disk_is_told_and_recording_resumes(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1m")
    session = daemon.new("work")
    session.out("before = 1")
    wait_until(lambda: "before = 1" in mounted.log(), what="the first cell is recorded")
    # A session holds a file open there, so the disk itself cannot be made so.
    above = disk("work", "ro")
    told(session, "read-only file system")
    above.leave()
    resumes(session, mounted)


@needs_root
def test_a_disk_without_inodes_is_told_and_recording_resumes(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1m,nr_inodes=2")
    session = daemon.new("work")
    told(session, "no space")
    assert mounted.history() == ""
    mounted.again("nr_inodes=100")
    resumes(session, mounted)


@needs_root
def test_output_that_no_file_takes_is_counted_and_told(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=3m")
    session = daemon.new("work")
    cell = session.fire("for _ in range(200): print('x' * 99_999)")
    reply = session.ended(cell)
    assert reply["status"] == "done"
    assert reply["output_bytes"] == 20_000_000
    assert reply["truncated"] > 10_000_000
    assert reply["not_recorded"].startswith("no space")
    piece = session.ask("out", f"{cell} --since=19999000")
    assert piece["stdout"] == "x" * 999 + "\n"
    whole = daemon.json(f"out work --json {cell} --max=1000")
    assert whole["missing"] + len(whole["stdout"]) + (20_000_000 - whole["next"]) == 20_000_000
    for path in mounted.place.glob("*.out"):
        path.unlink()
    session.out("print('y' * 2_000_000)")
    resumes(session, mounted)


@needs_root
@needs_strace
@pytest.mark.parametrize("call", ["write", "pwrite64", "openat", "ftruncate"])
def test_a_call_that_fails_with_an_error_of_the_disk_is_told(
    daemon: TestDaemon, disk: Callable[[str, str], Disk], call: str
) -> None:
    mounted = disk("work", "size=256k")
    session = daemon.new("work")
    session.out("before = 1")
    wait_until(lambda: "before = 1" in mounted.log(), what="the first cell is recorded")
    paths = [mounted.place, *mounted.place.iterdir(), mounted.place / "appending"]
    with tracing(session.pid, paths, f"inject={call}:error=EIO"):
        if call == "ftruncate":
            # It is called only where a write has failed.
            mounted.fill()
            told(session, "no space", "input/output error")
            mounted.free()
        else:
            told(session, "input/output error")
        mounted.history()
    resumes(session, mounted)


FOR_EVER = "delay_enter=600000000"
"""Far longer than a test takes."""
SLOW_CALLS = "write,pwrite64,pread64,read,openat,openat2,mkdirat,ftruncate,fsync,fdatasync"


@needs_root
@needs_strace
def test_a_disk_that_does_not_answer_costs_nothing_but_the_records(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1g")
    session, other = daemon.new("work"), daemon.new("other")
    session.out("before = 1")
    wait_until(lambda: "before = 1" in mounted.log(), what="the first cell is recorded")
    long = session.run("print('y' * 5_000_000)")["cell_id"]
    memory = peak_memory(session.pid)
    with tracing(session.pid, [mounted.place, *mounted.place.iterdir()], slow(FOR_EVER)):
        session.out("stuck = 1")
        wait_until(
            lambda: session.status().get("not_recorded") == "slow disk", what="the status tells it"
        )
        flood = "for _ in range(300): print('x' * 99_999)"
        beside = session.fire("print('beside')")
        reply = session.run(flood)
        assert reply["status"] == "done", reply
        assert (reply["output_bytes"], reply["not_recorded"]) == (30_000_000, "slow disk")
        assert reply["truncated"] > 15_000_000
        assert len(reply["stdout"]) + reply["truncated"] == 30_000_000
        assert session.ended(beside)["stdout"] == "beside\n"
        assert session.ask("out", f"{long} --max=100")["stdout"] == "y" * 100
        piece = daemon.json(f"out work --json {long} --since=2000000 --max=100")
        assert piece["missing"] > 0, "it is on the disk"
        child = session.run("subprocess.run(['head', '-c', '30000000', '/dev/zero'])")
        assert child["output_bytes"] > 30_000_000
        # More than may wait.
        for number in range(4):
            session.out(f"n{number} = '" + "x" * (2 << 20) + "'")
        assert session.value("n3 == 'x' * (2 << 20)") == "True"
        assert other.out("print('other')") == "other\n"
        assert peak_memory(session.pid) - memory < 100_000
        assert other.status().get("not_recorded") is None
    resumes(session, mounted)
    assert re.search(r"NOT RECORDED: \d+ cells?: slow disk\n", mounted.log())
    assert "before = 1" in mounted.history()
    assert "n3 = '" not in mounted.history()
    # The disk answers again: what it has can be read.
    piece = daemon.json(f"out work --json {long} --since=2000000 --max=100")
    assert (piece["missing"], piece["stdout"]) == (0, "y" * 100)
    assert "not_recorded" not in session.run("print('z' * 2_000_000)")


@needs_root
@needs_strace
def test_a_slow_disk_is_waited_for_a_little_and_then_left_behind(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1g")
    session = daemon.new("work")
    session.out("before = 1")
    wait_until(lambda: "before = 1" in mounted.log(), what="the first cell is recorded")
    with tracing(session.pid, [mounted.place], "inject=openat,openat2:delay_enter=700000"):
        reply = session.run("for _ in range(600): print('x' * 99_999)", timeout=90)
        assert reply["status"] == "done", reply
        assert reply["output_bytes"] == 60_000_000
        assert reply["not_recorded"].startswith("slow disk")
        assert reply["truncated"] > 0
    resumes(session, mounted)


def test_what_ran_last_is_recorded_when_the_session_is_ended(daemon: TestDaemon) -> None:
    for number in range(5):
        session = daemon.new("work")
        session.out(f"last = {number}")
        session.kill()
        assert f"last = {number}" in (daemon.session_directory("work") / "history.py").read_text()


def slow(delay: str) -> str:
    """Let calls about the session's files take long."""
    return f"inject={SLOW_CALLS}:{delay}"


def peak_memory(pid: int) -> int:
    """Return the most memory that a process had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@contextlib.contextmanager
def tracing(pid: int, paths: list[Path], *faults: str) -> Iterator[subprocess.Popen]:
    """Let strace meddle with a process's calls that are about these paths."""
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid)]
    for path in dict.fromkeys(paths):
        words += ["-P", str(path)]
    for fault in faults:
        words += ["-e", fault]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(
            lambda: tracer.poll() is not None or traced(pid), what="strace watches the session"
        )
        assert tracer.poll() is None, tracer.stderr.read()
        yield tracer
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(20)
        # One that died with what it traced may wait for it for ever.
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def traced(pid: int) -> bool:
    """Return whether each thread of a process has a tracer."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


@needs_root
@needs_strace
def test_a_host_killed_while_it_writes_leaves_no_torn_record(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    """The host is killed at each call, also between two writes of one record."""
    mounted = disk("work", "size=256k")
    ends, torn = set(), 0
    for when in range(1, 9):
        for call in ("write", "pwrite64"):
            session = daemon.new("work")
            session.out(f"number = {when}")
            wait_until(
                lambda now=f"number = {when}": now in mounted.log().rsplit("\n# [", 1)[-1],
                what="the cell is recorded",
            )
            mounted.fill()
            with (mounted.place / "ballast").open("r+b") as ballast:
                ballast.truncate((mounted.place / "ballast").stat().st_size - 8192)
            paths = [mounted.place / name for name in ("history.py", "session.log", "appending")]
            kill = f"inject={call}:signal=SIGKILL:when={when}"
            with tracing(session.pid, paths, kill):
                session.wire.send("run work --json\nlong = '''\n" + "line\n" * 6000 + "'''")
                session.wire.receive()
                with contextlib.suppress(OSError, AssertionError):
                    settled(session, mounted, "long = ")
                    for source in ("2 # second", "3 # third"):
                        session.run(source, timeout=20)
                        settled(session, mounted, source)
                ends.add(session.status()["state"])
            mounted.free()
            daemon.json("kill work --json")
            try:
                mounted.history()
            except SyntaxError:
                torn += 1
            after = daemon.new("work")
            after.out("after = 1")
            wait_until(
                lambda: "after = 1" in mounted.log().rsplit("\n# [", 1)[-1],
                what="the next session records",
            )
            assert mounted.history().count("long = '''") * 2 == mounted.history().count("'''")
            for record in mounted.log().split("\n# [")[1:]:
                assert record.count("'''") in (0, 2), record[-200:]
            after.kill()
            for name in ("history.py", "session.log"):
                (mounted.place / name).unlink()
    assert "dead" in ends
    assert torn, "no kill was in the midst of a record"


def settled(session: Session, disk: Disk, source: str) -> None:
    """Wait until a cell is recorded, or cannot be."""

    def over() -> bool:
        status = session.status()
        told = "not_recorded" in status or status["state"] == "dead"
        return told or source in disk.log().rsplit("after = 1", 1)[-1]

    wait_until(over, what="the cell is recorded or told")


@needs_root
def test_a_torn_record_is_taken_away_by_the_next_session(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1m")
    session = daemon.new("work")
    session.out("whole = 1")
    wait_until(lambda: "whole = 1" in mounted.log(), what="the cell is recorded")
    session.kill()
    torn_file(mounted.place, 1, "history.py", "\n# [2026-01-31 12:00:00]\ntorn = [1,\n")
    with pytest.raises(SyntaxError):
        mounted.history()
    after = daemon.new("work")
    wait_until(lambda: "torn" not in (mounted.place / "history.py").read_text(), what="it is gone")
    after.out("after = 1")
    wait_until(lambda: "after = 1" in mounted.log(), what="the next session records")
    assert "whole = 1" in mounted.history()
    assert "NOT RECORDED: what was being written when the session died" in mounted.log()


@needs_root
def test_what_a_person_added_to_the_history_is_never_taken_away(
    daemon: TestDaemon, disk: Callable[[str, str], Disk]
) -> None:
    mounted = disk("work", "size=1m")
    session = daemon.new("work")
    session.out("whole = 1")
    wait_until(lambda: "whole = 1" in mounted.log(), what="the cell is recorded")
    with (mounted.place / "history.py").open("a") as file:
        file.write("mine = 1\n")
    session.kill()
    daemon.new("work").out("after = 1")
    wait_until(lambda: "after = 1" in mounted.log(), what="the next session records")
    assert "mine = 1" in mounted.history()


def torn_file(place: Path, number: int, name: str, torn: str) -> None:
    """Leave what a host leaves that is killed in the midst of an append."""
    before = (place / name).stat().st_size
    with (place / name).open("a") as file:
        file.write(torn)
    words = [number, before, before + len(torn) + 100]
    total = int.from_bytes(b"ptdappn1", "little")
    note = [total]
    for word in words:
        total = (total ^ word) * 0x100000001B3 % (1 << 64)
        total = (total << 29 | total >> 35) % (1 << 64)
    note += [*words, total]
    with (place / "appending").open("r+b") as file:
        file.write(b"".join(word.to_bytes(8, "little") for word in note))
