"""Every verb reaches sessions of another machine's daemon as if they were here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Session, TestDaemon
from support.remotes import Remote, lasting_remote, refusal_named_here, remote_of
from support.waiting import wait_until
from support.wire import text_of


@pytest.fixture(scope="module")
def remote(binaries: Path, mark: str) -> Iterator[Remote]:
    """A remote whose connection nothing happens to."""
    with lasting_remote(binaries, mark) as remote:
        yield remote


@pytest.fixture(params=["alias", "path"])
def session(remote: Remote, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session there, named by the alias or by `REMOTE/SESSION`."""
    session = remote.new(None if request.param == "alias" else "other")
    yield session
    session.kill()


def there(remote: Remote, session: Session) -> str:
    """What a session is called by its own daemon."""
    return session.name.rpartition("/")[2]


def tagged(remote: Remote, text: str, tag: str = 'a"b') -> dict[str, Any]:
    """Ask with a tag and return the answer without it, after all events."""
    verb, _, rest = text.partition(" ")
    with remote.here.connect() as wire:
        wire.send(f"{verb} --tag={tag} {rest}")
        while True:
            answer = json.loads(wire.receive())
            assert next(iter(answer)) == "tag", answer
            assert answer.pop("tag") == tag
            if "event" not in answer:
                return answer


def test_a_run_answers_as_the_remote_daemon_does(remote: Remote, session: Session) -> None:
    name = there(remote, session)
    for code in [
        "1 + 1",
        "print('é' * 3)",
        "'ERR x'",
        "1 / 0",
        "import sys; sys.stderr.write('e')",
    ]:
        for text in (f"run {{}} {code}", f"run {{}}\n{code}"):
            texts = [
                daemon.ask(text.format(asked))
                for daemon, asked in ((remote.here, session.name), (remote.there, name))
            ]
            here, far = (re.sub(r"<cell \d+>", "<cell>", text) for text in texts)
            assert here == far, text
    here, far = (
        daemon.json(f"run {n} --json\nprint(1); 2")
        for daemon, n in ((remote.here, session.name), (remote.there, name))
    )
    for reply in (here, far):
        for timing in ("duration_ms", "queued_ms", "cell_id", "started", "finished"):
            reply.pop(timing, None)
    assert here.keys() == far.keys()
    assert (here["stdout"], here["result"], here["session"]) == ("1\n2\n", "2", name)
    assert here.get("host") == far.get("host")
    assert tagged(remote, f"run {session.name}\n3")["result"] == "3"


