"""Clients whose daemon is killed: they go on with the next one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.fake_daemon import FakeDaemon
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))
KILLS = 100 if TORTURE else 6


@pytest.fixture
def session(make_daemon: Callable[..., TestDaemon]) -> Iterator[Session]:
    """A session of a daemon that the test may kill."""
    with make_daemon().start().session() as session:
        yield session


def replace_daemon(daemon: TestDaemon) -> None:
    """Kill the daemon and start the next one."""
    daemon.crash()
    daemon.start()


def waiting_code(go: Path) -> str:
    """Return code that waits for a file."""
    return f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"


def start(daemon: TestDaemon, *words: str, **options) -> subprocess.Popen:
    """Start `pysh`; what it writes is read unbuffered, for `communicate` looks at no buffer."""
    return daemon.popen("pysh", *words, bufsize=0, **options)


def written(session: Session) -> int:
    """Return how much the session's only cell has written."""
    (cell,) = session.cells().values()
    return cell["output_bytes"]


def finish(client: subprocess.Popen, deadline: float = 60) -> tuple[int, str, str]:
    """Wait for a client and return how it ended and what it wrote.

    Without the note that it waits for a daemon, which depends on how long that takes.
    """
    out, err = client.communicate(timeout=deadline)
    lines = err.decode().splitlines(keepends=True)
    err = "".join(line for line in lines if not line.startswith("note: the daemon is gone; "))
    return client.returncode, out.decode(), err


