"""Finished cells stay within a stated number; what is dropped is said."""

from __future__ import annotations

import contextlib
import json

from support.daemon import Session
from support.waiting import wait_until
from support.wire import Wire

KEPT = 1000
"""Finished cells that a session remembers."""


def run_many(wire: Wire, name: str, numbers: range, options: str = "") -> list[str]:
    """Run this many cells over one connection and return their ids."""
    cells = []
    for number in numbers:
        reply = wire.json(f"run {name} --json {options.format(number)}".rstrip() + f"\n{number}")
        assert reply["ok"], reply
        cells.append(reply["cell_id"])
    return cells


def test_a_thousand_finished_cells_are_kept_and_the_next_drops_the_oldest(
    session: Session,
) -> None:
    ids = run_many(session.wire, session.name, range(KEPT), "--id=key-{0}")
    reply = session.ask("cells")
    assert reply["forgotten"] == 0
    assert [cell["cell_id"] for cell in reply["cells"]] == ids
    assert session.poll(ids[0])["result"] == "0"
    assert session.ask("out", ids[0])["stdout"] == "0\n"

    more = run_many(session.wire, session.name, range(KEPT, KEPT + 5), "--id=key-{0}")
    reply = session.ask("cells")
    assert reply["forgotten"] == 5
    assert [cell["cell_id"] for cell in reply["cells"]] == (ids + more)[-KEPT:]
    assert json.loads(session.daemon.ask(f"poll {session.name} {ids[0]}")) == {
        "cell_id": ids[0],
        "status": "error",
        "output": "unknown cell",
    }
    assert session.poll(ids[4])["error"]["code"] == "unknown_cell"
    assert session.ask("out", ids[4])["error"]["code"] == "unknown_cell"
    assert session.poll(ids[5])["result"] == "5"
    done = session.daemon.pysh("cells", session.name)
    assert done.stderr == "note: 5 older cells are not remembered any more\n"


def test_the_key_of_a_cell_that_was_dropped_is_lost_or_new_and_one_that_is_kept_is_not(
    session: Session,
) -> None:
    ids = run_many(session.wire, session.name, range(KEPT + 3), "--id=key-{0}")
    kept = session.submit("run", str(KEPT), f"--id=key-{KEPT}")
    assert (kept["cell_id"], kept["existing"]) == (ids[KEPT], True)
    dropped = session.submit("run", "0", "--id=key-0")
    assert dropped.get("cell_id") != ids[0]
    assert not dropped.get("existing")


def test_cells_that_have_not_ended_are_never_dropped(session: Session) -> None:
    running = session.fire("print('in'); time.sleep(600)")
    waiting = session.fire("2", "--queue")
    session.wait_for_output(running, "in")
    run_many(session.wire, session.name, range(KEPT + 10))
    assert session.poll(running)["status"] == "running"
    assert session.poll(waiting)["status"] == "queued"
    session.interrupt(running)
    assert session.ended(waiting)["result"] == "2"


def test_a_cell_that_is_followed_is_whole_although_it_is_dropped_meanwhile(
    session: Session,
) -> None:
    cell = session.run("print('x' * 5_000_000)")["cell_id"]
    with session.daemon.connect(max_queue=1) as wire:
        wire.send(f"out {session.name} --json {cell} --follow")
        first = json.loads(wire.receive())
        run_many(session.wire, session.name, range(KEPT + 1))
        got, missing = len(first["data"]), 0
        while "ok" not in (message := json.loads(wire.receive())):
            got += len(message.get("data", ""))
            missing += message.get("missing", 0)
        assert not message["ok"] or got + missing == 5_000_001


def test_the_output_of_many_cells_stays_within_the_budget_of_bytes(session: Session) -> None:
    """A session keeps 1 GiB of output: six cells of 200 MiB do not fit."""
    code = (
        "b = b'x' * (1 << 20)\nfor _ in range(200): sys.stdout.buffer.write(b)\nsys.stdout.flush()"
    )
    cells = []
    for _ in range(6):
        cells.append(session.fire(code))
        assert session.ask("wait", cells[-1], 60)["ok"]
    directory = session.daemon.session_directory(session.name)

    def is_within() -> bool:
        size = 0
        for path in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size <= (1 << 30) + (64 << 20)

    wait_until(is_within, what="files that are not kept are removed")
    listed = session.cells()
    for cell in cells:
        first = session.ask("out", f"{cell} --max=1")
        if cell not in listed:
            assert first["error"]["code"] == "unknown_cell"
            continue
        kept = listed[cell]["output_bytes"] - listed[cell].get("truncated", 0)
        assert listed[cell]["output_bytes"] == 200 << 20
        assert first["missing"] == listed[cell].get("truncated", 0)
        assert kept >= 0
    assert len(session.ask("out", f"{cells[-1]} --max=1000")["stdout"]) == 1000
    assert listed[cells[-1]].get("truncated", 0) == 0
    dropped = (
        sum(c.get("truncated", 0) for c in listed.values()) + session.ask("cells")["forgotten"]
    )
    assert dropped > 0
