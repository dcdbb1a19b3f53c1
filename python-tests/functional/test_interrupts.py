"""`int`: reaches what it can, says honestly what it cannot, and never more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

BLOCKED = {
    "busy_loop": "print('in'); \nwhile True: pass",
    "busy_loop_with_calls": "print('in')\nwhile True: len([1])",
    "sleep": "print('in'); time.sleep(60)",
    "socket_recv": "a, b = socket.socketpair(); print('in'); a.recv(1)",
    "socket_accept": "l = socket.create_server(('127.0.0.1', 0)); print('in'); l.accept()",
    "pipe_read": "r, w = os.pipe(); print('in'); os.read(r, 1)",
    "select": "import select; r, w = os.pipe(); print('in'); select.select([r], [], [])",
    "lock": "import threading; l = threading.Lock(); l.acquire(); print('in'); l.acquire()",
    "rlock_of_another": (
        "import threading; l = threading.RLock()\n"
        "t = threading.Thread(target=l.acquire); t.start(); t.join(); print('in'); l.acquire()"
    ),
    "event": "import threading; e = threading.Event(); print('in'); e.wait()",
    "queue": "import queue; q = queue.Queue(); print('in'); q.get()",
    "thread_join": (
        "import threading; e = threading.Event()\n"
        "t = threading.Thread(target=e.wait, daemon=True); t.start(); print('in'); t.join()"
    ),
    "subprocess": "print('in'); subprocess.run(['sleep', '60'])",
    "os_system": "print('in', flush=True); os.system('sleep 60')",
    "asyncio_sleep": "import asyncio; print('in'); await asyncio.sleep(60)",
    "asyncio_gather": (
        "import asyncio\nasync def f(): await asyncio.sleep(60)\n"
        "print('in'); await asyncio.gather(f(), f())"
    ),
    "asyncio_run": "import asyncio; print('in'); asyncio.run(asyncio.sleep(60))",
    "asyncio_busy": "import asyncio; print('in')\nwhile True: await asyncio.sleep(0)",
    "generator": "print('in'); sum(i for i in iter(int, 1))",
}
"""Code that would not end by itself, and says `in` when it gets there."""

ON_THE_MAIN_THREAD_ONLY = {"os_system"}
LOCKS = {"lock", "rlock_of_another", "event", "queue", "thread_join"}
"""What CPython cannot interrupt outside the main thread."""


def usable(session: Session) -> None:
    """Check that the session goes on with its names."""
    assert session.value("kept") == "precious"
    assert session.status()["state"] == "idle"


@pytest.fixture
def session(shared_daemon: TestDaemon) -> Iterator[Session]:
    """A fresh session with something to lose."""
    with shared_daemon.session() as session:
        session.out("kept = 'precious'")
        yield session


# What it reaches.


@pytest.mark.parametrize("what", BLOCKED)
def test_an_interrupt_ends_a_run_cell(session: Session, what: str) -> None:
    cell = session.detach(BLOCKED[what])
    session.wait_for_output(cell, "in")
    reply = session.interrupt(cell)
    assert reply["interrupted"] == [cell]
    ended = session.ended(cell, 5)
    if what == "os_system":
        # system(3) ignores SIGINT and gives the child's status back.
        assert ended["status"] in ("interrupted", "done")
    else:
        assert ended["status"] == "interrupted", ended
        assert ended["error"]["type"] == "KeyboardInterrupt"
    usable(session)


@pytest.mark.parametrize("what", sorted(set(BLOCKED) - LOCKS - ON_THE_MAIN_THREAD_ONLY))
def test_an_interrupt_ends_a_fire_cell(session: Session, what: str) -> None:
    cell = session.fire(BLOCKED[what])
    session.wait_for_output(cell, "in")
    assert session.interrupt(cell)["interrupted"] == [cell]
    ended = session.ended(cell, 5)
    assert ended["status"] == "interrupted", ended
    assert ended["error"]["type"] == "KeyboardInterrupt"
    usable(session)


@pytest.mark.parametrize("what", sorted(LOCKS))
def test_a_fire_cell_at_a_lock_is_interrupted_or_honestly_pending(
    session: Session, what: str
) -> None:
    cell = session.fire(BLOCKED[what])
    session.wait_for_output(cell, "in")
    reply = session.interrupt(cell)
    assert reply["interrupted"] == [cell]
    (told,) = reply["cells"]
    if told["outcome"] == "pending":
        assert told["stack"] is None or told["stack"]["frames"], told
        # On its way to the lock it may still be reached.
        for now in (session.poll(cell), session.cells()[cell]):
            assert now["status"] == "interrupted" or now["interrupt_pending"] is True
        # What it waits for comes: it ends there, as it was told.
        release = {
            "lock": "l.release()",
            "rlock_of_another": "pass",
            "event": "e.set()",
            "queue": "q.put(1)",
            "thread_join": "e.set()",
        }[what]
        session.out(release)
        if what == "rlock_of_another":
            # Nobody can give it back: the session stays usable all the same.
            assert session.value("1 + 1") == "2"
            return
    assert session.ended(cell, 5)["status"] == "interrupted"
    usable(session)


def test_a_numpy_loop_is_interrupted(shared_daemon: TestDaemon, numpy_venv: Path) -> None:
    code = "import numpy as np; a = np.ones((300, 300)); print('in')\nwhile True: a = (a @ a) / a.max()"
    with shared_daemon.session(python=str(numpy_venv / "bin" / "python")) as session:
        session.out("kept = 'precious'")
        for submit in (session.detach, session.fire):
            cell = submit(code)
            session.wait_for_output(cell, "in")
            session.interrupt(cell)
            assert session.ended(cell, 5)["status"] == "interrupted"
            assert session.value("a.shape") == "(300, 300)"
        usable(session)


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_the_child_that_a_cell_waits_for_ends_with_it(session: Session, verb: str) -> None:
    code = "r, w = os.pipe(); p = subprocess.Popen(['sleep', '61']); print('pid', p.pid, 'in'); p.wait()"
    cell = session.detach(code) if verb == "run" else session.fire(code)
    pid = int(session.wait_for_output(cell, "in").split()[1])
    session.interrupt(cell)
    assert session.ended(cell, 5)["status"] == "interrupted"
    wait_until(lambda: not processes.is_alive(pid), 5, what="the child is gone")


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_a_cell_never_goes_on_past_the_child_that_an_interrupt_ended(
    session: Session, verb: str
) -> None:
    session.out("went_on = []")
    code = "print('in'); subprocess.run(['sleep', '60']); went_on.append(1)"
    for _ in range(20):
        cell = session.detach(code) if verb == "run" else session.fire(code)
        session.wait_for_output(cell, "in")
        session.interrupt(cell)
        assert session.ended(cell, 5)["status"] == "interrupted"
    assert session.value("went_on") == "[]"


def test_a_child_of_an_earlier_cell_is_left_alone(session: Session) -> None:
    session.out("background = subprocess.Popen(['sleep', '61'])")
    beside = session.fire("mine = subprocess.Popen(['sleep', '61']); print('in'); mine.wait()")
    session.wait_for_output(beside, "in")
    cell = session.detach("print('in'); subprocess.run(['sleep', '60'])")
    session.wait_for_output(cell, "in")
    session.interrupt(cell)
    assert session.ended(cell, 5)["status"] == "interrupted"
    assert session.value("background.poll(), mine.poll()") == "(None, None)"
    assert session.poll(beside)["status"] == "running"
    session.interrupt(beside)
    assert session.ended(beside, 5)["status"] == "interrupted"
    assert session.value("background.poll()") is None
    session.out("background.kill(); _ = background.wait()")


def test_tasks_of_earlier_cells_outlive_the_interrupt_of_a_later_one(session: Session) -> None:
    session.out(
        "import asyncio\nticks = 0\nasync def tick():\n    global ticks\n"
        "    while True:\n        ticks += 1; await asyncio.sleep(0.01)\n"
        "task = asyncio.ensure_future(tick()); await asyncio.sleep(0)"
    )
    cell = session.detach("print('in'); await asyncio.sleep(60)")
    session.wait_for_output(cell, "in")
    session.interrupt(cell)
    assert session.ended(cell, 5)["status"] == "interrupted"
    assert session.value("task.done()") == "False"
    before = int(session.value("ticks") or 0)
    assert int(session.value("await asyncio.sleep(0.1); ticks") or 0) > before


# Which cells.


def test_of_several_cells_only_the_named_one_is_interrupted(session: Session) -> None:
    fires = [session.fire("print('in'); time.sleep(60)") for _ in range(3)]
    run = session.detach("print('in'); time.sleep(60)")
    for cell in [*fires, run]:
        session.wait_for_output(cell, "in")
    assert session.interrupt(fires[1])["interrupted"] == [fires[1]]
    assert session.ended(fires[1], 5)["status"] == "interrupted"
    states = [session.poll(cell)["status"] for cell in (fires[0], fires[2], run)]
    assert states == ["running"] * 3
    assert set(session.interrupt(run, fires[0])["interrupted"]) == {run, fires[0]}
    assert session.ended(run, 5)["status"] == "interrupted"
    assert session.poll(fires[2])["status"] == "running"
    session.interrupt()
    assert session.ended(fires[2], 5)["status"] == "interrupted"
    usable(session)


def test_without_an_id_every_running_cell_is_interrupted(session: Session) -> None:
    cells = [session.fire("print('in'); time.sleep(60)") for _ in range(5)]
    cells.append(session.detach("print('in'); time.sleep(60)"))
    for cell in cells:
        session.wait_for_output(cell, "in")
    assert sorted(session.interrupt()["interrupted"]) == sorted(cells)
    assert {session.ended(cell, 5)["status"] for cell in cells} == {"interrupted"}
    usable(session)


def test_a_fire_cell_that_was_just_accepted_is_interrupted_as_well(session: Session) -> None:
    with session.daemon.connect() as wire:
        for _ in range(50):
            cell = wire.json(f"fire {session.name} --json\ntime.sleep(20)")["cell_id"]
            assert wire.json(f"int {session.name} --json")["interrupted"] == [cell]
            assert session.ended(cell, 5)["status"] == "interrupted"


def test_queued_cells_are_taken_back_and_never_run(session: Session) -> None:
    session.out("ran = []")
    running = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(running, "in")
    queued = [session.detach(f"ran.append({n})") for n in range(3)]
    fired = session.fire("print('in'); time.sleep(60)")
    waiting = session.fire("ran.append('fire')", "--queue")
    reply = session.interrupt(queued[1], waiting)
    assert {c["cell_id"]: c["outcome"] for c in reply["cells"]} == {
        queued[1]: "dequeued",
        waiting: "dequeued",
    }
    assert session.poll(queued[1])["status"] == "interrupted"
    assert [session.poll(cell)["queue_position"] for cell in (queued[0], queued[2])] == [1, 2]
    session.interrupt(running, fired)
    assert session.ended(queued[0])["ok"]
    assert session.ended(queued[2])["ok"]
    assert session.value("ran") == "[0, 2]"


def test_the_client_of_a_cell_that_is_taken_back_is_told(session: Session) -> None:
    running = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(running, "in")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --json\n1")
        waiting = wait_until(lambda: session.status()["queued"], what="it waits")[0]
        session.interrupt(waiting)
        reply = json.loads(wire.receive(5))
        assert reply["status"] == "interrupted"
    session.interrupt(running)


def test_an_interrupt_with_nothing_to_interrupt_says_so(session: Session) -> None:
    assert session.interrupt()["interrupted"] == []
    assert session.daemon.ask(f"int {session.name}") == f"OK no running cells in {session.name}"
    finished = session.run("1")["cell_id"]
    reply = session.interrupt(finished)
    assert reply["ok"] is True
    assert reply["interrupted"] == []


def test_an_id_nobody_knows_is_refused(session: Session) -> None:
    cell = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(cell, "in")
    reply = session.interrupt("deadbeef0000")
    assert (reply["ok"], reply["error"]["code"]) == (False, "unknown_cell")
    assert not session.interrupt("nonsense")["ok"]
    assert session.daemon.ask(f"int {session.name} deadbeef0000").startswith("ERR")
    assert session.poll(cell)["status"] == "running"
    session.interrupt(cell)


def test_the_command_line_interrupts(session: Session) -> None:
    cell = session.detach("print('in')\nwhile True: pass")
    session.wait_for_output(cell, "in")
    done = session.daemon.pysh("int", session.name, cell)
    assert done.returncode == 0, done
    assert cell in done.stdout or "1 cell" in done.stdout
    assert session.ended(cell, 5)["status"] == "interrupted"


def test_an_interrupt_between_two_steps_of_a_task_ends_the_cell(session: Session) -> None:
    """The event loop's own code is hit where it schedules the next step."""
    code = (
        "import asyncio\nloop = asyncio.get_running_loop()\n"
        "def hit(*args, **options):\n    del loop.call_soon\n    raise KeyboardInterrupt\n"
        "loop.call_soon = hit\nended = False\n"
        "try:\n    await asyncio.sleep(0)\nfinally:\n"
        "    await asyncio.sleep(0.001)\n    ended = True"
    )
    session.fails(code, "KeyboardInterrupt", timeout=20)
    assert session.value("ended") == "True"
    assert session.value("await asyncio.sleep(0, 'goes on')") == "goes on"
