"""Daemons that name each other for a session that neither has: nothing goes round for ever."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from support.daemon import TestDaemon
from support.remotes import copy_token, listening, pin, port_of

VERBS = [
    *("new", "run", "fire", "fork", "status", "vars", "int", "kill", "attach", "wait", "cells"),
    *("stack", "events", "hold", "out"),
]


def name(here: TestDaemon, there: TestDaemon, session: str) -> None:
    """Have a daemon find a session at another."""
    address = f"127.0.0.1:{port_of(there)}"
    token = here.root / "token"
    copy_token(there, token)
    pin(here, there, address)
    done = here.pyctl("connect", session, address, "--tls", "--token-file", token)
    assert done.returncode == 0, done


@pytest.fixture
def circle(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon with a remote `work`, whose daemon has this one as remote `work`."""
    here, there = listening(make_daemon()), listening(make_daemon())
    name(here, there, "work")
    name(there, here, "work")
    return here


def is_refused(error: dict) -> bool:
    """Tell whether a refusal says what is wrong and what to do."""
    return (
        error["code"] == "remote_refused"
        and error["message"] == "passed on 8 times to no session: remotes lead in circles"
        and "pyctl disconnect" in error["hint"]
    )


@pytest.mark.parametrize("tag", ["", " --tag=t"])
def test_what_goes_in_circles_is_refused(circle: TestDaemon, tag: str) -> None:
    for verb in VERBS:
        words = " 24 80" if verb == "attach" else " 0a0a0a0a0a0a" if verb == "out" else ""
        body = "\n1" if verb in ("run", "fire", "fork") else ""
        with circle.connect() as wire:
            error = wire.json(f"{verb} work --json{tag}{words}{body}", 30)["error"]
            assert is_refused(error), (verb, error)
    # The way itself is of use.
    assert circle.json("new mine --json")["ok"]
    with circle.connect() as wire:
        text = wire.ask("complete work pri")
        assert text.startswith("ERR passed on 8 times to no session"), text
        assert wire.json("new work/other --json", 60)["ok"]
        assert wire.run("work/other", "6 * 7")["result"] == "42"


def test_who_runs_something_in_a_circle_is_told_at_once(circle: TestDaemon) -> None:
    done = circle.pysh("--json", "run", "work", "1")
    assert done.returncode == 4, done
    assert is_refused(json.loads(done.stdout)["error"])


def test_code_may_have_what_looks_like_the_option(circle: TestDaemon) -> None:
    with circle.connect() as wire:
        assert wire.json("new work/other --json", 60)["ok"]
        assert wire.ask("run work/other\nprint('--hops=9')") == "--hops=9"
        assert wire.ask("run work/other print('--hops=9')") == "--hops=9"
        assert json.loads(wire.ask("complete work/other prin"))["matches"] == ["print("]
        assert "matches" in json.loads(wire.ask("complete work/other --x --hops=9"))
        failed = wire.json("run work/other --json\n-- --hops=9\n1")
        assert failed["error"]["type"] == "SyntaxError"
        for verb in ("status", "attach", "run"):
            told = wire.json(f"{verb} work/other --hops=x --json\n1")
            assert told["error"]["code"] == "usage", told
        # What is asked of that daemon goes no further.
        assert "sessions" in wire.json("ls work --hops=8 --json")
