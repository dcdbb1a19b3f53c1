"""Two machines in one: network namespaces, a cable between them, and its faults.

What comes in is dropped or refused at either end by nftables, so that whoever sent
it hears as much as from a real network.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cutting import CuttingProxy
from .daemon import TestDaemon
from .processes import is_alive
from .remotes import Remote, copy_token, pin, port_of

PREFIX = "pd-test"
HERE, THERE = "192.0.2.1", "192.0.2.2"
"""Addresses that are for examples: RFC 5737. Each pair of namespaces has them."""

_numbers = itertools.count()
# Where people without the rights of root have no programs of root's on their PATH.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words,
        env=os.environ | {"PATH": _PATH, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done


@functools.cache
def why_not() -> str | None:
    """Why there can be no namespaces here, or nothing if there can."""
    missing = [word for word in ("ip", "nft", "nsenter") if not shutil.which(word, path=_PATH)]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: iproute2, nftables, util-linux)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"{PREFIX}-{os.getpid()}-try"
    tried = [
        ["ip", "netns", "add", name],
        ["ip", "-n", name, "link", "add", "name", "a", "type", "veth", "peer", "name", "b"],
        ["ip", "netns", "exec", name, "nft", "add", "table", "inet", "test"],
    ]
    try:
        for words in tried:
            done = _run(*words, check=False)
            if done.returncode != 0:
                return f"the kernel refuses `{' '.join(words)}`: {done.stderr.strip()}"
    finally:
        _run("ip", "netns", "del", name, check=False)
    return None


def clear_stale() -> None:
    """Remove namespaces of test processes that are gone."""
    for line in _run("ip", "netns", "list").stdout.splitlines():
        name = line.split()[0]
        pid = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(PREFIX) and pid.isdigit() and not is_alive(int(pid)):
            # Another test process may do the same.
            _run("ip", "netns", "del", name, check=False)


class Namespace:
    """One machine's network."""

    def __init__(self, end: str, address: str) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}-{end}"
        self.address = address
        _run("ip", "netns", "add", self.name)

    def remove(self) -> None:
        """Remove it; what still runs in it keeps its half of nothing."""
        _run("ip", "netns", "del", self.name, check=False)

    @property
    def wrapper(self) -> list[str]:
        """Words before those of a program that is to run in it."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def set_up(self) -> None:
        """Give it its address, when the cable is there."""
        # Of two addresses the second stays when the first is taken away.
        promote = "echo 1 >/proc/sys/net/ipv4/conf/all/promote_secondaries"
        _run(*self.wrapper, "sh", "-c", promote)
        self.add_address(self.address)
        self._ip("link", "set", "lo", "up")
        self._ip("link", "set", "cable", "up")
        self._nft("add table inet test")
        self._nft("add chain inet test in { type filter hook input priority 0; }")

    def _ip(self, *words: str) -> None:
        _run("ip", "-n", self.name, *words)

    def _nft(self, *words: str) -> str:
        return _run(*self.wrapper, "nft", *words).stdout

    def add_address(self, address: str) -> None:
        """Give it one more address."""
        self._ip("addr", "add", f"{address}/24", "dev", "cable")

    def remove_address(self, address: str) -> None:
        """Take an address away, with all that was bound to it."""
        self._ip("addr", "del", f"{address}/24", "dev", "cable")

    def rule(self, rule: str) -> None:
        """Judge what comes in by a rule of nftables, after those that are there."""
        self._nft(f"add rule inet test in {rule}")

    def heal(self) -> None:
        """Let everything in again."""
        self._nft("flush chain inet test in")

    def counted(self) -> int:
        """Packets that the rules which count have met."""
        listed = json.loads(self._nft("-j", "list", "chain", "inet", "test", "in"))
        rules = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
        return sum(
            word["counter"]["packets"]
            for rule in rules
            for word in rule["expr"]
            if isinstance(word.get("counter"), dict)
        )


class Network:
    """The namespaces `here` and `there`, and the cable between them."""

    def __init__(self) -> None:
        clear_stale()
        self.ends: list[Namespace] = []
        try:
            self.here = self._end("here", HERE)
            self.there = self._end("there", THERE)
            names = self.here.name, self.there.name
            cable = ["link", "add", "name", "cable", "netns", names[0], "type", "veth", "peer"]
            _run("ip", *cable, "name", "cable", "netns", names[1])
            for end in self.ends:
                end.set_up()
        except BaseException:
            self.remove()
            raise

    def _end(self, end: str, address: str) -> Namespace:
        self.ends.append(Namespace(end, address))
        return self.ends[-1]

    def remove(self) -> None:
        """Remove both ends."""
        for end in self.ends:
            end.remove()

    def lose(self, percent: int) -> None:
        """Lose so many of a hundred packets, both ways."""
        for end in self.ends:
            end.rule(f"numgen random mod 100 < {percent} counter drop")

    def silence(self, *ends: Namespace) -> None:
        """Let nothing reach these ends, or either."""
        for end in ends or self.ends:
            end.rule("drop")

    def swallow_large(self, most: int) -> None:
        """Lose packets of more bytes without a word, as a way with a hidden lower MTU does."""
        for end in self.ends:
            end.rule(f"meta length > {most} counter drop")

    def reset(self, port: int, one_of: int) -> None:
        """Reset a connection to a port at one of so many of its packets, at either end."""
        # Not at its first: that nobody listens is another answer.
        for end, of in (self.there, "dport"), (self.here, "sport"):
            end.rule(
                f"tcp {of} {port} tcp flags & syn == 0 numgen random mod {one_of} == 0 "
                "counter reject with tcp reset"
            )

    def counted(self) -> int:
        """Packets that were lost or refused since it was well."""
        return sum(end.counted() for end in self.ends)

    def heal(self) -> None:
        """Be a good network again."""
        for end in self.ends:
            end.heal()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Two namespaces for the length of a block; the test is skipped where there can be none."""
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    made = Network()
    try:
        yield made
    finally:
        made.remove()


