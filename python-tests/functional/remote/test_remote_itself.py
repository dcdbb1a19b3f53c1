"""A daemon that has connected to itself: its sessions have two names, and nothing loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.remotes import copy_token, listening, pin, port_of


class Itself:
    """A daemon, and how it reaches itself."""

    def __init__(self, daemon: TestDaemon) -> None:
        self.daemon = daemon
        self.address = f"127.0.0.1:{port_of(daemon)}"
        self.token: Path = daemon.root / "token"
        copy_token(daemon, self.token)
        pin(daemon, daemon, self.address)

    def connect(self, name: str, *words: str) -> dict:
        """Run `pyctl connect --json` and return its answer."""
        options = ("--tls", "--token-file", self.token, "--json")
        done = self.daemon.pyctl("connect", name, self.address, *options, *words)
        return json.loads(done.stdout)


@pytest.fixture
def itself(make_daemon: Callable[..., TestDaemon]) -> Itself:
    """A daemon that listens."""
    return Itself(listening(make_daemon()))


def test_a_session_has_a_second_name(itself: Itself) -> None:
    with itself.daemon.session("work") as session, itself.daemon.connect() as wire:
        assert itself.connect("again", "--session=work")["ok"]
        session.out("x = 6")
        assert wire.run("again", "x * 7")["result"] == "42"
        assert wire.run("again/work", "x * 7")["result"] == "42"


def test_what_would_come_back_is_refused_when_it_is_connected(itself: Itself) -> None:
    refused = itself.connect("far")
    assert refused["error"]["code"] == "remote_refused"
    assert "--session" in refused["error"]["hint"]
    assert itself.connect("far", "--session=work")["ok"]
    assert itself.connect("farther", "--session=far")["error"]["code"] == "remote_refused"


@pytest.mark.parametrize("verb", ["new", "run", "fire", "status", "int", "kill", "attach"])
def test_what_would_come_back_is_refused_when_it_is_asked(itself: Itself, verb: str) -> None:
    assert itself.connect("far", "--session=work")["ok"]
    with itself.daemon.connect() as wire:
        for name in ("far/far", "far far"):
            code = "\n1" if verb in ("run", "fire") else ""
            error = wire.json(f"{verb} {name} --json{code}", 20)["error"]
            assert error["code"] == "remote_refused"
            assert "itself" in error["message"]
        assert wire.json("new far --json")["ok"]
        assert wire.run("work", "6 * 7")["result"] == "42"


def test_a_remote_whose_session_became_a_remote_is_refused(itself: Itself) -> None:
    assert itself.connect("one", "--session=two")["ok"]
    assert itself.connect("two", "--session=three")["ok"]
    with itself.daemon.connect() as wire:
        assert wire.run("one", "1")["error"]["code"] == "remote_refused"
        assert wire.run("two", "1")["error"]["code"] == "no_session"
