"""Where the daemon listens for other machines, and what is no place for that."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Machine, Server
from support.waiting import wait_until

Make = Callable[..., TestDaemon]


@contextlib.contextmanager
def taken_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server((host, 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    """A port that nobody listens on at this moment, in either family."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        return other.getsockname()[1]


def test_several_addresses_of_both_families_are_told_and_used(make_daemon: Make) -> None:
    daemon = make_daemon().listen("127.0.0.1:0", "[::1]:0", "127.0.0.2:0").start()
    told = daemon.info()["listen"]
    assert len(told) == 3
    hosts = {Server(daemon, number).host for number in range(3)}
    assert hosts == {"127.0.0.1", "127.0.0.2", "::1"}
    shown = daemon.pyctl("status").stdout
    log = daemon.log.read_text()
    for number, endpoint in enumerate(told):
        server = Server(daemon, number)
        assert not server.tls
        assert server.ask("ls") == daemon.ask("ls")
        assert f"listening: ws://{endpoint['address']}\n" in shown
        assert f"ws://{endpoint['address']}\n" in log
    assert "clients: need the token\n" in shown


def test_whatever_others_can_reach_is_encrypted_and_both_families_have_one_port(
    make_daemon: Make,
) -> None:
    port = free_port()
    daemon = make_daemon().listen(f"0.0.0.0:{port}", f"[::]:{port}", "127.0.0.1:0").start()
    servers = [Server(daemon, number) for number in range(3)]
    assert {(s.host, s.tls) for s in servers} == {
        ("0.0.0.0", True),
        ("::", True),
        ("127.0.0.1", False),
    }
    for server in servers:
        assert server.ask("ls") == daemon.ask("ls")


def test_every_address_of_ipv6_alone_has_those_of_ipv4_too(make_daemon: Make) -> None:
    server = Server(make_daemon().listen("[::]:0").start())
    assert server.tls
    server.ask("ls")
    server.host = "127.0.0.1"
    server.ask("ls")
    log = server.daemon.access_log()
    for peer in ("[::1]", "127.0.0.1"):
        wait_until(lambda peer=peer: f"peer=tls:{peer}:" in log.read_text(), what=peer, deadline=5)


def test_a_port_alone_is_for_every_address(make_daemon: Make) -> None:
    port = free_port()
    server = Server(make_daemon().listen(str(port)).start())
    assert (server.host, server.port, server.tls) == ("0.0.0.0", port, True)


def test_a_host_alone_has_the_known_port(make_daemon: Make) -> None:
    # An address that no other test uses, lest the port is taken.
    server = Server(make_daemon().listen("127.73.99.1").start())
    assert (server.host, server.port) == ("127.73.99.1", 7399)
    server.ask("ls")


@pytest.mark.parametrize(
    "address", ["", "host:", "h:x", "1.2.3.4:65536", "[::1", "a b:7", "http://x:7", "u@h:7", "h:-1"]
)
def test_what_is_no_address_is_told_and_nothing_starts(make_daemon: Make, address: str) -> None:
    daemon = make_daemon()
    for program, words in (
        ("pyctl", ["start"]),
        ("pyctl", ["start", "-d"]),
        ("pythond", ["daemon"]),
    ):
        done = daemon.client(program, *words, f"--listen={address}")
        assert done.returncode == 2, done
        assert "no address to listen on" in done.stderr, done
        assert done.stdout == ""
    assert not daemon.socket.exists()


@pytest.mark.parametrize("address", ["192.0.2.1:0", "no-such-host.invalid:7399"])
def test_addresses_that_are_not_here_are_told(make_daemon: Make, address: str) -> None:
    daemon = make_daemon()
    for words in (["start"], ["start", "-d"]):
        done = daemon.pyctl(*words, f"--listen={address}")
        assert done.returncode == 4, done
        assert address.rpartition(":")[0] in done.stderr, done
        assert "no address of this machine" in done.stderr or "is not known" in done.stderr, done
    assert not daemon.socket.exists()


@pytest.mark.parametrize("words", [["start"], ["start", "-d"]], ids=["here", "detached"])
def test_a_taken_port_is_told_at_once_and_nothing_of_it_stays(
    make_daemon: Make, words: list[str]
) -> None:
    daemon = make_daemon()
    with taken_port() as port:
        done = daemon.pyctl(*words, "--listen=127.0.0.1:0", f"--listen=127.0.0.1:{port}")
        assert done.returncode == 4, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done
        assert f"cannot listen on 127.0.0.1:{port} (another program does" in done.stderr, done
    assert not daemon.socket.exists()
    assert daemon.processes() == {}
    # With the port free again the same words start one.
    daemon.listen(f"127.0.0.1:{port}").start()
    assert Server(daemon).port == port


