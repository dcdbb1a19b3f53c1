"""Connections whose every byte the test writes itself."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from .waiting import DEADLINE

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    + base64.b64encode(b"0123456789abcdef")
    + b"\r\n\r\n"
)


def connected(path: Path) -> socket.socket:
    """Open a connection that says nothing."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Python's own time-out would not wait for room in the backlog of the socket.
    seconds = struct.pack("ll", int(DEADLINE), 0)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    stream.connect(str(path))
    stream.settimeout(DEADLINE)
    return stream


def head(stream: socket.socket) -> bytes:
    """Read the head of an HTTP answer, or what there is of it."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        try:
            more = stream.recv(4096)
        except ConnectionError:
            break
        if not more:
            break
        answer += more
    return answer


def shake(stream: socket.socket, request: bytes = REQUEST) -> bytes:
    """Ask for the upgrade and return the answer."""
    # What was answered before it was sent can still be read.
    with contextlib.suppress(ConnectionError):
        stream.sendall(request)
    return head(stream)


def request_with(*lines: str | bytes, host: str | None = "localhost") -> bytes:
    """The request for the upgrade with other lines in its head."""
    request = REQUEST.replace(b"Host: localhost\r\n", f"Host: {host}\r\n".encode() if host else b"")
    more = [line if isinstance(line, bytes) else line.encode() for line in lines]
    return request.removesuffix(b"\r\n") + b"".join(line + b"\r\n" for line in more) + b"\r\n"


def message(stream: socket.socket) -> tuple[int, bytes]:
    """Read one unmasked frame: its first byte and what it holds."""

    def exactly(count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = stream.recv(count - len(got))
            if not more:
                raise ConnectionError("the other end closed")
            got += more
        return got

    first, length = exactly(2)
    if length == 126:
        (length,) = struct.unpack(">H", exactly(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", exactly(8))
    return first, exactly(length)


def frame(payload: bytes, first: int = 0x81, *, masked: bool = True) -> bytes:
    """Return one frame; `first` is its first byte: FIN, reserved bits, opcode."""
    length, bit = len(payload), 0x80 if masked else 0
    if length < 126:
        header = bytes([first, bit | length])
    elif length < 1 << 16:
        header = bytes([first, bit | 126]) + struct.pack(">H", length)
    else:
        header = bytes([first, bit | 127]) + struct.pack(">Q", length)
    if not masked:
        return header + payload
    mask = os.urandom(4)
    key = (mask * (length // 4 + 1))[:length]
    hidden = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return header + mask + hidden.to_bytes(length, "big")


def drain(stream: socket.socket, most: int = 1 << 20) -> bytes:
    """Read until the other end closes."""
    got = b""
    while len(got) < most:
        try:
            more = stream.recv(1 << 16)
        except ConnectionError:
            break
        if not more:
            break
        got += more
    return got


@contextlib.contextmanager
def many(path: Path, count: int, *, shaken: bool = False) -> Iterator[list[socket.socket]]:
    """Hold many connections that say nothing, or nothing after the handshake."""
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            stream = connected(path)
            held.append(stream)
            if shaken:
                shake(stream)
        yield held
    finally:
        for stream in held:
            stream.close()
