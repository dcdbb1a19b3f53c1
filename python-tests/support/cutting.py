"""A TCP proxy in the test's process that cuts, stalls and counts connections."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from .waiting import DEADLINE, wait_until

How = Literal["rst", "fin", "half", "stall", "trickle"]
Direction = Literal["up", "down"]
"""`up` is from the client to the server."""


@dataclasses.dataclass
class Cut:
    """What happens to one connection.

    Attributes:
        how: `rst` and `fin` close it; `half` takes what comes and forwards nothing;
            `stall` takes nothing; `trickle` forwards byte by byte.
        after: Bytes in the direction after which it happens.
        direction: Which bytes are counted.
        ends: Seconds after which a half, stalled or trickling connection is reset.
        piece: Bytes that a trickling connection forwards at once.
        interval: Seconds between two of them.
    """

    how: How
    after: int = 0
    direction: Direction = "down"
    ends: float | None = None
    piece: int = 1
    interval: float = 0.005


Plan = Callable[[int], "Cut | None"]
"""What happens to the n-th connection, from 1."""


class _Pair:
    """One connection of a client and the one to the server."""

    def __init__(self, proxy: CuttingProxy, cut: Cut | None) -> None:
        self.proxy = proxy
        self.cut = cut
        self.mode: How | None = None
        self.passed = {"up": 0, "down": 0}
        self.writers: list[asyncio.StreamWriter] = []
        self.stalled = asyncio.Event()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        self.writers.append(writer)
        try:
            there, to_there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            self.close("rst")
            return
        self.writers.append(to_there)
        await asyncio.gather(self._pump("up", reader, to_there), self._pump("down", there, writer))
        self.close("fin")

    async def _pump(
        self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while self.mode not in ("rst", "fin"):
                if self.mode == "stall":
                    await self.stalled.wait()
                data = await reader.read(1 << 16)
                if not data:
                    break
                await self._forward(way, data, writer)
            if self.mode == "half":
                self.close("rst")
            elif writer.can_write_eof() and self.mode is None:
                writer.write_eof()
        except OSError:
            # A reset passes through, as it does on a wire.
            if self.mode != "stall":
                self.close("rst")

    async def _forward(self, way: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        cut = self.cut
        if cut and self.mode is None and cut.direction == way:
            left = cut.after - self.passed[way]
            if left <= len(data):
                await self._write(way, data[: max(left, 0)], writer)
                self.apply(cut)
                data = data[max(left, 0) :]
        if self.mode == "trickle" and self.cut:
            while data and self.mode == "trickle":
                piece, data = data[: self.cut.piece], data[self.cut.piece :]
                await self._write(way, piece, writer)
                await asyncio.sleep(self.cut.interval)
        if self.mode is None:
            await self._write(way, data, writer)

    async def _write(self, way: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        if data:
            self.passed[way] += len(data)
            self.proxy.bytes[way] += len(data)
            writer.write(data)
            await writer.drain()

    def apply(self, cut: Cut) -> None:
        """Do it now."""
        self.cut = cut
        if cut.how in ("rst", "fin"):
            self.close(cut.how)
            return
        self.mode = cut.how
        if cut.ends is not None:
            asyncio.get_running_loop().call_later(cut.ends, self.close, "rst")

    def close(self, how: How) -> None:
        """Close both connections."""
        if self.mode not in ("rst", "fin"):
            self.mode = how
        self.stalled.set()
        self.proxy.pairs.discard(self)
        for writer in self.writers:
            if how == "rst":
                with contextlib.suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                writer.transport.abort()
            else:
                writer.close()


class CuttingProxy:
    """Forwards to a port of this machine; use it as a context.

    Attributes:
        target: The port that connections are forwarded to.
        plan: Decides what happens to new connections.
        accepted: Connections so far.
        bytes: Bytes forwarded so far, by direction.
    """

    def __init__(self, target: int, plan: Plan | None = None) -> None:
        self.target = target
        self.plan = plan
        self.accepted = 0
        self.bytes = {"up": 0, "down": 0}
        self.pairs: set[_Pair] = set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self.cut("rst")
        self._do(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def _settle(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections that are there now."""
        return len(self.pairs)

    def listen(self, port: int | None = None) -> None:
        """Take connections, again on the same port or on another."""
        self._do(self._listen(self.port if port is None else port))

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no more connections; those that are there stay."""
        self._do(self._refuse())

    async def _refuse(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    def move(self) -> int:
        """Take connections on another port from now on, and cut those that are there."""
        self.refuse()
        self.listen(0)
        self.cut("rst")
        return self.port

    def cut(self, how: How, **options: Any) -> int:
        """Do it to all connections now; says how many there were."""

        async def apply() -> int:
            pairs = list(self.pairs)
            for pair in pairs:
                pair.apply(Cut(how, **options))
            return len(pairs)

        return self._do(apply())

    def cut_after(self, how: How, after: int, direction: Direction = "down") -> None:
        """Do it to all connections once they have forwarded so many bytes in all."""

        async def arm() -> None:
            for pair in self.pairs:
                pair.cut = Cut(how, after, direction)

        self._do(arm())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        pair = _Pair(self, self.plan(self.accepted) if self.plan else None)
        self.pairs.add(pair)
        with contextlib.suppress(asyncio.CancelledError):
            await pair.serve(reader, writer, self.target)

    def wait_for_connection(self, more_than: int = 0) -> None:
        """Wait until more connections than these have come."""
        wait_until(lambda: self.accepted > more_than, what="a connection at the proxy")


def random_plan(seed: int, cuts: int, most: int = 12_000) -> Plan:
    """Return a plan that cuts each of the first connections somewhere.

    Those that are half open, stall or trickle are reset soon: whether one that stays
    so is noticed is another question.
    """
    chance = random.Random(seed)

    def plan(number: int) -> Cut | None:
        if number > cuts:
            return None
        how: How = chance.choice(["rst", "rst", "fin", "half", "stall", "trickle"])
        return Cut(
            how,
            after=chance.randrange(most),
            direction=chance.choice(["up", "down"]),
            ends=chance.uniform(0.05, 0.8),
            piece=chance.choice([1, 16, 256]),
        )

    return plan
