"""`fork`: cells in child processes, and what comes back from them."""

from __future__ import annotations

import json

from support.daemon import Session


def forked(session: Session, code: str, options: str = "") -> str:
    """Fork a cell, which must be accepted, and return its id."""
    reply = session.submit("fork", code, options)
    assert reply["ok"], reply
    return reply["cell_id"]


def outcome(session: Session, code: str, options: str = "", timeout: float = 60) -> dict:
    """Fork a cell and return it when it has ended."""
    return session.ended(forked(session, code, options), timeout)


def done(session: Session, code: str, options: str = "", timeout: float = 60) -> dict:
    """Fork a cell that must succeed and return it when it has ended."""
    reply = outcome(session, code, options, timeout)
    assert reply["status"] == "done", reply
    return reply


def test_new_and_reassigned_names_come_back(session: Session) -> None:
    session.out("a = 1; b = 2; kept = object(); before = id(kept)")
    reply = done(session, "a = 10; c = [a, b]; print('hi'); c")
    assert reply["stdout"] == "hi\n[10, 2]\n"
    assert reply["result"] == "[10, 2]"
    assert reply["merged"] == ["a", "c"]
    assert reply["skipped"] == {}
    assert reply["mutated"] == []
    assert session.value("a, b, c, id(kept) == before") == "(10, 2, [10, 2], True)"


def test_the_plain_wire_has_the_shapes_of_0_4(session: Session) -> None:
    answer = json.loads(session.wire.ask(f"fork {session.name}\nx = 6 * 7\nl = __import__('threading').Lock()\nx"))
    assert set(answer) == {"cell_id", "status"}
    assert answer["status"] == "forked"
    session.ended(answer["cell_id"])
    assert json.loads(session.wire.ask(f"poll {session.name}")) == {
        "cell_id": answer["cell_id"],
        "status": "done",
        "output": "42",
        "merged": ["x"],
        "skipped": ["l"],
    }
