"""Sessions used from another machine: all verbs, by ws:// and wss://."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

from support.daemon import TestDaemon
from support.following import Follower
from support.network import Server
from support.waiting import wait_until


@pytest.fixture(scope="module")
def both(binaries, mark) -> Iterator[dict[str, Server]]:
    """A daemon that can be reached encrypted, and one that can be as it is."""
    daemons = {
        scheme: TestDaemon(binaries, mark).listen(tls=scheme == "wss") for scheme in ("ws", "wss")
    }
    try:
        yield {scheme: Server(daemon.start()) for scheme, daemon in daemons.items()}
    finally:
        left = [entry for daemon in daemons.values() for entry in daemon.destroy().items()]
    assert not left, f"processes outlived their daemon: {left}"


@pytest.fixture(params=["ws", "wss"])
def server(both: dict[str, Server], request: pytest.FixtureRequest) -> Server:
    """One of them."""
    server = both[request.param]
    assert server.tls is (request.param == "wss")
    return server


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """A session that was made from far."""
    name = server.daemon.unused_name()
    assert server.ask(f"new {name}").startswith(f"OK {name} pid=")
    yield name
    server.ask(f"kill {name}")


VARYING = re.compile(
    r'<cell \d+>|"cells": \d+|"[a-z_]*(?:_ms|_at|_bytes|pid|boot|seq|since|time|rss|cpu|uptime|id|author)[a-z_]*":[^,}\]]+'
    r"|[0-9a-f]{12}"
)


def test_every_verb_answers_as_on_the_socket_of_the_machine(server: Server, name: str) -> None:
    session = f"run {name}"
    words = [
        "ls",
        "help",
        "version",
        f"{session}\nx = 41\nx + 1",
        f"{session}\nprint('ä' * 3); 1/0",
        f"{session} --json\n(x, 'y')",
        f"status {name}",
        f"vars {name}",
        f"complete {name} x.bit_",
        f"cells {name} --json",
        f"poll {name}",
        f"wait {name} --json",
        f"out {name} --json",
        f"int {name}",
        f"stack {name} --json",
        f"hold {name} --json",
        f"release {name} --json",
        "run nosuch\n1",
        "new UPPER",
        f"new {name}",
        "nonsense",
        f"kill {name}x",
    ]
    with server.connect() as far, server.daemon.connect() as near:
        for word in words:
            answers = [VARYING.sub("…", wire.ask(word)) for wire in (far, near)]
            if word.startswith("cells"):
                # The second has more of them.
                assert answers[0][:60] == answers[1][:60]
                continue
            assert answers[0] == answers[1], word


def test_cells_run_stream_fire_wait_and_fork(server: Server, name: str) -> None:
    with server.connect() as wire:
        code = "import sys\nprint('one')\nprint('two', file=sys.stderr)\n3"
        follower = Follower(wire, f"run {name} --json --stream\n{code}")
        assert follower.reply()["ok"]
        assert follower.streams == {1: b"one\n3\n", 2: b"two\n"}
        fired = wire.json(f"fire {name}\nimport time\ntime.sleep(0.2)\nprint('fired')")
        assert fired["status"] == "fired"
        assert not wire.json(f"wait {name} --json --timeout=60 {fired['cell_id']}")["timed_out"]
        assert wire.json(f"poll {name} {fired['cell_id']}")["output"] == "fired"
        forked = wire.json(f"fork {name}\nbrought = 7")
        assert forked["status"] == "forked"
        wire.json(f"wait {name} --json --timeout=60 {forked['cell_id']}")
        assert wire.json(f"poll {name} {forked['cell_id']}")["merged"] == ["brought"]
        assert wire.ask(f"run {name}\nbrought") == "7"


def test_an_attached_terminal_has_bytes_both_ways(server: Server, name: str) -> None:
    with server.connect() as wire:
        assert wire.ask(f"attach {name} 30 100").startswith("OK attached")
        shown = b""

        def wait_for(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                message = wire.socket.recv(20)
                shown += message if isinstance(message, bytes) else b""

        wait_for(b">>> ")
        wire.send(b"print('x' * 3 + '!'); y = 5\r")
        wait_for(b"xxx!")
        assert server.ask(f"run {name}\ny + 1") == "6"
        wait_for(b"[ai] run: y + 1")
        wire.send("detach")
        assert wire.receive_text() == "OK detached"


def test_much_goes_either_way(server: Server, name: str) -> None:
    with server.connect() as wire:
        big = 20 << 20
        code = f"import sys\nn = sys.stdout.write('ab' * {big // 2})"
        cell = wire.json(f"fire {name} --json\n{code}")["cell_id"]
        follower = Follower(wire, f"out {name} {cell} --follow")
        assert follower.reply(120)["ok"]
        assert follower.streams[1] == b"ab" * (big // 2)
    with server.connect() as wire:
        code = f"z = {'ab' * (5 << 20)!r}\nlen(z)"
        assert wire.ask(f"run {name}\n{code}", 120) == str(10 << 20)


def test_many_clients_have_each_its_own_answers(server: Server, name: str) -> None:
    wrong: list[object] = []

    def asks(number: int) -> None:
        try:
            with server.connect() as wire:
                for turn in range(5):
                    got = wire.ask(f"run {name}\nprint({number}); {turn} * 1000")
                    if got != f"{number}\n{turn * 1000}":
                        wrong.append(got)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=asks, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_lines_of_the_access_log_say_who_it_was(server: Server, name: str) -> None:
    scheme = "tls" if server.tls else "tcp"
    with server.connect() as wire:
        host, port = wire.socket.socket.getsockname()[:2]
        wire.ask(f"run {name}\n'not to be logged'")
    log = server.daemon.access_log()

    def lines() -> list[str]:
        peer = f" peer={scheme}:{host}:{port}"
        found = [line for line in log.read_text().splitlines() if peer in line]
        return found if any("event=disconnect" in line for line in found) else []

    found = wait_until(lines, what="the last line of the connection")
    assert [re.search(r"event=(\w+)", line)[1] for line in found] == [
        "connect",
        "command",
        "result",
        "disconnect",
    ]
    assert f"cmd=run session={name}" in found[1]
    assert "not to be logged" not in log.read_text()


def test_cells_are_put_down_to_the_address(server: Server, name: str) -> None:
    with server.connect() as wire:
        wire.ask(f"run {name}\n1")
        cells = wire.json(f"cells {name} --json")["cells"]
    assert cells[-1]["author"] == "tcp:127.0.0.1"
