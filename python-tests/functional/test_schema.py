"""What is said under `--json` is what `schema.json` says of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support.daemon import Session, TestDaemon
from support.network import Machine
from support.pairing import Offer, type_code
from support.waiting import wait_until
from support.wire import Wire, text_of

SCHEMA = json.loads((Path(__file__).parents[2] / "src/protocol/schema.json").read_text())
FOREVER = "import time\nwhile True:\n    time.sleep(0.01)"


def definitions(part: str) -> dict[str, Any]:
    """Return the definitions by verb of `answers`, `events` or `bodies`."""
    return SCHEMA["$defs"][part]["properties"]


def check(message: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """Fail unless a message is valid and the schema knows all its members.

    Clients ignore members that they do not know, so the schema leaves room for
    more; a daemon of the same version has none.
    """
    members = {name: value for name, value in message.items() if name != "tag"}
    closed = {"$defs": SCHEMA["$defs"], **definition, "unevaluatedProperties": False}
    errors = [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(closed).iter_errors(members)
    ]
    assert not errors, (errors, message)
    return message


def answer(verb: str, message: dict[str, Any]) -> dict[str, Any]:
    """Check an answer to a verb."""
    return check(message, definitions("answers")[verb])


def event(verb: str, message: dict[str, Any]) -> dict[str, Any]:
    """Check an event that comes before the answer to a verb."""
    return check(message, definitions("events")[verb])


def refusal(message: dict[str, Any], code: str) -> dict[str, Any]:
    """Check a refusal with this code."""
    check(message, {"$ref": "#/$defs/Refusal"})
    assert message["error"]["code"] == code, message
    return message


class Checked:
    """One connection whose answers are checked."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.seen: set[str] = set()
        self.events: list[dict[str, Any]] = []

    def ask(self, text: str, timeout: float = 60) -> dict[str, Any]:
        """Send a frame; return its checked answer and keep its checked events."""
        verb = text.split()[0]
        self.events = []
        self.wire.send(text)
        while True:
            message = json.loads(self.wire.receive(timeout))
            if "event" not in message:
                break
            self.events.append(event(verb, message))
        self.seen.add(verb)
        return answer(verb, message)

    def refused(self, text: str, code: str) -> dict[str, Any]:
        """Send a frame that is refused with this code."""
        return refusal(self.wire.json(text), code)


@pytest.fixture
def checked(session: Session) -> Iterator[Checked]:
    """A connection beside a session of its own."""
    with session.daemon.connect() as wire:
        yield Checked(wire)


def fire(checked: Checked, session: Session, code: str) -> str:
    """Start a cell beside others and return its id."""
    return checked.ask(f"fire {session.name} --json\n{code}")["cell_id"]


def wait_until_it_runs(checked: Checked, session: Session, cell: str) -> None:
    """Wait until a cell has begun."""
    wait_until(
        lambda: checked.ask(f"poll {session.name} {cell} --json")["status"] == "running",
        what=f"cell {cell} runs",
    )


