"""Control answers at once, whatever a session does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import text_of

AT_ONCE = 1.0
"""Seconds: far more than an answer takes, far less than waiting would."""

COMPUTES = "print('in')\nwhile True: len([1])"
HOLDS = "print('in'); sum(range(10**11))"
HOLDS_AND_SLEEPS = "import ctypes; print('in'); ctypes.PyDLL(None).poll(None, 0, 30_000)"
"""C code that keeps the interpreter's lock: one computes, one waits."""

STATES = {"computes": COMPUTES, "holds": HOLDS, "holds_and_sleeps": HOLDS_AND_SLEEPS}


@contextmanager
def busy(daemon: TestDaemon, code: str, verb: str = "run") -> Iterator[tuple[Session, str]]:
    """Give a session and the id of the cell that keeps it busy."""
    with daemon.session() as session:
        session.out("kept = 'precious'")
        cell = session.detach(code) if verb == "run" else session.fire(code)
        session.wait_for_output(cell, "in")
        yield session, cell


def at_once(ask: Callable[[], dict], limit: float = AT_ONCE) -> dict:
    """Return an answer that must come at once."""
    started = time.monotonic()
    answer = ask()
    took = time.monotonic() - started
    assert took < limit, (took, answer)
    return answer


def check_control(session: Session, cell: str) -> None:
    """Check everything that must answer while a cell runs, whatever it does."""
    status = at_once(session.status)
    assert status["state"] == "running"
    assert status["running"] == [cell]
    polled = at_once(lambda: session.poll(cell))
    assert polled["status"] == "running"
    assert polled["cell_id"] == cell
    assert at_once(session.cells)[cell]["status"] == "running"
    assert text_of(at_once(lambda: session.ask("out", cell))["stdout"]) == "in\n"
    listed = at_once(lambda: session.daemon.json("ls --json"))["sessions"]
    assert {s["session"]: s["state"] for s in listed}[session.name] == "running"
    stack = at_once(lambda: session.ask("stack"), 3)
    assert stack["ok"] is True
    (thread,) = [t for t in stack["threads"] if t.get("cell_id") == cell]
    assert thread["frames"][0]["file"].startswith("<cell ")


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("state", STATES)
def test_control_answers_at_once(shared_daemon: TestDaemon, state: str, verb: str) -> None:
    with busy(shared_daemon, STATES[state], verb) as (session, cell):
        for _ in range(3):
            check_control(session, cell)
        with shared_daemon.session() as neighbour:
            assert at_once(lambda: neighbour.run("1 + 1"))["ok"]
        told = at_once(lambda: session.interrupt(cell), 3)
        assert told["interrupted"] == [cell]
        started = time.monotonic()
        assert session.daemon.ask(f"kill {session.name}") == f"OK killed {session.name}"
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_names_and_completions_come_while_python_code_runs(
    shared_daemon: TestDaemon, verb: str
) -> None:
    with busy(shared_daemon, COMPUTES, verb) as (session, cell):
        names = at_once(lambda: session.ask("vars"))
        assert "kept" in str(names["vars"])
        matches = at_once(lambda: session.ask("complete", "kep"))["matches"]
        assert matches == ["kept"]
        assert session.poll(cell)["status"] == "running"
        session.interrupt(cell)
        assert session.value("kept") == "precious"


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("state", ["holds", "holds_and_sleeps"])
def test_names_and_completions_say_busy_when_c_code_holds_the_interpreter(
    shared_daemon: TestDaemon, state: str, verb: str
) -> None:
    with busy(shared_daemon, STATES[state], verb) as (session, _):
        for ask in (lambda: session.ask("vars"), lambda: session.ask("complete", "kep")):
            answer = at_once(ask)
            assert answer["ok"] is False
            assert answer["error"]["code"] == "busy"
            assert answer["error"]["message"]
        assert at_once(lambda: {"text": session.daemon.ask(f"vars {session.name}")})[
            "text"
        ].startswith("ERR")


