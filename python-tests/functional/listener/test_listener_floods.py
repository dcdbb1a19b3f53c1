"""Floods from a network: clients that say nothing, too little, nonsense, or go away."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable

import pytest

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
from support.network import Server, reset
from support.waiting import wait_until

FLOOD = 5000 if TORTURE else 600
DAMAGED = 100_000 if TORTURE else 2000
MALFORMED = 1_000_000 if TORTURE else 10_000

Make = Callable[..., TestDaemon]


@pytest.fixture
def small(make_daemon: Make) -> Server:
    """A daemon that may have few files open and listens encrypted."""
    daemon = make_daemon().limit("-n", OPEN_FILES).listen(tls=True).start()
    daemon.new("warm").kill()
    return Server(daemon)


@pytest.fixture
def plain(make_daemon: Make) -> Server:
    """One that is not encrypted."""
    daemon = make_daemon().limit("-n", OPEN_FILES).listen().start()
    daemon.new("warm").kill()
    server = Server(daemon)
    server.machine.certificate()
    return server


def say_half_a_hello(server: Server, held: list[socket.socket]) -> None:
    """Begin a handshake of TLS, and leave it at that."""
    stream = server.tcp()
    held.append(stream)
    with contextlib.suppress(OSError):
        stream.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(20))


def shake_tls_only(server: Server, held: list[socket.socket]) -> None:
    """Do the handshake of TLS, and say nothing."""
    stream = server.tcp()
    held.append(stream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError):
        held[-1] = context.wrap_socket(stream)


def say_nothing(server: Server, held: list[socket.socket]) -> None:
    """Connect."""
    held.append(server.tcp())


@pytest.mark.parametrize(
    ("which", "joins"),
    [("ws", say_nothing), ("wss", say_nothing), ("wss", say_half_a_hello), ("wss", shake_tls_only)],
)
def test_strangers_make_room_for_those_who_have_the_token(
    small: Server,
    plain: Server,
    which: str,
    joins: Callable[[Server, list[socket.socket]], None],
) -> None:
    server = small if which == "wss" else plain
    daemon = server.daemon
    with (
        daemon.session() as session,
        Bystander(session, server),
        back_to_base(daemon),
        contextlib.ExitStack() as stack,
    ):
        held: list[socket.socket] = []
        stack.callback(lambda: [stream.close() for stream in held])
        for _ in range(FLOOD):
            joins(server, held)
        assert processes.descriptors(daemon.pid) < OPEN_FILES - 16
        for _ in range(5):
            assert session.name in daemon.ask("ls")
            assert session.name in server.ask("ls")
        with daemon.session() as another:
            assert server.ask(f"run {another.name}\n6 * 7") == "42"


def test_strangers_that_keep_coming_keep_nobody_out(small: Server) -> None:
    daemon = small.daemon
    stop = threading.Event()

    def floods() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                say_half_a_hello(small, held)
            if len(held) > 300:
                held.pop(0).close()
        for stream in held:
            stream.close()

    with daemon.session() as session, Bystander(session, small), back_to_base(daemon):
        flooders = [threading.Thread(target=floods) for _ in range(2)]
        for flooder in flooders:
            flooder.start()
        try:
            for _ in range(20):
                # Whoever floods makes room for others, also for the machine's owner.
                assert session.name in small.ask("ls", source="127.0.0.3")
                assert session.name in daemon.ask("ls")
        finally:
            stop.set()
            for flooder in flooders:
                flooder.join()


def test_more_clients_with_the_token_than_there_is_room_for_are_told_busy(small: Server) -> None:
    daemon = small.daemon
    with (
        daemon.session() as session,
        back_to_base(daemon),
        contextlib.ExitStack() as stack,
    ):
        served = []
        refused = b""
        while not refused:
            stream = stack.enter_context(small.stream())
            answer = raw.shake(stream, raw.request_with(small.bearer))
            if answer.startswith(b"HTTP/1.1 101 "):
                stream.sendall(raw.frame(b"ls"))
                assert session.name.encode() in raw.message(stream)[1]
                served.append(stream)
            else:
                refused = answer
            assert len(served) < OPEN_FILES, "nobody was refused"
        assert refused.startswith(b"HTTP/1.1 503 "), refused
        assert len(served) > OPEN_FILES // 2
        for stream in served:
            stream.sendall(raw.frame(b"version"))
            assert raw.message(stream)[0] == 0x81
        served[0].close()
        wait_until(lambda: there_is_room(small), what="there is room again")


def there_is_room(server: Server) -> bool:
    """Whether a client with the token is let in."""
    try:
        return server.asks(server.bearer).startswith(b"HTTP/1.1 101 ")
    except OSError:
        return False


def trickle(stream: socket.socket, text: bytes) -> float:
    """Send a byte a second until the other end has enough; how long that took."""
    began = time.monotonic()
    stream.settimeout(1)
    for byte in text:
        try:
            stream.send(bytes([byte]))
            if not stream.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        raise AssertionError("it was listened to, to the end")
    return time.monotonic() - began


@pytest.mark.parametrize("stage", ["hello", "request in TLS", "plain request", "nothing"])
def test_who_takes_too_long_for_a_handshake_is_cut_off(
    small: Server, plain: Server, stage: str
) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100)
    server = plain if stage == "plain request" else small
    opens = small.stream if stage == "request in TLS" else server.tcp
    with opens() as stream:
        if stage == "nothing":
            stream.settimeout(60)
            assert raw.drain(stream) == b""
        else:
            took = trickle(stream, hello if stage == "hello" else raw.request_with(server.bearer))
            print(f"{stage}: cut off after {took:.1f} s")
    log = server.daemon.access_log()
    wait_until(lambda: "status=rejected detail=deadline" in log.read_text(), what="the reason")


def damaged(chosen: random.Random, text: bytes) -> bytes:
    """A text with bytes that were changed, left out, doubled or added."""
    text = bytearray(text)
    for _ in range(chosen.choice([1, 1, 2, 5, 20])):
        at = chosen.randrange(len(text) + 1)
        what = chosen.randrange(5)
        if what == 0 and at < len(text):
            text[at] = chosen.randrange(256)
        elif what == 1:
            del text[at : at + chosen.randrange(1, 20)]
        elif what == 2:
            text[at:at] = text[at : at + chosen.randrange(1, 40)]
        elif what == 3:
            text[at:at] = chosen.choice([b"\r\n", b"\0", b"\xff" * 9, b": ", b"\r\n\r\n"])
        else:
            del text[at:]
    return bytes(text)


def hello_of_a_client() -> bytes:
    """What a client of TLS says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def shake_badly(server: Server, count: int, seed: int, let_in: list[bytes]) -> None:
    """Send damaged handshakes of TLS and damaged requests."""
    chosen = random.Random(seed)
    hello = hello_of_a_client()
    request = raw.request_with("Authorization: Bearer " + "f" * 64)
    for _ in range(count):
        with contextlib.suppress(OSError):
            inside = server.tls and chosen.random() < 0.2
            with server.stream() if inside else server.tcp() as stream:
                text = damaged(chosen, hello if server.tls and not inside else request)
                # What is not whole ends here and now, and not at the deadline.
                stream.sendall(text + b"\r\n\r\n\0\r\n\r\n" if inside else text)
                if not inside:
                    stream.shutdown(socket.SHUT_WR)
                answer = raw.head(stream)
                if b" 101 " in answer:
                    let_in.append(answer)


