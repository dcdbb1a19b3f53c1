"""What is asked of a remote while the way to it is broken, and what happens there meanwhile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Session
from support.remotes import Remote, refusal_named_here
from support.waiting import wait_until
from support.wire import Wire


def begun(remote: Remote, go: Path, options: str = "") -> tuple[Wire, str]:
    """A client whose cell waits for a file, and the cell's id."""
    wire = remote.here.connect()
    wire.send(
        f"run {remote.name} --json {options}\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n'done'"
    )
    (cell,) = wait_until(
        lambda: remote.there.json(f"status {remote.name} --json").get("running"),
        what="a running cell",
    )
    return wire, cell


def cut(remote: Remote) -> None:
    """Break the way, and take nobody any more."""
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    remote.wait_for_state("down")


def test_an_interrupt_of_a_cell_waits_for_the_way(
    remote: Remote, session: Session, tmp_path: Path
) -> None:
    wire, cell = begun(remote, tmp_path / "go")
    with wire, remote.here.connect() as other:
        cut(remote)
        other.send(f"int {remote.name} --json {cell}")
        remote.proxy.listen()
        answer = json.loads(other.receive())
        assert (answer["ok"], answer["interrupted"]) == (True, [cell]), answer
        reply = json.loads(wire.receive())
    assert (reply["cell_id"], reply["status"]) == (cell, "interrupted"), reply
    assert session.value("1") == "1"


def test_an_interrupt_of_whatever_runs_is_told_that_there_is_no_way(
    remote: Remote, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    wire, cell = begun(remote, go)
    with wire:
        cut(remote)
        answer = remote.here.json(f"int {remote.name} --json")
        assert answer["error"]["code"] == "session_unreachable", answer
        assert remote.proxy.address in answer["error"]["message"]
        assert "pyctl start -d --listen" in answer["error"]["hint"]
        remote.proxy.listen()
        go.touch()
        reply = json.loads(wire.receive())
    assert (reply["cell_id"], reply["result"]) == (cell, "done"), reply


def test_a_request_is_cancelled_while_there_is_no_way_and_its_cell_goes_on(
    remote: Remote, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    wire, cell = begun(remote, go, "--tag=t")
    with wire:
        cut(remote)
        wire.send("cancel --tag=c t")
        answers: dict[str, Any] = {}
        for _ in range(2):
            answer = json.loads(wire.receive())
            answers[answer.pop("tag")] = answer
        assert answers["c"]["cancelled"] is True, answers
        assert answers["t"]["error"]["code"] == "cancelled", answers
        remote.proxy.listen()
        go.touch()
        assert session.ended(cell)["result"] == "done"


def test_who_cancels_with_the_connection_wants_its_cell_to_end_though_the_way_is_broken(
    remote: Remote, session: Session, tmp_path: Path
) -> None:
    wire, cell = begun(remote, tmp_path / "go", "--cancel-on-disconnect")
    cut(remote)
    wire.close()
    remote.proxy.listen()
    assert session.ended(cell)["status"] == "interrupted"


def the_way_is_there(remote: Remote) -> None:
    pass


@pytest.mark.parametrize("meanwhile", [the_way_is_there, cut])
def test_a_wait_is_told_of_the_death_of_a_session_there(
    remote: Remote, session: Session, tmp_path: Path, meanwhile: Callable[[Remote], None]
) -> None:
    wire, cell = begun(remote, tmp_path / "go")
    questions = f"wait {remote.name} --json {cell}", f"wait {remote.name} {cell}"
    with wire:
        told = {}
        for question in questions:
            asks = remote.here.connect(), remote.there.connect()
            for ask in asks:
                ask.send(question)
            told[question] = asks
        assert session.poll(cell)["status"] == "running"
        meanwhile(remote)
        os.kill(session.pid, signal.SIGKILL)
        wait_until(
            lambda: remote.there.json(f"status {remote.name} --json")["state"] == "dead",
            what="the death",
        )
        if meanwhile is cut:
            remote.proxy.listen()
        for question, (here, there) in told.items():
            with here, there:
                answer = here.receive()
                assert answer == refusal_named_here(there.receive(), remote.name), question
                assert "died: killed by SIGKILL" in answer, question
        reply = json.loads(wire.receive())
    assert reply["error"]["code"] == "session_died", reply
    assert reply["cell_id"] == cell


def test_events_go_on_after_a_cut_with_none_missing_and_none_twice(
    remote: Remote, session: Session
) -> None:
    with remote.here.connect() as events, remote.there.connect() as there:
        for wire in (events, there):
            assert wire.json(f"events {remote.name}")["event"] == "ready"
        for number in range(12):
            if number % 3 == 1:
                remote.proxy.cut(("rst", "fin")[number % 2])
            # Some happen while nobody here can hear of them.
            assert remote.there.ask(f"run {remote.name}\n{number}") == str(number)
            assert session.value(str(number)) == str(number)
        session.kill()
        expected = []
        for wire, seen in ((there, expected), (events, got := [])):
            while not seen or seen[-1]["event"] != "session_closed":
                seen.append(json.loads(wire.receive()))
    assert [event["event"] for event in expected].count("cell_done") == 24
    assert got == expected
