"""Both ends of `pyctl pair`: one that shows a code, one that types it."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any

from .daemon import TestDaemon
from .network import Machine
from .waiting import DEADLINE, wait_until


class Offer:
    """`pyctl --json pair` at a daemon, with the code that it shows; use it as a context.

    The end of one that was killed may take its time to come to the daemon: it is waited for.
    """

    def __init__(self, daemon: TestDaemon, *words: str) -> None:
        def begin() -> bool:
            self._begin(daemon, words)
            busy = self.shown.get("error", {}).get("code") == "busy"
            if busy:
                self._close()
            return not busy

        wait_until(begin, what="no other code is open")
        assert self.shown["event"] == "code", self.shown
        self.code: str = self.shown["code"]

    def _begin(self, daemon: TestDaemon, words: tuple[str, ...]) -> None:
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = daemon.popen(
            *("pyctl", "--json", "pair", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.shown = self.next()

    def __enter__(self) -> Offer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.process.stderr
        assert self.process.stdout
        self.process.stderr.close()
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self) -> dict[str, Any]:
        """The next line that it prints."""
        line = self._lines.get(timeout=DEADLINE)
        assert line is not None, "it has ended"
        return line

    def end(self) -> tuple[int, dict[str, Any]]:
        """How it ends, and its last line."""
        last = self.next()
        while (line := self._lines.get(timeout=DEADLINE)) is not None:
            last = line
        return self.process.wait(DEADLINE), last

    @property
    def wrong(self) -> str:
        """A code that is another."""
        last = (int(self.code[-1]) + 1) % 10
        return f"{self.code[:-1]}{last}"


def type_code(
    machine: Machine, address: str, code: str, *words: str | Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `pyctl pair ADDRESS` on a machine, with the code on standard input."""
    return subprocess.run(
        [str(machine.binaries / "pyctl"), "pair", address, *map(str, words)],
        env=machine.environment | env,
        input=f"{code}\n",
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_nobody_is_known(server: TestDaemon, client: Machine) -> None:
    """See that neither trusts the other."""
    assert not Machine.of(server).pyctl("trust")["clients"]
    assert not client.pyctl("pin")["pins"]
