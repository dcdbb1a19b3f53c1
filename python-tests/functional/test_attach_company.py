"""People at one terminal, beside agents and beside each other."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from support.attached import Attached, Stalled, attach
from support.daemon import Session
from support.waiting import wait_until

# Agents beside the person.


def test_an_agents_cell_is_shown_above_the_half_typed_line(
    person: Attached, session: Session
) -> None:
    person.type("print('half', 1 +")
    person.wait_for_prompt("print('half', 1 +")
    reply = session.run("z = 5\nprint('from the agent')\nz * 2")
    assert reply["stdout"] == "from the agent\n10\n"
    person.wait_for("from the agent\n10\n")
    person.wait_for_prompt("print('half', 1 +")
    above = person.text().rsplit(">>>", 1)[0]
    assert "[ai] run: z = 5\n[ai]    : print('from the agent')\n[ai]    : z * 2" in above
    assert "from the agent\n10\n" in above
    person.line("1)")
    person.wait_for("half 2")
    session.fails("1 / 0", "ZeroDivisionError")
    person.wait_for("ZeroDivisionError")
    person.wait_for_prompt()


def test_output_of_an_agents_cell_appears_while_it_runs(
    person: Attached, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    person.type("abc")
    person.wait_for_prompt("abc")
    cell = session.detach(
        "print('begun', flush=True); os.system('echo of a child')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('over')"
    )
    person.wait_for("begun\nof a child")
    person.type("def")
    go.touch()
    person.wait_for("\nover\n")
    person.wait_for_prompt("abcdef")
    assert session.ended(cell)["ok"]


def test_cells_that_follow_one_another_are_shown_one_below_the_other(
    person: Attached, session: Session
) -> None:
    person.type("half")
    person.wait_for_prompt("half")
    for number in range(3):
        session.out(f"print('no end of line {number}', end='')")
    person.wait_for("no end of line 2\n")
    person.wait_for_prompt("half")
    shown = [f"[ai] run: print('no end of line {n}', end='')\nno end of line {n}" for n in range(3)]
    assert "\n".join(shown) in person.text()


def test_agents_that_never_pause_are_shown_while_they_work(
    person: Attached, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    person.type("half")
    person.wait_for_prompt("half")

    def flood() -> None:
        with session.daemon.connect() as agent:
            while not go.exists():
                agent.ask(f"run {session.name} 'flood'")

    # Two of them, so that another cell waits whenever one ends.
    agents = [threading.Thread(target=flood) for _ in range(2)]
    for agent in agents:
        agent.start()
    try:
        person.wait_for("[ai] run: 'flood'\nflood\n")
    finally:
        go.touch()
        for agent in agents:
            agent.join()
    person.wait_for_prompt("half")


def test_a_half_typed_line_of_several_rows_survives_a_long_cell(
    session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with attach(session, rows=24, cols=30) as person:
        person.type("text = '" + "x" * 60)
        person.wait_for("x" * 8)
        cell = session.detach(
            f"print('begun')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
        )
        person.wait_for("\nbegun")
        above = person.text()
        assert "xxx" not in above.split("[ai] run", 1)[1]
        assert ">>>" not in above
        go.touch()
        assert session.ended(cell)["ok"]
        person.wait_for(">>> text = 'xxxxxxxxxxxxxxxxxx\n" + "x" * 30 + "\n" + "x" * 12)
        person.run("'")
        assert session.value("len(text)") == "60"


def test_fire_cells_are_shown_above_the_prompt(person: Attached, session: Session) -> None:
    person.type("abc")
    person.wait_for_prompt("abc")
    cell = session.fire("print('fired one'); print('fired two')")
    assert session.ended(cell)["ok"]
    person.wait_for("\nfired one\nfired two")
    person.wait_for_prompt("abc")
    assert "[ai] fire: print('fired one')" in person.text()


def test_fork_cells_run_while_a_person_types(person: Attached, session: Session) -> None:
    person.type("half")
    person.wait_for_prompt("half")
    forked = session.submit("fork", "print('from the child')\nmade = [1, 2]")
    assert session.ended(forked["cell_id"])["merged"] == ["made"]
    person.wait_for("[ai] fork: print('from the child')")
    person.wait_for("\nfrom the child\n")
    person.wait_for_prompt("half")
    person.press("ctrl-c")
    person.wait_for("KeyboardInterrupt\n>>>")
    person.run("made")
    person.wait_for("[1, 2]\n>>>")
    person.line("time.sleep(300)")
    session.wait_for_state("running")
    during = session.submit("fork", "made_during = sum(made)")
    assert session.ended(during["cell_id"])["merged"] == ["made_during"]
    person.press("ctrl-c")
    person.wait_for("KeyboardInterrupt\n[ai] fork: made_during = sum(made)\n>>>")
    assert session.value("made_during") == "3"


def test_control_characters_of_an_agents_cell_are_visible(
    person: Attached, session: Session
) -> None:
    session.out("print('a\\x1b[2Jb\\x07c\\x1b[31mred\\x1b[0m')")
    person.wait_for("a^[[2Jb^Gcred")
    person.wait_for_prompt()


def test_much_output_of_an_agents_cell_is_cut_and_said(person: Attached, session: Session) -> None:
    reply = session.run("print('y' * 200_000)")
    assert len(reply["stdout"]) == 200_001
    person.wait_for("more output of this cell: pysh out")
    person.wait_for_prompt()


def test_agents_and_the_person_share_names_and_the_thread(
    person: Attached, session: Session
) -> None:
    session.out("db = sqlite3.connect(':memory:'); db.execute('create table t(a)')")
    person.run("_ = db.execute('insert into t values (7)')")
    assert session.value("db.execute('select a from t').fetchall()") == "[(7,)]"
    person.run("mine = sqlite3.connect(':memory:')")
    assert session.value("mine.execute('select 1').fetchone()") == "(1,)"


def test_agents_cells_wait_for_the_persons(
    person: Attached, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    person.line(f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
    person.line("")
    session.wait_for_state("running")
    session.wire.send(f"run {session.name} --json\n'after'")
    wait_until(lambda: session.status()["queued"], what="the agent's cell waits")
    go.touch()
    assert json.loads(session.wire.receive())["result"] == "after"


def test_ctrl_c_of_the_person_never_hits_an_agents_cell(
    person: Attached, session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    beside = session.fire(f"p = subprocess.Popen(['sleep', '300'])\n{wait}\np.poll()")
    cell = session.detach(f"print('in')\n{wait}\n'whole'")
    session.wait_for_output(cell, "in")
    for _ in range(20):
        person.press("ctrl-c")
    go.touch()
    assert session.ended(cell)["result"] == "whole"
    assert session.ended(beside)["result"] is None
    session.out("p.kill(); p.wait()")
    person.press("ctrl-c")
    person.wait_for_prompt()


def test_exit_of_an_agent_does_not_end_the_session(person: Attached, session: Session) -> None:
    session.fails("exit(3)", "SystemExit")
    session.ended(session.fire("exit()"))
    person.run("1 + 1")
    person.wait_for("\n2\n")


def test_the_persons_cells_are_cells(person: Attached, session: Session) -> None:
    with session.daemon.connect() as follower:
        follower.send(f"events {session.name} --json")
        assert json.loads(follower.receive())["event"] == "ready"
        person.run("mine = 6 * 7")
        person.run("print(mine)")
        kinds = [json.loads(follower.receive()) for _ in range(4)]
    assert [event["kind"] for event in kinds] == ["human"] * 4
    assert [event["status"] for event in kinds] == ["running", "done"] * 2
    first, second = session.cells().values()
    assert (first["kind"], first["status"], first["code"]) == ("human", "done", "mine = 6 * 7")
    assert first["author"]
    assert session.poll(second["cell_id"])["stdout"] == "42\n"
    history = session.daemon.session_directory(session.name) / "history.py"
    wait_until(
        lambda: history.exists() and "mine = 6 * 7" in history.read_text(), what="the history"
    )


# Several people.


def test_everybody_sees_the_same_and_may_type(session: Session) -> None:
    with attach(session) as one, attach(session) as other:
        one.run("1 + 1")
        other.wait_for("\n2\n>>>")
        other.run("'by the other'")
        one.wait_for("'by the other'\n>>>")
        assert one.screen() == other.screen()


def test_an_observer_sees_and_cannot_type(session: Session) -> None:
    with attach(session) as person, attach(session, options="--json --read-only") as reader:
        reader.type("wrong = 1\r")
        person.run("right = 1")
        reader.wait_for("right = 1\n>>>")
        reader.press("ctrl-c")
    assert session.value("'wrong' in globals()") == "False"


def test_the_screen_is_restored(session: Session) -> None:
    with attach(session) as person:
        person.run("print('seen before')")
        person.type("half")
        person.wait_for_prompt("half")
    with attach_half(session) as again:
        again.wait_for_prompt("half")
        again.wait_for("seen before")
        assert b"print('seen before')\x1b" not in again.raw[:10]
        again.press("ctrl-c")


def attach_half(session: Session) -> Attached:
    return Attached(str(session.daemon.socket), session.name)


def test_a_terminal_that_does_not_read_is_cut_off(session: Session) -> None:
    stalled = Stalled(session)
    try:
        with attach(session) as person:
            assert session.status()["attached"] == 2
            person.blind = True
            person.line("for i in range(150): print('z' * 20_000)")
            person.line("")
            flood = 150 * 20_000
            person.wait_for(lambda: person.raw.count(b"z") >= flood, 60, "the flood")
            person.wait_for(lambda: person.raw.endswith(b">>> "), 60, "the prompt")
            wait_until(
                lambda: session.status()["attached"] == 1, what="the stalled terminal is gone"
            )
            person.line("6 * 7")
            person.wait_for(lambda: b"\r42\r\n" in person.raw, 60, "the answer")
        assert session.value("1 + 1") == "2"
    finally:
        stalled.close()


# Holding agents.


def test_hold_lets_agents_wait(person: Attached, session: Session) -> None:
    held = session.daemon.json(f"hold {session.name} --json --author=ann")
    assert (held["ok"], held["held"], held["waiting"]) == (True, True, 0)
    assert person.wait_for_event("held") == {"event": "held", "held": True, "author": "ann"}
    person.wait_for("agents' new cells wait for ann")
    assert session.status()["held_by"] == "ann"
    session.wire.send(f"run {session.name} --json --stream\n'agent'")
    told = json.loads(session.wire.receive())
    assert (told["event"], told["status"], told["held_by"]) == ("accepted", "queued", "ann")
    fired = session.submit("fire", "'fired'")
    assert (fired["status"], fired["held_by"]) == ("queued", "ann")
    forked = session.submit("fork", "brought = 'back'")
    assert (forked["status"], forked["held_by"]) == ("queued", "ann")
    busy = session.daemon.json(f"run {session.name} --json --busy=fail\n1")
    assert "held by ann" in busy["error"]["message"]
    person.run("'person'")
    person.wait_for("'person'\n>>>")
    assert session.status()["running"] == []
    assert session.daemon.ask(f"release {session.name}") == "OK release"
    while (reply := json.loads(session.wire.receive())).get("event"):
        pass
    assert reply["result"] == "agent"
    assert session.ended(fired["cell_id"])["result"] == "fired"
    assert session.ended(forked["cell_id"])["merged"] == ["brought"]
    assert "held_by" not in session.status()


def test_what_is_held_at_a_terminal_ends_with_it(session: Session) -> None:
    person = attach(session)
    person.say(f"hold {session.name} --json --tag=hold")
    person.wait_for_event("held")
    cell = session.detach("'ran'")
    assert session.poll(cell)["status"] == "queued"
    person.close()
    assert session.ended(cell)["result"] == "ran"


def test_a_waiting_cell_can_be_interrupted(session: Session) -> None:
    session.daemon.ask(f"hold {session.name}")
    run, fired = session.detach("1"), session.fire("2")
    for cell in (run, fired):
        session.interrupt(cell)
        assert session.ended(cell)["status"] == "interrupted"
    session.daemon.ask(f"release {session.name}")
    assert session.value("1 + 1") == "2"
