"""A remote daemon that takes less than the one here."""

from __future__ import annotations

import json
from collections.abc import Callable

from support.daemon import TestDaemon
from support.remotes import remote_of

MIB = 1 << 20


def test_code_that_is_too_great_there_is_refused_and_others_go_on(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    with remote_of(make_daemon, PYTHOND_MAX_WS_PAYLOAD=str(MIB)) as remote:
        session = remote.new()
        with remote.here.connect() as wire:
            wire.send(f"run {session.name} --tag=r\ntime.sleep(1); 'other'")
            answer = remote.here.ask(f"run {session.name}\n'{'x' * 2 * MIB}'")
            assert answer.startswith("ERR remote `far` takes no message so great"), answer[:200]
            assert json.loads(wire.receive())["result"] == "other"
        assert session.value("1") == "1"


def test_more_requests_than_the_remote_takes_at_once_wait(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    with remote_of(make_daemon, PYTHOND_MAX_IN_FLIGHT="8") as remote:
        session = remote.new()
        with remote.here.connect() as wire:
            for number in range(40):
                wire.send(f"fire {session.name} --tag={number} --stream\ntime.sleep(0.5); {number}")
            ended = set()
            while len(ended) < 40:
                answer = json.loads(wire.receive())
                if "event" not in answer:
                    ended.add(answer["tag"])


def test_an_answer_that_is_greater_than_is_taken_is_refused_alone(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    here = make_daemon(PYTHOND_MAX_REMOTE_ANSWER="8M").start()
    with remote_of(make_daemon, here=here) as remote:
        session, beside = remote.new(), remote.new("beside")
        session.out("ran = []")
        fired = session.fire("print('\\x02' * 2_000_000)")
        session.ended(fired)
        links = remote.summary()["connections"]
        with here.connect() as wire, here.connect() as other:
            other.send(f"run {beside.name} --tag=r\nimport time; time.sleep(2); 'other'")
            wire.send(f"run {session.name} --json\nran.append(1); print('\\x01' * 2_000_000)")
            refused = json.loads(wire.receive())
            assert refused["error"]["code"] == "limit", refused
            cell = refused["cell_id"]
            assert f"pysh out far/far {cell} --follow" in refused["error"]["hint"], refused
            # What others asked on the same connection goes on beside it.
            assert json.loads(other.receive())["result"] == "other"
            poll = wire.json(f"poll {session.name} --json {fired}")
            assert poll["error"]["code"] == "limit", poll
        # Each of them broke the shared connection once.
        assert remote.summary()["connections"] <= links + 2
        assert session.value("ran") == "[1]"
        read = here.popen("pysh", "out", session.name, cell, "--follow")
        out, err = read.communicate(timeout=60)
        assert (out.strip(b"\n"), err) == (b"\x01" * 2_000_000, b"")
        assert remote.summary()["state"] == "up"