def test_a_run_in_flight_delivers_its_result(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"print('before'); count = globals().get('count', 0) + 1\n{waiting_code(go)}\ncount"
    client = start(session.daemon, "run", session.name, code)
    assert client.stdout is not None
    assert client.stdout.readline() == b"before\n"
    replace_daemon(session.daemon)
    go.touch()
    assert finish(client) == (0, "1\n", "")
    assert session.value("count") == "1"


def test_output_is_byte_exact_over_many_daemons(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        f"number = 0\nwhile not os.path.exists({str(go)!r}):\n"
        "    number += 1\n    print('line', number)\n    time.sleep(0.0005)\nprint('end', number)"
    )
    client = start(session.daemon, "run", session.name, code)
    assert client.stdout is not None
    first = client.stdout.readline()
    for _ in range(5):
        replace_daemon(session.daemon)
        before = written(session)
        wait_until(lambda before=before: written(session) > before, what="more output")
    go.touch()
    code, out, err = finish(client)
    lines = (first.decode() + out).splitlines()
    assert (code, err) == (0, "")
    assert lines == [f"line {n}" for n in range(1, len(lines))] + [f"end {len(lines) - 1}"]


def test_a_cell_that_ended_while_no_daemon_ran_is_told(session: Session, tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    code = f"print('in', flush=True)\n{waiting_code(go)}\nopen({str(done)!r}, 'w').close()\n1 / 0"
    client = start(session.daemon, "run", session.name, code)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    session.daemon.crash()
    go.touch()
    wait_until(done.exists, what="the cell's end")
    session.daemon.start()
    code, out, err = finish(client)
    assert (code, out) == (1, "")
    assert "ZeroDivisionError" in err


def test_what_was_sent_is_run_once(session: Session, tmp_path: Path) -> None:
    """Clients that are sending while the daemon is killed, again and again."""
    log = tmp_path / "log"
    log.touch()
    daemon = session.daemon
    append = f"open({str(log)!r}, 'a').write('%s\\n')"
    clients = []
    for round_ in range(8):
        for verb in ["run", "fire", "fork"] * 2:
            name = f"{round_}-{len(clients)}"
            client = start(daemon, verb, session.name, append % name)
            clients.append((verb, name, client))
        replace_daemon(daemon)
    refused = set()
    for verb, name, client in clients:
        code, _out, err = finish(client)
        # One that found no daemon at first says so, and has sent nothing.
        assert code in (0, 3), (verb, name, err)
        if code == 3:
            assert "no daemon listens" in err
            refused.add(name)
    expected = sorted(name for _, name, _ in clients if name not in refused)
    wait_until(
        lambda: not [c for c in session.cells().values() if c["status"] in ("running", "queued")],
        what="all cells have ended",
    )
    assert sorted(log.read_text().split()) == expected
    assert expected


class Agent(threading.Thread):
    """Runs and fires cells in one session, one after the other, until it is told to end."""

    def __init__(self, daemon: TestDaemon, log: Path) -> None:
        super().__init__()
        self.daemon, self.log = daemon, log
        self.session = daemon.new()
        self.enough = threading.Event()
        self.sent = 0
        self.wrong: list[object] = []
        self.fired: list[str] = []

    def run(self) -> None:
        """Each cell leaves its number; the daemon may not be there when it begins."""
        while not self.enough.is_set():
            verb = "fire" if self.sent % 4 == 3 else "run"
            code = f"open({str(self.log)!r}, 'a').write('{self.sent}\\n'); print({self.sent})"
            done = self.daemon.pysh(verb, self.session.name, code)
            if done.returncode == 3 and "no daemon listens" in done.stderr:
                continue
            if done.returncode or (verb == "run" and done.stdout != f"{self.sent}\n"):
                self.wrong.append((verb, self.sent, done))
            if verb == "fire" and not done.returncode:
                self.fired.append(json.loads(done.stdout)["cell_id"])
            self.sent += 1


@pytest.mark.timeout(3600 if TORTURE else 300)
def test_nothing_is_lost_and_nothing_runs_twice_under_many_kills(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon().start()
    agents = [Agent(daemon, tmp_path / f"log{number}") for number in range(4)]
    chance = random.Random(KILLS)
    for agent in agents:
        agent.start()
    try:
        for _ in range(KILLS):
            # A random instant of what they do, not a wait for something.
            threading.Event().wait(chance.uniform(0.05, 0.5))
            replace_daemon(daemon)
            assert [entry["state"] != "dead" for entry in daemon.list().values()] == [True] * 4
    finally:
        for agent in agents:
            agent.enough.set()
        for agent in agents:
            agent.join()
    for agent in agents:
        assert not agent.wrong
        assert agent.sent > KILLS // 2
        for cell in agent.fired[-200:]:
            assert agent.session.ended(cell)["status"] == "done"
        told = [int(line) for line in agent.log.read_text().split()]
        assert sorted(told) == list(range(agent.sent))


def test_a_session_that_was_made_anew_does_not_run_it(session: Session, tmp_path: Path) -> None:
    """The session died with the daemon: nobody knows whether the cell ran there."""
    daemon = session.daemon
    key = "--id=once --resent=3600"
    reply = daemon.json(f"run {session.name} --json {key}\nopen('ran', 'w').close()")
    assert reply["error"]["code"] == "lost"
    assert "is younger than this request" in reply["error"]["message"]
    reply = daemon.json(f"run {session.name} --json --id=once --resent=0\n'first'")
    assert reply["result"] == "first"
    reply = daemon.json(f"run {session.name} --json --id=once --resent=0\n'first'")
    assert (reply["result"], reply["existing"]) == ("first", True)
    assert not session.out("print(os.path.exists('ran'))").startswith("True")
    reply = daemon.json(f"run {session.name} --json --resent=1\n1")
    assert reply["error"]["code"] == "usage"


def test_a_cell_that_is_not_to_wait_does_not_when_it_is_sent_again(
    session: Session, tmp_path: Path
) -> None:
    """Unless it is the one that the session is busy with."""
    daemon, name, go, leave = session.daemon, session.name, tmp_path / "go", tmp_path / "leave"
    first = f"run {name} --json --busy=fail --id=K\n{waiting_code(go)}"
    again = first.replace("--id=K", "--id=K --resent=0")
    other = session.detach(waiting_code(leave))
    refused = daemon.json(again)["error"]
    assert refused["code"] == "busy"
    assert name in refused["message"]
    assert len(session.cells()) == 1
    leave.touch()
    session.ended(other)
    leave.unlink()
    with daemon.connect() as one, daemon.connect() as two:
        one.send(first)
        session.wait_for_state("running")
        two.send(again)
        assert daemon.json(again.replace("--id=K", "--id=L"))["error"]["code"] == "busy"
        go.touch()
        ran, found = json.loads(one.receive()), json.loads(two.receive())
    assert ran["ok"]
    assert (found["cell_id"], found["existing"]) == (ran["cell_id"], True)
    session.detach(waiting_code(leave))
    assert daemon.json(again)["cell_id"] == ran["cell_id"]
    leave.touch()
    session.wait_for_state("idle")
    daemon.ask(f"hold {name}")
    assert "is held by" in daemon.json(again.replace("--id=K", "--id=L"))["error"]["message"]
    assert daemon.json(again)["cell_id"] == ran["cell_id"]


def test_a_cell_that_is_forgotten_is_not_run_again(session: Session) -> None:
    first = session.daemon.json(f"run {session.name} --json --id=k\nruns = 1")
    assert first["ok"]
    with session.daemon.connect() as wire:
        for _ in range(1001):
            wire.ask(f"run {session.name} 1")
    assert first["cell_id"] not in session.cells()
    again = session.daemon.json(f"run {session.name} --json --id=k\nruns = 1")
    assert again["error"]["code"] == "lost"
    assert "not kept any more" in again["error"]["message"]


def test_waiting_and_following_go_on(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cell = session.fire(f"print('first')\n{waiting_code(go)}\nprint('last')")
    session.wait_for_output(cell, "first")
    daemon = session.daemon
    waits = start(daemon, "wait", session.name, cell, "--timeout", "600")
    follows = start(daemon, "out", session.name, cell, "--follow")
    events = start(daemon, "events", session.name, "--json", stdin=subprocess.DEVNULL)
    assert follows.stdout is not None
    assert events.stdout is not None
    assert follows.stdout.readline() == b"first\n"
    assert json.loads(events.stdout.readline())["event"] == "ready"
    replace_daemon(daemon)
    after = [json.loads(events.stdout.readline())["event"] for _ in range(2)]
    assert after == ["ready", "reset"]
    go.touch()
    assert finish(follows) == (0, "last\n", "")
    code, out, err = finish(waits)
    assert (code, err) == (0, "")
    assert "done" in out
    for line in events.stdout:
        event = json.loads(line)
        if event["event"] == "cell_done":
            assert event["cell_id"] == cell
            break
    events.kill()
    events.communicate()


def test_a_daemon_that_does_not_come_back_is_not_waited_for_long(
    session: Session, tmp_path: Path
) -> None:
    environment = session.daemon.environment | {"PYTHOND_RECONNECT": "0.6"}
    code = f"print('in', flush=True)\n{waiting_code(tmp_path / 'go')}"
    client = start(session.daemon, "run", session.name, code, env=environment)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    session.daemon.crash()
    code, out, err = finish(client)
    assert (code, out) == (3, "")
    (tmp_path / "go").touch()
    session.daemon.start()
    assert "may go on; see `pysh poll" in err


def test_ctrl_c_ends_the_wait_for_a_daemon(session: Session, tmp_path: Path) -> None:
    environment = session.daemon.environment | {"PYTHOND_RECONNECT": "600"}
    go = tmp_path / "go"
    code = f"print('in', flush=True)\n{waiting_code(go)}"
    client = start(session.daemon, "run", session.name, code, env=environment)
    assert client.stdout is not None
    assert client.stderr is not None
    assert client.stdout.readline() == b"in\n"
    session.daemon.crash()
    assert b"the daemon is gone" in client.stderr.readline()
    os.kill(client.pid, 2)
    assert b"could not be interrupted" in client.stderr.readline()
    os.kill(client.pid, 2)
    code, _out, err = finish(client)
    go.touch()
    session.daemon.start()
    assert code == 130
    assert "goes on" in err


def test_a_run_that_a_daemon_has_no_room_for_when_it_comes_back_is_asked_for_again(
    binaries: Path,
) -> None:
    with FakeDaemon() as fake:
        words = [str(binaries / "pysh"), "run", "work", "6 * 7"]
        client = subprocess.Popen(
            words, env=fake.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            first = fake.peer()
            asked = first.next()
            first.cut()
            second = fake.peer()
            assert "--resent=" in second.next()
            second.close(1013)
            again = fake.peer().next()
            assert isinstance(again, str)
            assert isinstance(asked, str)
            assert "--resent=" in again
            key = next(word for word in asked.split() if word.startswith("--id="))
            assert key in again
            assert client.poll() is None
        finally:
            client.kill()
            client.communicate()


def test_a_wait_without_ids_is_for_the_cells_that_were_there_when_it_began(
    session: Session, tmp_path: Path
) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    cell = session.fire(f"{waiting_code(go)}\nopen({str(done)!r}, 'w').close()\n1 / 0")
    client = start(session.daemon, "wait", session.name)
    asked = f"cmd=wait session={session.name}"
    log = session.daemon.access_log()
    wait_until(lambda: asked in log.read_text(), what="it waits")
    session.daemon.crash()
    go.touch()
    wait_until(done.exists, what="the cell's end")
    session.daemon.start()
    code, out, err = finish(client)
    assert (code, err) == (1, "")
    assert cell in out
    assert "failed" in out
    # What is said where nothing is left stays.
    assert finish(start(session.daemon, "wait", session.name)) == (
        *(0, ""),
        f"note: no cell of `{session.name}` is left to wait for\n",
    )
