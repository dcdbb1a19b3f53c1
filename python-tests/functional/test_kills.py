"""Processes of ours that are killed at every step of what they do: nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from websockets.exceptions import WebSocketException

from support import faults, kills, processes
from support.daemon import TestDaemon
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))

WHY_NOT = faults.why_not()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.timeout(3600 if TORTURE else 300),
]


# A question is answered within this, whatever dies.
PATIENCE = 45.0


def submit(daemon: TestDaemon, text: str, pid: int, call: str, number: int) -> str | None:
    """Ask on an open connection while a process is about to be killed; None if that cut it."""
    with daemon.connect() as wire, kills.killed_at(pid, call, number):
        with contextlib.suppress(WebSocketException, OSError):
            return wire.ask(text, PATIENCE)
    return None


def is_there(daemon: TestDaemon, name: str) -> bool:
    """Tell whether a name is a living session's."""
    return daemon.list().get(name, {"state": "dead"})["state"] != "dead"


def name_is_of_use(daemon: TestDaemon, name: str, options: str = "") -> None:
    """Check that a name's session works, or that a session can be made of it."""
    answer = daemon.ask(f"new {name}{options}")
    reply = daemon.json(f"run {name} --json\n6 * 7")
    if "already exists" in answer and not reply["ok"]:
        # It died a moment ago, which may be seen between the two questions.
        assert reply["error"]["code"] == "session_died", reply
        answer = daemon.ask(f"new {name}{options}")
        reply = daemon.json(f"run {name} --json\n6 * 7")
    assert answer.startswith(f"OK {name} ") or "already exists" in answer, answer
    assert reply["result"] == "42"


class Command:
    """A command whose daemon is killed, and what must be true afterwards."""

    def __init__(self, daemon: TestDaemon) -> None:
        self.daemon = daemon

    def prepare(self, name: str) -> None:
        """Make what the command needs."""

    def text(self, name: str) -> str:
        """Return the command."""
        raise NotImplementedError

    def settle(self, name: str) -> None:
        """Wait for what the command does after its answer."""

    def check(self, name: str, answer: str | None) -> None:
        """Check what the next daemon has; the answer is none if it did not come."""
        raise NotImplementedError


class New(Command):
    """`new` in an environment that is up."""

    def options(self, name: str) -> str:
        """Return the body of the command."""
        return ""

    def text(self, name: str) -> str:
        return f"new {name} --json{self.options(name)}"

    def check(self, name: str, answer: str | None) -> None:
        there = is_there(self.daemon, name)
        if answer is not None:
            assert there, f"{name} is lost: {answer}"
            assert self.daemon.list()[name]["pid"] == json.loads(answer)["pid"]
        name_is_of_use(self.daemon, name, self.options(name))


class NewElsewhere(New):
    """`new` in an environment that has to be brought up."""

    def options(self, name: str) -> str:
        return "\n" + json.dumps({"env": {"PYTHON_ELSEWHERE": name}})


class Replace(New):
    """`new --replace`."""

    def prepare(self, name: str) -> None:
        self.daemon.new(name)

    def text(self, name: str) -> str:
        return f"new {name} --json --replace"


class Kill(Command):
    """`kill`."""

    code = "x = 1"

    def prepare(self, name: str) -> None:
        self.daemon.new(name)
        self.daemon.ask(f"run {name} --detach\n{self.code}")

    def text(self, name: str) -> str:
        return f"kill {name} --json"

    def check(self, name: str, answer: str | None) -> None:
        if answer is not None:
            assert not is_there(self.daemon, name), f"{name} is there again after {answer}"
        self.daemon.ask(f"kill {name}")
        assert name not in self.daemon.list()
        name_is_of_use(self.daemon, name)


class KillStubborn(Kill):
    """`kill` of a session that does not end when it is asked to."""

    code = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "while True:\n    try: time.sleep(60)\n    except BaseException: pass"
    )


class Fork(Command):
    """`fork`."""

    def prepare(self, name: str) -> None:
        self.daemon.new(name)
        self.daemon.json(f"run {name} --json\nx, ran = 41, []")

    def text(self, name: str) -> str:
        return f"fork {name} --json --id=key\ny = x + 1"

    def settle(self, name: str) -> None:
        self.daemon.json(f"wait {name} --json --timeout=20")

    def check(self, name: str, answer: str | None) -> None:
        # The same key is the same cell, so that it ran once, whatever was lost.
        again = self.daemon.json(self.text(name))
        if answer is not None:
            assert again["cell_id"] == json.loads(answer)["cell_id"]
        waited = self.daemon.json(f"wait {name} --json --timeout=20 {again['cell_id']}")
        assert not waited["timed_out"]
        assert self.daemon.json(f"run {name} --json\ny")["result"] == "42"
        forks = [
            c for c in self.daemon.json(f"cells {name} --json")["cells"] if c["kind"] == "fork"
        ]
        assert len(forks) == 1, forks


class Attach(Command):
    """`attach`."""

    def prepare(self, name: str) -> None:
        self.daemon.new(name)

    def text(self, name: str) -> str:
        return f"attach {name} 24 80 --json"

    def check(self, name: str, answer: str | None) -> None:
        def is_alone() -> bool:
            with self.daemon.connect() as wire:
                return wire.json(self.text(name))["attached"] == 1

        wait_until(is_alone, what="nobody else is attached")
        name_is_of_use(self.daemon, name)


COMMANDS = [New, NewElsewhere, Replace, Kill, KillStubborn, Fork, Attach]


