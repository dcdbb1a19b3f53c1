"""Interrupts of what does not return: `pending` with the place, honest to the end, `--kill`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

STUCK = {
    "huge_power": "print('in'); x = 3 ** 12_000_000; None",
    "regex": "import re; print('in'); re.match('(a?){24}a{24}$', 'a' * 23 + 'b'); None",
    "sum_of_a_range": "print('in'); x = sum(range(60_000_000)); None",
}
"""C code that holds the lock for some seconds and looks at no signal."""

SWALLOWS = (
    "end = time.monotonic() + 3\ncaught = 0\nsaid = False\n"
    "while time.monotonic() < end:\n    try:\n"
    "        if not said:\n            said = True\n            print('in')\n"
    "        while time.monotonic() < end: pass\n"
    "    except KeyboardInterrupt: caught += 1"
)


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("what", STUCK)
def test_an_interrupt_of_c_code_is_pending_with_the_place_until_it_returns(
    session: Session, what: str, verb: str
) -> None:
    session.out("kept = 1")
    cell = session.detach(STUCK[what]) if verb == "run" else session.fire(STUCK[what])
    session.wait_for_output(cell, "in")
    started = time.monotonic()
    reply = session.interrupt(cell)
    assert time.monotonic() - started < 3
    assert reply["interrupted"] == [cell]
    (told,) = reply["cells"]
    if session.poll(cell)["status"] == "running":
        assert told["outcome"] == "pending", told
        assert told["stack"]["frames"][-1]["line"] >= 1
        assert any(frame["file"].startswith("<cell ") for frame in told["stack"]["frames"])
        assert told["stack"].get("cell_id", cell) == cell
    for _ in range(3):
        now = session.poll(cell)
        assert now["status"] != "running" or now["interrupt_pending"] is True
    ended = session.ended(cell, 100)
    # Whether the exception came in time is Python's business, after the end
    # nothing is pending.
    assert ended["status"] in ("interrupted", "done")
    assert "interrupt_pending" not in ended
    for number in range(20):
        assert session.value(f"kept + {number}") == str(1 + number)


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_a_cell_that_catches_the_interrupt_is_pending_until_it_ends(
    session: Session, verb: str
) -> None:
    cell = session.detach(SWALLOWS) if verb == "run" else session.fire(SWALLOWS)
    session.wait_for_output(cell, "in")
    reply = session.interrupt(cell)
    assert reply["cells"][0]["outcome"] == "pending"
    assert reply["cells"][0]["stack"]["frames"]
    assert session.poll(cell)["status"] == "running"
    assert session.ended(cell, 20)["status"] == "done"
    assert session.value("caught") == "1"


def test_each_further_interrupt_is_another_chance(session: Session) -> None:
    cell = session.detach(SWALLOWS.replace("+ 3", "+ 60"))
    session.wait_for_output(cell, "in")
    for number in range(1, 4):
        session.interrupt(cell)
        peek = session.ended(session.fire("caught"))
        assert peek["result"] == str(number)
    assert session.ended(session.fire("end = 0"))["ok"]
    assert session.ended(cell, 20)["status"] in ("done", "interrupted")


def test_the_plain_answer_says_pending_and_where(session: Session) -> None:
    cell = session.detach(SWALLOWS)
    session.wait_for_output(cell, "in")
    text = session.daemon.ask(f"int {session.name}")
    assert text.startswith(f"OK int {session.name}: 1 cell"), text
    session.ended(cell, 20)
    cell = session.detach(SWALLOWS)
    session.wait_for_output(cell, "in")
    done = session.daemon.pysh("int", session.name)
    assert done.returncode == 0, done
    assert f"cell {cell} was interrupted and has not ended yet" in done.stderr
    assert "<cell " in done.stderr
    session.ended(cell, 20)


def test_kill_escalates_to_the_session_and_says_what_it_did(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        cell = session.detach(
            "import signal; signal.signal(signal.SIGINT, lambda *_: None); print('in'); time.sleep(60)"
        )
        session.wait_for_output(cell, "in")
        started = time.monotonic()
        reply = session.interrupt(cell, kill=True)
        assert time.monotonic() - started < 20
        assert reply["ok"] is True
        assert reply["killed"] is True
        assert reply["actions"], reply
        assert all(isinstance(word, str) for word in reply["actions"])
        wait_until(lambda: not processes.is_alive(session.pid), what="the host is gone")


def test_kill_ends_a_child_that_does_not_hear_and_keeps_the_session(session: Session) -> None:
    session.out("kept = 'precious'")
    cell = session.detach(
        "p = subprocess.Popen(['sh', '-c', \"trap '' INT TERM; while :; do sleep 0.1; done\"])\n"
        "said = False\nwhile p.poll() is None:\n    try:\n"
        "        if not said:\n            said = True\n            print('pid', p.pid, 'in')\n"
        "        p.wait()\n    except KeyboardInterrupt: pass"
    )
    pid = int(session.wait_for_output(cell, "in").split()[1])
    reply = session.interrupt(cell, kill=True)
    assert reply["actions"], reply
    assert not reply.get("killed"), reply
    assert session.ended(cell, 5)["status"] in ("done", "interrupted")
    wait_until(lambda: not processes.is_alive(pid), what="the child is gone")
    assert session.value("kept") == "precious"


def test_kill_of_what_hears_an_interrupt_does_no_more_than_that(session: Session) -> None:
    session.out("kept = 'precious'")
    cell = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(cell, "in")
    reply = session.interrupt(cell, kill=True)
    assert reply["cells"][0]["outcome"] == "ended"
    assert not reply.get("killed")
    assert session.value("kept") == "precious"


def test_kill_ends_what_holds_the_interpreter_in_c_code(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        cell = session.detach("print('in'); x = sum(range(10**11))")
        session.wait_for_output(cell, "in")
        done = shared_daemon.pysh("int", session.name, cell, "--kill")
        assert done.returncode == 0, done
        assert "kill" in (done.stdout + done.stderr).lower()
        wait_until(lambda: not processes.is_alive(session.pid), what="the host is gone")
        assert session.status()["state"] == "dead" or not session.status()["ok"]


def test_a_numpy_call_is_pending_and_then_interrupted(
    shared_daemon: TestDaemon, numpy_venv: Path
) -> None:
    with shared_daemon.session(python=str(numpy_venv / "bin" / "python")) as session:
        session.out("import numpy as np; a = np.random.rand(30_000_000)")
        cell = session.detach("print('in'); a.sort(); a = None; time.sleep(60)")
        session.wait_for_output(cell, "in")
        session.interrupt(cell)
        assert session.ended(cell, 60)["status"] == "interrupted"
        assert session.value("a is None") == "False"
