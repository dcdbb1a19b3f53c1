"""Zygotes that break: their lane is opened again, or another Python is started, with a word."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import faults, kills, processes
from support.daemon import TestDaemon
from support.waiting import wait_until

WHY_NOT = faults.why_not()


def zygotes(daemon: TestDaemon) -> list[int]:
    """Return the process ids of the zygotes that the daemon knows."""
    return [zygote["pid"] for zygote in daemon.info()["zygotes"]]


@pytest.fixture
def daemon(make_daemon: Callable[..., TestDaemon]) -> Iterator[TestDaemon]:
    """A daemon with one zygote, nothing of which is left after its end."""
    daemon = make_daemon().start()
    daemon.new("early").out("x = 41")
    yield daemon
    daemon.stop()
    wait_until(lambda: not daemon.processes(), what="nothing is left")


def works_and_its_end_is_told(daemon: TestDaemon, name: str) -> None:
    """Check that a session works and that the cause of its death is found."""
    assert daemon.json(f"run {name} --json\n6 * 7")["result"] == "42"
    os.kill(daemon.list()[name]["pid"], signal.SIGSEGV)
    wait_until(lambda: daemon.list()[name]["state"] == "dead")
    assert daemon.list()[name]["cause"] == "killed by SIGSEGV (segmentation fault)"


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.parametrize(
    ("side", "number"),
    # What the daemon receives: the command, that nothing was installed, the host.
    [("daemon", 2), ("daemon", 3), ("zygote", 1), ("zygote", 2)],
)
def test_a_lane_that_breaks_is_opened_again_and_causes_of_death_are_told(
    daemon: TestDaemon, side: str, number: int
) -> None:
    [zygote] = zygotes(daemon)
    kills.wait_for_spares(daemon)
    ends = [daemon.pid, zygote] if side == "daemon" else [zygote, daemon.pid]
    lane = processes.socket_between(*ends)
    broke = f"the lane of zygote pid={zygote} broke"
    with daemon.connect() as wire:
        # Calls are counted for each thread, and any of the daemon's may read the lane.
        with faults.injected(ends[:1], "recvfrom", "ENOMEM", str(number), lane) as injection:
            for name in [f"asked-{turn}" for turn in range(20)]:
                answer = wire.ask(f"new {name} --json", 45)
                if broke in daemon.log.read_text(errors="replace"):
                    break
        assert injection.happened
    assert broke in daemon.log.read_text(errors="replace")
    assert '"ok":true' in answer, answer
    assert "cold_reason" not in answer
    works_and_its_end_is_told(daemon, name)
    assert zygotes(daemon) == [zygote]
    made = daemon.new("late")
    assert "cold_reason" not in made.created
    kills.wait_until_nothing_strays(daemon)
    works_and_its_end_is_told(daemon, "early")
    works_and_its_end_is_told(daemon, "late")


def test_a_zygote_that_was_killed_is_replaced_with_a_word(daemon: TestDaemon) -> None:
    [zygote] = zygotes(daemon)
    os.kill(zygote, signal.SIGKILL)
    made = daemon.new("late").created
    assert made["start"] == "cold"
    assert made["cold_reason"] == f"the zygote (pid {zygote}) is gone"
    # The word is said once.
    assert "cold_reason" not in daemon.new("later").created
    assert daemon.json("run early --json\nx + 1")["result"] == "42"
    kills.wait_until_nothing_strays(daemon)


def test_a_zygote_that_is_stopped_is_replaced_with_a_word_and_reports_when_it_goes_on(
    daemon: TestDaemon,
) -> None:
    [zygote] = zygotes(daemon)
    os.kill(zygote, signal.SIGSTOP)
    try:
        made = daemon.new("late").created
        assert made["start"] == "cold"
        assert made["cold_reason"] == f"the zygote (pid {zygote}) is stopped (SIGSTOP)"
        assert "cold_reason" not in daemon.new("later").created
    finally:
        os.kill(zygote, signal.SIGCONT)
    works_and_its_end_is_told(daemon, "early")
    works_and_its_end_is_told(daemon, "late")
    # It has no more to do.
    wait_until(lambda: not processes.is_alive(zygote), what="the old zygote is gone")
    kills.wait_until_nothing_strays(daemon)


def test_a_zygote_that_is_stopped_does_not_outlive_the_daemon(daemon: TestDaemon) -> None:
    [zygote] = zygotes(daemon)
    os.kill(zygote, signal.SIGSTOP)
    daemon.stop()
    wait_until(lambda: not daemon.processes(), what="nothing is left")
    daemon.start()


def test_a_zygote_that_is_stopped_when_a_daemon_starts_is_taken_over_when_it_goes_on(
    daemon: TestDaemon,
) -> None:
    [zygote] = zygotes(daemon)
    daemon.crash()
    # Earlier the kernel would let it go on: it is orphaned by the daemon's end.
    os.kill(zygote, signal.SIGSTOP)
    try:
        daemon.start()
        assert daemon.json("run early --json\nx + 1")["result"] == "42"
        made = daemon.new("late").created
        assert "does not answer" in made["cold_reason"]
    finally:
        os.kill(zygote, signal.SIGCONT)
    wait_until(lambda: zygote in zygotes(daemon), what="the old zygote is known")
    works_and_its_end_is_told(daemon, "early")
    works_and_its_end_is_told(daemon, "late")
    wait_until(lambda: not processes.is_alive(zygote), what="the old zygote is gone")
    kills.wait_until_nothing_strays(daemon)


POISON = {
    "children_that_end_at_once": (
        "os.register_at_fork(after_in_child=lambda: os._exit(3))",
        "exited with status 3",
    ),
    "children_that_are_killed": (
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), 11))",
        "killed by SIGSEGV",
    ),
    "a_zygote_that_ends_when_it_forks": (
        "os.register_at_fork(before=lambda: os._exit(3))",
        "is gone",
    ),
    "a_zygote_that_hangs_when_it_forks": (
        "import time; os.register_at_fork(before=lambda: time.sleep(100000))",
        "does not answer",
    ),
    "a_zygote_that_stops_itself_when_it_forks": (
        "os.register_at_fork(before=lambda: os.kill(os.getpid(), 19))",
        "is stopped",
    ),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_zygote_that_is_poisoned_by_a_preload_gives_sessions_that_start_cold_with_a_word(
    daemon: TestDaemon, tmp_path: Path, poison: tuple[str, str]
) -> None:
    code, word = poison
    (tmp_path / "poison.py").write_text(f"import os\n{code}\n")
    options = {"preload": ["poison"], "env": {"PYTHONPATH": str(tmp_path)}}
    for number in range(2):
        session = daemon.new(f"s{number}", **options)
        assert session.created["start"] == "cold", session.created
        if number == 0:
            assert word in session.created["cold_reason"] or (
                "did not come up" in session.created["cold_reason"]
            ), session.created
        assert session.out("import sys; print('poison' in sys.modules)") == "True\n"
    works_and_its_end_is_told(daemon, "s1")
    assert daemon.json("run early --json\nx + 1")["result"] == "42"


def test_a_spare_that_is_being_made_at_a_stop_is_gone_with_the_daemon(
    daemon: TestDaemon, tmp_path: Path
) -> None:
    slow, born = tmp_path / "slow", tmp_path / "born"
    # A folder whose content changes would have the environment made anew.
    path = tmp_path / "path"
    path.mkdir()
    (path / "newborn.py").write_text(
        "import os, random, time\n"
        "def linger():\n"
        f"    if os.path.exists({str(slow)!r}):\n"
        f"        open({str(born)!r}, 'w').close()\n"
        "        time.sleep(30)\n"
        # What a process does to be unlike the one that it was forked from.
        "random.seed = linger\n"
    )
    options = {"preload": ["newborn"], "env": {"PYTHONPATH": str(path)}}
    assert daemon.new("first", **options).created["start"] in ("fork", "spare")
    wait_until(lambda: len(kills.spares(daemon)) == 6, what="two environments have their spares")
    slow.touch()
    daemon.new("second", **options)
    wait_until(born.exists, what="a spare is being made")
    assert daemon.stop() == 0
    assert daemon.processes() == {}
    assert not [path for path in daemon.runtime.rglob("h-*") if path.is_file()]
