"""A plain WebSocket client on the daemon's socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect, unix_connect


class Wire:
    """One connection. Ask a frame, get the text that answers it."""

    def __init__(self, socket: str | Path, **options: Any) -> None:
        self._open(unix_connect, str(socket), uri="ws://localhost/", **options)

    @classmethod
    def over(cls, stream: socket.socket, uri: str, **options: Any) -> Wire:
        """One over a connection that is there; `uri` says whether by TLS."""
        wire = cls.__new__(cls)
        wire._open(connect, uri, sock=stream, **options)
        return wire

    def _open(self, opens: Callable[..., ClientConnection], *words: Any, **options: Any) -> None:
        options.setdefault("compression", None)
        options.setdefault("max_size", None)
        options.setdefault("ping_interval", None)
        # Newer releases of the library give a connection only inside a context.
        self.socket: ClientConnection = opens(*words, open_timeout=20, **options).__enter__()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Tell whether the daemon has closed it."""
        return self.socket.protocol.state is not State.OPEN

    def send(self, text: str | bytes) -> None:
        """Send one message."""
        self.socket.send(text)

    def receive(self, timeout: float = 60) -> str:
        """Return the next message."""
        message = self.socket.recv(timeout)
        assert isinstance(message, str), f"a binary message: {message[:80]!r}"
        return message

    def receive_text(self, timeout: float = 60) -> str:
        """Return the next message that is no bytes of a terminal."""
        while not isinstance(message := self.socket.recv(timeout), str):
            pass
        return message

    def ask(self, text: str, timeout: float = 60) -> str:
        """Send one frame and return its answer."""
        self.send(text)
        return self.receive(timeout)

    def json(self, text: str, timeout: float = 60) -> dict[str, Any]:
        """Send one frame and return its answer, which is a JSON object."""
        answer = json.loads(self.ask(text, timeout))
        assert isinstance(answer, dict)
        return answer

    def run(self, name: str, code: str, timeout: float = 60) -> dict[str, Any]:
        """Run a cell; returns the structured reply, refused or not."""
        return self.json(f"run {name} --json\n{code}", timeout)

    def new(self, name: str, **fields: Any) -> dict[str, Any]:
        """Ask for a session; returns the structured reply, refused or not."""
        body = f"\n{json.dumps(fields)}" if fields else ""
        return self.json(f"new {name} --json{body}", 120)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def text_of(stream: str | dict[str, str]) -> str:
    """Return the text of a reply's `stdout` or `stderr` in either form."""
    return stream if isinstance(stream, str) else stream["text"]