def test_the_schema_is_one_and_stays_open():
    Draft202012Validator.check_schema(SCHEMA)

    def closed(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            if value.get("additionalProperties") is False or "unevaluatedProperties" in value:
                yield path
            for key, member in value.items():
                yield from closed(member, f"{path}/{key}")
        elif isinstance(value, list):
            for item in value:
                yield from closed(item, path)

    # Bodies are read by the daemon, which refuses what it does not know.
    assert list(closed(SCHEMA, "")) == ["/$defs/ConnectOptions", "/$defs/NewOptions"]


def test_every_verb_answers_as_the_schema_says(make_daemon):
    daemon: TestDaemon = make_daemon().start()
    with daemon.connect() as first:
        restarting = answer("restart", first.json("restart --json"))
        assert restarting == {"ok": True, "sessions": 0, "kept": True}
    with daemon.connect() as wire:
        it = Checked(wire)
        body = {"cwd": str(daemon.work), "env": {"A": "b"}, "preload": ["json"]}
        check(body, definitions("bodies")["new"])
        assert it.ask("new work --json\n" + json.dumps(body))["gen"] == 1
        assert it.ask("new work --json --replace")["replaced"]
        assert it.ask("poll work --json") == {"ok": True, "status": "idle"}
        assert it.ask("run work --json\nx = 6\nprint('a')\nx * 7")["result"] == "42"
        cell = it.ask("fire work --json --author=me --id=k1\nprint('b')")["cell_id"]
        assert it.ask(f"wait work {cell} --json")["cells"][0]["author"] == "me"
        assert it.ask("fire work --json --author=me --id=k1\nprint('b')")["existing"]
        fork = it.ask("fork work --json\nx, lock = 1, __import__('threading').Lock()")["cell_id"]
        assert it.ask(f"wait work {fork} --json")["cells"][0]["merged"] == ["x"]
        assert set(it.ask(f"poll work {fork} --json")["skipped"]) == {"lock"}
        assert it.ask(f"poll work {cell} --json")["stdout"] == "b\n"
        assert it.ask(f"out work {cell} --json")["ended"]
        assert it.ask(f"out work {cell} --follow")["next"] == 2
        assert [it["event"] for it in it.events] == ["output"]
        assert len(it.ask("cells work --json")["cells"]) == 3
        assert it.ask("status work --json")["state"] == "idle"
        assert [it["name"] for it in it.ask("vars work --json")["vars"]][-1] == "x"
        assert "print(" in it.ask("complete work --json pri")["matches"]
        cell = it.ask(f"run work --detach\n{FOREVER}")["cell_id"]
        assert it.ask("stack work --json")["threads"][0]["cell_id"] == cell
        assert it.ask("int work --json")["interrupted"] == [cell]
        assert it.ask("ls --json")["sessions"]
        assert it.ask("info --json")["zygotes"]
        assert "cells" in it.ask("help --json")["help"]
        assert it.ask("hold work --json")["held"]
        assert it.ask("release work --json") == {
            "ok": True,
            "session": "work",
            "held": False,
            "waiting": 0,
        }
        assert it.ask("resize work 30 100 --json")["rows"] == 30
        with daemon.connect() as terminal:
            terminal.send("attach work 24 80 --json --term=xterm")
            assert answer("attach", json.loads(terminal.receive()))["attached"] == 1
            it.seen.add("attach")
            assert isinstance(terminal.socket.recv(20), bytes)
            assert it.ask("resize work 30 100 --json")["cols"] == 100
            terminal.send("resize work 20 70 --json")
            seen = set()
            while "terminal_resized" not in seen:
                message = terminal.socket.recv(20)
                if isinstance(message, str) and '"event"' in message:
                    seen.add(event("attach", json.loads(message))["event"])
        assert it.ask("cancel nobody --json") == {"ok": True, "cancelled": False}
        far: TestDaemon = make_daemon().listen().start()
        far_info = answer("info", far.json("info --json"))
        token = far.pyctl("token", "show").stdout.strip()
        body = {"endpoints": [far_info["listen"][0]["address"]], "token": token}
        check(body, definitions("bodies")["connect"])
        assert it.ask("connect far --json\n" + json.dumps(body))["remote"]["state"] == "up"
        assert it.ask("ls --json")["remotes"][0]["endpoint_attempts"]
        assert it.ask("disconnect far --json")["disconnected"] == "far"
        there: TestDaemon = make_daemon().listen("127.0.0.1:0", tls=True).start()
        address = answer("info", there.json("info --json"))["listen"][0]["address"]
        with Offer(there) as offer:
            assert type_code(Machine.of(daemon), address, offer.wrong).returncode == 4
            assert type_code(Machine.of(daemon), address, offer.code).returncode == 0
            happened = [event("pair", it)["event"] for it in (offer.shown, offer.next())]
            assert happened == ["code", "wrong_code"]
            assert answer("pair", offer.next())["client"]["trusted"]
            it.seen.add("pair")
        with daemon.connect() as other:
            other.send("events --json")
            event("events", json.loads(other.receive()))
            assert it.ask("kill work --json")["killed"] == ["work"]
            assert it.ask("stop --json") == {"ok": True, "sessions": 0, "kept": False}
            messages = []
            with contextlib.suppress(Exception):
                while True:
                    messages.append(json.loads(other.receive()))
            *happened, last = messages
            assert [event("events", it)["event"] for it in happened] == ["session_closed"]
            answer("events", last)
            it.seen |= {"events", "restart"}
        assert it.seen == set(definitions("answers"))


def test_every_end_of_a_cell_has_its_form(checked: Checked, session: Session):
    name = session.name
    raised = checked.ask(f"run {name} --json\n1/0")
    assert (raised["status"], raised["error"]["type"]) == ("failed", "ZeroDivisionError")
    code = "import sys\nsys.stdout.buffer.write(b'\\xff')\nsys.stderr.write('e')\nprint()\n"
    binary = checked.ask(f"run {name} --json\n{code}")
    assert binary["stdout"]["data_b64"]
    assert binary["order"]
    late = checked.ask(f"run {name} --json --timeout=0.05\n{FOREVER}")
    assert (late["status"], late["timed_out"]) == ("interrupted", True)
    goes_on = checked.ask(f"run {name} --wait=0.05\n{FOREVER}")
    assert goes_on["status"] == "running"
    queued = checked.ask(f"run {name} --detach\n1")
    assert queued["queue_position"] == 1
    listed = checked.ask(f"cells {name} --json")["cells"]
    assert [cell["status"] for cell in listed][-2:] == ["running", "queued"]
    told = checked.ask(f"int {name} --json {goes_on['cell_id']} {queued['cell_id']}")
    assert [cell["outcome"] for cell in told["cells"]] == ["ended", "dequeued"]
    waited = checked.ask(f"wait {name} --json {queued['cell_id']}")
    assert (waited["ok"], waited["cells"][0]["status"]) == (False, "interrupted")


def test_output_comes_in_the_events_of_the_schema(checked: Checked, session: Session):
    name = session.name
    code = "import sys\nprint('a')\nprint('b', file=sys.stderr)\n7"
    reply = checked.ask(f"run {name} --stream\n{code}")
    assert (reply["streamed"], reply["stdout"], reply["result"]) == (True, "", "7")
    assert checked.events[0]["event"] == "accepted"
    shown = [(it["stream"], text_of(it["data"])) for it in checked.events[1:]]
    assert "".join(text for stream, text in shown if stream == 1) == "a\n7\n"
    assert "".join(text for stream, text in shown if stream == 2) == "b\n"
    cell = reply["cell_id"]
    assert checked.ask(f"out {name} {cell} --json --since=2 --stderr --max=1")["next"] == 2
    assert checked.ask(f"out {name} {cell} --stream --since=1")["next"] == 6


def test_output_that_is_not_kept_is_a_gap(checked: Checked, session: Session):
    name = session.name
    code = "import sys\nfor _ in range(300):\n    sys.stdout.buffer.write(bytes(1 << 20))"
    cell = fire(checked, session, code)
    assert checked.ask(f"wait {name} --json {cell}", 120)["ok"]
    (kept,) = checked.ask(f"cells {name} --json")["cells"]
    assert kept["output_bytes"] == 300 << 20
    assert 300 - 256 <= kept["truncated"] >> 20 < 300 - 200
    checked.ask(f"out {name} {cell} --json --max=10")
    with session.daemon.connect() as wire:
        wire.send(f"out {name} {cell} --stream")
        gap = event("out", json.loads(wire.receive()))
        assert (gap["event"], gap["offset"], gap["missing"]) == ("gap", 0, kept["truncated"])
        assert event("out", json.loads(wire.receive()))["offset"] == gap["missing"]


def test_events_of_sessions_and_cells_have_the_form_of_the_schema(checked: Checked, shared_daemon):
    name = shared_daemon.unused_name()
    with shared_daemon.connect() as wire:
        wire.send(f"events {name} --json")
        ready = event("events", json.loads(wire.receive()))
        assert ready["event"] == "ready"
        messages: list[dict[str, Any]] = []

        def expect(*kinds: str) -> None:
            new = [event("events", json.loads(wire.receive())) for _ in kinds]
            assert sorted(it["event"] for it in new) == sorted(kinds)
            messages.extend(new)

        checked.ask(f"new {name} --json")
        checked.ask(f"run {name} --wait=0\n{FOREVER}")
        checked.ask(f"run {name} --detach\n{FOREVER}")
        expect("session_created", "cell_started", "cell_queued")
        checked.ask(f"int {name} --json")
        expect("cell_done", "cell_started")
        checked.ask(f"kill {name} --json")
        expect("cell_done", "session_closed")
    with shared_daemon.connect() as wire:
        wire.send(f"events {name} --since={ready['cursor']}")
        assert event("events", json.loads(wire.receive()))["event"] == "ready"
        again = [event("events", json.loads(wire.receive())) for _ in messages]
        assert again == messages
    with shared_daemon.connect() as wire:
        wire.send("events --since=00000000-0")
        happened = [event("events", json.loads(wire.receive()))["event"] for _ in range(2)]
        assert happened == ["ready", "reset"]


def test_tagged_answers_have_a_tag_and_the_form_of_the_schema(checked: Checked, session: Session):
    name, wire = session.name, checked.wire
    wire.send(f"run {name} --tag=slow\n{FOREVER}")
    session.wait_for_state("running")
    wire.send(f"wait {name} --tag=also")
    wire.send("ls --tag=fast")
    first = wire.receive()
    assert first.startswith('{"tag":"fast",')
    answer("ls", json.loads(first))
    wire.send("cancel --tag=c also")
    both = {it["tag"]: it for it in (json.loads(wire.receive()) for _ in range(2))}
    assert answer("cancel", both["c"])["cancelled"]
    refusal(both["also"], "cancelled")
    wire.send(f"int {name} --tag=stop")
    both = {it["tag"]: it for it in (json.loads(wire.receive()) for _ in range(2))}
    assert answer("run", both["slow"])["status"] == "interrupted"
    assert answer("int", both["stop"])["cells"][0]["outcome"] == "ended"


def test_refusals_have_the_form_of_the_schema(checked: Checked, session: Session):
    name = session.name
    checked.refused("ls --json --nope", "usage")
    checked.refused("nonsense --json", "unknown_verb")
    checked.refused("connect x --json", "usage")
    checked.refused("connect x 127.0.0.1:1 token --json", "session_unreachable")
    checked.refused("run nosuch/x --json\n1", "no_session")
    checked.refused("new UP --json", "bad_name")
    checked.refused("status nosuch --json", "no_session")
    checked.refused(f"new {name} --json", "session_exists")
    checked.refused(f"poll {name} 000000000000 --json", "unknown_cell")
    checked.refused(f"wait {name} nonsense --json", "unknown_cell")
    checked.ask(f"run {name} --json --id=k\n1")
    checked.refused(f"run {name} --json --id=k\n2", "id_reused")
    cell = checked.ask(f"run {name} --detach\n{FOREVER}")["cell_id"]
    checked.refused(f"run {name} --json --busy=fail\n1", "busy")
    wait_until_it_runs(checked, session, cell)
    os.kill(session.pid, signal.SIGSTOP)
    try:
        checked.refused(f"vars {name} --json", "session_unreachable")
        assert checked.ask(f"status {name} --json")["state"] == "stopped"
        assert session.daemon.list()[name]["state"] == "stopped"
        answer("ls", session.daemon.json("ls --json"))
    finally:
        os.kill(session.pid, signal.SIGCONT)


def test_pending_and_killed_cells_have_the_form_of_the_schema(checked: Checked, session: Session):
    name = session.name
    code = "import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass"
    cell = fire(checked, session, code)
    wait_until_it_runs(checked, session, cell)
    (told,) = checked.ask(f"int {name} --json {cell}")["cells"]
    assert (told["outcome"], told["stack"]["cell_id"]) == ("pending", cell)
    assert checked.ask(f"poll {name} {cell} --json")["interrupt_pending"]
    killed = checked.ask(f"int {name} --json --kill")
    assert killed["killed"]
    assert killed["actions"]
    dead = checked.ask(f"status {name} --json")
    assert (dead["state"], dead["ok"]) == ("dead", False)
    assert checked.ask("ls --json")["ok"]
    checked.refused(f"vars {name} --json", "session_died")


def test_a_cell_that_ends_with_its_process_has_the_form_of_the_schema(
    checked: Checked, session: Session
):
    reply = checked.ask(f"run {session.name} --json\nimport os, signal\nos.kill(os.getpid(), 9)")
    assert (reply["status"], reply["error"]["code"]) == ("killed", "session_died")
    assert checked.ask(f"status {session.name} --json")["death"]["end"]["how"] == "signaled"