class Apart(Remote):
    """`here` and `there` are on machines of their own."""

    def __init__(self, network: Network, here: TestDaemon, there: TestDaemon) -> None:
        # Nothing stands between them.
        proxy: CuttingProxy = None  # type: ignore[assignment]
        super().__init__(here, there, proxy, here.root / "far.token")
        self.network = network
        self.port = port_of(there)
        self.token = copy_token(there, self.token_file)
        pin(here, there, self.address)

    @property
    def address(self) -> str:
        """Where `here` reaches `there`."""
        return self.at(THERE)

    def at(self, address: str) -> str:
        """How `there` is reached at one of its addresses."""
        return f"{address}:{self.port}"

    @property
    def direct(self) -> dict[str, str]:
        """The environment of a client here that asks `there` without a daemon between."""
        return self.here.environment | {
            "PYTHOND_HOST": self.address,
            "PYTHOND_TLS": "1",
            "PYTHOND_TOKEN": self.token,
        }

    def pysh_direct(self, *words: str | Path, **options) -> subprocess.Popen[bytes]:
        """Start `pysh` in the network of `here`; it asks `there` itself."""
        return subprocess.Popen(
            [*self.network.here.wrapper, self.here.binaries / "pysh", *words],
            env=self.direct | options.pop("env", {}),
            cwd=self.here.work,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )


@contextlib.contextmanager
def apart(network: Network, make_daemon: Callable[..., TestDaemon]) -> Iterator[Apart]:
    """A daemon in each namespace, which are not connected yet."""
    there = make_daemon().listen("0.0.0.0:0", tls=True)
    here = make_daemon()
    there.wrapper = network.there.wrapper
    here.wrapper = network.here.wrapper
    yield Apart(network, here.start(), there.start())
