"""Two daemons: `here` has `there` as a remote, by TLS and a proxy that can cut."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cutting import CuttingProxy
from .daemon import Session, TestDaemon
from .waiting import wait_until


@dataclasses.dataclass
class Remote:
    """`name` is what `here` calls `there`."""

    here: TestDaemon
    there: TestDaemon
    proxy: CuttingProxy
    token_file: Path
    name: str = "far"

    @property
    def address(self) -> str:
        """Where `here` reaches `there`."""
        return self.proxy.address

    def connect(
        self, *words: str, name: str | None = None, address: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `pyctl connect` here."""
        return self.here.pyctl(
            *("connect", name or self.name, address or self.address),
            *("--tls", "--token-file", self.token_file, *words),
        )

    def summary(self, name: str | None = None) -> dict[str, Any]:
        """What `ls` tells of it."""
        remotes = self.here.json("ls --json")["remotes"]
        return next(entry for entry in remotes if entry["name"] == (name or self.name))

    def wait_for_state(self, state: str, deadline: float = 45) -> dict[str, Any]:
        """Wait until `ls` tells this state of it."""

        def look() -> dict[str, Any] | None:
            summary = self.summary()
            return summary if summary["state"] == state else None

        return wait_until(look, deadline, what=f"remote is {state}; it is {self.summary()}")

    def new(self, name: str | None = None) -> Session:
        """Create a session there, by the remote; the alias means it if it has no name."""
        reply = self.here.json(f"new {self.path(name)} --json", 120)
        assert reply["ok"], reply
        return Session(self.here, self.path(name), reply)

    def path(self, name: str | None) -> str:
        """How a session there is named here."""
        return f"{self.name}/{name}" if name else self.name


def listening(daemon: TestDaemon, *words: str, port: int = 0, **env: str) -> TestDaemon:
    """Start a daemon that listens by TLS."""
    daemon.process = daemon.spawn("--listen", f"127.0.0.1:{port}", "--tls", *words, **env)
    daemon.wait_until_it_answers()
    return daemon


def port_of(daemon: TestDaemon) -> int:
    """The port where a daemon listens."""
    (listen,) = daemon.info()["listen"]
    return int(listen["address"].rpartition(":")[2])


def copy_token(there: TestDaemon, file: Path) -> str:
    """Write the token of a daemon to a file for another."""
    shown = there.pyctl("token", "show")
    assert shown.returncode == 0, shown.stderr
    token = shown.stdout.split("=")[-1].strip()
    file.touch(mode=0o600)
    file.write_text(token)
    return token


def certificate(there: TestDaemon) -> Path:
    """The certificate that a daemon shows."""
    return there.home / ".pythond" / "tls" / "cert.pem"


def pin(here: TestDaemon, there: TestDaemon, address: str) -> None:
    """Have a daemon believe another at an address."""
    pinned = here.pyctl("pin", certificate(there), address)
    assert pinned.returncode == 0, pinned.stderr


@contextlib.contextmanager
def remote_of(
    make_daemon: Callable[..., TestDaemon],
    *,
    name: str = "far",
    here: TestDaemon | None = None,
    connect: bool = True,
    **env: str,
) -> Iterator[Remote]:
    """Two daemons, connected by a proxy that can cut; `env` is the remote one's."""
    there = listening(make_daemon(**env))
    here = here or make_daemon().start()
    with CuttingProxy(port_of(there)) as proxy:
        remote = Remote(here, there, proxy, here.root / f"{name}.token", name)
        copy_token(there, remote.token_file)
        pin(here, there, proxy.address)
        if connect:
            connected = remote.connect()
            assert connected.returncode == 0, connected.stderr
        yield remote


@contextlib.contextmanager
def lasting_remote(binaries: Path, mark: str) -> Iterator[Remote]:
    """The same for all tests of a file."""
    made: list[TestDaemon] = []

    def make() -> TestDaemon:
        made.append(TestDaemon(binaries, mark))
        return made[-1]

    try:
        with remote_of(make) as remote:
            yield remote
    finally:
        left = [entry for daemon in made for entry in daemon.destroy().items()]
        assert not left, f"processes outlived their daemon: {left}"


def refusal_named_here(text: str, name: str) -> str:
    """Return a structured refusal of the daemon there as it is told here.

    A session has another name there, and what a hint says is typed here.
    """
    if not text.startswith("{") or "code" not in (json.loads(text).get("error") or ()):
        return text
    return text.replace(f"`{name}`", f"`far/{name}`").replace(f" new {name}", f" new far/{name}")
