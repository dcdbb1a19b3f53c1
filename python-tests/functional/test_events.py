"""`events`: what happens to sessions and cells, without a gap."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import Wire


class Events:
    """One subscription."""

    def __init__(self, daemon: TestDaemon, rest: str = "") -> None:
        self.wire: Wire = daemon.connect(close_timeout=0.1)
        self.wire.send(f"events --json {rest}".strip())
        self.seen: list[dict] = []

    def next(self, timeout: float = 20) -> dict:
        """Return the next event."""
        self.seen.append(json.loads(self.wire.receive(timeout)))
        return self.seen[-1]

    def until(self, kind: str, **fields: object) -> dict:
        """Read to the first event of this kind with these fields."""
        while True:
            try:
                event = self.next()
            except TimeoutError:
                raise AssertionError(f"no {kind} {fields} in {self.seen}") from None
            if event["event"] == kind and all(event.get(k) == v for k, v in fields.items()):
                return event

    def kinds(self) -> list[str]:
        """Return the kinds of what was read."""
        return [event["event"] for event in self.seen]


@pytest.fixture
def follow(daemon: TestDaemon) -> Iterator[Callable[..., Events]]:
    """Subscribe to the test's own daemon."""
    made: list[Events] = []

    def subscribe(rest: str = "") -> Events:
        made.append(Events(daemon, rest))
        return made[-1]

    yield subscribe
    for events in made:
        events.wire.close()


def test_a_subscription_begins_with_ready(follow: Callable[..., Events]) -> None:
    ready = follow().next()
    assert ready["event"] == "ready"
    assert ready["cursor"]
    assert ready["time"].endswith("Z")


def test_the_life_of_a_session_and_its_cells_is_told_in_order(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    events = follow()
    events.until("ready")
    session = daemon.new("work")
    created = events.until("session_created", session="work")
    assert created["pid"] == session.pid
    ran = session.run("print('12345')")["cell_id"]
    done = events.until("cell_done", cell_id=ran)
    assert (done["status"], done["output_bytes"], done["kind"]) == ("done", 6, "run")
    assert done["duration_ms"] >= 0
    fired = session.fire("1/0")
    assert events.until("cell_done", cell_id=fired)["status"] == "failed"
    running = session.detach("print('in'); time.sleep(60)")
    events.until("cell_started", cell_id=running)
    waiting = session.detach("2")
    assert events.until("cell_queued", cell_id=waiting)["status"] == "queued"
    session.interrupt(running)
    assert events.until("cell_done", cell_id=running)["status"] == "interrupted"
    assert events.until("cell_done", cell_id=waiting)["status"] == "done"
    of = {}
    for event in events.seen:
        if "cell_id" in event:
            of.setdefault(event["cell_id"], []).append(event["event"])
    assert of[ran] == ["cell_started", "cell_done"]
    assert of[fired] == ["cell_started", "cell_done"]
    assert of[waiting] == ["cell_queued", "cell_started", "cell_done"]
    assert len({event["cursor"] for event in events.seen}) == len(events.seen)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda session: session.daemon.ask(f"kill {session.name}"), "killed"),
        (lambda session: session.daemon.json(f"new {session.name} --json --replace"), "replaced"),
        (lambda session: session.run("os._exit(3)"), "exited"),
        (lambda session: session.run("os.kill(os.getpid(), 9)"), "died"),
    ],
    ids=["killed", "replaced", "exited", "died"],
)
def test_the_end_of_a_session_has_a_reason(
    daemon: TestDaemon, follow: Callable[..., Events], end: Callable, reason: str
) -> None:
    session = daemon.new("work")
    events = follow()
    events.until("ready")
    end(session)
    closed = events.until("session_closed", session="work")
    assert closed["reason"] == reason
    assert closed["cause"]
    assert closed["session_id"] == session.created["session_id"]
    if reason == "replaced":
        created = events.until("session_created", session="work")
        assert created["session_id"] != closed["session_id"] or created["gen"] != closed["gen"]


