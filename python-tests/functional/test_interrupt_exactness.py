"""An interrupt hits the cell it was meant for or nothing, at whatever instant it comes."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

from support.daemon import Session, TestDaemon

BODIES = [
    "x = 1",
    "for _ in range(3000): pass",
    "time.sleep(0.002)",
    "import asyncio; await asyncio.sleep(0.001)",
    "subprocess.run(['true'])",
    "print('some', 'output')",
    "time.sleep(0.0005); [i for i in range(500)]",
    "a, b = socket.socketpair(); b.send(b'x'); a.recv(1); a.close(); b.close()",
]
"""Short cells, so that interrupts fall before, inside and after them."""


def settle(reply: dict) -> str:
    """Return how a cell that was aimed at ended; anything else is a fault."""
    status = reply["status"]
    assert status in ("done", "interrupted"), reply
    if status == "interrupted":
        assert reply["error"]["type"] == "KeyboardInterrupt", reply
    return status


@pytest.mark.parametrize("body", range(len(BODIES)))
@pytest.mark.parametrize("seed", [1, 2])
def test_an_interrupt_never_hits_the_cell_after_the_one_it_names(
    session: Session, body: int, seed: int
) -> None:
    """Twice eight bodies with a hundred instants each."""
    rng = random.Random(seed * 100 + body)
    rounds = 15 if "subprocess" in BODIES[body] else 100
    ended = {"done": 0, "interrupted": 0}
    typical = 0.004
    with session.daemon.connect() as cells, session.daemon.connect() as control:
        for number in range(rounds):
            cells.send(f"run {session.name} --stream --tag=a\n{BODIES[body]}")
            cell = json.loads(cells.receive())["cell_id"]
            cells.send(f"run {session.name} --tag=b\nfor _ in range(200): len('abc')\n{number}")
            instant = time.perf_counter() + rng.random() * typical
            while time.perf_counter() < instant:
                pass
            control.send(f"int {session.name} --json {cell}")
            replies = {}
            while len(replies) < 2:
                answer = json.loads(cells.receive())
                if "event" not in answer:
                    replies[answer["tag"]] = answer
            assert replies["a"]["cell_id"] == cell, (number, replies)
            ended[settle(replies["a"])] += 1
            assert replies["b"]["status"] == "done", (number, replies["b"])
            assert replies["b"]["result"] == str(number)
            told = json.loads(control.receive())
            assert told["ok"], told
            if replies["a"]["status"] == "interrupted":
                assert told["interrupted"] == [cell], told
    assert session.value("1 + 1") == "2"
    assert sum(ended.values()) == rounds


@pytest.mark.parametrize("seed", range(4))
def test_an_interrupt_without_an_id_leaves_later_cells_alone(session: Session, seed: int) -> None:
    rng = random.Random(seed)
    with session.daemon.connect() as cells, session.daemon.connect() as control:
        for number in range(60):
            cells.send(f"run {session.name} --json\n{rng.choice(BODIES[:3])}")
            time.sleep(rng.random() * 0.003)
            control.json(f"int {session.name} --json")
            settle(json.loads(cells.receive()))
            reply = cells.run(session.name, f"for _ in range(500): len('abc')\n{number}")
            assert reply["status"] == "done", reply


@pytest.mark.parametrize("body", [0, 1, 2, 3, 5])
def test_an_interrupt_of_a_fire_cell_hits_neither_other_fire_cells_nor_a_run(
    session: Session, body: int
) -> None:
    rng = random.Random(body)
    with session.daemon.connect() as cells, session.daemon.connect() as control:
        for number in range(60):
            fired = [
                cells.json(f"fire {session.name} --json\n{BODIES[body]}")["cell_id"]
                for _ in range(3)
            ]
            cells.send(f"run {session.name} --json\nfor _ in range(2000): len('abc')\n{number}")
            instant = time.perf_counter() + rng.random() * 0.004
            while time.perf_counter() < instant:
                pass
            told = control.json(f"int {session.name} --json {fired[1]}")
            assert told["interrupted"] in ([], [fired[1]])
            assert json.loads(cells.receive())["result"] == str(number)
            control.json(f"wait {session.name} --json {' '.join(fired)}")
            assert control.json(f"poll {session.name} --json {fired[0]}")["status"] == "done"
            assert control.json(f"poll {session.name} --json {fired[2]}")["status"] == "done"
            settle(control.json(f"poll {session.name} --json {fired[1]}"))
            after = control.json(f"fire {session.name} --json\nafter = {number}")["cell_id"]
            control.json(f"wait {session.name} --json {after}")
            assert control.json(f"poll {session.name} --json {after}")["status"] == "done"
    assert session.value("1 + 1") == "2"


def test_a_storm_of_interrupts_from_many_clients_leaves_the_session_usable(
    shared_daemon: TestDaemon, session: Session
) -> None:
    session.out("kept = []")
    over = threading.Event()

    def storm() -> None:
        with shared_daemon.connect() as wire:
            while not over.is_set():
                wire.json(f"int {session.name} --json")

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(150):
            settle(session.run(f"kept.append({number}); time.sleep(0.001)"))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    numbers = [int(n) for n in (session.value("kept") or "[]").strip("[]").split(",") if n.strip()]
    assert numbers == sorted(set(numbers))
    for number in range(50):
        assert session.value(str(number)) == str(number)


def test_every_interrupt_of_many_at_once_is_answered(session: Session) -> None:
    """Several that are pending together, some of which end with the same cell."""
    code = "try: time.sleep(30)\nexcept KeyboardInterrupt: time.sleep(0.003)"
    with session.daemon.connect() as control:
        for number in range(60):
            session.fire(code)
            tags = [f"{number}-{asker}" for asker in range(6)]
            for tag in tags:
                control.send(f"int {session.name} --tag={tag}")
            answers = [json.loads(control.receive(4)) for _ in tags]
            assert sorted(answer["tag"] for answer in answers) == tags
            assert all(answer["ok"] for answer in answers), answers
    session.wire.json(f"wait {session.name} --json --timeout=10")
