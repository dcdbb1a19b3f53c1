"""Machines that move: their addresses change, they sleep, and what runs goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.namespaces import HERE, THERE, Apart, apart, network
from support.remotes import pin
from support.terminal import Terminal

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))
ASLEEP = 600 if TORTURE else 24
"""Seconds: longer than anybody believes that a silent machine is there."""
ELSEWHERE_HERE, ELSEWHERE_THERE = "192.0.2.11", "192.0.2.12"
PATIENT = {"PYTHOND_RECONNECT": "900"}

pytestmark = pytest.mark.timeout(ASLEEP + 180)


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Apart]:
    """Two daemons in networks of their own, connected."""
    with network() as net, apart(net, make_daemon) as remote:
        net.there.add_address(ELSEWHERE_THERE)
        pin(remote.here, remote.there, remote.at(ELSEWHERE_THERE))
        connected = remote.connect("--endpoint", remote.at(ELSEWHERE_THERE))
        assert connected.returncode == 0, connected.stderr
        yield remote


class Work:
    """A cell that waits for a file, the client that asked for it, and a terminal beside."""

    def __init__(self, remote: Apart, session: str, go: Path, direct: bool) -> None:
        self.remote = remote
        self.session = session
        self.go = go
        code = (
            "count = globals().get('count', 0) + 1; print('begun', flush=True)\n"
            f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('é' * 100_000)"
        )
        pysh: list[str | Path] = [remote.here.binaries / "pysh"]
        name = f"{remote.name}/{session}"
        if direct:
            pysh, name = [*remote.network.here.wrapper, *pysh], session
        env = (remote.direct if direct else remote.here.environment) | PATIENT
        self.terminal = Terminal([*pysh, "attach", name], env=env, cwd=remote.here.work)
        self.client: subprocess.Popen[bytes] | None = None
        try:
            self.terminal.wait_for(">>> ")
            self.client = subprocess.Popen(
                [*pysh, "run", name, code],
                env=env,
                cwd=remote.here.work,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
            assert self.client.stdout is not None
            assert self.client.stdout.readline() == b"begun\n"
        except BaseException:
            self.close()
            raise

    def may_end(self) -> None:
        """Let the cell end, and type the half of a line."""
        self.terminal.type("typed = 'be")
        self.go.touch()

    def ends(self, deadline: float = 120) -> None:
        """The cell's output comes to the same call, and the terminal goes on."""
        assert self.client is not None
        out, err = self.client.communicate(timeout=deadline)
        assert self.client.returncode == 0, err
        assert out.decode() == "é" * 100_000 + "\n"
        self.terminal.type("fore'; typed\r")
        self.terminal.wait_for("\n'before'", deadline)
        self.terminal.press("ctrl-]")
        assert self.terminal.wait_exit() == 0, self.terminal.text()
        assert self.remote.there.ask(f"run {self.session}\ncount, typed") == "(1, 'before')"

    def close(self) -> None:
        """End both clients."""
        self.go.touch()
        if self.client is not None:
            self.client.kill()
            self.client.communicate()
        self.terminal.close()


@contextlib.contextmanager
def at_work(remote: Apart, folder: Path) -> Iterator[list[Work]]:
    """Cells that run and terminals that are attached, by the daemon here and without it."""
    with contextlib.ExitStack() as stack:
        works = []
        for session, direct in ("connected", False), ("direct", True):
            remote.new(session)
            works.append(Work(remote, session, folder / session, direct))
            stack.callback(works[-1].close)
        yield works


def all_end(works: list[Work]) -> None:
    """All cells end, and all terminals go on."""
    for work in works:
        work.may_end()
    for work in works:
        work.ends()


def test_a_client_that_gets_another_address_goes_on(remote: Apart, tmp_path: Path) -> None:
    with at_work(remote, tmp_path) as works:
        remote.network.here.remove_address(HERE)
        remote.network.here.add_address(ELSEWHERE_HERE)
        all_end(works)


def test_a_remote_that_loses_its_address_is_found_at_another(remote: Apart, tmp_path: Path) -> None:
    with at_work(remote, tmp_path) as (work, _):
        assert remote.summary()["endpoint"] == remote.at(THERE)
        remote.network.there.remove_address(THERE)
        all_end([work])
        assert remote.summary()["endpoint"] == remote.at(ELSEWHERE_THERE)


@contextlib.contextmanager
def asleep(pids: list[int]) -> Iterator[None]:
    """Nothing of these processes runs."""
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("end", ["here", "there"])
def test_a_machine_that_sleeps_goes_on_when_it_wakes_up(
    remote: Apart, tmp_path: Path, end: str
) -> None:
    daemon, net = {
        "here": (remote.here, remote.network.here),
        "there": (remote.there, remote.network.there),
    }[end]
    with at_work(remote, tmp_path) as works:
        # All of the machine: the daemon, what runs its sessions, and its clients.
        pids = list(daemon.processes())
        if end == "here":
            assert {work.client.pid for work in works if work.client} <= set(pids)
        remote.network.silence(net)
        with asleep(pids):
            # How long it sleeps is what is tried.
            time.sleep(ASLEEP)
        remote.network.heal()
        all_end(works)
