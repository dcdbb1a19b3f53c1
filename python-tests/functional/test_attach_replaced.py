"""What a person types while the daemon is replaced reaches the session exactly once."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.attached import Attached, attach
from support.daemon import Session, TestDaemon
from support.terminal import Terminal
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))
REPLACED = 40 if TORTURE else 5

LINES = """\
def lines(path):
    print("reads", flush=True)
    with open(path, "w") as file:
        while (line := input()) != "end":
            file.write(line + "\\n")
    os.rename(path, path + ".whole")
"""
RAW = """\
def raw(path):
    import tty, termios
    modes = termios.tcgetattr(0)
    tty.setraw(0)
    print("reads", flush=True)
    with open(path, "wb") as file:
        while True:
            data = os.read(0, 512)
            file.write(data.rstrip(b"\\x04"))
            if data.endswith(b"\\x04"):
                break
    termios.tcsetattr(0, termios.TCSADRAIN, modes)
    os.rename(path, path + ".whole")
"""


@pytest.fixture
def daemon(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that the test may kill."""
    return make_daemon().start()


@pytest.fixture
def session(daemon: TestDaemon) -> Iterator[Session]:
    """A session of it that has the readers."""
    with daemon.session() as session:
        session.out(LINES)
        session.out(RAW)
        yield session


def client(session: Session) -> Terminal:
    """Attach a person to the session; they wait for long."""
    daemon = session.daemon
    env = daemon.environment | {"PYTHOND_RECONNECT": "60"}
    return Terminal([daemon.binaries / "pysh", "attach", session.name], env=env)


def begun(person: Terminal, call: str) -> None:
    """Have the session read what is typed."""
    person.wait_for(">>>")
    person.type(f"{call}\r")
    # Its modes are set, which drops what was typed before.
    person.wait_for("\nreads")


def crash(daemon: TestDaemon) -> None:
    daemon.crash()
    daemon.start()


def restart(daemon: TestDaemon) -> None:
    done = daemon.pyctl("restart")
    assert done.returncode == 0, done.stderr


class Typist(threading.Thread):
    """Types pieces without an end, until it is told to stop."""

    def __init__(self, person: Terminal, piece: Callable[[int], str]) -> None:
        super().__init__()
        self.person, self.piece = person, piece
        self.enough = threading.Event()
        self.count = 0

    def run(self) -> None:
        # As fast as somebody who leans on a key.
        while not self.enough.wait(0.0005):
            self.person.type(self.piece(self.count))
            self.count += 1

    def stop(self) -> None:
        self.enough.set()
        self.join()


def replace_often(daemon: TestDaemon, replace: Callable[[TestDaemon], None]) -> None:
    """Replace the daemon at random instants of what is typed."""
    chance = random.Random(REPLACED)
    for _ in range(REPLACED):
        threading.Event().wait(chance.uniform(0.02, 0.3))
        replace(daemon)


@pytest.mark.parametrize("replace", [crash, restart])
def test_every_line_arrives_once_and_in_order(
    session: Session, tmp_path: Path, replace: Callable[[TestDaemon], None]
) -> None:
    path = tmp_path / "typed"
    with client(session) as person:
        begun(person, f"lines({str(path)!r})")
        typist = Typist(person, lambda count: f"{count}\r")
        typist.start()
        try:
            replace_often(session.daemon, replace)
        finally:
            typist.stop()
        person.type("end\r")
        whole = path.with_name("typed.whole")
        wait_until(whole.exists, 60, what="the last line")
        assert whole.read_text().split() == [str(number) for number in range(typist.count)]
        person.press("ctrl-]")
        assert person.wait_exit() == 0
        assert "may " not in person.text()


@pytest.mark.parametrize("replace", [crash, restart])
def test_a_large_paste_arrives_whole(
    session: Session, tmp_path: Path, replace: Callable[[TestDaemon], None]
) -> None:
    """Also what a daemon had read and not passed on, in any piece of it."""
    path = tmp_path / "typed"
    text = "".join(f"{number:07}\n" for number in range(1 << 17))
    with client(session) as person:
        begun(person, f"raw({str(path)!r})")
        typist = threading.Thread(target=lambda: person.type(text))
        typist.start()
        for size in range(REPLACED):
            replace(session.daemon)
            person.resize(20 + size, 70 + size)
        typist.join()
        person.type("\x04")
        whole = path.with_name("typed.whole")
        wait_until(whole.exists, 60, what="the last byte")
        assert whole.read_text() == text
        person.type("size = tuple(os.get_terminal_size(0))\r")
        wait_until(lambda: session.run("size")["ok"], what="the line has run")
        assert session.value("size") == f"({69 + REPLACED}, {19 + REPLACED})"