def test_a_stream_comes_as_it_is_written(remote: Remote, session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"print('a')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('b')"
    with remote.here.connect() as wire:
        wire.send(f"run {session.name} --stream\n{code}")
        accepted = json.loads(wire.receive())
        assert accepted["event"] == "accepted"
        first = json.loads(wire.receive())
        assert (first["event"], first["data"]) == ("output", "a\n")
        go.touch()
        rest = [json.loads(wire.receive()) for _ in range(2)]
    assert rest[0]["data"] == "b\n"
    assert rest[1]["ok"]
    assert rest[1]["cell_id"] == accepted["cell_id"]


def test_cells_that_nobody_waits_for(remote: Remote, session: Session) -> None:
    name = there(remote, session)
    fired = session.fire("print('f')")
    ended = session.ended(fired)
    assert ended == remote.there.json(f"poll {name} --json {fired}")
    assert (ended["status"], text_of(ended["stdout"])) == ("done", "f\n")
    plain = json.loads(remote.here.ask(f"fire {session.name}\n6"))
    assert plain["status"] == "fired"
    session.ended(plain["cell_id"])
    assert (
        json.loads(remote.here.ask(f"poll {session.name} {plain['cell_id']}"))["status"] == "done"
    )
    detached = session.detach("7")
    assert session.ended(detached)["result"] == "7"
    forked = session.submit("fork", "y = 8")
    session.ended(forked["cell_id"])
    assert session.value("y") == "8"
    waiting = session.submit("run", "time.sleep(600)", "--wait=0.2")
    assert waiting["status"] == "running", waiting
    assert waiting["cell_id"] in session.interrupt()["interrupted"]
    session.ended(waiting["cell_id"])
    out = session.submit("run", "time.sleep(600)", "--timeout=0.2")
    assert out["status"] == "interrupted", out
    assert set(session.cells()) == set(
        cell["cell_id"] for cell in remote.there.json(f"cells {name} --json")["cells"]
    )


@pytest.mark.parametrize(
    "asked",
    [
        *("poll {}", "cells {}", "vars {}", "complete {} {option}os.pa", "status {}", "stack {}"),
        *("wait {}", "int {}", "hold {}", "release {}", "resize {} 30 90", "out {} {cell}"),
        *("poll {} {cell}", "wait {} --timeout=5 {cell}", "int {} {cell}", "poll {} 123456789012"),
        *("out {} --since=2 {cell}", "vars {} --bad", "resize {} 1", "new {}"),
        *("ls {daemon}", "info {daemon}"),
    ],
)
def test_an_answer_is_that_of_the_remote_daemon(
    remote: Remote, session: Session, asked: str
) -> None:
    cell = session.run("print('out', file=sys.stdout); x = 1")["cell_id"]
    name = there(remote, session)

    def steady(text: str) -> Any:
        """Leave out what differs from one moment to the next."""
        if not text.startswith("{"):
            return text
        moving = ("uptime_s", "rss_bytes", "cpu_s", "cpu_ms", "memory", "idle_s", "connections")
        reply = json.loads(text)
        return {key: value for key, value in reply.items() if key not in moving}

    for option in ("", "--json "):
        verb, rest = asked.split(" ", 1)
        text = asked if "{option}" in asked else f"{verb} {{option}}{rest}"
        words = {"cell": cell, "option": option}
        here = remote.here.ask(text.format(session.name, daemon=remote.name, **words))
        far = remote.there.ask(text.format(name, daemon="", **words))
        if asked.startswith(("ls", "info", "status", "stack")):
            near, away = steady(here), steady(far)
            assert type(near) is type(away)
            if isinstance(near, dict):
                way = near.pop("remote", {"state": "up"})
                assert way["state"] == "up"
                assert near.keys() == away.keys()
                assert near.get("session_id") == away.get("session_id")
                assert near.get("pid") == away.get("pid")
        else:
            assert steady(here) == steady(refusal_named_here(far, name)), text
    words = {"cell": cell, "option": "--tag=t ", "daemon": remote.name}
    if "{option}" in asked:
        with remote.here.connect() as wire:
            assert wire.json(asked.format(session.name, **words))["matches"]
    else:
        assert tagged(remote, asked.format(session.name, **words))


@pytest.mark.parametrize("option", ["", " --json"])
def test_status_tells_of_the_way_too(remote: Remote, session: Session, option: str) -> None:
    reply = json.loads(remote.here.ask(f"status {session.name}{option}"))
    assert reply["state"] == "idle"
    way = reply["remote"]
    (listed,) = [it for it in remote.here.json("ls --json")["remotes"] if it["name"] == way["name"]]
    for name in ("state", "endpoint", "endpoints", "connections", "endpoint_attempts"):
        assert way[name] == listed[name], name
    assert way["rtt_ms"] > 0


def test_status_of_a_session_that_is_not_there_tells_of_the_way(remote: Remote) -> None:
    refused = remote.here.json("status far/nobody --json")
    assert (refused["ok"], refused["error"]["code"]) == (False, "no_session")
    assert (refused["remote"]["name"], refused["remote"]["state"]) == ("far", "up")
    shown = remote.here.pysh("--json", "status", "far/nobody")
    assert shown.returncode == 4
    told = json.loads(shown.stdout)
    assert told["error"]["code"] == "no_session"
    assert told["remote"].keys() == refused["remote"].keys()
    # Nothing else is about the way.
    assert "remote" not in remote.here.json("vars far/nobody --json")


def test_status_tells_of_each_part_of_a_way_over_two_remotes(
    remote: Remote, make_daemon: Callable[..., TestDaemon]
) -> None:
    with remote_of(make_daemon, here=remote.there, name="further") as beyond:
        assert beyond.there.json("new cee --json")["ok"]
        shown = remote.there.pysh("run", "further/cee", "1")
        assert shown.returncode == 0, shown
        chained = remote.there.pyctl(
            *("connect", "cee", beyond.address, "--tls", "--token-file", beyond.token_file)
        )
        assert chained.returncode == 0, chained
        reply = json.loads(remote.here.ask("status far/cee --json"))
        first = reply["remote"]
        assert (first["name"], first["remote"]["name"]) == ("far", "cee")
        assert (first["endpoint"], first["remote"]["endpoint"]) == (remote.address, beyond.address)
        shown = remote.here.pysh("status", "far/cee")
        assert shown.returncode == 0, shown
        assert "cee" in shown.stdout
        assert beyond.there.json("kill cee --json")["ok"]
        refused = remote.here.json("status far/cee --json")
        assert refused["error"]["code"] == "no_session"
        assert (refused["remote"]["name"], refused["remote"]["remote"]["name"]) == ("far", "cee")
        for name in ("cee", "further"):
            assert remote.there.pyctl("disconnect", name).returncode == 0


def test_options_may_stand_behind_the_words(remote: Remote, session: Session) -> None:
    cell = session.run("1")["cell_id"]
    with remote.here.connect() as wire:
        answer = wire.json(f"wait {session.name} {cell} --tag=late")
        assert answer["tag"] == "late"
        assert answer["ok"]


def test_output_is_followed(remote: Remote, session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cell = session.fire(
        f"print('a')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('b')"
    )
    with remote.here.connect() as wire:
        wire.send(f"out {session.name} --follow {cell}")
        got = ""
        while "event" in (message := json.loads(wire.receive())):
            got += text_of(message["data"])
            go.touch()
    assert got == "a\nb\n"
    assert message["ok"]


def test_events_go_on_from_a_cursor(remote: Remote, session: Session) -> None:
    with remote.here.connect() as wire:
        ready = wire.json(f"events {session.name} --tag=e")
        assert ready["event"] == "ready"
        cell = session.run("1")["cell_id"]
        messages = []
        while not messages or messages[-1]["event"] != "cell_done":
            messages.append(json.loads(wire.receive()))
            assert messages[-1]["tag"] == "e"
    started, done = messages[-2:]
    assert started["event"] == "cell_started"
    assert started["cell_id"] == done["cell_id"] == cell
    with remote.here.connect() as wire:
        wire.send(f"events {session.name} --since={started['cursor']}")
        messages = [json.loads(wire.receive()) for _ in range(2)]
    assert done["cursor"] in [message["cursor"] for message in messages]
    assert all(message.get("cell_id", cell) == cell for message in messages)
    assert started["cursor"] not in [m["cursor"] for m in messages if m["event"] != "ready"]


def test_a_request_is_taken_back(remote: Remote, session: Session) -> None:
    with remote.here.connect() as wire:
        wire.send(f"run {session.name} --tag=r\ntime.sleep(600)")
        wait_until(lambda: session.status()["running"], what="a running cell")
        wire.send("cancel --tag=c r")
        received = [json.loads(wire.receive()) for _ in range(2)]
    answers = {answer["tag"]: answer for answer in received}
    assert answers["c"]["cancelled"] is True
    assert answers["r"]["error"]["code"] == "cancelled"
    assert len(session.interrupt()["interrupted"]) == 1


def test_code_of_two_words_and_a_body_names_the_session(remote: Remote) -> None:
    session = remote.new("third")
    try:
        session.out("x = 3")
        assert remote.here.ask(f"run {remote.name} third\nx") == "3"
        assert remote.here.ask(f"vars {remote.name} third") == remote.there.ask("vars third")
    finally:
        session.kill()


def test_a_session_here_is_another(remote: Remote) -> None:
    session = remote.new("both")
    local = remote.here.new("both")
    try:
        local.out("x = 1")
        session.out("x = 2")
        assert local.value("x") == "1"
        assert remote.here.ask("run far/both\nx") == "2"
        session.kill()
        assert local.value("x") == "1"
    finally:
        local.kill()
        session.kill()


def test_what_is_not_there_is_said(remote: Remote) -> None:
    for text, code in [
        ("run nowhere/x --json\n1", "no_session"),
        ("run far/.. --json\n1", "no_session"),
        ("run far/unheard --json\n1", "no_session"),
        ("attach nowhere/x --json", "no_session"),
        ("new far/CON --json", "no_session"),
        ("new --json nowhere/x", "no_session"),
        ("vars far/ --json", "no_session"),
        ("vars /far --json", "no_session"),
    ]:
        answer = remote.here.json(text)
        assert (answer["ok"], answer["error"]["code"]) == (False, code), text
    assert remote.here.ask("run far/unheard\n1").startswith("ERR no session 'unheard'")
    assert remote.here.ask("run nowhere/x\n1").startswith("ERR ")
