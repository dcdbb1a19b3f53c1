"""Daemons in networks of their own: packets are lost, connections reset, ways go silent."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.namespaces import Apart, apart, network
from support.terminal import Terminal
from support.waiting import wait_until

TORTURE = bool(os.environ.get("PYTHOND_TORTURE"))

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Apart]:
    """Two daemons in networks of their own, connected."""
    with network() as net, apart(net, make_daemon) as remote:
        connected = remote.connect()
        assert connected.returncode == 0, connected.stderr
        yield remote


def cell(ran: Path, number: int, lines: int, padding: int = 0) -> tuple[str, str]:
    """Code that says in a file that it ran, and what it writes."""
    code = (
        f"with open({str(ran)!r}, 'a') as ran: print({number}, file=ran)\n"
        f"for line in range({lines}): print({number}, line, 'é' * 40)\n"
        f"# {'x' * padding}"
    )
    return code, "".join(f"{number} {line} {'é' * 40}\n" for line in range(lines))


class Caller:
    """Runs cells by way of the daemon here, on one connection."""

    def __init__(self, remote: Apart) -> None:
        self.session = remote.name
        self.wire = remote.here.connect()
        self.calls = 0

    def __call__(self, key: str, code: str) -> str:
        """The cell's output, told by the first call that found a way."""
        while True:
            self.calls += 1
            reply = self.wire.json(f"run {self.session} --json --id={key}\n{code}", 100)
            if reply["ok"]:
                return reply["stdout"]
            # One that finds none is refused, and was not begun.
            assert reply["error"]["code"] == "session_unreachable", reply
            assert "cannot be reached" in reply["error"]["message"], reply


class DirectCaller:
    """Runs cells by a `pysh` each that asks the daemon there itself."""

    def __init__(self, remote: Apart) -> None:
        self.remote = remote
        self.calls = 0

    def __call__(self, key: str, code: str) -> str:
        """The cell's output, told by the first call that ended well."""
        while True:
            self.calls += 1
            client = self.remote.pysh_direct(
                *("run", self.remote.name, "--id", key, "-"), stdin=-1, env=PATIENT
            )
            out, err = client.communicate(code.encode(), timeout=100)
            if client.returncode == 0:
                return out.decode()
            # The first connection was not made: there is nothing to come back to.
            assert client.returncode == 3, (client.returncode, out, err)
            assert out == b"", (out, err)


PATIENT = {"PYTHOND_RECONNECT": "90"}
WAYS = pytest.mark.parametrize("way", [Caller, DirectCaller], ids=["connected", "direct"])


def run_all(
    remote: Apart,
    ran: Path,
    way: type[Caller] | type[DirectCaller],
    cells: dict[int, tuple[str, str]],
    together: int,
) -> int:
    """Run these cells, which must run once each and tell all that they wrote; how many calls."""
    todo = iter(sorted(cells))
    lock = threading.Lock()
    failures: list[BaseException] = []
    callers = [way(remote) for _ in range(together)]

    def work(call: Caller | DirectCaller) -> None:
        try:
            while True:
                with lock:
                    number = next(todo, None)
                if number is None:
                    return
                code, expected = cells[number]
                assert call(f"cell-{number}", code) == expected, number
        except BaseException as failure:
            failures.append(failure)

    workers = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures
    assert sorted(map(int, ran.read_text().split())) == sorted(cells)
    return sum(caller.calls for caller in callers)


@WAYS
def test_each_cell_runs_once_though_a_tenth_of_all_packets_is_lost(
    remote: Apart, tmp_path: Path, way: type[Caller] | type[DirectCaller]
) -> None:
    remote.new()
    ran = tmp_path / "ran"
    cells = {n: cell(ran, n, n * 71 % 1000, n * 7919 % 100_000) for n in range(40)}
    remote.network.lose(10)
    calls = run_all(remote, ran, way, cells, 2)
    print(f"{calls} calls for {len(cells)} cells; {remote.network.counted()} packets were lost")
    assert remote.network.counted() > 5


@WAYS
def test_each_cell_runs_once_though_connections_are_reset_all_the_time(
    remote: Apart, tmp_path: Path, way: type[Caller] | type[DirectCaller]
) -> None:
    remote.new()
    ran = tmp_path / "ran"
    # Without a daemon here each of them is a `pysh`.
    count = 200 if TORTURE or way is Caller else 60
    cells = {n: cell(ran, n, n * 71 % 300) for n in range(count)}
    remote.network.reset(remote.port, 60)
    calls = run_all(remote, ran, way, cells, 4)
    print(f"{calls} calls for {len(cells)} cells; {remote.network.counted()} resets")
    # About a dozen, by chance.
    assert remote.network.counted() >= 1


def until(go: Path) -> str:
    """Code that counts itself and waits for a file."""
    return (
        "count = globals().get('count', 0) + 1\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\ncount"
    )


def wait_until_it_runs(remote: Apart) -> None:
    """Wait until a cell runs in the session there."""
    wait_until(
        lambda: remote.there.json(f"status {remote.name} --json").get("running"),
        what="a running cell",
    )


