"""Terminals on sessions of another machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.attached import Attached
from support.daemon import Session
from support.remotes import Remote
from support.terminal import Terminal
from support.waiting import DEADLINE, wait_until


def attached(remote: Remote, name: str, **options) -> Attached:
    """Attach here."""
    return Attached(str(remote.here.socket), name, **options)


@pytest.mark.parametrize("path", ["far", "far/far"])
def test_a_person_types_and_sees(remote: Remote, session: Session, path: str) -> None:
    with attached(remote, path) as person:
        assert person.reply["ok"], person.reply
        assert person.reply["session"] == session.name
        person.wait_for_prompt()
        person.run("x = 20 + 3")
        person.run("print(x)")
        assert "23" in person.text()
        assert session.value("x") == "23"
        person._connection.send(f"resize {path} 30 100")
        person.wait_for_event("terminal_resized")
        person.run("import os; print(os.get_terminal_size())")
        assert "columns=100, lines=30" in person.text()
        person._connection.send("detach")
        person.wait_closed()
        assert person.close_code == 1000
        assert "OK detached" in person.texts


def test_the_plain_form(remote: Remote, session: Session) -> None:
    with attached(remote, session.name, options="") as person:
        assert person.reply == "OK attached"
        person.wait_for_prompt()
        person.run("print(6 * 7)")
        assert "42" in person.text()


def test_a_refusal_names_the_session_as_it_is_named_here(remote: Remote) -> None:
    with remote.here.connect() as wire:
        refused = wire.json("attach far/nobody 24 80 --json")
    assert refused["error"]["code"] == "no_session"
    assert "`far/nobody`" in refused["error"]["message"]


def test_other_commands_are_refused_on_it(remote: Remote, session: Session) -> None:
    local = remote.here.new()
    with attached(remote, session.name) as person:
        person.wait_for_prompt()
        person._connection.send(f"status {local.name} --json")
        wait_until(lambda: any("usage" in text for text in map(str, person.texts + person.events)))
        person._connection.send(f"status {session.name} --json")
        wait_until(lambda: any('"state"' in str(t) for t in person.texts + person.events))
        person.run("print('still here')")


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_was_asked_before_is_answered_meanwhile(
    remote: Remote, session: Session, tmp_path: Path, where: str
) -> None:
    asked = remote.here.new().name if where == "here" else remote.new("other").name
    go = tmp_path / "go"
    with remote.here.connect() as wire:
        wire.send(
            f"run {asked} --json --tag=before\n"
            f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n6 * 7"
        )
        wire.send(f"attach {session.name} 24 80 --json")
        assert json.loads(wire.receive_text())["attached"]
        go.touch()
        answers: list[dict[str, Any]] = []
        while not any(answer.get("tag") == "before" for answer in answers):
            answers.append(json.loads(wire.receive_text(DEADLINE)))
        assert answers[-1]["result"] == "42"


def test_what_is_asked_before_the_terminal_is_there_reaches_it(
    remote: Remote, session: Session, tmp_path: Path
) -> None:
    local, go = remote.here.new().name, tmp_path / "go"
    with remote.here.connect() as wire:
        wire.send(f"run {local} --json\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
        wire.send(f"attach {session.name} 24 80 --json")
        wire.send(f"resize {session.name} 30 100 --json")
        go.touch()
        assert json.loads(wire.receive_text())["status"] == "done"
        assert json.loads(wire.receive_text())["attached"]
        while (event := json.loads(wire.receive_text())).get("event") != "terminal_resized":
            pass
        assert (event["rows"], event["cols"]) == (30, 100)


def test_a_way_that_is_opened_for_a_client_is_given_up_when_it_goes(
    remote: Remote, session: Session
) -> None:
    port = remote.proxy.port
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    with socket.create_server(("127.0.0.1", port)) as silent, remote.here.connect() as wire:
        wire.send(f"attach {session.name} 24 80 --json")
        asked, _ = silent.accept()
        wire.socket.socket.shutdown(socket.SHUT_RDWR)
        with asked:
            # Much shorter than the time that it may take to open it.
            asked.settimeout(5)
            while asked.recv(4096):
                pass


def test_what_is_typed_and_its_echo_pass_each_other(remote: Remote, session: Session) -> None:
    with attached(remote, session.name) as person:
        person.wait_for_prompt()
        person.blind = True
        person.line("import subprocess; subprocess.run(['cat']).returncode")
        lines = 40_000
        for number in range(0, lines, 1000):
            person.type("".join(f"{n:09} {'y' * 90}\r" for n in range(number, number + 1000)))
        # More than sockets hold on the way.
        person.wait_for(lambda: b"000030000 " in person.raw, 60)
        assert not person.closed


def test_a_session_that_ends_closes_it(remote: Remote, session: Session) -> None:
    with attached(remote, session.name) as person:
        person.wait_for_prompt()
        session.kill()
        closed = person.wait_for_event("terminal_closed")
        assert closed["reason"] == "killed"
        person.wait_closed()


def test_a_cut_closes_it_so_that_the_client_comes_again(remote: Remote, session: Session) -> None:
    with attached(remote, session.name) as person:
        person.wait_for_prompt()
        remote.proxy.cut("rst")
        person.wait_closed()
        assert person.close_code == 1012


def happens_at_the_proxy(remote: Remote) -> None:
    remote.proxy.cut("rst")


def no_way_for_a_while(remote: Remote) -> None:
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    remote.wait_for_state("down")
    remote.proxy.listen()


def the_daemon_here_is_killed(remote: Remote) -> None:
    remote.here.crash()
    remote.here.start()


def the_daemon_here_restarts(remote: Remote) -> None:
    assert remote.here.pyctl("restart").returncode == 0
    remote.here.wait_until_it_answers()


@pytest.mark.parametrize(
    "happens",
    [
        happens_at_the_proxy,
        no_way_for_a_while,
        the_daemon_here_is_killed,
        the_daemon_here_restarts,
    ],
)
def test_pysh_goes_on_at_the_right_place(
    remote: Remote, session: Session, happens: Callable[[Remote], None]
) -> None:
    command = [remote.here.binaries / "pysh", "attach", session.name]
    with Terminal(command, env=remote.here.environment, cwd=remote.here.work) as terminal:
        terminal.wait_for(">>> ")
        terminal.type("n = 1\r")
        wait_until(lambda: session.run("n").get("result") == "1", what="what was typed")
        terminal.type("half = 'be")
        happens(remote)
        terminal.type("fore'; n += 1\r")
        wait_until(
            lambda: remote.there.ask("run far\n(n, globals().get('half'))") == "(2, 'before')",
            what="what was typed on both sides",
        )
        terminal.press("ctrl-]")
        assert terminal.wait_exit() == 0, terminal.text()


def replace(remote: Remote) -> None:
    """Connect another in its place."""
    replaced = remote.connect("--replace")
    assert replaced.returncode == 0, replaced


def disconnect(remote: Remote) -> None:
    """Forget it."""
    assert remote.here.pyctl("disconnect", remote.name).returncode == 0


@pytest.mark.parametrize("happens", [disconnect, replace])
def test_a_terminal_ends_with_its_remote(
    remote: Remote, session: Session, happens: Callable[[Remote], None]
) -> None:
    with attached(remote, session.name) as person, attached(remote, "far", options="") as plain:
        person.wait_for_prompt()
        plain.wait_for_prompt()
        happens(remote)
        closed = person.wait_for_event("terminal_closed")
        assert closed["reason"] == "cut_off"
        assert closed["message"] == "its remote `far` was disconnected"
        for terminal in (person, plain):
            terminal.wait_closed()
            assert terminal.close_code == 1000
    # Whoever has it by another way is not disturbed.
    assert remote.there.ask("run far\n6 * 7") == "42"


def test_pysh_says_that_the_remote_was_disconnected(remote: Remote, session: Session) -> None:
    command = [remote.here.binaries / "pysh", "attach", session.name]
    with Terminal(command, env=remote.here.environment, cwd=remote.here.work) as terminal:
        terminal.wait_for(">>> ")
        disconnect(remote)
        assert terminal.wait_exit() == 4, terminal.text()
        assert "cut off from session far: its remote `far` was disc" in terminal.text()


def test_a_terminal_that_is_not_there_yet_is_refused(remote: Remote, session: Session) -> None:
    port = remote.proxy.port
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    with socket.create_server(("127.0.0.1", port)) as silent, remote.here.connect() as wire:
        wire.send(f"attach {session.name} 24 80 --json")
        asked, _ = silent.accept()
        with asked:
            disconnect(remote)
            # Much sooner than the time that it may take to open it.
            refused = json.loads(wire.receive_text(5))
    assert refused["error"]["code"] == "session_unreachable", refused
    assert "disconnected" in refused["error"]["message"]
