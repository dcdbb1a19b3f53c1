"""A session's terminal when something goes wrong, and over the plain wire."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.attached import Attached, Stalled, attach
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

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


def test_megabytes_wait_for_a_program_that_reads_late(session: Session, tmp_path: Path) -> None:
    ready, go, whole = (tmp_path / name for name in ("ready", "go", "whole"))
    session.out(
        "import time, tty, termios, pathlib\n"
        "def late(size):\n"
        "    modes = termios.tcgetattr(0)\n"
        "    tty.setraw(0)\n"
        f"    pathlib.Path({str(ready)!r}).touch()\n"
        f"    while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "    got = bytearray()\n"
        "    while len(got) < size: got += os.read(0, 65536)\n"
        "    termios.tcsetattr(0, termios.TCSAFLUSH, modes)\n"
        f"    pathlib.Path({str(ready)!r}).write_bytes(got)\n"
        f"    os.rename({str(ready)!r}, {str(whole)!r})\n"
    )
    # 64 KiB a piece, and no byte that is a key.
    pieces = [f"{number:04}".encode() * (16 << 10) for number in range(128)]
    with attach(session) as person:
        person.blind = True
        person.line(f"late({sum(map(len, pieces))})")
        wait_until(ready.exists, what="the terminal has no keys")
        for piece in pieces:
            person.type(piece)
        go.touch()
        wait_until(whole.exists, 60, what="all was read")
    assert whole.read_bytes() == b"".join(pieces)


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
    wait_until(lambda: session.status()["attached"] == 0, what="the first one is gone")
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
    # What was typed before may follow it and scroll it away.
    person.wait_for(lambda: b"KeyboardInterrupt" in person.raw, 60, "the interrupt")
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
