"""Floods: connections that say nothing, and more than there is room for."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


def test_more_sessions_than_a_low_soft_limit_of_open_files_has_room_for(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().limit("-Sn", 64).start()
    with daemon.connect() as wire:
        for number in range(40):
            reply = wire.new(f"s{number}")
            assert reply["ok"], reply
        # Sessions have the limit that was meant for them.
        limit = "import resource; resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
        assert wire.run("s39", limit)["result"] == "64"
        assert wire.json("kill --all --json", 120)["ok"]


def test_a_flood_of_connections_costs_few_lines_of_log(small: TestDaemon) -> None:
    log = small.access_log()
    with raw.many(small.socket, FLOOD):
        pass
    wait_until(lambda: "event=left_out kind=handshake count=" in log.read_text(), what="the count")
    assert log.stat().st_size < 100 * FLOOD, "a line for each"


MALFORMED = 1_000_000 if os.environ.get("PYTHOND_TORTURE") else 20_000

HANDSHAKES = [
    b"\0" * 64 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"GET / HTTP/9.9\r\nUpgrade: websocket\r\n\r\n",
    raw.REQUEST.replace(b"13", b"12"),
    raw.REQUEST.replace(b"\r\n\r\n", b"\r\nOrigin: https://example.org\r\n\r\n"),
    raw.REQUEST.replace(b"Host", b"H\xff\xfe"),
    b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3000 + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    raw.REQUEST[:40],
]
FRAMES = [
    raw.frame(b"ls", masked=False),
    raw.frame(b"ls", 0x83),
    raw.frame(b"ls", 0x8B),
    raw.frame(b"ls", 0xC1),
    raw.frame(b"ping", 0x09),
    raw.frame(b"x" * 126, 0x89),
    raw.frame(b"ls", 0x80),
    raw.frame(b"l", 0x01) + raw.frame(b"s", 0x01),
    raw.frame(b"\xff\xfe\xfd"),
    raw.frame(b"\xed\xa0\x80"),
    raw.frame(b"\0", 0x88),
    raw.frame(b"\x03\xe7", 0x88),
    raw.frame(b"binary", 0x82),
    b"\x81\xff" + b"\xff" * 8 + b"mask",
    b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"mask",
    b"\x81\xfe\xff",
]
COMMANDS = [
    b"run",
    b"run work --json --unknown\n1",
    b"new ../../etc/passwd",
    b"new con --json\n{",
    b'new x\n{"cwd": "relative", "more": 1}',
    b"kill nobody --json",
    b"poll nobody 0123456789ab",
    b"int nobody " + b"f" * 5000,
    b"complete nobody \x1b[2J\xe2\x80\xae",
    b"--json --json --json",
    b"attach nobody 99999999999 -1",
    b"events nobody --since=x-y --tag=" + b"t" * 300,
    b"cancel \0\0\0",
    b"resize nobody 1e9 nan",
    b"\xf0\x9f\x90\x8d" * 500,
    b"pysh " * 1000,
    b"wait nobody --timeout=1e400",
    b"out nobody 000000000000 --since=-99999999999999999999",
]


def pester(path: Path, count: int, seed: int) -> None:
    """Send malformed handshakes, frames and commands."""
    chosen = random.Random(seed)
    sent = 0
    while sent < count:
        with raw.connected(path) as stream, contextlib.suppress(OSError):
            if chosen.random() < 0.2:
                stream.sendall(chosen.choice(HANDSHAKES))
                stream.shutdown(socket.SHUT_WR)
                raw.drain(stream)
                sent += 1
                continue
            raw.shake(stream)
            # Commands are answered and the connection lives; a frame ends it.
            batch = chosen.choices(COMMANDS, k=min(100, count - sent))
            stream.sendall(b"".join(raw.frame(command) for command in batch))
            stream.sendall(chosen.choice(FRAMES))
            stream.shutdown(socket.SHUT_WR)
            raw.drain(stream)
            sent += len(batch) + 1


@pytest.mark.timeout(7200 if os.environ.get("PYTHOND_TORTURE") else 200)
def test_malformed_handshakes_frames_and_commands_hurt_nobody(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    with daemon.session() as session, Neighbour(session), back_to_base(daemon):
        pester(daemon.socket, 2000, 0)
        before = processes.memory(daemon.pid)
        pesterers = [
            threading.Thread(target=pester, args=(daemon.socket, MALFORMED // 4, seed))
            for seed in range(4)
        ]
        for pesterer in pesterers:
            pesterer.start()
        for pesterer in pesterers:
            pesterer.join()
        grown = processes.memory(daemon.pid) - before
        print(f"the daemon has {grown >> 10} KiB more than after the first of them")
        assert grown <= 32 << 20
        assert daemon.list().keys() == {session.name}
        assert "panicked" not in daemon.log.read_text(errors="replace")
    logs = list(daemon.access_log().parent.glob("*.log*"))
    assert sum(log.stat().st_size for log in logs) <= 2 * (17 << 20), logs


def test_a_client_that_floods_and_never_reads_is_not_read_and_costs_bounded_memory(
    daemon: TestDaemon,
) -> None:
    with (
        daemon.session() as session,
        daemon.session() as other,
        Neighbour(other),
        back_to_base(daemon),
    ):
        daemon.json(f"run {session.name} --json\ndata = 'x' * 1_000_000")
        before = processes.memory(daemon.pid), processes.memory(session.pid)
        with contextlib.ExitStack() as stack:
            flooders = [stack.enter_context(raw.connected(daemon.socket)) for _ in range(4)]
            sent = 0
            for flooder in flooders:
                raw.shake(flooder)
                flooder.setblocking(False)
            frames = raw.frame(f"run {session.name} --tag=t\nprint(data)".encode()) * 50
            quiet = 0
            while quiet < 50 and sent < 64 << 20:
                moved = 0
                for flooder in flooders:
                    with contextlib.suppress(BlockingIOError):
                        moved += flooder.send(frames)
                sent += moved
                quiet = 0 if moved else quiet + 1
                time.sleep(0.02)
            assert sent < 64 << 20, "everything was read, and nothing of it answered"
            grown = processes.memory(daemon.pid) - before[0]
            hosts = processes.memory(session.pid) - before[1]
            print(
                f"{sent >> 10} KiB were taken; {grown >> 10} KiB more, the host {hosts >> 10} KiB"
            )
            assert grown <= 128 << 20
            assert hosts <= 128 << 20


def test_a_hundred_readers_of_a_byte_a_second_slow_nobody_down(daemon: TestDaemon) -> None:
    with daemon.session() as session:
        cell = session.fire("while True: print('x' * 10_000)")
        with daemon.session() as other, Neighbour(other), contextlib.ExitStack() as stack:
            before = processes.memory(daemon.pid)
            readers = [stack.enter_context(raw.connected(daemon.socket)) for _ in range(100)]
            for reader in readers:
                raw.shake(reader)
                reader.sendall(raw.frame(f"out {session.name} {cell} --follow".encode()))
            for _ in range(3):
                for reader in readers:
                    assert reader.recv(1)
                assert session.status()["state"] in ("idle", "running")
                assert session.out("1 + 1") == "2\n"
            grown = processes.memory(daemon.pid) - before
            print(f"the daemon has {grown >> 10} KiB more with a hundred slow readers")
            assert grown <= 128 << 20
            assert session.interrupt(cell)["ok"]
            assert not session.ask("wait", f"--timeout=30 {cell}")["timed_out"]
