"""How long and whether a client waits: limits, queues, detached cells, vanished clients."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import text_of

MIB = 1024 * 1024


def test_a_time_limit_interrupts_the_cell(session: Session) -> None:
    session.out("kept = 1")
    reply = session.submit("run", "print('x')\nwhile True: pass", "--timeout=0.3")
    assert (reply["status"], reply["timed_out"]) == ("interrupted", True)
    assert reply["stdout"] == "x\n"
    assert 300 <= reply["duration_ms"] < 3000
    assert session.submit("run", "1", "--timeout=30")["ok"]
    assert session.value("kept") == "1"
    done = session.daemon.pysh("run", session.name, "--timeout", "0.3", "time.sleep(60)")
    assert done.returncode == 124


def test_a_time_limit_counts_from_the_start_and_not_from_the_queue(session: Session) -> None:
    first = session.detach("print('in'); time.sleep(0.8)")
    session.wait_for_output(first, "in")
    reply = session.submit("run", "time.sleep(0.1); 5", "--timeout=0.5")
    assert reply["ok"], reply


def test_waiting_ends_and_the_cell_goes_on(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    started = time.monotonic()
    reply = session.submit("run", "print('x'); go.wait(30); 5", "--wait=0.3")
    assert 0.25 < time.monotonic() - started < 5
    assert reply["status"] == "running"
    assert session.ended(session.fire("go.set()"))["ok"]
    assert session.ended(reply["cell_id"])["stdout"] == "x\n5\n"
    assert session.submit("run", "7", "--wait=30")["result"] == "7"
    done = session.daemon.pysh("run", session.name, "--wait", "0.2", "time.sleep(0.6); late = 1")
    assert done.returncode == 124
    (cell,) = session.status()["running"]
    assert cell in done.stdout + done.stderr
    assert session.ended(cell)["ok"]


def test_a_detached_cell_answers_with_its_id(session: Session) -> None:
    reply = session.submit("run", "print('in'); time.sleep(60)", "--detach")
    assert reply["status"] in ("queued", "running")
    session.wait_for_output(reply["cell_id"], "in")
    done = session.daemon.pysh("run", session.name, "--detach", "queued = 1")
    assert done.returncode == 0
    (waiting,) = session.status()["queued"]
    assert waiting in done.stdout
    session.interrupt(reply["cell_id"])
    assert session.ended(waiting)["ok"]
    assert session.value("queued") == "1"


def test_a_busy_session_refuses_when_asked_to(session: Session) -> None:
    assert session.submit("run", "1", "--busy=fail")["ok"]
    running = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(running, "in")
    reply = session.submit("run", "never = 1", "--busy=fail")
    assert (reply["ok"], reply["error"]["code"]) == (False, "busy")
    assert session.daemon.pysh("run", session.name, "--busy", "fail", "1").returncode == 4
    session.interrupt(running)
    session.ended(running)
    assert session.value("'never' in globals()") == "False"
    fired = session.fire("time.sleep(60)")
    assert session.submit("run", "2", "--busy=fail")["ok"]
    session.interrupt(fired)


def test_a_cell_of_sixteen_megabytes_of_code_runs(session: Session) -> None:
    code = "s = '" + "x" * (16 * MIB - 200) + "'; len(s)"
    assert session.run(code)["result"] == str(16 * MIB - 200)
    assert session.ended(session.fire(code.replace("x'", "y'")))["ok"]


def test_a_client_that_vanishes_changes_nothing(session: Session) -> None:
    session.out("seen = []")
    wire = session.daemon.connect()
    wire.send(f"run {session.name} --stream\nprint('in'); time.sleep(0.5); seen.append(1)")
    cell = json.loads(wire.receive())["cell_id"]
    wire.send(f"run {session.name}\nseen.append(2)")
    wait_until(lambda: session.status()["queued"] or "seen.append(2)" in str(session.cells()))
    wire.socket.socket.close()
    assert session.ended(cell)["ok"]
    session.out("seen.append(3)")
    assert session.value("seen") == "[1, 2, 3]"


def test_a_cell_is_cancelled_with_its_client_if_that_was_asked_for(session: Session) -> None:
    with session.daemon.connect() as wire:
        wire.send(
            f"run {session.name} --stream --cancel-on-disconnect\nprint('in'); time.sleep(60)"
        )
        cell = json.loads(wire.receive())["cell_id"]
        session.wait_for_output(cell, "in")
    assert session.ended(cell, 10)["status"] == "interrupted"
    first = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(first, "in")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --cancel-on-disconnect\nnever = 1")
        wait_until(lambda: session.status()["queued"])
    wait_until(lambda: not session.status()["queued"], what="the queued cell is taken back")
    session.interrupt(first)
    assert session.value("'never' in globals()") == "False"
    assert text_of(session.run("print(1)")["stdout"]) == "1\n"


@pytest.mark.parametrize("verb", ["run", "wait"])
def test_who_waits_when_the_daemon_stops_is_told_the_same(
    make_daemon: Callable[..., TestDaemon], verb: str
) -> None:
    daemon = make_daemon().start()
    session = daemon.new("work")
    code = "print('in'); import threading; threading.Event().wait()"
    if verb == "run":
        client = daemon.popen("pysh", "run", "work", code)
        wait_until(lambda: session.status()["running"], what="the cell runs")
    else:
        cell = session.detach(code)
        session.wait_for_output(cell, "in")
        client = daemon.popen("pysh", "wait", "work", cell)
        wait_until(lambda: "cmd=wait" in daemon.access_log().read_text(), what="it waits")
    assert daemon.stop() == 0
    _, err = client.communicate(timeout=30)
    assert client.returncode == 5
    assert b"session `work` died: the daemon stopped while cell" in err
