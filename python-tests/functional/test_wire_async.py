"""Many requests in flight, client keys, events: the wire of asynchronous cells."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed

from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import Wire

# Tags.


def replies(wire: Wire, count: int, timeout: float = 60) -> dict[str, dict]:
    """Read this many tagged replies; events in between are left out."""
    found: dict[str, dict] = {}
    while len(found) < count:
        message = json.loads(wire.receive(timeout))
        if "event" not in message:
            assert message["tag"] not in found
            found[message["tag"]] = message
    return found


def test_tagged_answers_come_when_they_are_ready(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --tag=slow\ngo.wait(30); 'slow'")
        wire.send(f"status {session.name} --tag=status")
        wire.send("ls --tag=ls")
        assert replies(wire, 2).keys() == {"status", "ls"}
        wire.send(f"fire {session.name} --tag=fire\ngo.set()")
        assert replies(wire, 2).keys() == {"fire", "slow"}


def test_every_answer_event_and_refusal_carries_its_tag(session: Session) -> None:
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --tag=a --stream\nprint('x')")
        wire.send("nonsense --tag=b")
        wire.send("status nosuch --tag=c")
        wire.send(f"run {session.name} --tag=d --nonsense\n1")
        wire.send(f"poll {session.name} --tag=e deadbeef0000")
        wire.send(f"out {session.name} --tag=f nonsense")
        wire.send("info --tag=ünïcode")
        seen: dict[str, list[dict]] = {}
        while sum("ok" in message for messages in seen.values() for message in messages) < 7:
            message = json.loads(wire.receive())
            seen.setdefault(message["tag"], []).append(message)
        assert seen["a"][0]["event"] == "accepted"
        assert {m.get("event") for m in seen["a"]} == {"accepted", "output", None}
        codes = {tag: seen[tag][0]["error"]["code"] for tag in "bcdef"}
        assert codes["b"] == "unknown_verb"
        assert codes["c"] == "no_session"
        assert codes["d"] == "usage"
        assert codes["e"] == "unknown_cell"
        assert seen["ünïcode"][0]["ok"] is True


def test_hundreds_of_tagged_requests_in_flight_are_each_answered_once(session: Session) -> None:
    with session.daemon.connect() as wire:
        for number in range(150):
            wire.send(f"run {session.name} --tag=r{number}\n{number}")
            wire.send(f"fire {session.name} --tag=f{number}\n{number}")
            wire.send(f"status {session.name} --tag=s{number}")
        found = replies(wire, 450)
        for number in range(150):
            assert found[f"r{number}"]["result"] == str(number)
            assert found[f"f{number}"]["ok"]
            assert found[f"s{number}"]["session"] == session.name


def test_tagged_runs_of_one_connection_run_in_the_order_in_which_they_were_sent(
    session: Session,
) -> None:
    session.out("order = []")
    with session.daemon.connect() as wire:
        for number in range(100):
            wire.send(f"run {session.name} --tag={number}\norder.append({number})")
        replies(wire, 100)
    assert session.value("order == list(range(100))") == "True"


def test_the_accepted_event_names_the_cell_of_its_reply(session: Session) -> None:
    with session.daemon.connect() as wire:
        for number in range(150):
            wire.send(f"run {session.name} --stream --tag=a\nx = 1")
            accepted = json.loads(wire.receive())
            wire.send(f"run {session.name} --tag=b\n{number}")
            found = replies(wire, 2)
            assert accepted["cell_id"] == found["a"]["cell_id"], number
            assert found["b"]["result"] == str(number)


def test_a_detached_cell_runs_before_what_is_sent_after_its_answer(session: Session) -> None:
    session.out("order = []")
    for number in range(0, 100, 2):
        cell = session.detach(f"order.append({number})")
        session.out(f"order.append({number + 1})")
        assert session.poll(cell)["status"] == "done"
    assert session.value("order == list(range(100))") == "True"


def test_plain_requests_are_answered_in_order_between_tagged_ones(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --tag=slow\ngo.wait(30)")
        for number in range(20):
            wire.send(f"poll {session.name} {number}")
            wire.send(f"status {session.name} --tag=t{number}")
        plain = []
        tagged = set()
        while len(plain) < 20 or len(tagged) < 20:
            message = json.loads(wire.receive())
            if "tag" in message:
                tagged.add(message["tag"])
            else:
                plain.append(message["cell_id"])
        assert plain == [str(number) for number in range(20)]
        assert "slow" not in tagged
        wire.send(f"fire {session.name} --tag=go\ngo.set()")
        assert replies(wire, 2)["slow"]["ok"]


def test_plain_runs_wait_for_each_other_but_not_for_tagged_ones(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name}\n_ = go.wait(30); 'first'")
        wire.send("help")
        wire.send("ls --tag=now")
        assert '"tag":"now"' in wire.receive()
        session.fire("go.set()")
        assert wire.receive() == "first"
        assert wire.receive() == session.daemon.ask("help")


@pytest.mark.parametrize("tag", ["", "x" * 129])
def test_a_tag_that_is_empty_or_too_long_is_refused(session: Session, tag: str) -> None:
    reply = session.daemon.json(f"status {session.name} --tag={tag}")
    assert (reply["ok"], reply["error"]["code"]) == (False, "usage")


def test_cancelling_stops_the_wait_and_not_the_cell(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    with session.daemon.connect() as wire:
        wire.send(f"run {session.name} --tag=a --stream\ngo.wait(30); done = 1")
        cell = json.loads(wire.receive())["cell_id"]
        wire.send("cancel a --tag=c")
        found = replies(wire, 2)
        assert found["c"] == {"tag": "c", "ok": True, "cancelled": True}
        assert (found["a"]["ok"], found["a"]["error"]["code"]) == (False, "cancelled")
        assert session.poll(cell)["status"] == "running"
        wire.send("cancel a --tag=again")
        assert replies(wire, 1)["again"]["cancelled"] is False
    assert session.ended(session.fire("go.set()"))["ok"]
    assert session.ended(cell)["ok"]
    assert session.value("done") == "1"


def test_a_flood_of_tagged_requests_is_answered_and_neighbours_are_served(
    session: Session, shared_daemon: TestDaemon
) -> None:
    """A client that reads while it sends, as one must that does not wait for answers."""
    count = 10_000

    async def flood() -> set[str]:
        async with unix_connect(
            str(shared_daemon.socket), uri="ws://localhost/", compression=None, ping_interval=None
        ) as socket:

            async def send() -> None:
                for number in range(count):
                    await socket.send(f"status {session.name} --tag={number}")

            sending = asyncio.create_task(send())
            got = set()
            while len(got) < count:
                message = json.loads(await asyncio.wait_for(socket.recv(), 20))
                assert message["ok"], message
                got.add(message["tag"])
            await sending
            return got

    with shared_daemon.session() as neighbour, ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(lambda: asyncio.run(flood()))
        while not flooding.done():
            assert neighbour.run("1 + 1", timeout=30)["ok"]
        assert flooding.result() == {str(number) for number in range(count)}


def test_a_flood_whose_client_never_reads_ends_and_hurts_nobody(
    session: Session, shared_daemon: TestDaemon
) -> None:
    wire = shared_daemon.connect(max_queue=1)
    stop = threading.Event()

    def flood() -> None:
        try:
            for number in range(100_000):
                wire.send(f"cells {session.name} --tag={number}")
                if stop.is_set():
                    return
        except (ConnectionClosed, OSError):
            pass

    flooder = threading.Thread(target=flood, daemon=True)
    flooder.start()
    try:
        for number in range(200):
            assert session.run(str(number), timeout=30)["result"] == str(number)
    finally:
        stop.set()
        wire.socket.socket.shutdown(2)
        flooder.join(20)
    assert not flooder.is_alive()


# Keys.


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_the_same_key_with_the_same_code_is_the_same_cell(session: Session, verb: str) -> None:
    session.out("ran = []")
    first = session.submit(verb, "ran.append(1); len(ran)", "--id=K")
    session.ended(first["cell_id"])
    again = session.submit(verb, "ran.append(1); len(ran)", "--id=K")
    assert again["cell_id"] == first["cell_id"]
    assert again["existing"] is True
    assert not first.get("existing")
    if verb == "run":
        assert (again["ok"], again["result"], again["stdout"]) == (True, "1", "1\n")
    assert session.value("ran") == "[1]"
    other = session.submit(verb, "ran.append(2)", "--id=K")
    assert (other["ok"], other["error"]["code"]) == (False, "id_reused")
    assert session.value("ran") == "[1]"
    assert session.ended(session.submit(verb, "ran.append(3)", "--id=L")["cell_id"])["ok"]
    assert session.value("ran") == "[1, 3]"


def test_a_key_used_for_run_cannot_be_used_for_fire(session: Session) -> None:
    assert session.submit("run", "1", "--id=K")["ok"]
    reply = session.submit("fire", "1", "--id=K")
    assert reply["ok"] is False or reply["existing"] is True


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_a_key_from_many_connections_at_once_runs_once(session: Session, verb: str) -> None:
    session.out("ran = []; import threading")
    code = "time.sleep(0.1); ran.append(1); len(ran)"
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: session.submit(verb, code, "--id=K"), range(20)))
    assert len({answer["cell_id"] for answer in answers}) == 1
    assert sum(not answer.get("existing") for answer in answers) == 1
    session.ended(answers[0]["cell_id"])
    if verb == "run":
        assert {answer["result"] for answer in answers} == {"1"}
    assert session.value("ran") == "[1]"


def test_a_retry_after_the_connection_broke_gets_the_result(session: Session) -> None:
    session.out("ran = 0")
    request = f"run {session.name} --json --id=retry\ntime.sleep(0.3); ran += 1; ran"
    for wait in (0.0, 0.05, 0.2):
        wire = session.daemon.connect()
        wire.send(request)
        wire.socket.socket.settimeout(wait or 0.001)
        wait_until(lambda: session.status()["cells"] >= 2)
        wire.socket.socket.shutdown(2)
    reply = session.daemon.json(request)
    assert (reply["ok"], reply["result"], reply["existing"]) == (True, "1", True)


def accepted_and_ended(wire: Wire, frame: str) -> tuple[str, dict]:
    """Send a streamed cell; return the id that it was given first, and the answer."""
    wire.send(frame)
    first = json.loads(wire.receive())
    assert first["event"] == "accepted", first
    while "event" in (answer := json.loads(wire.receive())):
        pass
    return first["cell_id"], answer


@pytest.mark.parametrize("key", ["K", "pysh-K"])
@pytest.mark.parametrize("repeated", ["1", "2"], ids=["known", "refused"])
def test_the_cell_after_a_key_that_is_not_new_is_told_under_its_own_id(
    session: Session, repeated: str, key: str
) -> None:
    name = session.name
    session.submit("run", "1", f"--id={key}")
    with session.daemon.connect() as wire:
        for number in range(10):
            answer = wire.json(f"run {name} --json --id={key}\n{repeated}")
            assert answer["ok"] is (repeated == "1")
            for options in ("", f"--id={key}-{number}"):
                frame = f"run {name} --json --stream {options}\n{number}"
                told, answer = accepted_and_ended(wire, frame)
                assert (told, answer["result"]) == (answer["cell_id"], str(number))


@pytest.mark.parametrize("key", ["K", "pysh-K"])
@pytest.mark.parametrize(
    "before",
    [
        "pass",
        "import os; os.closerange(3, 4096)",
        "import asyncio; task = asyncio.create_task(asyncio.sleep(600)); await asyncio.sleep(0)",
    ],
    ids=["idle", "without descriptors", "in its event loop"],
)
def test_questions_and_cells_behind_a_key_that_is_not_new_go_on(
    session: Session, before: str, key: str
) -> None:
    """What comes by the other lane meanwhile waits for no cell that never runs."""
    name = session.name
    session.out(before)
    session.out("ran = []")
    session.submit("run", "ran.append(0)", f"--id={key}")
    with session.daemon.connect() as wire:
        for number in range(1, 100):
            wire.send(f"run {name} --json --tag=known --id={key}\nran.append(0)")
            if number % 2:
                wire.send(f"status {name} --json --tag=asked")
            else:
                wire.send(f"int {name} --json --tag=asked")
            wire.send(f"run {name} --json --tag=next --id={key}-{number}\nran.append({number}); 7")
            answers = replies(wire, 3)
            assert all(answers[tag]["ok"] for tag in ("known", "asked")), answers
            # The interrupt may have been in time for it.
            assert answers["next"]["status"] in ("done", "interrupted"), answers
        assert session.status()["state"] == "idle"
    ran = json.loads(session.out("print(ran)"))
    assert ran == sorted(set(ran))
    assert set(ran) >= set(range(1, 100, 2)) | {0}


def test_a_failed_and_an_interrupted_cell_are_not_run_again_under_their_key(
    session: Session,
) -> None:
    first = session.submit("run", "1/0", "--id=F")
    again = session.submit("run", "1/0", "--id=F")
    assert again["cell_id"] == first["cell_id"]
    assert again["error"]["type"] == "ZeroDivisionError"
    first = session.submit("run", "time.sleep(60)", "--id=I --timeout=0.1")
    again = session.submit("run", "time.sleep(60)", "--id=I --timeout=0.1")
    assert (again["cell_id"], again["status"]) == (first["cell_id"], "interrupted")


def test_a_key_on_a_streamed_run_streams_the_cell_again(session: Session) -> None:
    with session.daemon.connect() as wire:
        for _ in range(2):
            wire.send(f"run {session.name} --stream --id=S\nprint('once')")
            text = b""
            while "event" in (message := json.loads(wire.receive())):
                text += message.get("data", "").encode()
            assert text == b"once\n"
            assert message["ok"]


@pytest.mark.parametrize("key", ["", "x" * 129])
def test_a_key_that_is_empty_or_too_long_is_refused(session: Session, key: str) -> None:
    assert session.submit("run", "1", f"--id={key}")["error"]["code"] == "usage"


def test_a_key_belongs_to_its_session(session: Session, shared_daemon: TestDaemon) -> None:
    assert session.submit("run", "1", "--id=K")["ok"]
    with shared_daemon.session() as other:
        assert not other.submit("run", "1", "--id=K").get("existing")
