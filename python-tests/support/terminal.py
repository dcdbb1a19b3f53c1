"""A terminal with a person at it: a program on a PTY, and its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

from .waiting import DEADLINE

LEADER = Path(__file__).with_name("terminal_leader.py")
KEYS = {
    "enter": "\r",
    "tab": "\t",
    "esc": "\x1b",
    "backspace": "\x7f",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "home": "\x1b[H",
    "end": "\x1b[F",
    "delete": "\x1b[3~",
}
PASTE_BEGIN = "\x1b[200~"
PASTE_END = "\x1b[201~"
PRIVATE_MODE = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")


class Terminal:
    """A program on a PTY of its own, with a screen model; use it as a context.

    A thread reads what the program writes, keeps all of it in `raw`, and draws
    it. Every wait is for an event, with a deadline.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        rows: int = 24,
        cols: int = 80,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        answers: bool = True,
    ) -> None:
        """Start a program in the foreground of a new terminal.

        Args:
            command: Program and arguments.
            rows: Lines; 0 with `cols` 0 is a terminal that does not know its
                size, whose model has 24 by 80.
            cols: Characters in a line.
            env: Environment; TERM is `xterm-256color` unless it says otherwise.
            cwd: Where the program starts.
            answers: Whether the terminal answers queries (DA, DSR).
        """
        self._changed = threading.Condition()
        self._raw = bytearray()
        self.model_faults: list[str] = []
        self._model = pyte.Screen(cols or 80, rows or 24)
        self._stream = pyte.ByteStream(self._model)
        self.pid = 0
        self.stopped: int | None = None
        self.returncode: int | None = None
        self._paused = threading.Event()
        self._master, follower = pty.openpty()
        os.set_blocking(self._master, False)
        self._set_size(rows, cols)
        self.modes_before = self.modes()
        if answers:
            self._model.write_process_input = self._answer
        self._status, status = os.pipe()
        self._wake, self._waker = os.pipe()
        environment = dict(os.environ if env is None else env)
        environment.setdefault("TERM", "xterm-256color")
        # Without site-packages it is there at once.
        self._leader = subprocess.Popen(
            [sys.executable, "-ISE", LEADER, str(follower), str(status), *map(str, command)],
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE,
            pass_fds=(follower, status),
            start_new_session=True,
        )
        os.close(status)
        # Kept open: the modes can be asked for until the end.
        self._follower = follower
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(lambda: self.pid, DEADLINE, "the program has started")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the person does.

    def type(self, text: str | bytes) -> None:
        """Type this, however long it takes the program to read it."""
        data = text.encode() if isinstance(text, str) else text
        end = time.monotonic() + DEADLINE
        while data:
            try:
                data = data[os.write(self._master, data) :]
                end = time.monotonic() + DEADLINE
            except BlockingIOError:
                left = end - time.monotonic()
                assert left > 0, f"the program does not read; {len(data)} bytes are left"
                select.select([], [self._master], [], left)

    def press(self, *keys: str) -> None:
        """Press keys: `ctrl-]`, `enter`, `up`, …, or one character."""
        for key in keys:
            if key.startswith("ctrl-"):
                self.type(chr(ord(key[5:].upper()) & 0x1F))
            else:
                self.type(KEYS.get(key, key))

    def unread(self) -> int:
        """Return how many typed bytes the program has not read."""
        count = fcntl.ioctl(self._follower, termios.FIONREAD, b"\0\0\0\0")
        return struct.unpack("i", count)[0]

    def paste(self, text: str) -> None:
        """Paste as a terminal with bracketed paste does."""
        self.type(f"{PASTE_BEGIN}{text}{PASTE_END}")

    def resize(self, rows: int, cols: int) -> None:
        """Give the window another size; the kernel tells the program."""
        with self._changed:
            self._model.resize(rows or 24, cols or 80)
        self._set_size(rows, cols)

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the terminal as a window that is closed or a lost `ssh` does."""
        os.write(self._waker, b"h")
        with self._changed:
            assert self._changed.wait_for(lambda: self._master < 0, DEADLINE)

    def pause(self) -> None:
        """Read no more of what the program writes, as after Ctrl-S."""
        self._paused.set()
        os.write(self._waker, b"!")

    def go_on(self) -> None:
        """Read again."""
        self._paused.clear()
        os.write(self._waker, b"!")

    # What the person sees.

    def screen(self) -> list[str]:
        """Return the lines of the screen without blanks at their ends."""
        with self._changed:
            return [line.rstrip() for line in self._model.display]

    def text(self) -> str:
        """Return the screen without blanks at the ends of lines and below."""
        return "\n".join(self.screen()).rstrip()

    def _lines(self) -> str:
        """The screen with its blanks, and once more without those at the ends of lines."""
        with self._changed:
            return "\n".join([*self._model.display, *self.screen()])

    def cursor(self) -> tuple[int, int]:
        """Return row and column of the cursor, from 0."""
        with self._changed:
            return self._model.cursor.y, self._model.cursor.x

    @property
    def cursor_is_visible(self) -> bool:
        """Whether the cursor is shown."""
        with self._changed:
            return not self._model.cursor.hidden

    @property
    def raw(self) -> bytes:
        """All bytes that the program has written."""
        with self._changed:
            return bytes(self._raw)

    def private_modes(self) -> set[int]:
        """Return the modes of DECSET that are on, in the order of the bytes."""
        modes = {7, 25}
        for numbers, switch in PRIVATE_MODE.findall(self.raw):
            for number in filter(None, numbers.split(b";")):
                (modes.add if switch == b"h" else modes.discard)(int(number))
        return modes

    def modes(self) -> list[Any]:
        """Return the terminal's modes as tcgetattr(3) has them."""
        return termios.tcgetattr(self._master)

    def size(self) -> tuple[int, int]:
        """Return rows and columns as the kernel has them."""
        rows, cols, _, _ = struct.unpack(
            "HHHH", fcntl.ioctl(self._master, termios.TIOCGWINSZ, bytes(8))
        )
        return rows, cols

    # Waiting.

    def wait_for(
        self, what: str | Callable[[Terminal], Any], deadline: float = DEADLINE
    ) -> list[str]:
        """Wait until a text stands on the screen, or a predicate holds.

        A predicate is asked after each change. Returns the screen.
        """
        if isinstance(what, str):
            self._wait(lambda: what in self._lines(), deadline, f"{what!r} on the screen")
        else:
            self._wait(lambda: what(self), deadline, f"{what} of the screen")
        return self.screen()

    def wait_for_raw(self, what: bytes, deadline: float = DEADLINE) -> int:
        """Wait until these bytes were written; return where they end."""
        self._wait(lambda: what in self._raw, deadline, f"{what!r} among the bytes")
        return self.raw.index(what) + len(what)

    def wait_for_raw_mode(self, deadline: float = DEADLINE) -> None:
        """Wait until the terminal is in raw mode, for which there is no event."""
        end = time.monotonic() + deadline
        while self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG):
            assert time.monotonic() < end, f"not in raw mode:\n{self._told()}"
            with self._changed:
                self._changed.wait(0.005)

    def wait_exit(self, deadline: float = DEADLINE) -> int:
        """Wait for the program's end; return its exit code, negative for a signal."""
        self._wait(lambda: self.returncode is not None, deadline, "the program's end")
        assert self.returncode is not None
        # What it wrote last is there already; the reader needs only to take it.
        self._wait(lambda: self._drained or self._paused.is_set(), deadline, "the last bytes")
        return self.returncode

    def wait_stopped(self, deadline: float = DEADLINE) -> int:
        """Wait until the program is stopped by a signal, and return which."""
        self._wait(lambda: self.stopped is not None, deadline, "the program is stopped")
        assert self.stopped is not None
        return self.stopped

    def _wait(self, predicate: Callable[[], Any], deadline: float, what: str) -> None:
        end = time.monotonic() + deadline
        with self._changed:
            while not predicate():
                left = end - time.monotonic()
                # Nothing comes after the end: no need to wait for it.
                over = self.returncode is not None and self._drained
                if left <= 0 or over:
                    raise AssertionError(f"missing: {what}\n{self._told()}")
                self._changed.wait(left)

    def _told(self) -> str:
        with self._changed:
            return (
                f"exit code {self.returncode}; screen:\n{self.text()}\n"
                f"last bytes: {bytes(self._raw[-400:])!r}\nfaults: {self.model_faults}"
            )

    # The machinery.

    _drained = False

    def _set_size(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def _answer(self, data: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._master, data.encode())

    def _read(self) -> None:
        status = b""
        open_status = True
        while True:
            wanted = [self._wake]
            if self._master >= 0 and not self._paused.is_set():
                wanted.append(self._master)
            if open_status:
                wanted.append(self._status)
            ready = select.select(wanted, [], [])[0]
            why = os.read(self._wake, 1) if self._wake in ready else b""
            if why == b"q":
                return
            if why == b"h":
                with self._changed:
                    os.close(self._master)
                    self._master, self._drained = -1, True
                    self._changed.notify_all()
                continue
            # First the end, then the bytes: all that came before it is read.
            if self._status in ready:
                got = os.read(self._status, 4096)
                open_status = bool(got)
                *lines, status = (status + got).split(b"\n")
                self._take_status(lines)
            if self._master in ready:
                self._take_bytes()
            while self.returncode is not None and self._master in wanted and not self._drained:
                self._take_bytes()

    def _take_status(self, lines: list[bytes]) -> None:
        with self._changed:
            for line in lines:
                word, number = line.split()
                if word == b"pid":
                    self.pid = int(number)
                elif word == b"exit":
                    self.returncode = int(number)
                else:
                    self.stopped = int(number) or None
            self._changed.notify_all()

    def _take_bytes(self) -> None:
        """Read what is there."""
        try:
            data = os.read(self._master, 65536)
        except BlockingIOError:
            with self._changed:
                if self.returncode is not None:
                    self._drained = True
                    self._changed.notify_all()
            return
        with self._changed:
            self._raw += data
            try:
                self._stream.feed(data)
            except Exception as fault:  # The model has faults of its own.
                self.model_faults.append(f"{fault!r} at {data[:200]!r}")
                self._stream = pyte.ByteStream(self._model)
            self._changed.notify_all()

    def close(self) -> None:
        """End the program and its leader, and give everything back."""
        if self.returncode is None and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        assert self._leader.stdin is not None
        self._leader.stdin.close()
        try:
            self._leader.wait(5)
        except subprocess.TimeoutExpired:
            self._leader.kill()
            self._leader.wait()
        if self._reader.is_alive():
            with contextlib.suppress(OSError):
                os.write(self._waker, b"q")
            self._reader.join(5)
        for descriptor in (self._master, self._follower, self._status, self._wake, self._waker):
            if descriptor >= 0:
                os.close(descriptor)
