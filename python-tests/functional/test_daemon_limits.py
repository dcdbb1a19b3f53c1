"""Limits of the daemon: what happens at each is what is documented."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from support import raw
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

MakeDaemon = Callable[..., TestDaemon]
BOTH = pytest.mark.parametrize("in_file", [False, True], ids=["variable", "file"])

FOR_EVER = "import threading; threading.Event().wait()"


@pytest.fixture
def limited(make_daemon: MakeDaemon) -> Callable[..., TestDaemon]:
    """Start a daemon with one limit, set by its variable or in the file."""

    def start(variable: str, setting: str, value: str, *, in_file: bool) -> TestDaemon:
        if not in_file:
            return make_daemon(**{variable: value}).start()
        daemon = make_daemon()
        place = daemon.home / ".config" / "pythond"
        place.mkdir(parents=True)
        section, name = setting.split(".")
        text = value if value.isdigit() else json.dumps(value)
        (place / "config.toml").write_text(f"[{section}]\n{name} = {text}\n")
        (place / "config.toml").chmod(0o600)
        return daemon.start()

    return start


@BOTH
def test_more_sessions_are_refused(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_SESSIONS", "limits.sessions", "1", in_file=in_file)
    daemon.new("one")
    reply = daemon.connect().new("two")
    assert reply["error"]["code"] == "limit"
    assert "too many sessions (max 1)" in reply["error"]["message"]


@BOTH
def test_more_connections_make_room_or_are_told_busy(
    limited: Callable[..., TestDaemon], in_file: bool
) -> None:
    daemon = limited("PYTHOND_MAX_CONNECTIONS", "limits.connections", "4", in_file=in_file)
    with raw.many(daemon.socket, 3, shaken=True) as silent:
        served = daemon.connect()
        assert served.json("info --json")["ok"]
        # The oldest that has said nothing makes room.
        others = [daemon.connect() for _ in range(3)]
        for other in others:
            assert other.json("info --json")["ok"]
        assert b"busy" in raw.drain(silent[0])
        refused = daemon.pysh("ls")
        assert (refused.returncode, "busy" in refused.stderr) == (4, True)
        assert served.json("info --json")["ok"]
        for wire in (served, *others):
            wire.close()
    wait_until(lambda: daemon.pysh("ls").returncode == 0, what="there is room again")


@BOTH
def test_a_greater_message_is_refused(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_WS_PAYLOAD", "limits.message", "1M", in_file=in_file)
    session = daemon.new()
    assert session.run("#" * (1 << 20))["ok"]
    wire = daemon.connect()
    assert wire.ask(f"run {session.name}\n" + "#" * (2 << 20)).startswith("ERR message too big")


@BOTH
def test_more_requests_of_a_connection_are_read_later(
    limited: Callable[..., TestDaemon], in_file: bool
) -> None:
    daemon = limited("PYTHOND_MAX_IN_FLIGHT", "limits.in_flight", "2", in_file=in_file)
    session = daemon.new()
    cell = session.fire("import threading; gate = threading.Event(); gate.wait()")
    wire = daemon.connect()
    for tag in ("a", "b", "c"):
        wire.send(f"wait {session.name} --tag={tag} {cell}")
    wire.send("info --tag=d")
    with pytest.raises(TimeoutError):
        wire.receive(1)
    session.out("gate.set()")
    assert {json.loads(wire.receive())["tag"] for _ in range(4)} == {"a", "b", "c", "d"}


@BOTH
def test_older_events_are_reset(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_EVENTS", "limits.events", "5", in_file=in_file)
    session = daemon.new()
    wire = daemon.connect()
    cursor = wire.json("events")["cursor"]
    session.out("1")
    wire.close()
    again = daemon.connect()
    again.send(f"events --since={cursor}")
    seen = [json.loads(again.receive())["event"] for _ in range(2)]
    assert "reset" not in seen
    for _ in range(10):
        session.out("1")
    late = daemon.connect()
    late.send(f"events --since={cursor}")
    seen = [json.loads(late.receive())["event"] for _ in range(2)]
    assert "reset" in seen


@BOTH
def test_a_full_log_is_begun_anew(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_LOG", "limits.log", "64K", in_file=in_file)
    log = daemon.access_log()
    older = log.with_name("access.log.1")
    wire = daemon.connect()

    def turned() -> bool:
        for _ in range(200):
            wire.json("info --json")
        return older.exists()

    wait_until(turned, what="the log is full")
    wait_until(turned, what="it goes on")
    assert log.stat().st_size <= 80_000
    assert older.stat().st_size <= 80_000


@BOTH
def test_a_fork_cell_that_would_bring_back_more_fails(
    limited: Callable[..., TestDaemon], in_file: bool
) -> None:
    daemon = limited("PYTHOND_MAX_FORK_RESULT", "limits.fork_result_bytes", "10K", in_file=in_file)
    session = daemon.new()
    end = session.ended(session.submit("fork", "big = bytes(100_000)")["cell_id"])
    assert end["error"]["type"] == "ResultTooLarge", end
    assert session.value("'big' in globals()") == "False"


@BOTH
def test_more_cells_are_not_queued(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_QUEUED_CELLS", "limits.queued_cells", "2", in_file=in_file)
    session = daemon.new()
    first = session.submit("run", FOR_EVER, "--detach")["cell_id"]
    wait_until(lambda: session.poll(first)["status"] == "running", what="the first cell runs")
    for _ in range(2):
        assert session.submit("run", "1", "--detach")["status"] == "queued"
    refused(session.submit("run", "1", "--detach"), "2 cells wait in this session already")
    session.interrupt(first)


@BOTH
def test_more_fire_cells_are_refused(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_FIRE_CELLS", "limits.fire_cells", "2", in_file=in_file)
    beside(daemon.new(), "fire", "2 `fire` cells run in this session already")


@BOTH
def test_more_fork_cells_are_refused(limited: Callable[..., TestDaemon], in_file: bool) -> None:
    daemon = limited("PYTHOND_MAX_FORK_CELLS", "limits.fork_cells", "2", in_file=in_file)
    beside(daemon.new(), "fork", "2 `fork` cells run in this session already")


def beside(session: Session, verb: str, told: str) -> None:
    """Run two cells; a third is refused until one has ended."""
    cells = [session.submit(verb, FOR_EVER)["cell_id"] for _ in range(2)]
    refused(session.submit(verb, "1"), told)
    session.interrupt(cells[0])
    session.ended(cells[0])
    assert session.submit(verb, "1")["ok"]
    session.interrupt(cells[1])


def refused(reply: dict, told: str) -> None:
    """Check a refusal by a limit."""
    assert (reply["error"]["code"], reply["error"]["message"]) == ("limit", told)


@BOTH
def test_older_finished_cells_are_forgotten(
    limited: Callable[..., TestDaemon], in_file: bool
) -> None:
    daemon = limited("PYTHOND_MAX_KEPT_CELLS", "records.cells", "3", in_file=in_file)
    session = daemon.new()
    for _ in range(5):
        session.out("1")
    reply = session.ask("cells")
    assert (len(reply["cells"]), reply["forgotten"]) == (3, 2)


@pytest.mark.parametrize(
    ("variable", "setting", "code"),
    [
        ("PYTHOND_MAX_KEPT_MEMORY", "records.memory", "print('x' * 600_000)"),
        ("PYTHOND_MAX_KEPT_FILES", "records.files", "print('x' * 9_000_000)"),
    ],
)
@BOTH
def test_output_beyond_the_budget_is_forgotten_with_its_cell(
    limited: Callable[..., TestDaemon], in_file: bool, variable: str, setting: str, code: str
) -> None:
    value = "1M" if "memory" in setting else "16M"
    daemon = limited(variable, setting, value, in_file=in_file)
    session = daemon.new()
    for _ in range(4):
        session.out(code)
    reply = session.ask("cells")
    assert len(reply["cells"]) < 4
    assert reply["forgotten"] == 4 - len(reply["cells"])


@BOTH
def test_the_oldest_output_of_a_long_cell_goes(
    limited: Callable[..., TestDaemon], in_file: bool
) -> None:
    daemon = limited("PYTHOND_MAX_CELL_FILES", "records.cell_files", "16M", in_file=in_file)
    session = daemon.new()
    reply = session.ended(session.fire("for _ in range(400): print('x' * 99_999)"))
    assert reply["truncated"] >= 16 << 20
    assert reply["output_bytes"] == 40_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHOND_MAX_CONNECTIONS", "1"),
        ("PYTHOND_MAX_EVENTS", "none"),
        ("PYTHOND_MAX_LOG", "1"),
        ("PYTHOND_MAX_FORK_CELLS", "101"),
        ("PYTHOND_MAX_KEPT_FILES", "15M"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_name(
    make_daemon: MakeDaemon, name: str, value: str
) -> None:
    daemon = make_daemon(**{name: value})
    assert daemon.spawn().wait(20) == 2
    assert f"{name} is `" in daemon.log_tail()