def test_names_come_again_after_the_c_code_returned(session: Session) -> None:
    session.out("kept = 'precious'")
    cell = session.detach("print('in'); x = sum(range(40_000_000))")
    session.wait_for_output(cell, "in")
    session.ask("vars")
    session.ask("complete", "kep")
    session.ended(cell)
    assert "kept" in str(session.ask("vars")["vars"])
    assert session.ask("complete", "kep")["matches"] == ["kept"]
    assert session.value("kept") == "precious"


# The stack.


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("what", ["holds", "holds_and_sleeps"])
def test_the_stack_is_read_from_a_copy_while_c_code_holds_the_interpreter(
    shared_daemon: TestDaemon, what: str, verb: str
) -> None:
    body = STATES[what].replace("print('in'); ", "")
    code = f"def inner():\n    print('in')\n    {body}\n\ndef outer():\n    inner()\n\nouter()"
    with busy(shared_daemon, code, verb) as (session, cell):
        reply = session.ask("stack")
        assert reply["ok"] is True
        assert reply["method"] == "copy"
        (thread,) = [t for t in reply["threads"] if t.get("cell_id") == cell]
        places = [(f["function"], f["line"]) for f in thread["frames"]]
        assert places == [("<module>", 8), ("outer", 6), ("inner", 3)]
        assert all(f["file"] == thread["frames"][0]["file"] for f in thread["frames"])
        text = session.daemon.ask(f"stack {session.name}")
        assert f"cell {cell}" in text
        assert "line 3, in inner" in text


def test_the_stack_names_all_threads_cells_and_lines(session: Session) -> None:
    session.out(
        "import threading; go = threading.Event()\n"
        "threading.Thread(target=go.wait, name='helper').start()"
    )
    fired = session.fire(
        "def deep(n):\n    if n: return deep(n - 1)\n    print('in')\n    go.wait()\ndeep(3)"
    )
    run = session.detach("print('in')\nwhile not go.is_set(): time.sleep(1)")
    session.wait_for_output(fired, "in")
    session.wait_for_output(run, "in")
    reply = session.ask("stack")
    by_cell = {t.get("cell_id"): t for t in reply["threads"]}
    assert reply["threads"][0]["cell_id"] == run
    assert by_cell[run]["frames"][0]["source"] == "while not go.is_set(): time.sleep(1)"
    functions = [f["function"] for f in by_cell[fired]["frames"]]
    assert functions[:5] == ["<module>", "deep", "deep", "deep", "deep"]
    assert by_cell[fired]["frames"][1]["source"].strip() == "if n: return deep(n - 1)"
    assert "helper" in {t.get("name") for t in reply["threads"]}
    done = session.daemon.pysh("stack", session.name)
    assert done.returncode == 0
    assert "in deep" in done.stdout
    assert session.ended(session.fire("go.set()"))["ok"]
    assert session.ended(run)["ok"]


def test_the_stack_of_an_idle_session_has_no_frames_of_ours(session: Session) -> None:
    reply = session.ask("stack")
    assert reply["ok"] is True
    for thread in reply["threads"]:
        assert thread.get("cell_id") is None
        assert thread["frames"] == [], thread


CALLS = {
    "sleep": "t = time.monotonic(); print('in'); time.sleep(1.5); took = time.monotonic() - t",
    "recv": "a, b = socket.socketpair(); print('in'); got = a.recv(10)",
    "libc_sleep": "import ctypes; print('in'); left = ctypes.CDLL(None).sleep(2)",
    "libc_sleep_with_the_lock": "import ctypes; print('in'); left = ctypes.PyDLL(None).sleep(2)",
}


@pytest.mark.parametrize("verb", ["run", "fire"])
@pytest.mark.parametrize("what", CALLS)
def test_looking_at_the_stack_cuts_no_blocking_call(
    shared_daemon: TestDaemon, what: str, verb: str
) -> None:
    with busy(shared_daemon, CALLS[what], verb) as (session, cell):
        for _ in range(10):
            assert session.ask("stack")["ok"]
        if what == "recv":
            assert session.poll(cell)["status"] == "running"
            sender = session.fire("b.send(b'whole')")
            assert session.ended(sender)["ok"]
        assert session.ended(cell)["ok"]
        want = {"sleep": "took >= 1.5", "recv": "got == b'whole'"}.get(what, "left == 0")
        assert session.value(want) == "True"


