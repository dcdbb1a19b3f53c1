"""Random sequences of everything a client can do, against a model of what must be true.

The model knows which cells were accepted and what each of them adds to the
namespace. Whatever happens in between: every accepted cell ends exactly once,
its result can be fetched, no key runs twice, and the session is of use.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

ENDED = {"done", "failed", "interrupted"}

WORK = {
    "quick": "{mark}",
    "shows": "{mark}; print('out {n}'); {n}",
    "fails": "{mark}; raise ValueError({n})",
    "slow": "{mark}; time.sleep(0.05)",
    "endless": "{mark}\nwhile True: time.sleep(0.01)",
    "busy": "{mark}\nwhile True: len('x')",
    "flood": "{mark}\nfor _ in range(3000): print('x' * 300)",
    "endless_print": "{mark}\nwhile True: print('x' * 300)",
    "child": "{mark}; subprocess.run(['true'])",
    "sleeping_child": "{mark}; subprocess.run(['sleep', '30'])",
    "awaits": "{mark}; import asyncio; await asyncio.sleep(0.02)",
}
"""Each begins with noting that it ran."""

ENDLESS = {"endless", "busy", "endless_print", "sleeping_child"}


@dataclass
class Cell:
    """What the model knows of one accepted cell."""

    number: int
    work: str
    aimed_at: bool = False
    ended_as: str | None = None


class Sessions(RuleBasedStateMachine):
    """One session, its clients, and what must be true of them."""

    daemon: TestDaemon

    def __init__(self) -> None:
        super().__init__()
        self.session: Session = self.daemon.new()
        self.start()

    def start(self) -> None:
        """Begin with an empty namespace."""
        self.session.out("ran = []")
        self.cells: dict[str, Cell] = {}
        self.keys: dict[str, tuple[str, str, str]] = {}
        self.number = 0

    def code(self, work: str) -> str:
        """Return the source of the next cell."""
        self.number += 1
        return WORK[work].format(mark=f"ran.append({self.number})", n=self.number)

    def accepted(self, reply: dict, work: str) -> None:
        """Note a cell that the daemon has taken."""
        assert reply.get("cell_id"), reply
        assert reply["cell_id"] not in self.cells, reply
        self.cells[reply["cell_id"]] = Cell(self.number, work)

    def running(self) -> list[str]:
        """Return the cells that the model does not know to have ended."""
        return [cell for cell, known in self.cells.items() if known.ended_as is None]

    def look(self, cell: str) -> None:
        """Compare a cell with the model; an end is for ever."""
        reply = self.session.poll(cell)
        known = self.cells[cell]
        if known.ended_as:
            assert reply["status"] == known.ended_as, reply
        elif reply["status"] in ENDED:
            known.ended_as = reply["status"]
            if not known.aimed_at:
                assert known.work not in ENDLESS, reply
                want = "failed" if known.work == "fails" else "done"
                assert reply["status"] == want, reply
                if known.work == "shows":
                    assert reply["stdout"] == f"out {known.number}\n{known.number}\n"
            if known.work == "flood" and reply["status"] == "done":
                assert reply["output_bytes"] == 3000 * 301
        else:
            assert reply["status"] in ("queued", "running"), reply

    # What clients do.

    @rule(work=st.sampled_from(sorted(WORK)))
    def fire(self, work: str) -> None:
        self.accepted(self.session.submit("fire", self.code(work)), work)

    @rule(work=st.sampled_from(sorted(WORK)))
    def fire_in_order(self, work: str) -> None:
        self.accepted(self.session.submit("fire", self.code(work), "--queue"), work)

    @rule(work=st.sampled_from(sorted(WORK)))
    def run_detached(self, work: str) -> None:
        self.accepted(self.session.submit("run", self.code(work), "--detach"), work)

    @rule(work=st.sampled_from(sorted(WORK)))
    def run_and_wait_a_moment(self, work: str) -> None:
        self.accepted(self.session.submit("run", self.code(work), "--wait=0.05"), work)

    @rule(work=st.sampled_from(sorted(WORK)))
    def run_with_a_limit(self, work: str) -> None:
        reply = self.session.submit("run", self.code(work), "--timeout=0.1 --detach")
        self.accepted(reply, work)
        self.cells[reply["cell_id"]].aimed_at = True

    @rule(work=st.sampled_from(sorted(WORK)), cancels=st.booleans())
    def run_and_vanish(self, work: str, cancels: bool) -> None:
        option = " --cancel-on-disconnect" if cancels else ""
        code = self.code(work)
        with self.daemon.connect() as wire:
            wire.send(f"run {self.session.name} --stream{option}\n{code}")
            accepted = json.loads(wire.receive())
            self.accepted(accepted, work)
            self.cells[accepted["cell_id"]].aimed_at = cancels
            wire.socket.socket.shutdown(2)

    @rule(
        work=st.sampled_from(sorted(WORK)),
        key=st.sampled_from("abc"),
        verb=st.sampled_from(["run", "fire"]),
    )
    def submit_with_a_key(self, work: str, key: str, verb: str) -> None:
        if key in self.keys:
            cell, verb, code = self.keys[key]
            reply = self.session.submit(verb, code, f"--id={key}" + " --detach" * (verb == "run"))
            assert reply["cell_id"] == cell, reply
            refused = self.session.submit(verb, code + " ", f"--id={key}")
            assert refused["error"]["code"] == "id_reused", refused
        else:
            code = self.code(work)
            reply = self.session.submit(verb, code, f"--id={key}" + " --detach" * (verb == "run"))
            self.accepted(reply, work)
            self.keys[key] = (reply["cell_id"], verb, code)

    @rule(pick=st.integers(0, 1000))
    @precondition(lambda self: self.cells)
    def interrupt_one(self, pick: int) -> None:
        cell = list(self.cells)[pick % len(self.cells)]
        # Told before, as the cell may end at once.
        if self.cells[cell].ended_as is None:
            self.cells[cell].aimed_at = True
        reply = self.session.interrupt(cell)
        assert set(reply["interrupted"]) <= {cell}, reply

    @rule()
    def interrupt_all(self) -> None:
        for cell in self.running():
            self.cells[cell].aimed_at = True
        reply = self.session.interrupt()
        assert set(reply["interrupted"]) <= set(self.cells), reply

    @rule(pick=st.integers(0, 1000))
    @precondition(lambda self: self.cells)
    def follow_a_little_and_vanish(self, pick: int) -> None:
        cell = list(self.cells)[pick % len(self.cells)]
        with self.daemon.connect() as wire:
            wire.send(f"out {self.session.name} {cell} --follow")
            with contextlib.suppress(TimeoutError):
                for _ in range(5):
                    wire.receive(0.05)

    @rule()
    def stop_and_continue_the_process(self) -> None:
        os.kill(self.session.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: self.session.status()["state"] == "stopped", 5)
        finally:
            os.kill(self.session.pid, signal.SIGCONT)

    @rule(replaces=st.booleans())
    def kill_and_make_anew(self, replaces: bool) -> None:
        name = self.session.name
        if replaces:
            reply = self.daemon.json(f"new {name} --json --replace")
            assert reply["ok"], reply
            self.session.wire.close()
            self.session = Session(self.daemon, name, reply)
        else:
            self.session.kill()
            self.session = self.daemon.new(name)
        self.start()

    @rule()
    def look_at_everything(self) -> None:
        for cell in list(self.cells)[-20:]:
            self.look(cell)
        assert set(self.session.status()["running"]) <= set(self.cells)

    # What must be true at the end of any of it.

    def teardown(self) -> None:
        """End what is endless; then all must add up."""
        session = self.session
        for _ in range(50):
            for cell in self.running():
                self.look(cell)
            if not self.running():
                break
            for cell in self.running():
                if self.cells[cell].work in ENDLESS:
                    self.cells[cell].aimed_at = True
                    session.interrupt(cell)
            session.ask("wait", "--timeout=0.2 " + " ".join(self.running()))
        assert not self.running(), {c: (self.cells[c], session.poll(c)) for c in self.running()}
        assert session.wait_for_state("idle")["queued"] == []
        ran = json.loads(session.value("ran", 10) or "[]")
        assert len(ran) == len(set(ran)), "a cell ran twice"
        for cell, known in self.cells.items():
            if known.ended_as in ("done", "failed"):
                assert known.number in ran, (cell, known)
            self.look(cell)
        assert set(ran) <= {known.number for known in self.cells.values()}
        assert session.run("1 + 1", timeout=5)["result"] == "2"
        session.kill()


@pytest.mark.timeout(240)
def test_no_sequence_makes_a_session_unusable_or_loses_a_result(
    shared_daemon: TestDaemon,
) -> None:
    class OnThisDaemon(Sessions):
        daemon = shared_daemon

    run_state_machine_as_test(
        OnThisDaemon,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
