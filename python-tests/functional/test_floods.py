"""Floods: connections that say nothing, and more than there is room for."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import pytest
from websockets.exceptions import InvalidStatus

from support import processes, raw
from support.daemon import TestDaemon
from support.floods import (
    MOST_MEMORY,
    OPEN_FILES,
    TORTURE,
    Bystander,
    at_once,
    back_to_base,
    pester,
)
from support.waiting import wait_until
from support.wire import Wire

FLOOD = 5000 if TORTURE else 1000


@pytest.fixture
def small(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that may have few files open, with an idle session `s1`."""
    daemon = make_daemon().limit("-n", OPEN_FILES).start()
    daemon.new("warm").kill()
    return daemon


@pytest.mark.parametrize("shaken", [False, True], ids=["before the handshake", "after it"])
def test_connections_that_say_nothing_make_room_for_those_that_speak(
    small: TestDaemon, shaken: bool
) -> None:
    with small.session() as session, Bystander(session), back_to_base(small):
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


MALFORMED = 1_000_000 if TORTURE else 20_000


def let_in(daemon: TestDaemon) -> socket.socket:
    """Open a connection that was let in."""
    stream = raw.connected(daemon.socket)
    raw.shake(stream)
    return stream


@pytest.mark.timeout(7200 if TORTURE else 200)
def test_malformed_handshakes_frames_and_commands_hurt_nobody(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    with daemon.session() as session, Bystander(session), back_to_base(daemon):
        connects = (lambda: raw.connected(daemon.socket)), (lambda: let_in(daemon))
        pester(*connects, 2000, 0)
        before = processes.memory(daemon.pid)
        at_once(lambda seed: pester(*connects, MALFORMED // 4, seed), range(4))
        grown = processes.memory(daemon.pid) - before
        print(f"the daemon has {grown >> 10} KiB more than after the first of them")
        assert grown <= MOST_MEMORY
        assert daemon.list().keys() == {session.name}
    logs = list(daemon.access_log().parent.glob("*.log*"))
    assert sum(log.stat().st_size for log in logs) <= 2 * (17 << 20), logs


def test_a_client_that_floods_and_never_reads_is_not_read_and_costs_bounded_memory(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    # Each request in flight may have its answer's first 64 KiB waiting here.
    daemon = make_daemon(PYTHOND_MAX_IN_FLIGHT="128").start()
    with (
        daemon.session() as session,
        daemon.session() as other,
        Bystander(other),
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

            def all_ended() -> bool:
                status = session.status()
                return not status["running"] and not status["queued"]

            wait_until(all_ended, what="the cells that were accepted have ended")
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
        with daemon.session() as other, Bystander(other), contextlib.ExitStack() as stack:
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