def test_looking_at_the_stack_often_leaves_nothing_behind(session: Session) -> None:
    cell = session.detach(HOLDS)
    session.wait_for_output(cell, "in")
    descriptors = len(os.listdir(f"/proc/{session.pid}/fd"))
    for _ in range(50):
        assert session.ask("stack")["method"] == "copy"
    assert len(os.listdir(f"/proc/{session.pid}/fd")) <= descriptors + 2


# A stopped process.


def test_a_stopped_session_is_named_within_five_seconds_and_goes_on(
    shared_daemon: TestDaemon,
) -> None:
    with busy(shared_daemon, "print('in'); time.sleep(0.5); 'went on'") as (session, cell):
        os.kill(session.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert wait_until(lambda: session.status()["state"] == "stopped", 5)
            assert time.monotonic() - started < 5
            assert session.daemon.list()[session.name]["state"] == "stopped"
            for ask in (
                lambda: session.poll(cell),
                lambda: session.ask("cells"),
                lambda: session.ask("out", cell),
                lambda: session.ask("int", cell),
                lambda: session.ask("stack"),
                lambda: session.ask("vars"),
                lambda: session.ask("complete", "x"),
                lambda: session.status(),
            ):
                answer = at_once(ask, 5)
                if not answer["ok"] and "error" in answer and answer["error"]:
                    assert "stopped" in answer["error"]["message"], answer
        finally:
            os.kill(session.pid, signal.SIGCONT)
        ended = session.ended(cell)
        assert ended["status"] in ("done", "interrupted")
        assert session.value("kept") == "precious"
        assert session.wait_for_state("idle")


def test_a_session_that_is_stopped_when_a_daemon_starts_is_named_and_goes_on(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    session, killed, other = daemon.new(), daemon.new(), daemon.new()
    session.out("kept = 'precious'")
    go = daemon.work / "go"
    waits = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    cell = session.detach(f"print('in')\n{waits}\n'went on'")
    session.wait_for_output(cell, "in")
    for stopped in (session, killed):
        stopped.wire.close()
        os.kill(stopped.pid, signal.SIGSTOP)
    try:
        daemon.crash()
        daemon.start()
        for stopped in (session, killed):
            wait_until(lambda s=stopped: s.name in daemon.list(), 5, what="it is listed")
            entry = daemon.list()[stopped.name]
            assert (entry["state"], entry["pid"]) == ("stopped", stopped.pid)
            assert entry["session_id"] == stopped.created["session_id"]
            status = at_once(stopped.status, 5)
            assert (status["state"], status["gen"]) == ("stopped", 1)
            assert "stopped" in at_once(lambda s=stopped: s.ask("vars"), 5)["error"]["message"]
            assert "already exists" in daemon.ask(f"new {stopped.name}")
        assert daemon.json(f"run {other.name} --json\n6 * 7")["result"] == "42"
        assert at_once(lambda: daemon.ask(f"kill {killed.name}"), 10).startswith("OK")
        assert killed.name not in daemon.list()
        assert daemon.new(killed.name).out("1 + 1") == "2\n"
        with daemon.connect() as wire:
            # What is sent to it meanwhile is carried out when it goes on.
            wire.send(f"run {session.name} --json\nkept")
            go.touch()
            os.kill(session.pid, signal.SIGCONT)
            reply = json.loads(wire.receive(20))
            assert reply["ok"], reply
            assert reply["result"] == "precious"
    finally:
        os.kill(session.pid, signal.SIGCONT)
    assert session.ended(cell)["result"] == "went on"
    assert session.wait_for_state("idle")["python"]["version"]


def test_a_run_in_a_stopped_session_is_told_why_it_does_not_start(session: Session) -> None:
    session.out("kept = 'precious'")
    os.kill(session.pid, signal.SIGSTOP)
    try:
        with session.daemon.connect() as wire:
            wire.send(f"run {session.name} --json\nafter = 1")
            answer = None
            try:
                answer = wire.receive(5)
            except TimeoutError:
                assert session.status()["state"] == "stopped"
            assert answer is None or "stopped" in answer, answer
            os.kill(session.pid, signal.SIGCONT)
            if answer is None:
                assert '"ok":true' in wire.receive(10)
    finally:
        os.kill(session.pid, signal.SIGCONT)
    assert session.value("kept") == "precious"


def test_a_stopped_session_can_be_killed(shared_daemon: TestDaemon) -> None:
    with busy(shared_daemon, COMPUTES) as (session, _):
        os.kill(session.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert session.daemon.ask(f"kill {session.name}") == f"OK killed {session.name}"
        assert time.monotonic() - started < 10


def test_neighbours_of_a_stopped_and_of_a_stuck_session_do_not_notice(
    shared_daemon: TestDaemon,
) -> None:
    with busy(shared_daemon, HOLDS) as _, shared_daemon.session() as stopped:
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            with shared_daemon.session() as session:
                for number in range(100):
                    assert at_once(lambda n=number: session.run(f"{n}"))["result"] == str(number)
                assert at_once(session.status)["state"] == "idle"
        finally:
            os.kill(stopped.pid, signal.SIGCONT)


def test_control_is_fast_while_a_cell_computes_and_while_it_holds_the_interpreter(
    shared_daemon: TestDaemon,
) -> None:
    for code in (COMPUTES, HOLDS):
        with busy(shared_daemon, code) as (session, cell), shared_daemon.connect() as wire:
            slowest = 0.0
            for _ in range(100):
                for verb in (f"status {session.name}", f"poll {session.name} {cell}", "ls"):
                    started = time.monotonic()
                    assert not wire.ask(verb).startswith("ERR")
                    slowest = max(slowest, time.monotonic() - started)
            assert slowest < 0.5, (code, slowest)


def test_a_stopped_session_does_not_make_the_daemon_keep_all_that_is_asked(
    session: Session,
) -> None:
    session.out("kept = 'precious'")
    os.kill(session.pid, signal.SIGSTOP)
    try:
        with session.daemon.connect() as wire:
            text = "x" * (1 << 16)
            told: list[str] = []
            # Each may wait for its answer as long as a stopped process may take.
            for number in range(64):
                wire.send(f"complete {session.name} --tag={number}\n{text}")
            while len(told) < 64:
                reply = json.loads(wire.receive(20))
                told.append(reply["error"]["message"])
            assert sum("takes no more questions" in message for message in told) >= 40, told[-3:]
            assert sum("is stopped" in message for message in told) >= 8
    finally:
        os.kill(session.pid, signal.SIGCONT)
    assert session.value("kept") == "precious"
    # It first has to answer those that it was asked.
    wait_until(lambda: session.status().get("state") == "idle", what="it answers again")


def test_cells_for_a_session_that_was_stopped_before_the_daemon_are_refused_in_time(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    session = daemon.new()
    session.out("seen = []")
    session.wire.close()
    os.kill(session.pid, signal.SIGSTOP)
    try:
        daemon.crash()
        daemon.start()
        wait_until(lambda: session.name in daemon.list(), 5, what="it is listed")
        wires = [daemon.connect() for _ in range(10)]
        for wire in wires:
            for number in range(40):
                wire.send(f"fire {session.name} --tag={number}\nseen.append(1)")
        for wire in wires:
            for _ in range(40):
                reply = json.loads(wire.receive(20))
                assert reply["error"]["code"] == "session_unreachable", reply
            wire.close()
    finally:
        os.kill(session.pid, signal.SIGCONT)
    # What it took is carried out, and what was refused at the door is not.
    wait_until(lambda: session.value("len(seen)") == "256", what="the cells ran")
