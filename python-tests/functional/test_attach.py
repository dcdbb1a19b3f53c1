"""A person at the terminal of a session: the prompt, keys, the size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attached import Attached, attach
from support.daemon import Session, TestDaemon
from support.waiting import wait_until


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
