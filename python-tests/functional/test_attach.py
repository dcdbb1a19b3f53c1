"""A person at the terminal of a session: the prompt, keys, agents beside them."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attached import Attached
from support.daemon import Session, TestDaemon
from support.waiting import wait_until


def attach(session: Session, **options) -> Attached:
    """Attach to a session and wait for its prompt."""
    terminal = Attached(str(session.daemon.socket), session.name, **options)
    if "read-only" not in options.get("options", ""):
        terminal.wait_for_prompt()
    return terminal


@pytest.fixture
def person(session: Session) -> Iterator[Attached]:
    """A person who is attached to the session."""
    with attach(session) as terminal:
        yield terminal


@pytest.fixture(params=["3.10", "3.11", "3.12", "3.13"])
def any_session(
    request: pytest.FixtureRequest, pythons: dict[str, Path], shared_daemon: TestDaemon
) -> Iterator[Session]:
    """A session of each Python that is here."""
    if request.param not in pythons:
        pytest.skip(f"CPython {request.param} is not here")
    with shared_daemon.session(python=str(pythons[request.param])) as session:
        yield session


# The prompt, on every Python.


def test_a_line_is_run_and_its_value_is_shown(any_session: Session) -> None:
    any_session.out("x = 41")
    with attach(any_session) as person:
        person.run("x + 1")
        person.wait_for("\n42\n>>>")
        person.run("'text'")
        person.wait_for("'text'\n'text'\n>>>")
        person.run("_ + '!'")
        person.wait_for("'text!'")
        person.run("y = 7; None")
    assert any_session.value("y") == "7"


def test_blocks_are_typed_line_by_line(any_session: Session) -> None:
    with attach(any_session) as person:
        person.line("def f(a):")
        person.wait_for("\n...")
        person.line("    return a * 2")
        person.line("")
        person.wait_for_prompt()
        person.run("f(21)")
        person.wait_for("\n42\n")
        person.line("for i in range(3): i")
        person.line("")
        person.wait_for("\n0\n1\n2\n>>>")
        person.line("class A:")
        person.line("    '''text")
        person.line("")
        person.line("    more'''")
        person.line("")
        person.wait_for_prompt()
        person.run("A.__doc__.split()")
        person.wait_for("['text', 'more']")


def test_ctrl_c_interrupts_what_the_person_runs(any_session: Session) -> None:
    any_session.out("kept = 1")
    with attach(any_session) as person:
        for code in ["time.sleep(60)", "while True: pass", "subprocess.run(['sleep', '60'])"]:
            person.line(code)
            if code.startswith("while"):
                person.line("")
            person.wait_for(code)
            any_session.wait_for_state("running")
            person.press("ctrl-c")
            person.wait_for(lambda: person.text().endswith("KeyboardInterrupt\n>>>"))
        person.line("input('name? ')")
        person.wait_for("\nname?")
        person.press("ctrl-c")
        person.wait_for_prompt()
        person.line("input('again? ')")
        person.wait_for("\nagain?")
        person.line("bob")
        person.wait_for("'bob'")
        person.run("kept")
        person.wait_for("\n1\n>>>")
    last = list(any_session.cells().values())[-3]
    assert (last["kind"], last["status"]) == ("human", "interrupted")


def test_ctrl_c_at_the_prompt_clears_the_line(any_session: Session) -> None:
    with attach(any_session) as person:
        person.type("half a line")
        person.wait_for_prompt("half a line")
        person.press("ctrl-c")
        person.wait_for("\nKeyboardInterrupt\n>>>")
        person.line("def f():")
        person.wait_for("\n...")
        person.press("ctrl-c")
        person.wait_for_prompt()
        person.run("1 + 1")
        person.wait_for("\n2\n")


def test_pdb_and_breakpoint(any_session: Session) -> None:
    with attach(any_session) as person:
        person.line("def f(a): breakpoint(); return a")
        person.line("")
        person.wait_for_prompt()
        person.line("f(5)")
        person.wait_for("(Pdb)")
        person.line("p a * 2")
        person.wait_for("\n10\n")
        person.press("ctrl-c")
        person.wait_for("--KeyboardInterrupt--\n(Pdb)")
        person.line("c")
        person.wait_for_prompt()


def test_completion_and_history(any_session: Session) -> None:
    any_session.out("a_long_name = 'found'")
    with attach(any_session) as person:
        person.type("a_lon\t")
        person.wait_for_prompt("a_long_name")
        person.press("enter")
        person.wait_for("'found'")
        person.run("1 + 1")
        person.press("up", "up")
        person.wait_for_prompt("a_long_name")
        person.press("ctrl-c")
        person.wait_for_prompt()
        person.press("ctrl-r")
        person.type("a_lo")
        person.wait_for("(reverse-i-search)`a_lo': a_long_name")
        person.press("enter")
        person.wait_for_prompt()
        assert person.text().count("'found'") == 2


def test_exit_ends_the_session_with_a_clear_word(any_session: Session) -> None:
    person = attach(any_session)
    person.line("exit()")
    event = person.wait_for_event("terminal_closed")
    assert event["reason"] == "exited"
    assert "exit()" in event["message"]
    person.wait_closed()
    assert person.close_code == 1000
    assert "has ended: exit() was typed here" in person.text()
    death = any_session.status()["death"]
    assert death["cause"] == "ended by `exit()` at its terminal"


# Keys and text.


def test_ctrl_d_does_not_end_the_session(person: Attached) -> None:
    person.press("ctrl-d")
    person.wait_for("exit() ends the session")
    person.wait_for_prompt()
    person.run("1 + 1")
    person.wait_for("\n2\n")


def test_unicode_and_wide_characters(person: Attached, session: Session) -> None:
    person.run("s = 'äöü 漢字 🎉'")
    person.run("print(s)")
    person.wait_for("\näöü 漢")
    assert session.value("s") == "äöü 漢字 🎉"
    # The cursor knows how wide they are.
    person.type("'漢字x'")
    person.press("left", "left", "left", "left", "backspace", "backspace")
    person.type("ab")
    person.press("end", "enter")
    person.wait_for("字x'")


def test_a_paste_of_200_lines_is_one_cell(person: Attached, session: Session) -> None:
    lines = [f"a{number} = {number}" for number in range(198)]
    text = "\n".join([*lines, "def f():", "    if a1:", "", "        return a197"])
    person.paste(text)
    person.press("enter")
    person.wait_for_prompt()
    person.run("f()")
    person.wait_for("\n197\n")
    kinds = [cell["kind"] for cell in session.cells().values()]
    assert kinds == ["human", "human"]


def test_lines_that_are_pasted_without_brackets_are_all_run(
    person: Attached, session: Session
) -> None:
    person.type("".join(f"b{number} = {number}\r" for number in range(200)))
    wait_until(lambda: session.value("'b199' in globals()") == "True", what="the last line")
    assert session.value("sum(eval(f'b{n}') for n in range(200))") == str(sum(range(200)))


def test_an_exception_is_shown_as_at_pythons_prompt(person: Attached) -> None:
    person.run("1 / 0")
    person.wait_for("ZeroDivisionError: division by zero")
    assert "Traceback (most recent call last)" in person.text()
    person.run("x = = 1")
    person.wait_for("SyntaxError")


def test_help_and_less_page(person: Attached, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("".join(f"line {number}\n" for number in range(500)))
    person.line(f"r = subprocess.run(['less', {str(page)!r}])")
    person.wait_for("line 10")
    person.type("G")
    person.wait_for("line 499")
    person.type("q")
    person.wait_for_prompt()
    person.line("help(len)")
    person.wait_for("Help on built-in function len")
    person.type("q")
    person.wait_for_prompt()


def test_full_screen_programs(person: Attached, session: Session, tmp_path: Path) -> None:
    text = tmp_path / "text"
    person.line(f"os.system('vim -u NONE -N {text}')")
    person.wait_for("~")
    person.type("ihello from vim")
    person.wait_for("hello from vim")
    person.wait_for("-- INSERT --")
    person.press("ctrl-c")
    person.wait_for(lambda: "-- INSERT --" not in person.text())
    person.type(":wq\r")
    person.wait_for_prompt()
    person.wait_for("\n0\n")
    assert text.read_text() == "hello from vim\n"
    assert session.value("1 + 1") == "2"


def test_colours_reach_the_terminal(person: Attached) -> None:
    person.run("print('\\x1b[31mred\\x1b[0m')")
    person.wait_for(lambda: b"\x1b[31mred\x1b[0m" in person.raw)
    person.run("sys.stdout.isatty(), sys.stdin.isatty(), os.environ['TERM']")
    person.wait_for("(True, True, 'xterm-256color')")


def test_standard_streams_are_the_terminal_for_the_person_alone(
    person: Attached, session: Session
) -> None:
    person.run("print('out'); print('err', file=sys.stderr); os.system('echo child')")
    person.wait_for("out\nerr\nchild\n0\n>>>")
    assert session.value("sys.stdout.isatty(), sys.stdin.isatty(), os.isatty(0)") == (
        "(False, False, False)"
    )
    session.fails("input()", "EOFError")
    cell = next(iter(session.cells()))
    assert session.ask("out", cell)["stdout"].startswith("out\n")


def test_await_at_the_prompt(person: Attached, session: Session) -> None:
    person.run("import asyncio; await asyncio.sleep(0.01, 'waited')")
    person.wait_for("'waited'")
    person.run("t = asyncio.create_task(asyncio.sleep(0.05, 'later'))")
    wait_until(lambda: session.value("t.done()") == "True", what="the task is done")
    person.run("t.result()")
    person.wait_for("'later'")


# The size.


def test_the_size_is_that_of_the_person_and_follows_it(person: Attached) -> None:
    person.run("os.get_terminal_size()")
    person.wait_for("terminal_size(columns=80, lines=24)")
    person.say(f"resize {person.reply['session']} 30 100 --json --tag=resize")
    assert person.wait_for_event("terminal_resized") == {
        "event": "terminal_resized",
        "rows": 30,
        "cols": 100,
    }
    person.run("os.get_terminal_size()")
    person.wait_for("terminal_size(columns=100, lines=30)")
    person.line("subprocess.run(['sh', '-c', 'trap \"stty size\" WINCH; echo on; read x'])")
    person.wait_for("\non")
    person.say(f"resize {person.reply['session']} 20 60 --json --tag=resize")
    person.wait_for("\n20 60")
    person.line("")
    person.wait_for_prompt()


def test_the_smallest_writer_decides_the_size(session: Session) -> None:
    with attach(session) as one:
        with attach(session, rows=20, cols=60) as other:
            one.wait_for_event("terminal_resized")
            with attach(session, rows=5, cols=5, options="--json --read-only") as reader:
                assert reader.reply["read_only"] is True
                other.run("os.get_terminal_size()")
                other.wait_for("terminal_size(columns=60, lines=20)")
        one.wait_for(lambda: len(one.events) == 2)
        assert (one.events[-1]["rows"], one.events[-1]["cols"]) == (24, 80)


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
            person.line("for i in range(150): print('z' * 20_000)")
            person.line("")
            person.wait_for_prompt(deadline=60)
            wait_until(
                lambda: session.status()["attached"] == 1, what="the stalled terminal is gone"
            )
            person.run("1 + 1")
        assert session.value("1 + 1") == "2"
    finally:
        stalled.close()


class Stalled:
    """A client that attaches and reads nothing after the answer."""

    def __init__(self, session: Session) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(str(session.daemon.socket))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.socket.recv(4096):
            pass
        self.say(f"attach {session.name} 24 80 --json")
        assert b"ok" in self.socket.recv(4096)

    def say(self, text: str) -> None:
        """Send a command."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text.encode()))
        self.socket.sendall(bytes([0x81, 0x80 | len(masked)]) + mask + masked)

    def close(self) -> None:
        self.socket.close()


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


