"""`pysh attach` on a real terminal, on a real session."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from support.daemon import Session, TestDaemon
from support.terminal import Terminal
from support.waiting import wait_until


def pysh_attach(session: Session, *options: str, **terminal) -> Terminal:
    daemon = session.daemon
    terminal.setdefault("env", daemon.environment)
    return Terminal([daemon.binaries / "pysh", "attach", session.name, *options], **terminal)


def at_prompt(text: str = ""):
    """The last line of the screen is a prompt with this after it."""
    wanted = f">>> {text}".rstrip()
    return lambda terminal: terminal.text().rsplit("\n", 1)[-1].rstrip() == wanted


@pytest.fixture
def person(session: Session) -> Iterator[Terminal]:
    """A person who is attached to the session."""
    with pysh_attach(session) as terminal:
        terminal.wait_for(at_prompt())
        yield terminal


def test_a_person_sits_down_works_and_leaves(person: Terminal, session: Session) -> None:
    assert "Ctrl-] detaches" in person.text()
    session.out("x = 41")
    person.wait_for("[ai] run: x = 41")
    person.wait_for(at_prompt())
    person.type("x + 1\r")
    person.wait_for("\n42\n")
    person.wait_for(at_prompt())
    person.type("half")
    person.wait_for(at_prompt("half"))
    person.press("ctrl-]")
    assert person.wait_exit() == 0
    assert person.modes() == person.modes_before
    assert person.cursor_is_visible
    assert person.private_modes() <= {7, 25}
    person.wait_for("detached from")
    with pysh_attach(session) as again:
        again.wait_for(at_prompt("half"))
        again.wait_for("\n42\n")


def test_the_window_decides_the_size(person: Terminal) -> None:
    person.type("os.get_terminal_size()\r")
    person.wait_for("columns=80, lines=24")
    person.resize(30, 100)
    person.wait_for(at_prompt())
    person.type("while os.get_terminal_size() != (100, 30): time.sleep(0.01)\r\r'wide'\r")
    person.wait_for("'wide'\n>>>")


def test_a_window_that_changes_while_a_cell_runs_has_one_prompt(person: Terminal) -> None:
    person.type("while os.get_terminal_size() != (100, 30): time.sleep(0.01)\r\r")
    person.wait_for("\n...")
    person.resize(30, 100)
    person.wait_for("...\n>>>")
    # The line is as wide as the window now.
    person.type("x" * 90)
    person.wait_for(f"\n>>> {'x' * 90}")


def test_a_window_that_changes_while_an_agents_cell_runs_has_one_prompt(
    person: Terminal, session: Session
) -> None:
    cell = session.detach(
        "print('begun', flush=True); terminal = os.open('/dev/tty', os.O_RDWR)\n"
        "while os.get_terminal_size(terminal) != (100, 30): time.sleep(0.01)"
    )
    person.wait_for("begun")
    person.resize(30, 100)
    session.ended(cell)
    person.wait_for(at_prompt())


def test_a_window_without_a_size(session: Session) -> None:
    with pysh_attach(session, rows=0, cols=0) as person:
        person.wait_for(at_prompt())
        person.type("os.get_terminal_size()\r")
        person.wait_for("columns=80, lines=24")


def test_full_screen_programs_leave_no_trace(person: Terminal) -> None:
    person.type("r = subprocess.run(['less', '/etc/passwd'])\r")
    person.wait_for("root:")
    person.press("ctrl-]")
    assert person.wait_exit() == 0
    assert person.modes() == person.modes_before
    assert person.private_modes() <= {7, 25}


def test_a_full_screen_program_is_there_again(session: Session) -> None:
    with pysh_attach(session) as person:
        person.wait_for(at_prompt())
        person.type("r = subprocess.run(['less', '/etc/passwd'])\r")
        person.wait_for("root:")
        person.press("ctrl-]")
        assert person.wait_exit() == 0
    with pysh_attach(session) as again:
        again.wait_for("root:")
        again.type("q")
        again.wait_for(at_prompt())


def test_what_attacks_the_terminal_does_not_reach_it(session: Session) -> None:
    attack = "print('\\x1b]52;c;YQ==\\x07\\x1b]0;title\\x07\\x1b[6n\\x1b[cshown')\r"
    with pysh_attach(session) as person:
        person.wait_for(at_prompt())
        before = len(person.raw)
        person.type(attack)
        person.wait_for("\nshown")
        written = person.raw[before:]
        assert b"\x1b]52" not in written
        assert b"\x1b]0;" not in written
        assert b"\x1b[6n" not in written
    with pysh_attach(session, "--unfiltered") as person:
        person.wait_for(at_prompt())
        person.type(attack)
        person.wait_for_raw(b"\x1b]52;c;YQ==\x07")


def test_exit_ends_the_session_and_the_client(person: Terminal, session: Session) -> None:
    person.type("exit()\r")
    assert person.wait_exit() == 0
    person.wait_for("exit()")
    assert person.modes() == person.modes_before
    assert session.status()["state"] == "dead"


def test_kill_and_death_end_the_client(shared_daemon: TestDaemon) -> None:
    for how in ("kill", "crash"):
        with shared_daemon.session() as session, pysh_attach(session) as person:
            person.wait_for(at_prompt())
            if how == "kill":
                shared_daemon.ask(f"kill {session.name}")
            else:
                person.type("os.kill(os.getpid(), 9)\r")
            assert person.wait_exit() == 5
            assert person.modes() == person.modes_before


def test_an_attachment_goes_on_with_the_next_daemon(daemon: TestDaemon) -> None:
    patient = daemon.environment | {"PYTHOND_RECONNECT": "600"}
    with daemon.session() as session, pysh_attach(session, env=patient) as person:
        person.wait_for(at_prompt())
        person.type("half")
        person.wait_for(at_prompt("half"))
        daemon.crash()
        person.wait_for("the daemon is gone; waiting up to 600 s")
        daemon.start()
        person.wait_for(at_prompt("half"))
        person.type(" = 'whole'; half\r")
        person.wait_for("'whole'\n>>>")
        assert daemon.pyctl("restart").returncode == 0
        wait_until(lambda: session.status()["attached"] == 1, what="it is attached again")
        person.type("half * 2\r")
        person.wait_for("'wholewhole'\n>>>")
        person.press("ctrl-]")
        assert person.wait_exit() == 0
        assert person.modes() == person.modes_before


def test_ctrl_c_ends_the_wait_for_a_daemon(daemon: TestDaemon) -> None:
    patient = daemon.environment | {"PYTHOND_RECONNECT": "600"}
    with daemon.session() as session, pysh_attach(session, env=patient) as person:
        person.wait_for(at_prompt())
        daemon.crash()
        person.wait_for("the daemon is gone; waiting up to 600 s")
        person.press("ctrl-c")
        assert person.wait_exit() in (-signal.SIGINT, 128 + signal.SIGINT)
        assert person.modes() == person.modes_before
        daemon.start()


def test_a_killed_daemon_gives_the_terminal_back(daemon: TestDaemon) -> None:
    hurried = daemon.environment | {"PYTHOND_RECONNECT": "0"}
    with daemon.session() as session, pysh_attach(session, env=hurried) as person:
        person.wait_for(at_prompt())
        daemon.crash()
        assert person.wait_exit() == 3
        assert person.modes() == person.modes_before
        person.wait_for("the daemon has gone")
        daemon.start()
        with pysh_attach(session) as again:
            again.wait_for(at_prompt())
            again.type("'alive'\r")
            again.wait_for("'alive'\n>>>")


def test_a_signal_gives_the_terminal_back(person: Terminal, session: Session) -> None:
    person.signal(signal.SIGTERM)
    assert person.wait_exit() in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert person.modes() == person.modes_before
    wait_until(lambda: session.status()["attached"] == 0, what="it is detached")


def test_a_stopped_client_stops_nobody(person: Terminal, session: Session) -> None:
    person.signal(signal.SIGSTOP)
    person.wait_stopped()
    for number in range(300):
        assert len(session.out(f"print('{number}' * 2000)")) > 2000
    with pysh_attach(session) as other:
        other.wait_for(at_prompt())
        other.type("1 + 1\r")
        other.wait_for("\n2\n")
    person.signal(signal.SIGCONT)


def test_one_key_holds_agents(person: Terminal, session: Session) -> None:
    person.press("ctrl-\\")
    person.wait_for("agents' new cells wait for")
    cell = session.detach("'ran'")
    assert session.poll(cell)["status"] == "queued"
    person.press("ctrl-\\")
    person.wait_for("agents' cells run again")
    assert session.ended(cell)["result"] == "ran"


def test_a_waiting_client_is_told_who_holds(session: Session) -> None:
    session.daemon.pysh("hold", session.name, "--author", "ann")
    client = session.daemon.popen("pysh", "run", session.name, "'ran'")
    assert client.stderr is not None
    told = client.stderr.readline()
    assert b"held by ann" in told
    assert session.name.encode() in told
    done = session.daemon.pysh("release", session.name)
    assert done.returncode == 0
    out, _ = client.communicate(timeout=20)
    assert out == b"ran\n"


def test_an_observer_sees(session: Session, person: Terminal) -> None:
    with pysh_attach(session, "--read-only") as observer:
        person.type("'seen by all'\r")
        observer.wait_for("'seen by all'\n>>>")
        observer.type("wrong = 1\r")
        observer.press("ctrl-]")
        assert observer.wait_exit() == 0
    assert session.value("'wrong' in globals()") == "False"


def test_attach_to_nobody_says_so(shared_daemon: TestDaemon) -> None:
    with Terminal(
        [shared_daemon.binaries / "pysh", "attach", "nobody-here"], env=shared_daemon.environment
    ) as person:
        assert person.wait_exit() == 4
        person.wait_for("nobody-here")
        assert person.modes() == person.modes_before