def wait_until_it_is_named(remote: Apart, longest: float = 30) -> str:
    """Wait until `ls` says what is wrong, while the daemon here serves its own sessions."""
    began = time.monotonic()
    waited = 0.0
    with remote.here.session() as local:

        def named() -> str | None:
            nonlocal waited
            asked = time.monotonic()
            assert local.value("6 * 7") == "42"
            waited = max(waited, time.monotonic() - asked)
            return remote.summary().get("last_error")

        error = wait_until(named, longest, what="word of the remote", every=0.1)
    print(
        f"{error!r} after {time.monotonic() - began:.1f} s; a session here: {waited:.3f} s at most"
    )
    # It is tried again meanwhile.
    listed = remote.here.pysh("ls")
    (line,) = [line for line in listed.stdout.splitlines() if remote.name in line]
    assert line.rpartition("(remote)")[2], line
    return error


def there_hears_nothing(remote: Apart) -> None:
    remote.network.silence(remote.network.there)


def here_hears_nothing(remote: Apart) -> None:
    remote.network.silence(remote.network.here)


def nobody_hears_anything(remote: Apart) -> None:
    remote.network.silence()


@pytest.mark.parametrize(
    "happens",
    [there_hears_nothing, nobody_hears_anything, *([here_hears_nothing] if TORTURE else [])],
)
def test_a_silent_way_is_named_and_what_ran_meanwhile_is_delivered(
    remote: Apart, tmp_path: Path, happens: Callable[[Apart], None]
) -> None:
    session = remote.new()
    go = tmp_path / "go"
    with remote.here.connect() as wire:
        wire.send(f"run {remote.name}\n{until(go)}")
        wait_until_it_runs(remote)
        happens(remote)
        error = wait_until_it_is_named(remote)
        assert "for 20 s" in error, error
        go.touch()
        remote.network.heal()
        assert wire.receive(90) == "1"
    assert session.value("count") == "1"


def test_a_client_without_a_daemon_comes_back_after_a_silence(
    remote: Apart, tmp_path: Path
) -> None:
    session = remote.new()
    go = tmp_path / "go"
    code = f"print('begun', flush=True)\n{until(go)}"
    client = remote.pysh_direct("run", remote.name, code, env=PATIENT, bufsize=0)
    assert client.stdout is not None
    assert client.stderr is not None
    assert client.stdout.readline() == b"begun\n"
    remote.network.silence()
    began = time.monotonic()
    note = client.stderr.readline()
    waited = time.monotonic() - began
    print(f"{note!r} after {waited:.1f} s")
    assert b"nothing for 20 s; waiting up to 90 s for it to come back" in note, note
    assert waited < 30
    go.touch()
    remote.network.heal()
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out) == (0, b"1\n"), err
    assert session.value("count") == "1"


def test_who_is_attached_through_a_remote_learns_that_the_way_is_silent(remote: Apart) -> None:
    remote.new()
    command = [remote.here.binaries / "pysh", "attach", remote.name]
    with Terminal(command, cols=120, env=remote.here.environment | PATIENT) as terminal:
        terminal.wait_for(">>> ")
        remote.network.silence()
        began = time.monotonic()
        terminal.type("x = 4")
        terminal.wait_for_raw(b"does not answer; still waiting; Ctrl-] detaches", 60)
        waited = time.monotonic() - began
        print(f"told after {waited:.1f} s")
        assert waited < 30
        remote.network.heal()
        terminal.type("2\r")
        terminal.type("print(x, 'is back')\r")
        terminal.wait_for("42 is back", 60)
        terminal.press("ctrl-]")
        assert terminal.wait_exit() == 0


def test_who_types_at_a_terminal_learns_that_the_way_is_silent(remote: Apart) -> None:
    remote.new()
    command = [*remote.network.here.wrapper, remote.here.binaries / "pysh", "attach", remote.name]
    with Terminal(command, cols=120, env=remote.direct | PATIENT) as terminal:
        terminal.wait_for(">>> ")
        remote.network.silence()
        began = time.monotonic()
        note = b"nothing for 20 s; waiting up to 90 s for it to come back; Ctrl-] detaches"
        typed = 0
        # Each key is one more thing that the kernel tries to bring there.
        while note not in terminal.raw:
            assert time.monotonic() - began < 30
            terminal.type("7")
            typed += 1
            with contextlib.suppress(AssertionError):
                terminal.wait_for_raw(note, 2)
        print(f"told after {time.monotonic() - began:.1f} s, {typed} keys")
        remote.network.heal()
        terminal.type("\r")
        terminal.wait_for("7" * typed, 60)
        terminal.type("\x1d")
        assert terminal.wait_exit() == 0


def test_a_way_that_swallows_large_packets_is_named(remote: Apart) -> None:
    session = remote.new()
    session.out("ran = []")
    remote.network.swallow_large(600)
    assert session.value("ran.append(0); len(ran)") == "1"
    with remote.here.connect() as wire:
        code = f"ran.append(1); len(ran) # {'x' * 100_000}"
        wire.send(f"run {session.name} --json\n{code}")
        wait_until_it_is_named(remote)
        remote.network.heal()
        reply = json.loads(wire.receive(90))
    assert (reply["ok"], reply["result"]) == (True, "2"), reply
