"""What tests of floods share: what is sent, and who must be served meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

from . import processes, raw
from .daemon import Session, TestDaemon
from .network import Server
from .waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))
OPEN_FILES = 256
"""The most that a daemon of these tests may have open."""
MOST_MEMORY = 32 << 20
"""What a daemon may have in use after a flood, beyond what it had before."""


@contextlib.contextmanager
def back_to_base(daemon: TestDaemon) -> Iterator[None]:
    """Check that a daemon's descriptors and threads are in the end as before."""
    descriptors, threads = processes.descriptors(daemon.pid), processes.threads(daemon.pid)
    yield
    began = time.monotonic()
    wait_until(
        lambda: processes.descriptors(daemon.pid) <= descriptors,
        what=f"{descriptors} descriptors, as before the flood",
    )
    print(f"all descriptors were back after {time.monotonic() - began:.3f} s")
    assert processes.threads(daemon.pid) <= threads
    with daemon.session() as session:
        assert session.out("1 + 1") == "2\n"
    assert "panicked" not in daemon.log.read_text(errors="replace")


class Bystander:
    """A client that was there before the flood, and is served all the time.

    Args:
        session: What it asks, by the daemon's socket.
        server: Where it asks the same from another machine, if there is one.
    """

    def __init__(self, session: Session, server: Server | None = None) -> None:
        self.session = session
        # Whoever guesses wrong comes from another address.
        self.far = server.connect(source="127.0.0.2") if server else None
        self.served = 0
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Bystander:
        self.session.out("0")
        if self.far:
            self.far.ask("ls")
        self._thread.start()
        return self

    def _ask(self) -> None:
        try:
            while not self._stop.wait(0.005):
                began = time.monotonic()
                assert self.session.out("1 + 1") == "2\n"
                if self.far:
                    assert self.far.ask(f"run {self.session.name}\n2 + 2") == "4"
                self.longest = max(self.longest, time.monotonic() - began)
                self.served += 1
        except BaseException as failure:
            self.failure = failure

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self.far:
            self.far.close()
        print(f"the bystander was served {self.served} times, in {self.longest:.3f} s at most")
        assert self.failure is None, self.failure
        assert self.served > 0


def at_once(work: Callable[[int], None], seeds: range) -> None:
    """Do it in threads, one for each seed; a failure of one is one of all."""
    failures: list[BaseException] = []

    def tries(seed: int) -> None:
        try:
            work(seed)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=tries, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


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


def pester(
    silent: Callable[[], socket.socket], shaken: Callable[[], socket.socket], count: int, seed: int
) -> None:
    """Send malformed handshakes, frames and commands.

    Args:
        silent: Opens a connection that has said nothing.
        shaken: Opens one that was let in.
        count: How many of them all.
        seed: What chance begins with.
    """
    chosen = random.Random(seed)
    sent = 0
    while sent < count:
        if chosen.random() < 0.2:
            with silent() as stream, contextlib.suppress(OSError):
                stream.sendall(chosen.choice(HANDSHAKES))
                stream.shutdown(socket.SHUT_WR)
                raw.drain(stream)
            sent += 1
            continue
        with shaken() as stream, contextlib.suppress(OSError):
            # Commands are answered and the connection lives; a frame ends it.
            batch = chosen.choices(COMMANDS, k=min(100, count - sent))
            stream.sendall(b"".join(raw.frame(command) for command in batch))
            stream.sendall(chosen.choice(FRAMES))
            stream.shutdown(socket.SHUT_WR)
            raw.drain(stream)
            sent += len(batch) + 1
