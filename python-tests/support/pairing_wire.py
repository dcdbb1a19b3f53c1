"""The wire of pairing, message by message: clients that misbehave, and who is in between."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import raw
from .network import Machine
from .waiting import DEADLINE

NAME = "pythond.pair.1"
SUBPROTOCOL = f"Sec-WebSocket-Protocol: {NAME}"
Pair = tuple[Path, Path]
Message = dict[str, Any]

BASE_POINT = b"\x58" + 31 * b"\x66"
"""A point of the curve (RFC 8032, 5.1), as anybody can send it."""


def pair_of(machine: Machine) -> Pair:
    """Certificate and key of a machine."""
    return machine.certificate(), machine.tls / "key.pem"


def element(side: str = "A") -> Message:
    """The first word of somebody who does not know the code."""
    return {"element": base64.b64encode(side.encode() + BASE_POINT).decode()}


def proof() -> Message:
    """A proof of nothing."""
    return {"proof": base64.b64encode(bytes(32)).decode()}


def client_context(shows: Pair | None, *, alpn: bool = True) -> ssl.SSLContext:
    """What a client demands that believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if shows:
        context.load_cert_chain(*shows)
    if alpn:
        context.set_alpn_protocols([NAME])
    return context


class Channel:
    """Messages over a stream that was upgraded."""

    def __init__(self, stream: socket.socket, *, masks: bool) -> None:
        self.stream = stream
        self._masks = masks

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def say(self, message: Message | str) -> None:
        """Send a message."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.stream.sendall(raw.frame(text.encode(), masked=self._masks))

    def hear(self) -> Message:
        """Receive the next message.

        Raises:
            ConnectionError: The other end closed; the code is its argument.
        """
        while True:
            first, payload = self._frame()
            match first & 0xF:
                case 1:
                    return json.loads(payload)
                case 8:
                    raise ConnectionError(struct.unpack(">H", payload[:2])[0])
                case _:
                    pass

    def closed(self) -> int:
        """Wait for the close of the other end, and return its code."""
        try:
            message = self.hear()
        except ConnectionError as error:
            return error.args[0]
        raise AssertionError(f"no close, but {message}")

    def _frame(self) -> tuple[int, bytes]:
        first, length = self._exactly(2)
        masked, length = length & 0x80, length & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._exactly(2))
        mask = self._exactly(4) if masked else bytes(4)
        payload = self._exactly(length)
        return first, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self.stream.recv(count - len(got))
            if not more:
                raise ConnectionError(0)
            got += more
        return got


def tls(address: str, shows: Pair | None, *, alpn: bool = True, source: str = "") -> ssl.SSLSocket:
    """Open a connection to a server whoever it is."""
    host, _, port = address.rpartition(":")
    stream = socket.create_connection(
        (host.strip("[]"), int(port)), DEADLINE, source_address=(source, 0) if source else None
    )
    try:
        return client_context(shows, alpn=alpn).wrap_socket(stream, server_hostname="localhost")
    except BaseException:
        stream.close()
        raise


def applicant(address: str, shows: Pair, *, source: str = "") -> Channel:
    """Open a connection that wants to pair, with the upgrade."""
    stream = tls(address, shows, source=source)
    try:
        answer = raw.shake(stream, raw.request_with(SUBPROTOCOL))
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        assert NAME.encode() in answer, answer
    except BaseException:
        stream.close()
        raise
    return Channel(stream, masks=True)


class Between:
    """Takes connections that want to pair; `meet` has each, with the client's certificate.

    It shows the server's certificate and key that it is given: its own, or with the key of a
    server the server's.
    """

    def __init__(self, shows: Pair, meet: Callable[[Channel], None]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*shows)
        self._context.set_alpn_protocols([NAME])
        self._meet = meet
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.fault: BaseException | None = None
        self.met = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Between:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(DEADLINE)
        if self.fault:
            raise self.fault

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            plain.settimeout(DEADLINE)
            try:
                with self._context.wrap_socket(plain, server_side=True) as stream:
                    self._upgrade(stream)
                    self.met += 1
                    # Who is found out is left; that is seen by the end.
                    with contextlib.suppress(OSError):
                        self._meet(Channel(stream, masks=False))
            except OSError:
                # The client did not want this server.
                plain.close()
            except BaseException as fault:
                self.fault = fault

    @staticmethod
    def _upgrade(stream: ssl.SSLSocket) -> None:
        request = raw.head(stream).decode()
        (key,) = (
            line.split(":", 1)[1].strip()
            for line in request.splitlines()
            if line.lower().startswith("sec-websocket-key:")
        )
        joined = f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()
        accept = base64.b64encode(hashlib.sha1(joined).digest()).decode()
        stream.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{SUBPROTOCOL}\r\n\r\n".encode()
        )


def relay(client: Channel, server: Channel, heard: list[Message]) -> None:
    """Pass messages on, which take turns, until one end closes; keep them."""
    while True:
        for one, other in ((client, server), (server, client)):
            message = one.hear()
            heard.append(message)
            other.say(message)
