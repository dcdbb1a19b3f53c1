"""Floods: connections that say nothing, and more than there is room for."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import InvalidStatus

from support import processes, raw
from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import Wire

OPEN_FILES = 256
FLOOD = 5000 if os.environ.get("PYTHOND_TORTURE") else 1000


@pytest.fixture
def small(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that may have few files open, with an idle session `s1`."""
    daemon = make_daemon().limit("-n", OPEN_FILES).start()
    daemon.new("warm").kill()
    return daemon


@contextlib.contextmanager
def back_to_base(daemon: TestDaemon) -> Iterator[None]:
    """Check that a daemon's descriptors and threads are in the end as before."""
    descriptors, threads = processes.descriptors(daemon.pid), processes.threads(daemon.pid)
    yield
    wait_until(
        lambda: processes.descriptors(daemon.pid) <= descriptors,
        what=f"{descriptors} descriptors, as before the flood",
    )
    assert processes.threads(daemon.pid) <= threads
    with daemon.session() as session:
        assert session.out("1 + 1") == "2\n"


class Neighbour:
    """A client that was there before the flood, and is served all the time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.served = 0
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Neighbour:
        self.session.out("0")
        self._thread.start()
        return self

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                assert self.session.out("1 + 1") == "2\n"
                self.longest = max(self.longest, time.monotonic() - began)
                self.served += 1
        except BaseException as failure:
            self.failure = failure

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        print(f"the neighbour was served {self.served} times, in {self.longest:.3f} s at most")
        assert self.failure is None, self.failure
        assert self.served > 0


@pytest.mark.parametrize("shaken", [False, True], ids=["before the handshake", "after it"])
def test_connections_that_say_nothing_make_room_for_those_that_speak(
    small: TestDaemon, shaken: bool
) -> None:
    with small.session() as session, Neighbour(session), back_to_base(small):
        with raw.many(small.socket, FLOOD, shaken=shaken) as held:
            assert processes.descriptors(small.pid) < OPEN_FILES - 16
            for _ in range(10):
                assert "alive" in small.ask("ls")
            with small.session() as another:
                assert another.out("'beside'") == "beside\n"
            assert small.pysh("run", session.name, "6 * 7").stdout == "42\n"
            # The oldest had to go, and were told.
            told = raw.drain(held[0])
            assert (b"\x03\xf5busy" if shaken else b"HTTP/1.1 503 ") in told
        wait_until(lambda: processes.descriptors(small.pid) < 64, what="the flood is over")


def test_more_clients_than_there_is_room_for_are_told_busy_and_the_others_are_served(
    small: TestDaemon,
) -> None:
    with small.session() as session, back_to_base(small), contextlib.ExitStack() as stack:
        served: list[Wire] = []
        refused = ""
        while not refused:
            try:
                served.append(stack.enter_context(small.connect()))
            except InvalidStatus as status:
                refused = str(status)
            else:
                assert session.name in served[-1].ask("ls")
            assert len(served) < OPEN_FILES, "nobody was refused"
        assert "503" in refused
        assert len(served) > OPEN_FILES // 2
        # A client that asks for nothing first is told just so.
        with raw.connected(small.socket) as silent:
            assert raw.head(silent).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        for program, words in (("pysh", ["run", session.name, "1"]), ("pyctl", ["status"])):
            told = small.client(program, *words)
            assert told.returncode == 4, told
            assert "busy" in told.stderr + told.stdout, told
        told = small.pysh("ls", "--json")
        assert told.returncode == 4, told
        assert '"code":"busy"' in told.stdout + told.stderr, told
        # Those who are there have all that they had.
        assert all(session.name in wire.ask("ls") for wire in served)
        assert served[0].new("late")["ok"]
        assert served[1].run("late", "6 * 7")["result"] == "42"
        assert served[2].ask("kill late") == "OK killed late"
        # One that leaves makes room for another.
        served[3].close()
        wait_until(lambda: session.name in ask_or_nothing(small), what="there is room again")


def ask_or_nothing(daemon: TestDaemon) -> str:
    """Ask for the sessions; nothing if there is no room."""
    try:
        return daemon.ask("ls")
    except Exception:
        return ""


def test_as_many_sessions_as_the_open_files_allow_leave_room_for_clients(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().limit("-n", 128).start()
    most = daemon.info()["max_sessions"]
    assert 10 <= most <= 48
    with daemon.connect() as wire:
        for number in range(most):
            reply = wire.new(f"s{number}")
            assert reply["ok"], reply
        refused = wire.new("more")
        assert refused["error"]["code"] == "limit", refused
        assert "ulimit -n" in refused["error"]["hint"]
        with raw.many(daemon.socket, 200):
            for number in range(most):
                assert wire.run(f"s{number}", "1 + 1")["result"] == "2"
                assert "alive" in daemon.ask("ls")
        assert wire.json("kill --all --json", 120)["ok"]


def test_a_flood_of_connections_costs_few_lines_of_log(small: TestDaemon) -> None:
    log = small.access_log()
    with raw.many(small.socket, FLOOD):
        pass
    wait_until(lambda: "event=left_out kind=handshake count=" in log.read_text(), what="the count")
    assert log.stat().st_size < 100 * FLOOD, "a line for each"
