"""A wall clock that jumps by days changes printed times and nothing else."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"
"""Where Debian's package `libfaketime` has it."""
DAY = 24 * 3600
BLOCK = "os.read(os.pipe()[0], 1)"
"""Waits for ever; the library does not let `time.sleep` work on every Python."""


class Clock:
    """The wall clock of a daemon and its sessions; the monotonic one is the system's."""

    def __init__(self, library: str, path: Path) -> None:
        self.path = path
        self.set(0)
        self.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, days: int) -> None:
        """Let it be so many days late or early."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{days:+}d\n")
        os.replace(new, self.path)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock that can be set."""
    found = glob.glob(LIBRARIES)
    if not found:
        pytest.skip("libfaketime is not installed (Debian package libfaketime)")
    return Clock(found[0], tmp_path / "clock")


def days_off(session: Session) -> int:
    """Return by how many days the clock of a session is wrong."""
    return round((float(session.value("time.time()")) - time.time()) / DAY)


@pytest.mark.parametrize("days", [3, -3], ids=["forward", "back"])
def test_a_jump_of_days_ends_expires_and_drops_nothing(
    make_daemon: Callable[..., TestDaemon], clock: Clock, days: int
) -> None:
    daemon = make_daemon(**clock.environment).start()
    session, other = daemon.new("work"), daemon.new("other")
    assert days_off(session) == 0
    known = [session.run("print('kept')")["cell_id"] for _ in range(5)]
    keyed = session.submit("run", "print('once')", "--id=key")["cell_id"]
    session.out("import threading; gate = threading.Event()")
    # All these wait for an hour, or for ever, while the clock jumps.
    fired = session.submit("fire", "gate.wait(); 'fired'", "--timeout=3600")["cell_id"]
    forked = session.submit("fork", BLOCK, "--timeout=3600")["cell_id"]
    slow = daemon.connect()
    slow.send("run work --json --timeout=3600 --wait=3600\ngate.wait(); 'ran'")
    short = daemon.connect()
    waiting = daemon.connect()
    waiting.send(f"wait work --json {fired}")
    follower = daemon.connect()
    follower.send("events")
    assert json.loads(follower.receive())["event"] == "ready"
    wait_until(lambda: len(running(session)) == 3, what="all of them run")
    short.send(f"run other --json --timeout=2\n{BLOCK}")
    wait_until(lambda: running(other), what="the cell with a short time-out runs")

    clock.set(days)
    wait_until(lambda: printed_days(daemon) == days, what="the daemon sees the new time")
    # A time-out is as long as it was.
    reply = json.loads(short.receive(40))
    assert (reply["status"], reply["timed_out"]) == ("interrupted", True), reply
    assert 1500 < reply["duration_ms"] < 600_000
    assert days_off(other) == days
    assert set(running(session)) == {fired, forked, slow_cell(session)}
    for wire in (slow, waiting):
        with pytest.raises(TimeoutError):
            wire.receive(0.5)
    # What is remembered is remembered, within its budgets and by its keys.
    listed = session.ask("cells")
    assert listed["forgotten"] == 0
    assert {cell["cell_id"] for cell in listed["cells"]} >= {*known, keyed}
    assert session.ask("out", known[0])["stdout"] == "kept\n"
    again = other.daemon.json("run work --json --id=key --detach\nprint('once')")
    assert (again["cell_id"], again["existing"]) == (keyed, True)
    # The next daemon takes over what runs.
    daemon.crash()
    daemon.start()
    assert set(daemon.list()) == {"work", "other"}
    session = Session(daemon, "work", session.created)
    assert set(running(session)) == {fired, forked, slow_cell(session)}
    ran = slow_cell(session)
    beside = session.fire("gate.set()")
    assert session.ended(beside)["status"] == "done"
    for cell, result in ((fired, "'fired'"), (ran, "'ran'")):
        end = session.ended(cell)
        assert (end["status"], end["result"]) == ("done", result.strip("'")), end
        assert 0 < end["duration_ms"] < 600_000
    session.interrupt(forked)
    assert session.ended(forked)["status"] == "killed"
    assert days_off(session) == days
    history = daemon.session_directory("work") / "history.py"
    printed = time.strftime("# [%Y-%m-%d", time.localtime(time.time() + days * DAY))
    # So does the host itself, not only its Python.
    assert session.run("1")["started_at"].startswith(utc_day(days))
    session.out("after = 1")
    wait_until(lambda: printed in history.read_text(), what="the new time is printed")


def utc_day(days: int) -> str:
    """Return the date so many days from now."""
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * DAY))


def running(session: Session) -> list[str]:
    """Return the cells that run."""
    return [cell for cell, it in session.cells().items() if it["status"] == "running"]


def slow_cell(session: Session) -> str:
    """Return the `run` cell that runs."""
    [cell] = [
        cell
        for cell, it in session.cells().items()
        if (it["kind"], it["status"]) == ("run", "running")
    ]
    return cell


def printed_days(daemon: TestDaemon) -> int:
    """Return by how many days the times are wrong that the daemon prints."""
    daemon.info()
    line = daemon.access_log().read_text().splitlines()[-1]
    printed = line.split("ts=")[1].split("T")[0]
    noon = time.mktime(time.strptime(f"{printed} 12", "%Y-%m-%d %H"))
    today = time.mktime(time.strptime(time.strftime("%Y-%m-%d 12", time.gmtime()), "%Y-%m-%d %H"))
    return round((noon - today) / DAY)
