"""Connections that were let in, when what let them in is taken back; and restarts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import Close

from support import raw
from support.daemon import TestDaemon
from support.network import Machine, Server
from support.waiting import wait_until
from support.wire import Wire

Make = Callable[..., TestDaemon]


def goodbye(wire: Wire) -> Close | None:
    """Read until a connection is closed, and return what was said last."""
    try:
        while True:
            wire.socket.recv(20)
    except ConnectionClosed as closed:
        return closed.rcvd


class Company:
    """Connections in all states: idle, waiting, attached, and one that reads nothing."""

    def __init__(self, server: Server, client: Machine | None, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.session = stack.enter_context(server.daemon.session())
        session = self.session.name

        def connect() -> Wire:
            return stack.enter_context(server.connect(client))

        self.idle = connect()
        assert session in self.idle.ask("ls")
        self.silent = stack.enter_context(server.shaken(client))
        self.waiting = connect()
        self.started = server.daemon.work / "started"
        self.go = server.daemon.work / "go"
        self.code = (
            "import os, time\n"
            f"open({str(self.started)!r}, 'w').close()\n"
            f"while not os.path.exists({str(self.go)!r}): time.sleep(0.02)\n"
            "'it ran to its end'"
        )
        self.waiting.send(f"run {session} --json --id=k-of-the-dismissed\n{self.code}")
        wait_until(self.started.exists, what="the cell has begun")
        self.attached = connect()
        assert self.attached.ask(f"attach {session} 24 80").startswith("OK attached")
        # It asks for more than any buffer holds, and never reads.
        noisy = stack.enter_context(server.daemon.session())
        cell = noisy.fire("while True: print('x' * 10_000)")
        self.deaf = server.shaken(client)
        stack.callback(self.deaf.close)
        # Small, so that it is full soon.
        self.deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        self.deaf.sendall(raw.frame(f"out {noisy.name} {cell} --follow".encode()))
        self.deaf_name = "{}:{}".format(*self.deaf.getsockname())
        wait_until(lambda: self.stalled(), what="the one that does not read is stalled")

    def stalled(self) -> bool:
        """Whether the kernel holds bytes for it that it does not take."""
        before = self.unread()
        time.sleep(0.05)
        return self.unread() == before > 1000

    def unread(self) -> int:
        """Bytes that wait for the one that does not read."""
        port = f":{self.deaf.getsockname()[1]:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            # One that is closed may have had the same port, to another address.
            if words[1].endswith(port) and words[3] == "01":
                return int(words[4].split(":")[1], 16)
        return 0

    def all_dismissed(self, code: int, reason: str) -> float:
        """Check that all are told and closed, and return how long the last took."""
        began = time.monotonic()
        for wire in (self.idle, self.waiting, self.attached):
            told = goodbye(wire)
            assert told is not None
            assert (told.code, told.reason) == (code, reason)
        first, told = raw.message(self.silent)
        assert first == 0x88
        assert told == code.to_bytes(2, "big") + reason.encode()
        log = self.server.daemon.access_log()
        gone = f"peer=tls:{self.deaf_name}"
        wait_until(
            lambda: any(
                gone in line and "event=disconnect" in line for line in log.read_text().splitlines()
            ),
            what="the one that does not read is closed",
        )
        return time.monotonic() - began

    def the_cell_goes_on(self) -> None:
        """Check that the cell runs on, and that its result is found by its key."""
        assert self.session.status()["state"] == "running"
        self.go.touch()
        request = f"run {self.session.name} --json --id=k-of-the-dismissed\n{self.code}"
        reply = self.server.daemon.json(request)
        assert reply["ok"], reply
        assert reply["existing"], reply
        assert reply["result"] == "it ran to its end"


def changes(server: Server, owner: Machine) -> dict[str, tuple[Callable[[], object], int, str]]:
    """What is taken back, and what a client is told."""
    mine = server.machine
    return {
        "untrust": (
            lambda: mine.untrust(owner),
            1008,
            "this client is not trusted any more",
        ),
        "token": (lambda: mine.pyctl("token", "rotate"), 1008, "the token was rotated"),
        "certificate": (
            lambda: mine.pyctl("cert", "rotate", "--now"),
            1012,
            "the certificate was rotated",
        ),
        "trust": (
            lambda: mine.trust(owner),
            1008,
            "this client is not trusted any more",
        ),
    }


@pytest.mark.parametrize("change", ["untrust", "token", "certificate", "trust"])
def test_what_is_taken_back_ends_connections_and_no_cell(
    server: Server, owner: Machine, tmp_path: Path, binaries: Path, mark: str, change: str
) -> None:
    client = None if change == "trust" else owner
    if change == "untrust":
        # Another one stays trusted, lest certificates are not demanded any more.
        server.machine.trust(Machine(tmp_path / "another", binaries, mark))
    if client:
        server.machine.trust(owner)
        wait_until(lambda: server.daemon.info()["network"]["client_certificates"])
        wait_until(lambda: lets_in(server, owner), what="the client is known")
    token = server.token
    act, code, reason = changes(server, owner)[change]
    with contextlib.ExitStack() as stack:
        company = Company(server, client, stack)
        act()
        took = company.all_dismissed(code, reason)
        print(f"{change}: all were dismissed within {took:.3f} s of the command's end")
        company.the_cell_goes_on()
        # Newcomers meet the same.
        assert not lets_in(server, client, token) or change == "certificate"
        if change in ("token", "certificate"):
            assert lets_in(server, client)
        if change == "trust":
            assert lets_in(server, owner)


def lets_in(server: Server, client: Machine | None, token: str | None = None) -> bool:
    """Whether a client is let in."""
    try:
        server.connect(client, token=token).close()
    except (OSError, InvalidHandshake, ConnectionClosed):
        return False
    return True


def test_whoever_is_still_right_stays(
    server: Server, owner: Machine, tmp_path: Path, binaries: Path, mark: str
) -> None:
    another = Machine(tmp_path / "another", binaries, mark)
    server.machine.trust(owner)
    wait_until(lambda: server.daemon.info()["network"]["client_certificates"])
    with server.connect(owner) as stays:
        server.machine.trust(another)
        wait_until(lambda: lets_in(server, another))
        with server.connect(another) as goes:
            server.machine.pyctl("cert", "rotate")
            server.machine.untrust(another)
            with pytest.raises(ConnectionClosed):
                goes.socket.recv(20)
        assert stays.ask("ls") == server.daemon.ask("ls")


def test_those_who_are_in_stay_while_files_cannot_be_read(server: Server, owner: Machine) -> None:
    with server.connect() as stays:
        garbage = server.machine.trusted / "garbage.pem"
        server.machine.pyctl("trust")
        garbage.write_bytes(b"garbage")
        wait_until(lambda: server.daemon.info()["network"].get("error"), what="it is noticed")
        assert stays.ask("ls") == server.daemon.ask("ls")
        # What can be read counts all the same.
        server.machine.pyctl("token", "rotate")
        with pytest.raises(ConnectionClosed) as closed:
            stays.socket.recv(20)
        assert closed.value.rcvd.reason == "the token was rotated"


def test_the_last_client_that_is_untrusted_goes_and_the_owner_is_told(
    server: Server, owner: Machine
) -> None:
    server.machine.trust(owner)
    wait_until(lambda: not lets_in(server, None), what="certificates are demanded")
    with server.connect(owner) as goes:
        certificate = owner.certificate()
        done = server.machine.run("pyctl", "untrust", certificate)
        assert done.returncode == 0, done
        assert "`pyctl token rotate`" in done.stderr
        assert goodbye(goes).reason == "this client is not trusted any more"


@pytest.mark.parametrize(
    "looks",
    [
        ["trust"],
        ["untrust", "AB:" * 31 + "AB"],
        ["pin"],
        ["unpin", "10.0.0.5"],
        ["token", "rotate"],
    ],
)
def test_what_was_removed_is_not_made_again_by_who_looks(
    server: Server, owner: Machine, looks: list[str]
) -> None:
    server.machine.trust(owner)
    wait_until(lambda: not lets_in(server, None), what="certificates are demanded")
    shutil.rmtree(server.machine.trusted)
    wait_until(lambda: server.daemon.info()["network"].get("error"), what="it is noticed")
    server.machine.run("pyctl", *looks)
    assert not server.machine.trusted.exists()
    server.machine.trust(owner)
    wait_until(lambda: lets_in(server, owner))


def test_a_lock_that_somebody_has_holds_up_nobody(server: Server) -> None:
    lock = server.daemon.home / ".pythond" / "identity.lock"
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        certificate = server.machine.tls / "cert.pem"
        certificate.write_bytes(b"")
        # Whoever looks waits for the lock, and everybody else is served.
        began = time.monotonic()
        while time.monotonic() - began < 3:
            asked = time.monotonic()
            server.daemon.ask("ls")
            assert time.monotonic() - asked < 2.5


def test_an_announced_certificate_takes_over_by_itself(server: Server) -> None:
    shown = server.machine.pyctl("cert")["fingerprint"]
    server.machine.pyctl("cert", "rotate")
    tls = server.machine.tls
    assert server.daemon.info()["network"]["certificate"] == shown
    next_one = (tls / "next-cert.pem").read_text()
    with server.connect() as wire:
        at = json.dumps(int(time.time()) + 1)
        (tls / "next-from").write_text(at + "\n")
        with pytest.raises(ConnectionClosed) as closed:
            wire.socket.recv(20)
        assert closed.value.rcvd.code == 1012
    assert (tls / "cert.pem").read_text() == next_one
    server.ask("ls")


class Knocker:
    """Somebody who connects again and again, and notes every refusal."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.refused: list[Exception] = []
        self.connected = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._knock)

    def __enter__(self) -> Knocker:
        self._thread.start()
        return self

    def _knock(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection((self.server.reachable, self.server.port), 20):
                    self.connected += 1
            except OSError as error:
                self.refused.append(error)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_ports_stay_open_when_the_daemon_restarts(make_daemon: Make) -> None:
    daemon = make_daemon().listen("127.0.0.1:0", "[::1]:0", "0.0.0.0:0").start()
    servers = [Server(daemon, number) for number in range(3)]
    told = daemon.info()["listen"]
    with daemon.session() as session, contextlib.ExitStack() as stack:
        session.out("x = 5")
        knockers = [stack.enter_context(Knocker(server)) for server in servers]
        for _ in range(5):
            boot = daemon.info()["boot"]
            wires = [stack.enter_context(server.connect()) for server in servers]
            for wire in wires:
                wire.ask("ls")
            done = daemon.pyctl("restart")
            assert done.returncode == 0, done
            for wire, server in zip(wires, servers, strict=True):
                with pytest.raises(ConnectionClosed) as closed:
                    wire.socket.recv(20)
                assert closed.value.rcvd.code == 1012
                assert server.ask(f"run {session.name}\nx") == "5"
            assert daemon.info()["boot"] != boot
            assert daemon.info()["listen"] == told
        before = [knocker.connected for knocker in knockers]
        wait_until(lambda: all(k.connected > b for k, b in zip(knockers, before, strict=True)))
        assert [knocker.refused for knocker in knockers] == [[], [], []]


def test_a_handshake_that_a_restart_interrupts_is_no_answer(server: Server) -> None:
    # A zygote that is there by now is taken over.
    server.daemon.new("warm").kill()
    with server.stream() as waiting, server.tcp() as silent:
        assert server.daemon.pyctl("restart").returncode == 0
        for stream in (waiting, silent):
            assert raw.drain(stream) == b""
    server.ask("ls")