@pytest.mark.parametrize("words", [["start"], ["start", "-d"]], ids=["here", "detached"])
def test_a_daemon_that_runs_is_not_touched_by_another_that_cannot_listen(
    make_daemon: Make, words: list[str]
) -> None:
    daemon = make_daemon().listen().start()
    server = Server(daemon)
    with server.connect() as wire, daemon.session() as session:
        session.out("x = 5")
        before = daemon.info()["pid"], session.pid
        for address in (f"127.0.0.1:{server.port}", "127.0.0.1:0"):
            done = daemon.pyctl(*words, f"--listen={address}")
            assert done.returncode == 4, done
            assert str(daemon.pid) in done.stderr, done
        # Neither is one with another socket, in the same home.
        other = {"PYTHOND_SOCK": str(daemon.runtime / "other" / "d.sock")}
        done = daemon.pyctl(*words, f"--listen=127.0.0.1:{server.port}", env=other)
        assert done.returncode == 4, done
        assert wire.ask(f"run {session.name}\nx") == "5"
        assert (daemon.info()["pid"], session.status()["pid"]) == before
        assert session.out("x") == "5\n"


def test_started_in_the_background_it_prints_the_token_only_if_asked(make_daemon: Make) -> None:
    daemon = make_daemon()
    for asked in (False, True):
        words = ["start", "-d", "--listen=127.0.0.1:0", "--tls", *(["--show-token"] * asked)]
        done = daemon.pyctl(*words)
        assert done.returncode == 0, done
        server = Server(daemon)
        fingerprint = Machine.of(daemon).pyctl("cert")["fingerprint"]
        secrets = f"token={server.token}\nfingerprint={fingerprint}\n"
        assert (secrets in done.stdout) is asked, done
        assert server.token not in done.stderr
        assert server.ask("ls") == daemon.ask("ls")
        pid = daemon.info()["pid"]
        assert daemon.pyctl("stop").returncode == 0
        wait_until(lambda pid=pid: pid not in daemon.processes(), what="the daemon is gone")


def test_started_in_the_foreground_the_token_is_on_stdout_alone(make_daemon: Make) -> None:
    daemon = make_daemon()
    words = ["start", "--listen=127.0.0.1:0", "--tls", "--show-token"]
    daemon.process = daemon.popen("pyctl", *words)
    daemon.wait_until_it_answers()
    token = Server(daemon).token
    daemon.process.terminate()
    out, errors = daemon.process.communicate(timeout=20)
    assert f"token={token}\n".encode() in out
    assert token.encode() not in errors
    assert b"wss://127.0.0.1:" in errors


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_the_port_is_free_again_at_once_after_a_crash(make_daemon: Make, tls: bool) -> None:
    daemon = make_daemon().listen(tls=tls).start()
    server = Server(daemon)
    daemon.listen(f"127.0.0.1:{server.port}", tls=tls)
    session = daemon.new()
    session.out("x = 5")
    for _ in range(3):
        with server.shaken(), server.stream():
            daemon.crash()
        daemon.start()
        assert server.ask(f"run {session.name}\nx") == "5"
    session.kill()


def test_sessions_have_nothing_of_the_listener(make_daemon: Make) -> None:
    daemon = make_daemon().listen("127.0.0.1:0", tls=True).start()
    server = Server(daemon)
    code = (
        "import os\n"
        "[t for t in (os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{n}')) if t.startswith('socket:')]"
    )
    with daemon.session() as session, server.connect():
        inodes = re.findall(r"socket:\[(\d+)\]", session.value(code) or "")
        # Every TCP socket of this machine, by inode.
        tcp = {
            line.split()[9]
            for name in ("tcp", "tcp6")
            for line in open(f"/proc/net/{name}").read().splitlines()[1:]
        }
        assert not tcp & set(inodes)
        daemon.crash()
        with pytest.raises(ConnectionRefusedError):
            server.tcp()
        daemon.start()
        assert session.out("1") == "1\n"


def test_a_plain_request_to_an_encrypted_port_ends_and_the_other_way_round(
    make_daemon: Make,
) -> None:
    daemon = make_daemon().listen(tls=True).start()
    server = Server(daemon)
    with server.tcp() as stream:
        # An alert of TLS at most, and never an answer of HTTP.
        answer = raw.shake(stream, raw.request_with(server.bearer))
        assert b"HTTP" not in answer
        assert len(answer) < 32
    server.ask("ls")
    plain = Server(make_daemon().listen().start())
    plain.machine.certificate()
    plain.tls = True
    with pytest.raises(OSError):
        plain.stream()
    plain.tls = False
    plain.ask("ls")