@pytest.mark.parametrize("which", ["ws", "wss"])
@pytest.mark.timeout(7200 if TORTURE else 200)
def test_damaged_handshakes_hurt_nobody(small: Server, plain: Server, which: str) -> None:
    server = small if which == "wss" else plain
    daemon = server.daemon
    let_in: list[bytes] = []
    with daemon.session() as session, Bystander(session, server), back_to_base(daemon):
        shake_badly(server, 100, 0, let_in)
        before = processes.memory(daemon.pid)
        at_once(lambda seed: shake_badly(server, DAMAGED // 4, seed, let_in), range(1, 5))
        grown = processes.memory(daemon.pid) - before
        log = daemon.access_log()
        print(f"{grown >> 10} KiB more, {log.stat().st_size >> 10} KiB of log")
        assert let_in == []
        assert grown <= MOST_MEMORY
        assert daemon.list().keys() == {session.name}
        # Each kind of complaint is told twenty times a second at most.
        wait_until(
            lambda: "event=left_out kind=handshake count=" in log.read_text(), what="the count"
        )


@pytest.mark.parametrize("which", ["ws", "wss"])
@pytest.mark.timeout(7200 if TORTURE else 200)
def test_malformed_frames_and_commands_of_clients_with_the_token_hurt_nobody(
    small: Server, plain: Server, which: str
) -> None:
    server = small if which == "wss" else plain
    daemon = server.daemon
    context = server.context()

    def silent() -> socket.socket:
        return server.stream(source="127.0.0.3", context=context)

    def shaken() -> socket.socket:
        # More come at once than may be open, as those before are not gone yet.
        return wait_until(lambda: admitted(server, context), what="a connection that is let in")

    with daemon.session() as session, Bystander(session, server), back_to_base(daemon):
        pester(silent, shaken, 2000, 0)
        before = processes.memory(daemon.pid)
        at_once(lambda seed: pester(silent, shaken, MALFORMED // 4, seed), range(1, 5))
        grown = processes.memory(daemon.pid) - before
        print(f"{MALFORMED} were sent; the daemon has {grown >> 10} KiB more")
        assert grown <= MOST_MEMORY
        assert daemon.list().keys() == {session.name}


def admitted(server: Server, context: ssl.SSLContext) -> socket.socket | None:
    """A connection with the token, if there is room for it."""
    stream = server.stream(context=context)
    if raw.shake(stream, raw.request_with(server.bearer)).startswith(b"HTTP/1.1 101 "):
        return stream
    stream.close()
    return None


def test_clients_that_vanish_at_any_stage_leave_nothing(small: Server, plain: Server) -> None:
    hello = hello_of_a_client()
    for server in (small, plain):
        daemon = server.daemon
        with daemon.session() as session, Bystander(session, server), back_to_base(daemon):
            cell = session.fire("while True: print('x' * 1000)")
            for _ in range(15):
                reset(server.tcp())
                with contextlib.suppress(OSError):
                    stream = server.tcp()
                    stream.sendall(hello[:50])
                    reset(stream)
                stream = server.tcp()
                stream.sendall(hello if server.tls else raw.REQUEST[:50])
                reset(stream)
                stream = server.stream()
                reset(stream)
                stream = server.stream()
                stream.sendall(raw.request_with(server.bearer))
                reset(stream)
                stream = server.shaken()
                stream.sendall(raw.frame(b"ls")[:3])
                reset(stream)
                stream = server.shaken()
                stream.sendall(raw.frame(f"out {session.name} {cell} --follow".encode()))
                stream.recv(10)
                reset(stream)
            session.interrupt(cell)


def test_a_flood_is_a_few_lines_of_log_and_a_count(small: Server) -> None:
    log = small.daemon.access_log()
    for _ in range(FLOOD):
        with small.tcp() as stream:
            stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: "event=left_out kind=handshake count=" in log.read_text(), what="the count")
    assert log.stat().st_size < 100 * FLOOD
