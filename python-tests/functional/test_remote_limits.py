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