def test_a_paste_that_is_torn_at_the_prompt_is_put_together(session: Session) -> None:
    text = "".join(f"{number:07}" for number in range(20_000))
    with client(session) as person:
        person.wait_for(">>>")
        typist = threading.Thread(target=lambda: person.paste(f"pasted = '{text}'"))
        typist.start()
        for _ in range(REPLACED):
            crash(session.daemon)
        typist.join()
        person.type("\r")
        wait_until(lambda: session.run("pasted")["ok"], 60, what="the paste was taken as one line")
        assert session.value("pasted") == text


def test_two_who_type_at_once_lose_nothing(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "typed"
    with client(session) as one, client(session) as other:
        begun(one, f"raw({str(path)!r})")
        other.wait_for_raw_mode()
        typists = [
            Typist(one, lambda count: f"<{count}>"),
            Typist(other, lambda count: chr(ord("a") + count % 26)),
        ]
        for typist in typists:
            typist.start()
        try:
            replace_often(session.daemon, crash)
        finally:
            for typist in typists:
                typist.stop()
        # What each has typed is acknowledged before they leave.
        other.press("ctrl-]")
        assert other.wait_exit() == 0
        one.type("\x04")
        whole = path.with_name("typed.whole")
        wait_until(whole.exists, 60, what="the last byte")
    typed = whole.read_text()
    numbers = "".join(byte for byte in typed if not byte.islower())
    letters = "".join(byte for byte in typed if byte.islower())
    assert numbers == "".join(f"<{number}>" for number in range(typists[0].count))
    expected = "abcdefghijklmnopqrstuvwxyz" * (typists[1].count // 26 + 1)
    assert letters == expected[: typists[1].count]


def test_what_was_typed_before_ctrl_bracket_reaches_the_next_daemon(session: Session) -> None:
    """The person has their shell's terminal back, and no key of theirs is lost."""
    with client(session) as person:
        person.wait_for(">>>")
        session.daemon.crash()
        person.type("late = 6 * 7\r")
        person.press("ctrl-]")
        person.wait_for("detached from")
        assert person.modes() == person.modes_before
        session.daemon.start()
        assert person.wait_exit() == 0
        assert "may " not in person.text()
    wait_until(lambda: session.run("late")["ok"], what="the line has run")
    assert session.value("late") == "42"


def test_who_does_not_wait_for_that_is_told_what_is_missing(session: Session) -> None:
    with client(session) as person:
        person.wait_for(">>>")
        session.daemon.crash()
        person.type("late = 1\r")
        person.press("ctrl-]")
        person.wait_for_raw(b"; Ctrl-C gives up what it has not taken of what was typed\r\n")
        person.press("ctrl-c")
        assert person.wait_exit() == 0
        person.wait_for("9 bytes that were typed may not have reached the session")
    session.daemon.start()
    assert not session.run("late")["ok"]


def test_a_session_that_ended_meanwhile_gets_nothing_and_that_is_said(session: Session) -> None:
    with client(session) as person:
        person.wait_for(">>>")
        session.daemon.crash()
        os.kill(session.pid, signal.SIGKILL)
        person.type("late = 1\r")
        wait_until(lambda: person.unread() == 0, what="the keys were read")
        session.daemon.start()
        assert person.wait_exit() == 5
        person.wait_for("9 bytes that were typed may not have reached the session")
        person.wait_for("killed by SIGKILL")
        assert person.modes() == person.modes_before


def test_keys_are_read_while_there_is_no_daemon(session: Session) -> None:
    with client(session) as person:
        person.wait_for(">>>")
        session.daemon.crash()
        person.type("waited = 6 * 7\r")
        person.wait_for("the daemon is gone; waiting up to 60 s")
        person.wait_for_raw(b"to come back; Ctrl-] detaches\r\n")
        person.type("more = waited\r")
        session.daemon.start()
        person.wait_for(">>> more = waited")
        wait_until(lambda: session.run("more")["ok"], what="the lines have run")
        assert session.value("more") == "42"
        person.press("ctrl-]")
        assert person.wait_exit() == 0
        assert person.modes() == person.modes_before


def test_another_session_of_the_name_gets_nothing_of_it(session: Session) -> None:
    daemon = session.daemon
    with client(session) as person:
        person.wait_for(">>>")
        os.kill(daemon.pid, signal.SIGSTOP)
        person.type("before = 1\r")
        wait_until(lambda: person.unread() == 0, what="the keys were read")
        person.signal(signal.SIGSTOP)
        assert person.wait_stopped() == signal.SIGSTOP
        crash(daemon)
        assert daemon.ask(f"new {session.name} --replace").startswith("OK")
        person.signal(signal.SIGCONT)
        person.wait_for("what was typed last may be missing")
        person.type("after = 1\r")
        after = f"run {session.name} --json\nafter"
        wait_until(lambda: daemon.json(after)["ok"], what="the line has run")
        person.press("ctrl-]")
        assert person.wait_exit() == 0
        person.wait_for("11 bytes that were typed may not have reached the session")
    assert not daemon.json(f"run {session.name} --json\nbefore")["ok"]


# The wire.


def keyed(session: Session, key: str, more: str = "") -> Attached:
    """Attach over the wire, with a key."""
    options = f"--json --term=xterm-256color --input-key={key} {more}"
    return Attached(str(session.daemon.socket), session.name, options=options)


def taken(terminal: Attached, count: int) -> None:
    """Wait until so many bytes are acknowledged."""
    terminal.wait_for(
        lambda: terminal.events and terminal.events[-1] == {"event": "input_taken", "taken": count},
        name=f"{count} bytes taken",
    )


def test_input_is_counted_over_connections(session: Session) -> None:
    with keyed(session, "k") as terminal:
        assert (terminal.reply["taken"], terminal.reply["resumed"]) == (0, False)
        terminal.wait_for_prompt()
        terminal.type("x = ")
        taken(terminal, 4)
    crash(session.daemon)
    with keyed(session, "k", "--resume") as terminal:
        assert (terminal.reply["taken"], terminal.reply["resumed"]) == (4, True)
        terminal.line("41 + 1")
        taken(terminal, 11)
        assert "may be missing" not in terminal.text()
    assert session.value("x") == "42"


def test_who_does_not_ask_is_told_nothing(session: Session) -> None:
    with attach(session) as terminal:
        assert "taken" not in terminal.reply
        terminal.run("'typed'")
        assert not [event for event in terminal.events if event["event"] == "input_taken"]


def test_the_connection_before_is_closed_with_a_word(session: Session) -> None:
    with keyed(session, "k") as before, keyed(session, "k") as after:
        event = before.wait_for_event("terminal_closed")
        assert event["reason"] == "reattached"
        before.wait_closed()
        assert before.close_code == 1000
        assert after.reply["resumed"]
        assert after.reply["attached"] == 1


def test_keys_beyond_the_newest_64_are_forgotten_and_that_is_said(session: Session) -> None:
    with keyed(session, "first") as stays:
        for number in range(66):
            with keyed(session, f"k{number}") as terminal:
                terminal.type("\x15")
                taken(terminal, 1)
        with keyed(session, "k0", "--resume") as terminal:
            assert (terminal.reply["taken"], terminal.reply["resumed"]) == (0, False)
            terminal.wait_for("what was typed last may be missing")
        with keyed(session, "k65", "--resume") as terminal:
            assert (terminal.reply["taken"], terminal.reply["resumed"]) == (1, True)
        # Whoever is attached is not forgotten.
        stays.type("\x15")
        taken(stays, 1)


def test_a_paste_that_was_not_read_before_its_client_left_does_not_keep_the_next_one(
    session: Session, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with keyed(session, "k") as terminal:
        terminal.wait_for_prompt()
        session.detach(f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
        session.wait_for_state("running")
        terminal.type("\x1b[200~never ended")
        taken(terminal, 17)
    with attach(session) as terminal:
        terminal.type("x = 6 * 7\r")
        go.touch()
        terminal.run("y = 1")
    assert session.value("x") == "42"


def test_a_paste_whose_client_left_does_not_keep_the_next_one(session: Session) -> None:
    with keyed(session, "k") as terminal:
        terminal.wait_for_prompt()
        terminal.type("\x1b[200~never ended")
        taken(terminal, 17)
    with attach(session) as terminal:
        terminal.run("x = 6 * 7")
    assert session.value("x") == "42"