# The plain wire.


def test_attach_over_the_plain_wire(session: Session) -> None:
    session.out("x = 1")
    with Attached(str(session.daemon.socket), session.name, options="") as person:
        assert person.reply == "OK attached"
        person.wait_for_prompt()
        session.out("print('agent')")
        person.wait_for("[ai] run: print('agent')")
        person.say(f"resize {session.name} 40 120")
        person.wait_for(lambda: person.texts == ["OK"])
        person.run("os.get_terminal_size()")
        person.wait_for("columns=120, lines=40")
        person.say("detach")
        person.wait_closed()
        assert person.texts == ["OK", "OK detached"]
        assert person.close_code == 1000
        assert person.events == []
    with Attached(str(session.daemon.socket), session.name, rows=None, options="") as again:
        again.wait_for("columns=120, lines=40")
        assert b"[ai] run: print('agent')" in again.raw


def test_what_attach_and_resize_refuse(session: Session) -> None:
    ask = session.daemon.ask
    assert ask("attach nobody") == "ERR no session 'nobody'"
    assert ask("resize nobody 1 1") == "ERR no session 'nobody'"
    assert ask(f"attach {session.name} a b") == "ERR rows/cols must be integers"
    assert ask(f"resize {session.name} 0 1") == "ERR rows/cols out of range"
    assert ask(f"resize {session.name} 1") == "ERR usage: resize <name> <rows> <cols>"
    assert ask(f"resize {session.name} 65535 65535") == "OK"
    with Attached(str(session.daemon.socket), session.name) as person:
        person.say(f"attach {session.name}")
        person.wait_for(lambda: person.texts)
        assert person.texts[0].startswith("ERR this connection is attached already")


