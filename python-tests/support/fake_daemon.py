"""A daemon that says what a test tells it to, for what only a client does."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, unix_serve

from .waiting import DEADLINE

Frame = str | bytes
GONE = None
"""What `Peer.next` gives when the client has closed the connection."""


class Peer:
    """One connection of a client."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.frames: queue.Queue[Frame | None] = queue.Queue()
        self.reading = threading.Event()
        self.reading.set()

    def serve(self) -> None:
        """Read until the connection ends."""
        with contextlib.suppress(ConnectionClosed, OSError):
            while self.reading.wait():
                self.frames.put(self.connection.recv())
        self.frames.put(GONE)

    def next(self, deadline: float = DEADLINE) -> Frame | None:
        """Return the next frame, `GONE` at the end."""
        return self.frames.get(timeout=deadline)

    def typed(self, length: int, deadline: float = DEADLINE) -> bytes:
        """Return as many bytes as were typed, which must come without text between."""
        got = b""
        while len(got) < length:
            frame = self.next(deadline)
            assert isinstance(frame, bytes), (got, frame)
            got += frame
        assert len(got) == length, got
        return got

    def send(self, message: Frame | dict[str, Any]) -> None:
        """Send bytes for the terminal, or an object."""
        self.connection.send(json.dumps(message) if isinstance(message, dict) else message)

    def close(self, code: int = 1000) -> None:
        """Close in order."""
        self.connection.close(code)

    def cut(self) -> None:
        """End the connection as a killed daemon does."""
        # A client that has left already cannot be cut off.
        with contextlib.suppress(OSError):
            self.connection.socket.shutdown(socket.SHUT_RDWR)


class FakeDaemon:
    """Listens where a daemon would; use it as a context."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
        self.socket = self.root / "d.sock"
        self._peers: queue.Queue[Peer] = queue.Queue()
        self._all: list[Peer] = []
        self._server = unix_serve(
            self._serve,
            str(self.socket),
            compression=None,
            subprotocols=["pythond.1"],
            ping_interval=None,
            max_size=None,
            close_timeout=1,
        )
        self.socket.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _serve(self, connection: ServerConnection) -> None:
        peer = Peer(connection)
        self._all.append(peer)
        self._peers.put(peer)
        peer.serve()

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._all:
            peer.reading.set()
            peer.cut()
        self._server.shutdown()
        self._thread.join(5)
        shutil.rmtree(self.root, ignore_errors=True)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a client that talks to this daemon."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        mark = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHOND_SOCK": str(self.socket)}
        return {**kept, **mark, **more}

    def peer(self, deadline: float = DEADLINE) -> Peer:
        """Return the next connection."""
        return self._peers.get(timeout=deadline)
