"""Cells that are sent while the main thread reads none: a task of the user's holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.daemon import Session
from support.waiting import wait_until

KEYS = ["", "--id=K", "--id=pysh-K"]
"""None, one that somebody chose, and one as our programs choose them."""


class Held:
    """A session whose main thread is held between cells until it is let go."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.name = session, session.name
        self.go = folder / "go"
        began = folder / "began"
        session.out("import asyncio, os, time; ran = []")
        session.out(
            "async def hold():\n"
            "    await asyncio.sleep(0)\n"
            f"    open({str(began)!r}, 'w').close()\n"
            f"    while not os.path.exists({str(self.go)!r}): time.sleep(0.01)\n"
            "task = asyncio.get_event_loop().create_task(hold())"
        )
        wait_until(began.exists, what="the main thread is held")

    def ran(self) -> list:
        """Let it go, and tell which cells ran."""
        self.go.touch()
        return json.loads(self.session.out("print(ran)"))


@pytest.fixture
def held(session: Session, tmp_path: Path) -> Held:
    """Nothing is read before `ran` is asked for."""
    return Held(session, tmp_path)


@pytest.mark.parametrize("key", KEYS)
def test_its_id_is_known_at_once(held: Held, key: str) -> None:
    daemon = held.session.daemon
    told = daemon.json(f"run {held.name} --json --detach {key}\nran.append(1)")
    assert held.session.status()["state"] == "running"
    waited = daemon.json(f"wait {held.name} --json --timeout=0.1 {told['cell_id']}")
    assert waited["timed_out"]
    assert held.ran() == [1]
    assert held.session.ended(told["cell_id"])["status"] == "done"


@pytest.mark.parametrize("key", KEYS)
def test_who_waits_for_a_time_is_answered_then(held: Held, key: str) -> None:
    reply = held.session.daemon.json(f"run {held.name} --json --wait=0.1 {key}\nran.append(1)")
    assert reply["status"] in ("queued", "running")
    assert held.ran() == [1]


@pytest.mark.parametrize("key", KEYS)
def test_it_is_cancelled_when_its_client_goes(held: Held, key: str) -> None:
    with held.session.daemon.connect() as wire:
        wire.send(f"run {held.name} --json --stream --cancel-on-disconnect {key}\nran.append(1)")
        cell = json.loads(wire.receive())["cell_id"]
    wait_until(
        lambda: "event=disconnect" in held.session.daemon.access_log().read_text(),
        what="its client is gone",
    )
    with held.session.daemon.connect() as wire:
        # After the interrupt, on the same lane.
        wire.json(f"status {held.name} --json")
    assert held.ran() == []
    assert held.session.ended(cell)["status"] == "interrupted"


@pytest.mark.parametrize("key", KEYS)
def test_it_is_interrupted(held: Held, key: str) -> None:
    told = held.session.daemon.json(f"run {held.name} --json --detach {key}\nran.append(1)")
    interrupted = held.session.daemon.json(f"int {held.name} --json")
    assert interrupted["interrupted"] == [told["cell_id"]]
    assert held.ran() == []
    assert held.session.ended(told["cell_id"])["status"] == "interrupted"


@pytest.mark.parametrize("busy", ["", "--busy=fail"])
@pytest.mark.parametrize("key", KEYS[1:])
def test_one_that_is_sent_again_is_the_same(held: Held, key: str, busy: str) -> None:
    frame = f"run {held.name} --json {busy} {key}"
    with held.session.daemon.connect() as one, held.session.daemon.connect() as two:
        one.send(f"{frame}\nran.append(1)")
        wait_until(lambda: held.session.status()["state"] == "running", what="it is sent")
        two.send(f"{frame} --resent=0\nran.append(1)")
        # Both are on their way.
        held.session.status()
        assert held.ran() == [1]
        first, second = json.loads(one.receive()), json.loads(two.receive())
    assert first["ok"]
    assert (second["cell_id"], second["existing"]) == (first["cell_id"], True)


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("key", KEYS[1:])
def test_the_first_of_two_with_one_key_is_the_one(held: Held, key: str, verb: str) -> None:
    with held.session.daemon.connect() as wire:
        wire.send(f"run {held.name} --tag=first {key}\nran.append(1)")
        wire.send(f"{verb} {held.name} --tag=second {key}\nran.append(2)")
        second = json.loads(wire.receive())
        assert second["tag"] == "second"
        assert second["error"]["code"] == "id_reused"
        assert held.ran() == [1]
        assert json.loads(wire.receive())["ok"]


@pytest.mark.parametrize("key", KEYS)
def test_it_is_told_when_the_main_thread_has_gone(session: Session, key: str) -> None:
    session.out(
        "import asyncio, ctypes\n"
        "async def leave():\n"
        "    await asyncio.sleep(0.2)\n"
        "    ctypes.CDLL(None).syscall(60, 0)\n"
        "task = asyncio.get_event_loop().create_task(leave())"
    )
    pid = session.pid
    state = Path(f"/proc/{pid}/task/{pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", what="it is gone")
    reply = session.daemon.json(f"run {session.name} --json {key}\n1")
    assert reply["error"]["code"] == "session_died"
