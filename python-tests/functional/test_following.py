"""`wait`, `cells` and the command line: following cells that nobody waits for."""

from __future__ import annotations

import json

from support.daemon import Session, TestDaemon


def test_wait_answers_when_all_named_cells_have_ended(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    cells = [session.fire(f"go.wait(60); {n}") for n in range(3)]
    failing = session.fire("go.wait(60); 1/0")
    reply = session.ask("wait", f"--timeout=0.1 {cells[0]} {cells[1]}")
    assert (reply["ok"], reply["timed_out"]) == (False, True)
    with session.daemon.connect() as wire:
        wire.send(f"wait {session.name} {cells[2]} {cells[0]}")
        with session.daemon.connect() as everything:
            everything.send(f"wait {session.name} --tag=all")
            # Whatever is asked later is answered later: by then it knows its cells.
            assert everything.json(f"status {session.name} --tag=then")["tag"] == "then"
            session.out("go.set()")
            reply = json.loads(wire.receive())
            assert reply["ok"] is True
            assert [cell["cell_id"] for cell in reply["cells"]] == [cells[2], cells[0]]
            reply = json.loads(everything.receive())
            assert (reply["tag"], reply["ok"]) == ("all", False)
            assert {c["cell_id"]: c["status"] for c in reply["cells"]}[failing] == "failed"
    assert session.ask("wait", failing)["cells"][0]["status"] == "failed"
    assert session.ask("wait")["cells"] == []
    assert session.ask("wait", "deadbeef0000")["error"]["code"] == "unknown_cell"


def test_cells_tell_state_kind_author_place_duration_and_output(session: Session) -> None:
    done = session.run("print('12345'); None")["cell_id"]
    running = session.fire("print('é'); time.sleep(30)", "--author=ann")
    waiting = session.fire("pass\nmore = 1", "--queue --id=key-1")
    session.wait_for_output(running, "é")
    listed = session.cells()
    assert list(listed) == [done, running, waiting]
    assert listed[done] | {"status": "done", "kind": "run", "output_bytes": 6} == listed[done]
    assert listed[done]["author"].startswith("unix:")
    assert listed[done]["code"] == "print('12345'); None"
    now = {"status": "running", "kind": "fire", "output_bytes": 3, "author": "ann"}
    assert listed[running] | now == listed[running]
    assert listed[running]["duration_ms"] > 0
    now = {"status": "queued", "queue_position": 1, "id": "key-1", "code": "pass"}
    assert listed[waiting] | now == listed[waiting]
    assert listed[waiting]["started_at"] is None
    text = session.daemon.ask(f"cells {session.name}")
    assert len(text.splitlines()) == 3
    assert f"  {waiting}: fire queued #1 " in text
    session.interrupt(waiting)
    session.interrupt(running)
    assert session.cells()[waiting]["status"] == "interrupted"


def test_who_waits_for_a_cell_is_told_when_and_why_its_session_died(
    shared_daemon: TestDaemon,
) -> None:
    with shared_daemon.session() as session, shared_daemon.connect() as wire:
        cell = session.fire("time.sleep(60)")
        client = shared_daemon.popen("pysh", "wait", session.name, cell)
        wire.send(f"wait {session.name} --json {cell}")
        killer = session.fire("time.sleep(0.2); os.kill(os.getpid(), 9)")
        error = json.loads(wire.receive(10))["error"]
        assert error["code"] == "session_died"
        assert "killed by SIGKILL" in error["message"]
        assert session.status()["death"]["cause"].startswith("killed by SIGKILL")
        _, told = client.communicate(timeout=10)
        assert client.returncode == 5
        assert b"killed by SIGKILL" in told
        assert session.poll(killer)["error"]["code"] == "session_died"


# The command line.


def test_the_command_line_fires_polls_waits_and_reads(session: Session) -> None:
    daemon, name = session.daemon, session.name
    fired = daemon.pysh("fire", name, "print('o'); print('e', file=sys.stderr); time.sleep(0.2); 7")
    assert fired.returncode == 0, fired
    cell = json.loads(fired.stdout)["cell_id"]
    done = daemon.pysh("out", name, cell, "--follow")
    assert (done.returncode, done.stdout, done.stderr) == (0, "o\n7\n", "e\n")
    done = daemon.pysh("wait", name, cell)
    assert done.returncode == 0
    assert done.stdout.split()[0].strip(":") == cell
    assert json.loads(daemon.pysh("poll", name, cell).stdout)["status"] == "done"
    assert json.loads(daemon.pysh("poll", name).stdout)["cell_id"] == cell
    assert daemon.pysh("out", name, cell, "--stderr").stdout == "e\n"
    assert daemon.pysh("out", name, cell, "--since", "2").stdout == "7\n"
    listed = daemon.pysh("cells", name)
    assert listed.returncode == 0
    assert cell in listed.stdout
    failing = json.loads(daemon.pysh("fire", name, "--json", "1/0").stdout)["cell_id"]
    assert daemon.pysh("wait", name, failing).returncode == 1
    running = json.loads(daemon.pysh("fire", name, "--json", "time.sleep(60)").stdout)["cell_id"]
    assert daemon.pysh("wait", name, running, "--timeout", "0.2").returncode == 124
    assert daemon.pysh("int", name, running).returncode == 0
    assert session.ended(running)["status"] == "interrupted"
