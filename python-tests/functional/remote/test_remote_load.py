"""Many requests of many clients share one connection to a remote daemon."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import raw
from support.cutting import Cut
from support.daemon import Session
from support.processes import memory
from support.remotes import Remote, lasting_remote
from support.waiting import wait_until
from support.wire import text_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def remote(binaries: Path, mark: str) -> Iterator[Remote]:
    """A remote whose connection nothing happens to."""
    with lasting_remote(binaries, mark) as remote:
        yield remote


@pytest.fixture
def session(remote: Remote) -> Iterator[Session]:
    """A session there."""
    session = remote.new()
    yield session
    session.kill()


def streamed(receive: Callable[[], str | bytes]) -> bytes:
    """Read the rest of a stream to its answer and return the output."""
    pieces = []
    while "event" in (message := json.loads(receive())):
        assert message["event"] != "gap", message
        if message["event"] == "output":
            assert message["offset"] == sum(map(len, pieces))
            pieces.append(text_of(message["data"]).encode())
    assert message["ok"], message
    return b"".join(pieces)


def test_many_requests_share_one_connection(remote: Remote, session: Session) -> None:
    before = remote.proxy.accepted
    fired = session.fire("import time; time.sleep(600)")
    with remote.here.connect() as wire:
        for number in range(300):
            wire.send(f"wait {session.name} --tag=w{number} --timeout=600 {fired}")
        for number in range(300):
            wire.send(f"fire {session.name} --tag=f{number}\n{number}")
        for number in range(300):
            wire.send(f"vars {session.name} --tag=v{number}")
        answers = {json.loads(wire.receive())["tag"] for _ in range(600)}
        assert answers == {f"{kind}{n}" for kind in "fv" for n in range(300)}
        session.interrupt(fired)
        answers = {json.loads(wire.receive())["tag"] for _ in range(300)}
        assert answers == {f"w{n}" for n in range(300)}
    assert remote.proxy.accepted == before
    assert remote.proxy.open == 1


def test_many_who_wait_leave_room_for_an_interrupt(remote: Remote, session: Session) -> None:
    """They are more than a link takes at once."""
    fired = session.fire("import time; time.sleep(600)")
    with remote.here.connect() as first, remote.here.connect() as second:
        for number in range(600):
            for wire in (first, second):
                wire.send(f"wait {session.name} --tag=w{number} --timeout=600 {fired}")
        # Whatever else is asked is answered meanwhile.
        for _ in range(100):
            assert session.status()["running"] == [fired]
        session.interrupt(fired)
        for wire in (first, second):
            answers = {json.loads(wire.receive())["tag"] for _ in range(600)}
            assert answers == {f"w{n}" for n in range(600)}


def test_who_does_not_read_holds_nobody_up(remote: Remote, session: Session) -> None:
    before = memory(remote.here.pid)
    greatest = 0
    with remote.here.connect() as slow, remote.here.connect() as other:
        slow.send(
            f"run {session.name} --stream\n"
            "for n in range(50): print(chr(97 + n % 26) * ((1 << 20) - 1))"
        )
        assert json.loads(slow.receive())["event"] == "accepted"
        # The reader's library takes some ahead; the rest waits on its way.
        while session.status()["running"]:
            greatest = max(greatest, memory(remote.here.pid) - before)
        for number in range(200):
            assert other.json(f"status {session.name} --json")["ok"]
            assert remote.here.ask(f"run {session.name}\n{number}") == str(number)
            greatest = max(greatest, memory(remote.here.pid) - before)
        expected = b"".join(bytes([97 + n % 26]) * (MIB - 1) + b"\n" for n in range(50))
        assert streamed(slow.receive) == expected
    assert greatest < 64 * MIB


def test_a_slow_reader_that_finds_no_way_of_its_own_tries_in_moderation(
    remote: Remote, session: Session
) -> None:
    before = remote.proxy.accepted
    with raw.connected(remote.here.socket) as slow, remote.here.connect() as other:
        raw.shake(slow)
        start = remote.proxy.bytes["down"]
        # The shared connection lives, and there is none beside it.
        remote.proxy.plan = lambda _: Cut("rst", 0, "up")
        try:
            code = "for n in range(24): print(chr(97 + n) * ((1 << 20) - 1))"
            slow.sendall(raw.frame(f"run {session.name} --stream\n{code}".encode()))
            assert json.loads(raw.message(slow)[1])["event"] == "accepted"
            # It is put off the shared connection once more waits than may, and that
            # is so when what comes for the others comes alone.
            came = 0
            while came < 2 * MIB or remote.proxy.bytes["down"] - start - came > 100_000:
                came = remote.proxy.bytes["down"] - start
                for number in range(50):
                    assert other.ask(f"run {session.name}\n{number}") == str(number)
            with ThreadPoolExecutor(1) as pool:
                reading = pool.submit(streamed, lambda: raw.message(slow)[1])
                wait_until(
                    lambda: reading.done() or remote.proxy.accepted > before + 2, what="dials"
                )
                for number in range(300):
                    assert other.ask(f"run {session.name}\n{number}") == str(number)
                remote.proxy.plan = None
                expected = b"".join(bytes([97 + n]) * (MIB - 1) + b"\n" for n in range(24))
                assert reading.result() == expected
        finally:
            remote.proxy.plan = None
    assert before + 2 < remote.proxy.accepted < before + 60


def test_a_reader_that_is_slow_all_the_time_gets_each_byte(
    remote: Remote, session: Session
) -> None:
    with remote.here.connect() as slow:
        slow.send(
            f"run {session.name} --stream --cancel-on-disconnect\n"
            "for n in range(300_000): print(f'line {n:09}')\n'end'"
        )
        got = ""
        pause = threading.Event()
        while "event" in (message := json.loads(slow.receive(120))):
            pause.wait(0.002)
            if message["event"] == "output":
                assert message["offset"] == len(got)
                got += text_of(message["data"])
    assert message["ok"], message
    assert got == "".join(f"line {n:09}\n" for n in range(300_000)) + "end\n"


def test_great_code_and_great_output_pass_each_other(remote: Remote, session: Session) -> None:
    code = "x = '''" + "y" * (10 * MIB) + "'''\nprint(len(x))"
    failures: list[BaseException] = []

    def guarded(work) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def output() -> None:
        with remote.here.connect() as wire:
            for _ in range(2):
                wire.send(
                    f"run {session.name} --stream\nfor n in range(50): print('z' * ((1 << 20) - 1))"
                )
                assert len(streamed(wire.receive)) == 50 * MIB

    def codes() -> None:
        for _ in range(4):
            # In a session of its own: what is kept of one has a budget.
            assert remote.here.ask(f"run {other.name}\n{code}", 120) == str(10 * MIB)

    other = remote.new("other")
    threads = [guarded(output), guarded(codes), guarded(codes)]
    for thread in threads:
        thread.join(150)
        assert not thread.is_alive()
    other.kill()
    assert not failures, failures
