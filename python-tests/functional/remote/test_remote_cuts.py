"""The way to a remote daemon breaks: each cell runs once, and its result arrives."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from support.cutting import Cut, random_plan
from support.remotes import Remote
from support.wire import text_of

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))
CUTS = 1000 if TORTURE else 40
LONG = 3600 if TORTURE else 300


class Client(threading.Thread):
    """Runs cells on one connection to the daemon here, until it is told to end."""

    def __init__(self, remote: Remote, number: int, enough: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.wire = remote.here.connect()
        self.session = remote.name
        self.number = number
        self.enough = enough
        self.cells = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.enough():
                self.cells += 1
                forms = self.plain, self.structured, self.streamed, self.fired
                forms[self.cells % len(forms)]()
        except BaseException as failure:
            self.failure = failure

    def code(self) -> tuple[str, str]:
        text = f"{self.number}:{self.cells} é\\n"
        lines = 1 + self.cells * 7 % 400
        code = f"ran.append(({self.number}, {self.cells}))\nfor _ in range({lines}): print('{text}', end='')"
        return code, text.replace("\\n", "\n") * lines

    def plain(self) -> None:
        code, expected = self.code()
        # The plain wire leaves the last line feed out.
        assert self.wire.ask(f"run {self.session}\n{code}", 120) == expected.removesuffix("\n")

    def structured(self) -> None:
        code, expected = self.code()
        reply = self.wire.run(self.session, code, 120)
        assert reply["ok"], reply
        assert text_of(reply["stdout"]) == expected

    def streamed(self) -> None:
        code, expected = self.code()
        self.wire.send(f"run {self.session} --stream\n{code}")
        got = ""
        accepted = 0
        while "event" in (message := json.loads(self.wire.receive(120))):
            accepted += message["event"] == "accepted"
            if message["event"] == "output":
                assert message["offset"] == len(got.encode())
                got += text_of(message["data"])
        assert message["ok"], message
        assert got == expected
        assert accepted == 1

    def fired(self) -> None:
        code, expected = self.code()
        cell = self.wire.json(f"fire {self.session} --json\n{code}", 120)
        assert cell["ok"], cell
        waited = self.wire.json(f"wait {self.session} --json {cell['cell_id']}", 120)
        assert not waited["timed_out"], waited
        left_out = expected[: self.cells * 13 % len(expected)]
        since = len(left_out.encode())
        out = self.wire.json(f"out {self.session} --json {cell['cell_id']} --since={since}", 120)
        assert left_out + text_of(out["stdout"]) == expected


@pytest.mark.timeout(LONG)
def test_each_cell_runs_once_over_many_random_cuts(remote: Remote) -> None:
    session = remote.new()
    session.out("ran = []")
    before = remote.proxy.accepted
    chosen = random_plan(20_260_131, before + CUTS)
    kinds: Counter[str] = Counter()

    def plan(number: int) -> Cut | None:
        cut = chosen(number)
        kinds[cut.how if cut else "none"] += 1
        return cut

    remote.proxy.plan = plan
    remote.proxy.cut("rst")
    clients = [
        Client(remote, number, lambda: remote.proxy.accepted > before + CUTS) for number in range(4)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(LONG - 30)
        assert not client.is_alive(), (client.cells, remote.summary(), remote.proxy.accepted)
        assert client.failure is None, client.failure
    ran = [(client.number, n) for client in clients for n in range(1, client.cells + 1)]
    print(f"{len(ran)} cells over these cuts: {dict(kinds)}")
    assert session.value("sorted(ran)") == repr(sorted(ran))
    assert remote.proxy.accepted > before + CUTS


def test_a_cell_that_is_not_to_wait_does_not_when_a_cut_lost_it(remote: Remote) -> None:
    session = remote.new()
    session.out("import threading; go = threading.Event()")
    running = session.detach("go.wait(60)")
    with remote.here.connect() as wire:
        remote.proxy.cut_after("rst", 100, "up")
        wire.send(f"run {session.name} --json --busy=fail\n# {'x' * 1000}\nran = True")
        assert json.loads(wire.receive(60))["error"]["code"] == "busy"
    session.interrupt(running)
    assert session.value("'ran' in globals()") == "False"


def test_a_new_request_outlasts_a_few_cuts_in_a_row(remote: Remote) -> None:
    session = remote.new()
    first = remote.proxy.accepted + 1
    remote.proxy.plan = lambda n: Cut("rst", 100) if n < first + 3 else None
    remote.proxy.cut("rst")
    remote.proxy.wait_for_connection(first - 1)
    assert session.value("1") == "1"
    assert remote.proxy.accepted == first + 3


def test_a_way_that_lets_in_and_out_again_keeps_nobody_busy(remote: Remote) -> None:
    remote.new("brief")
    before = remote.proxy.accepted
    # Enough for the handshakes, and not for an answer.
    remote.proxy.plan = lambda n: Cut("rst", 1500) if n < before + 20 else None
    began = time.monotonic()
    remote.proxy.cut("rst")
    done = remote.here.pysh("run", "far/brief", "print('x' * 4000)")
    assert (done.returncode, done.stdout) == (0, "x" * 4000 + "\n"), done
    assert remote.proxy.accepted >= before + 20
    assert time.monotonic() - began > 1


def follow(remote: Remote, request: str) -> tuple[list[dict], dict]:
    """Ask for events; return the pieces of output and the answer."""
    pieces = []
    with remote.here.connect() as wire:
        wire.send(request)
        while "event" in (message := json.loads(wire.receive(60))):
            if message["event"] == "output":
                pieces.append(message)
    return pieces, message


def test_great_output_gets_on_where_no_connection_carries_all_of_it(remote: Remote) -> None:
    session = remote.new()
    # None carries more than a part of it.
    remote.proxy.plan = lambda _: Cut("rst", 600_000)
    remote.proxy.cut("rst")
    code = "for n in range(4000): print(f'{n:04}', 'x' * 994)"
    pieces, reply = follow(remote, f"run {session.name} --stream\n{code}")
    expected = "".join(f"{n:04} {'x' * 994}\n" for n in range(4000))
    assert reply["ok"], reply
    assert "".join(text_of(piece["data"]) for piece in pieces) == expected

    cell = reply["cell_id"]
    pieces, reply = follow(remote, f"out {session.name} {cell} --follow --since=5000")
    assert "".join(text_of(piece["data"]) for piece in pieces) == expected[5000:]
    told = {key: reply[key] for key in ("offset", "next", "missing", "ended")}
    assert told == {"offset": 5000, "next": len(expected), "missing": 0, "ended": True}


def test_great_output_gets_on_where_no_connection_of_pysh_carries_all_of_it(
    remote: Remote,
) -> None:
    """Without a daemon in between."""
    remote.proxy.plan = lambda _: Cut("rst", 600_000)
    remote.proxy.cut("rst")
    direct = {
        "PYTHOND_HOST": remote.proxy.address,
        "PYTHOND_TLS": "1",
        "PYTHOND_TOKEN": remote.token_file.read_text().strip(),
        "PYTHOND_RECONNECT": "30",
    }
    code = "for n in range(4000): print(f'{n:04}', 'x' * 994)"
    with remote.there.session() as session:
        words = ("run", session.name, code)
        done = remote.here.pysh(*words, env={**remote.here.environment, **direct})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{n:04} {'x' * 994}\n" for n in range(4000))