@pytest.fixture
def daemon(make_daemon: Callable[..., TestDaemon]) -> Iterator[TestDaemon]:
    """A daemon whose default environment is up."""
    daemon = make_daemon().start()
    daemon.new("neighbour")
    kills.wait_until_nothing_strays(daemon)
    yield daemon
    daemon.stop()
    wait_until(lambda: not daemon.processes(), what="nothing is left")


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_a_daemon_killed_at_any_step_of_a_command_leaves_nothing_behind(
    daemon: TestDaemon, kind: type[Command]
) -> None:
    command = kind(daemon)
    command.prepare("counted")
    with daemon.connect() as wire, kills.counted(daemon.pid) as calls:
        wire.ask(command.text("counted"))
    # All that a command needs at least: it was seen.
    assert calls["recvfrom"], calls
    assert calls["sendto"], calls
    daemon.json("run neighbour --json\nx = 41")
    killed = 0
    for round, (call, number) in enumerate(kills.steps(calls, TORTURE), 1):
        name = daemon.unused_name()
        command.prepare(name)
        answer = submit(daemon, command.text(name), daemon.pid, call, number)
        if answer is None:
            daemon.process.wait(20)
        killed += daemon.process.poll() is not None
        daemon.crash()
        daemon.start()
        try:
            command.check(name, answer)
            daemon.ask(f"kill {name}")
            kills.wait_until_nothing_strays(daemon)
        except Exception as error:
            raise AssertionError(f"killed at {call} {number}, answer {answer}") from error
        assert daemon.json("run neighbour --json\nx + 1")["result"] == "42"
        if kind is NewElsewhere and round % 8 == 0:
            # Environments are kept as long as there is a daemon.
            daemon.stop()
            daemon.start()
            daemon.new("neighbour")
            daemon.json("run neighbour --json\nx = 41")
    print(f"{kind.__name__}: {killed} kills at {sorted(calls)}")
    assert killed >= len(calls) / 2


def clear_answer(answer: str) -> dict[str, Any]:
    """Check that an answer is a success or says what is wrong."""
    reply = json.loads(answer)
    assert reply["ok"] or reply["error"]["message"], answer
    return reply


def zygote(daemon: TestDaemon) -> int:
    """Return the process id of the one zygote."""
    [found] = daemon.info()["zygotes"]
    return found["pid"]


@pytest.mark.parametrize("kind", [New, Kill, Fork], ids=lambda kind: kind.__name__)
def test_a_zygote_killed_at_any_step_of_a_command_is_replaced_and_leaves_nothing_behind(
    daemon: TestDaemon, kind: type[Command]
) -> None:
    command = kind(daemon)
    command.prepare("counted")
    kills.wait_for_spares(daemon)
    with daemon.connect() as wire, kills.counted(zygote(daemon)) as calls:
        wire.ask(command.text("counted"))
        # Its work goes on after the answer.
        kills.wait_for_spares(daemon)
    daemon.ask("kill counted")
    killed = 0
    for call, number in kills.steps(calls, TORTURE):
        name = daemon.unused_name()
        command.prepare(name)
        kills.wait_for_spares(daemon)
        victim = zygote(daemon)
        with daemon.connect() as wire, kills.killed_at(victim, call, number):
            answer = wire.ask(command.text(name), PATIENCE)
            kills.wait_for_spares_or_end(daemon, victim)
        killed += not processes.is_alive(victim)
        try:
            reply = clear_answer(answer)
            command.check(name, answer if reply["ok"] else None)
            daemon.ask(f"kill {name}")
            # An environment without a zygote gets one with the next session.
            daemon.new(name).kill()
            kills.wait_until_nothing_strays(daemon)
        except Exception as error:
            raise AssertionError(f"killed at {call} {number}, answer {answer}") from error
    print(f"{kind.__name__}: {killed} kills at {dict(calls)}")
    assert daemon.ask("run neighbour\n6 * 7") == "42"
    assert killed >= len(calls) / 2


def is_told(daemon: TestDaemon, name: str, pid: int) -> bool:
    """Tell whether the name is not of this dead process any more, or its cause is told."""
    entry = daemon.list().get(name)
    if entry is None or entry["pid"] != pid:
        return True
    if entry["state"] != "dead":
        return False
    assert entry["cause"] in ("killed by SIGKILL", "ended by `kill`"), entry
    return True


@pytest.mark.parametrize("kind", [New, Kill, Fork, Attach], ids=lambda kind: kind.__name__)
def test_a_host_killed_at_any_step_of_a_command_leaves_nothing_behind(
    daemon: TestDaemon, kind: type[Command]
) -> None:
    command = kind(daemon)

    def victim_of(name: str) -> int:
        command.prepare(name)
        oldest = kills.wait_for_spares(daemon)[0]
        return daemon.list()[name]["pid"] if is_there(daemon, name) else oldest

    victim = victim_of("counted")
    with daemon.connect() as wire, kills.counted(victim, "-f") as calls:
        wire.ask(command.text("counted"))
        command.settle("counted")
    daemon.ask("kill counted")
    killed = 0
    for call, number in kills.steps(calls, TORTURE):
        name = daemon.unused_name()
        victim = victim_of(name)
        with daemon.connect() as wire, kills.killed_at(victim, call, number, "-f"):
            answer = wire.ask(command.text(name), PATIENCE)
            command.settle(name)
        try:
            clear_answer(answer)
            if not processes.is_alive(victim):
                killed += 1
                wait_until(partial(is_told, daemon, name, victim), what="the end is told")
            name_is_of_use(daemon, name)
            daemon.ask(f"kill {name}")
            kills.wait_until_nothing_strays(daemon)
        except Exception as error:
            raise AssertionError(f"killed at {call} {number}, answer {answer}") from error
    print(f"{kind.__name__}: {killed} kills at {dict(calls)}")
    assert daemon.ask("run neighbour\n6 * 7") == "42"
