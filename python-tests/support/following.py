"""Reading the events of a cell up to their reply."""

from __future__ import annotations

import base64
import json

from .wire import Wire


def raw(stream: str | dict[str, str]) -> bytes:
    """Return the bytes of a piece of output in either form."""
    return stream.encode() if isinstance(stream, str) else base64.b64decode(stream["data_b64"])


class Follower:
    """Reads events up to the reply."""

    def __init__(self, wire: Wire, request: str) -> None:
        self.wire = wire
        self.events: list[dict] = []
        self.streams = {1: bytearray(), 2: bytearray()}
        self.missing = 0
        wire.send(request)

    def next(self, timeout: float = 30) -> dict:
        """Return the next message."""
        message = json.loads(self.wire.receive(timeout))
        if message.get("event") == "output":
            data = raw(message.pop("data"))
            message["bytes"] = len(data)
            self.streams[message["stream"]] += data
        elif message.get("event") == "gap":
            self.missing += message["missing"]
        self.events.append(message)
        return message

    def reply(self, timeout: float = 60) -> dict:
        """Read to the reply and return it."""
        while "event" in (message := self.next(timeout)):
            pass
        return message