# Life and death.


def test_kill_tells_those_who_are_attached(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        person = attach(session)
        shared_daemon.ask(f"kill {session.name}")
        assert person.wait_for_event("terminal_closed")["reason"] == "killed"
        person.wait_closed()
        with shared_daemon.session() as other:
            crashed = attach(other)
            crashed.line("os.kill(os.getpid(), 9)")
            event = crashed.wait_for_event("terminal_closed")
            assert event["reason"] == "died"
            assert "SIGKILL" in event["message"]


def test_attach_waits_for_a_busy_session(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cell = session.detach(f"print('in')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    session.wait_for_output(cell, "in")
    with Attached(str(session.daemon.socket), session.name) as person:
        person.wait_for(f"cell {cell} runs")
        go.touch()
        person.wait_for_prompt()


def test_cells_that_close_descriptors_leave_the_prompt(person: Attached, session: Session) -> None:
    session.out("os.closerange(0, 4096)")
    person.wait_for_prompt()
    person.run("1 + 1")
    person.wait_for("\n2\n")
    person.run("os.closerange(3, 4096); 'closed'")
    person.wait_for("'closed'")
    person.run("2 + 2")
    person.wait_for("\n4\n")
    assert session.value("1 + 1") == "2"


def test_typing_goes_on_while_agents_flood(person: Attached, session: Session) -> None:
    end = time.monotonic() + 1
    sent = 0
    person.type("typed = '")
    with session.daemon.connect() as agent:
        while time.monotonic() < end:
            agent.ask(f"run {session.name} 1")
            person.type("x")
            sent += 1
    person.line("'")
    wait_until(lambda: session.value("'typed' in globals()") == "True", what="the line was run")
    assert session.value("len(typed)") == str(sent)


# What must not hold up anybody.


def test_a_torn_paste_holds_up_nobody(session: Session) -> None:
    with attach(session) as person:
        person.type("\x1b[200~half a paste")
        assert session.value("1 + 1") == "2"
        person.press("ctrl-c")
        person.wait_for("KeyboardInterrupt\n>>>")
        person.run("'typed'")
        person.wait_for("'typed'\n>>>")
        person.type("\x1b[200~another half")
        assert session.value("2 + 2") == "4"
    with Attached(str(session.daemon.socket), session.name) as again:
        again.run("'whole'")
        again.wait_for("'whole'\n>>>")


def test_a_torn_character_holds_up_nobody(person: Attached, session: Session) -> None:
    person.press("ctrl-r")
    person.type(b"\xc3")
    assert session.value("1 + 1") == "2"
    person.type(b"\xa4")
    person.wait_for("`ä'")
    person.press("ctrl-c")
    person.wait_for_prompt()


def test_ctrl_c_ends_a_search_and_every_other_command(person: Attached, session: Session) -> None:
    session.out("runs = []")
    person.run("runs.append('DANGER')")
    person.press("ctrl-r")
    person.type("DANG")
    person.wait_for("(reverse-i-search)")
    person.press("ctrl-c")
    person.wait_for("KeyboardInterrupt\n>>>")
    for prefix in ("", "\x1b5", "\x1b", "\x18", "\x1bp"):
        person.type(prefix)
        person.press("ctrl-c")
        person.run("40 + 2")
        person.wait_for(">>> 40 + 2\n42\n>>>")
    assert session.value("runs") == "['DANGER']"


def test_typing_beside_a_task_is_run_at_once(person: Attached, session: Session) -> None:
    person.run("import asyncio")
    person.type("t = asyncio.create_task(asyncio.sleep(300))\rprint('a' + '1')\rprint('a' + '2')\r")
    person.wait_for("\na1\n")
    person.wait_for("\na2\n")
    assert session.value("t.cancel()") == "True"


def test_ctrl_d_leaves_no_blank_lines(person: Attached) -> None:
    person.press("ctrl-d")
    person.wait_for("exit() ends the session")
    person.wait_for_prompt()
    person.run("1 + 1")
    person.wait_for(">>> 1 + 1\n2\n>>>")


def test_colours_of_an_agent_do_not_leak(person: Attached, session: Session) -> None:
    session.out("print('\\x1b[31;7mred')")
    person.wait_for("\nred\n")
    person.wait_for_prompt()
    person.run("'plain'")
    person.wait_for("'plain'\n>>>")
    with person._changed:
        row = next(y for y, line in enumerate(person.model.display) if "'plain'" in line)
        cell = person.model.buffer[row][4]
    assert (cell.fg, cell.reverse) == ("default", False)
    session.out("print('\\x1b[3', end=''); print('2mgreen\\x1b[m')")
    person.wait_for("\ngreen\n")


def test_a_terminal_that_is_cut_off_lets_agents_go(session: Session) -> None:
    stalled = Stalled(session)
    try:
        with attach(session, rows=50, cols=100) as person:
            stalled.say(f"hold {session.name} --json --tag=h")
            person.wait_for_event("held")
            person.line("for i in range(150): print('z' * 20_000)")
            person.line("")
            wait_until(
                lambda: session.status()["attached"] == 1, 60, what="the stalled one is gone"
            )
            wait_until(lambda: "held_by" not in session.status(), what="agents go on")
            assert session.value("1 + 1") == "2"
            person.wait_for(
                lambda: (
                    [(it["rows"], it["cols"]) for it in person.events if "rows" in it][-1:]
                    == [(50, 100)]
                )
            )
    finally:
        stalled.close()


def test_a_plain_hold_outlasts_one_at_a_terminal(session: Session) -> None:
    with attach(session) as person:
        person.say(f"hold {session.name} --json --tag=h")
        person.wait_for_event("held")
        assert session.daemon.ask(f"hold {session.name}") == "OK hold"
    wait_until(lambda: session.status()["attached"] == 0, what="nobody is attached")
    assert session.status()["held_by"]
    assert session.daemon.ask(f"release {session.name}") == "OK release"


def test_an_observer_changes_nothing_of_the_writers(person: Attached, session: Session) -> None:
    options = "--json --read-only --term=dumb"
    with Attached(str(session.daemon.socket), session.name, options=options) as observer:
        person.run("os.environ['TERM']")
        observer.wait_for("'xterm-256color'")


def test_programs_know_the_terminal_of_who_is_there_now(session: Session) -> None:
    with attach(session) as person:
        person.run("os.environ['TERM']")
        person.wait_for("'xterm-256color'")
    with attach(session, options="--json --term=vt100") as person:
        person.run("0")
        person.run("os.environ['TERM']")
        person.wait_for("'vt100'")


def test_agents_have_no_terminal_to_ask_at(person: Attached, session: Session) -> None:
    person.run("open('/dev/tty').isatty()")
    person.wait_for("True\n>>>")
    child = session.fire("p = subprocess.Popen(['sleep', '300'])")
    assert session.ended(child)["ok"]
    person.run("1")
    session.fails("open('/dev/tty')", "OSError")
    assert session.value("p.poll()") is None
    session.out("p.kill(); p.wait()")


def test_ctrl_s_stops_nobody_for_long(person: Attached, session: Session) -> None:
    person.line("os.system('stty ixon; echo on; sleep 0.1'); print('x' * 9)")
    person.wait_for("\non")
    person.press("ctrl-s")
    person.press("ctrl-c")
    wait_until(lambda: session.status()["state"] == "idle", what="the cell has ended")
    assert session.value("1 + 1") == "2"
    person.run("'there'")
    person.wait_for("'there'\n>>>")


@pytest.mark.parametrize(
    "damage",
    [
        "open('readline.py', 'w').write('x = 1'); import readline",
        "sys.modules['readline'] = None",
        "os.closerange(3, 65536)",
        "import builtins; del builtins.all, builtins.str, builtins.getattr, builtins.len",
        "sys.ps1 = type('P', (), {'__str__': lambda self: 1 / 0})()",
        "sys.stdin = sys.stdout = None",
    ],
)
def test_whatever_a_cell_damages_there_is_a_prompt(
    shared_daemon: TestDaemon, tmp_path: Path, damage: str
) -> None:
    with shared_daemon.session(cwd=str(tmp_path)) as session:
        session.run(damage)
        with attach(session) as person:
            person.line("print(6 * 7)")
            person.wait_for("\n42\n")


def test_much_that_nobody_reads_does_not_hide_ctrl_c(person: Attached, session: Session) -> None:
    person.line("print('in'); time.sleep(300)")
    person.wait_for("\nin")
    for _ in range(24):
        person.type("y" * 50_000)
    person.press("ctrl-c")
    person.wait_for("KeyboardInterrupt", 60)
    assert session.value("1 + 1") == "2"


def test_ctrl_c_ends_a_completion_that_hangs(
    person: Attached, session: Session, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    session.out(
        "class H:\n    def __dir__(self):\n"
        f"        open({str(asked)!r}, 'w').close()\n        time.sleep(300)\nhangs = H()"
    )
    person.wait_for_prompt()
    person.type("hangs.\t")
    wait_until(asked.exists, what="the completion hangs")
    person.press("ctrl-c")
    person.wait_for("KeyboardInterrupt\n>>>")
    assert session.value("1 + 1") == "2"
