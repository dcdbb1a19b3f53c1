"""A terminal that is attached over the wire itself, with a screen model."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pyte
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect

from .daemon import Session
from .terminal import KEYS, PASTE_BEGIN, PASTE_END
from .waiting import DEADLINE

PROMPT = ">>> "


class Attached:
    """One attached client; use it as a context. A thread reads what comes."""

    def __init__(
        self,
        socket: str,
        name: str,
        *,
        rows: int | None = 24,
        cols: int | None = 80,
        options: str = "--json --term=xterm-256color",
    ) -> None:
        """Attach to a session.

        Args:
            socket: The daemon's socket.
            name: The session.
            rows: Lines; None attaches without a size.
            cols: Characters in a line.
            options: What follows on the command line; "" is the plain wire.
        """
        self._changed = threading.Condition()
        self.model = pyte.Screen(cols or 80, rows or 24)
        self._stream = pyte.ByteStream(self.model)
        self.raw = bytearray()
        self.blind = False
        """What comes is not drawn; the model takes its time for a flood."""
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.closed = False
        connecting = unix_connect(socket, "ws://localhost/", max_size=None)
        # Newer releases of the library give a connection only inside a context.
        self._connection = connecting.__enter__()
        size = "" if rows is None else f" {rows} {cols}"
        self._connection.send(f"attach {name}{size} {options}".rstrip())
        first = self._connection.recv(DEADLINE)
        assert isinstance(first, str), first
        self.reply: Any = json.loads(first) if first.startswith("{") else first
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection without a word before."""
        self._connection.close()
        self._reader.join(5)

    def _read(self) -> None:
        try:
            for message in self._connection:
                with self._changed:
                    if isinstance(message, bytes):
                        self.raw += message
                        self._draw(message)
                    elif '"event"' in message:
                        event = json.loads(message)
                        if event["event"] == "terminal_resized":
                            self.model.resize(event["rows"], event["cols"])
                        self.events.append(event)
                    else:
                        self.texts.append(message)
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _draw(self, data: bytes) -> None:
        if self.blind:
            return
        try:
            self._stream.feed(data)
        except TypeError:
            # The model does not know all that programs write (`CSI > 4 m`).
            self._stream = pyte.ByteStream(self.model)

    @property
    def close_code(self) -> int | None:
        """The code of the close that ended the connection."""
        return self._connection.close_code

    def type(self, text: str | bytes) -> None:
        """Type this."""
        self._connection.send(text.encode() if isinstance(text, str) else text)

    def press(self, *keys: str) -> None:
        """Press keys: `ctrl-c`, `enter`, `up`, …"""
        for key in keys:
            control = key.startswith("ctrl-")
            self.type(chr(ord(key[5:].upper()) & 0x1F) if control else KEYS.get(key, key))

    def paste(self, text: str) -> None:
        """Paste as a terminal with bracketed paste does."""
        self.type(f"{PASTE_BEGIN}{text}{PASTE_END}")

    def say(self, text: str) -> None:
        """Send a command on this connection."""
        self._connection.send(text)

    def line(self, text: str) -> None:
        """Type a line."""
        self.type(text + "\r")

    def screen(self) -> list[str]:
        """Return the lines of the screen without blanks at their ends."""
        with self._changed:
            return [line.rstrip() for line in self.model.display]

    def text(self) -> str:
        """Return the screen without blanks at the ends of lines and below."""
        return "\n".join(self.screen()).rstrip()

    def last(self) -> str:
        """Return the last line that is not empty."""
        return self.text().rsplit("\n", 1)[-1]

    def wait_for(
        self, what: str | Callable[[], Any], deadline: float = DEADLINE, name: str = ""
    ) -> None:
        """Wait until a text stands on the screen, or a predicate holds."""
        holds = (lambda: what in self.text()) if isinstance(what, str) else what
        end = time.monotonic() + deadline
        with self._changed:
            while not holds():
                left = end - time.monotonic()
                if left <= 0:
                    told = f"{name or what!r}\nscreen:\n{self.text()}\n{bytes(self.raw[-300:])!r}"
                    raise AssertionError(f"missing: {told}\n{self.events} {self.texts}")
                self._changed.wait(left)

    def wait_for_prompt(self, before: str = "", deadline: float = DEADLINE) -> None:
        """Wait until the last line is a prompt with this typed after it."""
        wanted = (PROMPT + before).rstrip()
        self.wait_for(lambda: self.last() == wanted, deadline, f"{wanted!r} on the last line")

    def run(self, line: str, deadline: float = DEADLINE) -> None:
        """Type a line and wait until it was run and the prompt is back."""
        with self._changed:
            before = self.raw.count(b"\x1b[?2004l")
        self.line(line)
        # Programs that read lines switch bracketed paste on and off again.
        self.wait_for(lambda: self.raw.count(b"\x1b[?2004l") > before, deadline, "the line's end")
        self.wait_for_prompt(deadline=deadline)

    def wait_for_event(self, kind: str, deadline: float = DEADLINE) -> dict[str, Any]:
        """Wait for an event and return the last of its kind."""
        found = lambda: [event for event in self.events if event["event"] == kind]  # noqa: E731
        self.wait_for(found, deadline, f"event {kind}")
        return found()[-1]

    def wait_closed(self, deadline: float = DEADLINE) -> None:
        """Wait until the connection is closed."""
        self.wait_for(lambda: self.closed, deadline, "the close")


def attach(session: Session, **options) -> Attached:
    """Attach to a session and wait for its prompt."""
    terminal = Attached(str(session.daemon.socket), session.name, **options)
    if "read-only" not in options.get("options", ""):
        terminal.wait_for_prompt()
    return terminal


class Stalled:
    """A client that attaches and reads nothing after the answer."""

    def __init__(self, session: Session) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(str(session.daemon.socket))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.socket.recv(4096):
            pass
        self.say(f"attach {session.name} 24 80 --json")
        assert b"ok" in self.socket.recv(4096)

    def say(self, text: str) -> None:
        """Send a command."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text.encode()))
        self.socket.sendall(bytes([0x81, 0x80 | len(masked)]) + mask + masked)

    def close(self) -> None:
        self.socket.close()