def test_a_subscription_to_one_session_has_only_its_events(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    one, other = daemon.new("one"), daemon.new("other")
    events = follow("one")
    events.until("ready")
    other.out("1")
    last = one.run("2")["cell_id"]
    events.until("cell_done", cell_id=last)
    assert {event.get("session") for event in events.seen[1:]} == {"one"}


def test_a_session_can_be_followed_before_it_is_there(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    events = follow("later")
    assert events.next()["event"] == "ready"
    daemon.new("other")
    daemon.new("later")
    assert events.next() | {"event": "session_created", "session": "later"} == events.seen[-1]


def test_what_came_after_a_cursor_is_replayed_without_gap_or_repetition(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    session = daemon.new("work")
    whole = follow()
    whole.until("ready")
    cells = [session.run(str(number))["cell_id"] for number in range(20)]
    whole.until("cell_done", cell_id=cells[-1])
    told = [(event["event"], event.get("cell_id")) for event in whole.seen[1:]]
    assert len(told) == 40
    for place in (0, 1, 7, 38):
        again = follow(f"--since={whole.seen[place]['cursor']}")
        again.until("cell_done", cell_id=cells[-1])
        replayed = [
            (event["event"], event.get("cell_id"))
            for event in again.seen
            if event["event"] != "ready"
        ]
        assert replayed == told[place:]
        assert "reset" not in again.kinds()
    tail = follow(f"--since={whole.seen[-1]['cursor']}")
    assert tail.next()["event"] == "ready"
    session.out("more = 1")
    assert tail.next()["event"] == "cell_started"


def test_a_cursor_that_is_foreign_or_too_old_is_answered_with_reset(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    session = daemon.new("work")
    events = follow()
    old = events.until("ready")["cursor"]
    for cursor in ("nonsense", "0123456789abcdef:5", "999999999", "-1"):
        reply = follow(f"--since={cursor}")
        assert {reply.next()["event"], reply.next()["event"]} == {"ready", "reset"}, cursor
    for number in range(2100):
        session.wire.send(f"run work\n{number}")
        session.wire.receive()
    reply = follow(f"--since={old}")
    assert {reply.next()["event"], reply.next()["event"]} == {"ready", "reset"}
    last = session.run("1")["cell_id"]
    reply.until("cell_done", cell_id=last)


def test_a_cursor_of_an_earlier_daemon_is_answered_with_reset(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    events = Events(daemon)
    cursor = events.until("ready")["cursor"]
    daemon.stop()
    events.wire.close()
    daemon.start()
    events = Events(daemon, f"--since={cursor}")
    assert {events.next()["event"], events.next()["event"]} == {"ready", "reset"}
    events.wire.close()


def test_a_tagged_subscription_leaves_room_for_other_requests_and_can_be_cancelled(
    daemon: TestDaemon,
) -> None:
    session = daemon.new("work")
    with daemon.connect() as wire:
        wire.send("events --tag=e")
        ready = json.loads(wire.receive())
        assert (ready["tag"], ready["event"]) == ("e", "ready")
        wire.send("status work --tag=s")
        assert json.loads(wire.receive())["tag"] == "s"
        cell = session.run("1")["cell_id"]
        for kind in ("cell_started", "cell_done"):
            event = json.loads(wire.receive())
            assert (event["tag"], event["event"], event["cell_id"]) == ("e", kind, cell)
        wire.send("cancel e --tag=c")
        answers = {json.loads(wire.receive())["tag"] for _ in range(2)}
        assert answers == {"e", "c"}
        session.out("2")
        wire.send("info --tag=last")
        assert json.loads(wire.receive())["tag"] == "last"


def test_a_subscriber_that_never_reads_hurts_nobody(
    daemon: TestDaemon, follow: Callable[..., Events]
) -> None:
    session = daemon.new("work")
    with daemon.connect(max_queue=1, close_timeout=0.1) as wire:
        wire.send("events --json")
        for number in range(3000):
            session.wire.send(f"run work\n{number}")
            assert session.wire.receive(10) == str(number)
    assert session.status()["state"] == "idle"


def test_the_command_line_follows_events(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    client = daemon.popen("pysh", "events", "--json", "work")
    assert client.stdout is not None
    assert json.loads(client.stdout.readline())["event"] == "ready"
    cell = session.run("1")["cell_id"]
    kinds = [json.loads(client.stdout.readline()) for _ in range(2)]
    assert [(event["event"], event["cell_id"]) for event in kinds] == [
        ("cell_started", cell),
        ("cell_done", cell),
    ]
    client.send_signal(2)
    client.communicate(timeout=10)
    assert client.returncode == 0


def test_waiting_on_the_command_line_asks_the_daemon_only_once(daemon: TestDaemon) -> None:
    session: Session = daemon.new("work")
    cell = session.fire("time.sleep(1)")
    log = daemon.access_log()
    client = daemon.popen("pysh", "wait", "work", cell)
    client.communicate(timeout=30)
    assert client.returncode == 0

    def of_client(event: str) -> int:
        lines = log.read_text().splitlines()
        return sum(
            f"event={event} " in line and f"pid={client.pid} " in f"{line} " for line in lines
        )

    # The log is written behind.
    wait_until(lambda: of_client("disconnect"), what="all of it is logged")
    assert of_client("command") == 1
