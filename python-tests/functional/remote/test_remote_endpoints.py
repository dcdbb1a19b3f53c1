"""Several ways to a remote daemon, some of them bad."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cutting import Cut, CuttingProxy
from support.daemon import TestDaemon
from support.processes import marked
from support.remotes import Remote, pin, port_of, remote_of
from support.waiting import wait_until


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Remote]:
    """Two daemons that are not connected yet."""
    with remote_of(make_daemon, connect=False) as remote:
        yield remote


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where connections are taken and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_the_first_that_answers_wins(remote: Remote, closed: str, silent: str) -> None:
    good = remote.proxy.address
    connected = remote.connect("--endpoint", silent, "--endpoint", good, address=closed)
    assert connected.returncode == 0, connected.stderr
    summary = remote.summary()
    assert summary["endpoints"] == [closed, silent, good]
    assert summary["endpoint"] == good
    attempts = summary["endpoint_attempts"]
    assert [attempt["endpoint"] for attempt in attempts] == [closed, silent, good]
    assert attempts[0]["error"] == "nobody listens there"
    assert "no answer" in attempts[1]["error"]
    assert "error" not in attempts[2]
    assert remote.new().value("1") == "1"


def test_a_remote_that_moves_is_found_at_its_other_address(remote: Remote) -> None:
    with CuttingProxy(port_of(remote.there)) as other:
        other.refuse()
        pin(remote.here, remote.there, other.address)
        assert remote.connect("--endpoint", other.address).returncode == 0
        session = remote.new()
        session.out("x = 1")
        remote.proxy.refuse()
        other.listen()
        with remote.here.connect() as wire:
            wire.send(f"run {session.name}\nx += 1; time.sleep(0.5); x")
            remote.proxy.cut("rst")
            assert wire.receive() == "2"
        assert remote.summary()["endpoint"] == other.address


def test_one_that_somebody_has_to_see_to_does_not_stop_the_tries_of_another(
    remote: Remote, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with CuttingProxy(port_of(remote.there)) as not_pinned:
        good = remote.proxy.address
        assert remote.connect("--endpoint", good, address=not_pinned.address).returncode == 0
        session = remote.new()
        with remote.here.connect() as wire:
            wire.send(
                f"run {session.name}\n"
                f"import os\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n'done'"
            )
            wait_until(lambda: session.status()["running"], what="a running cell")
            remote.proxy.refuse()
            tried = not_pinned.accepted
            remote.proxy.cut("rst")
            not_pinned.wait_for_connection(tried + 2)
            summary = remote.wait_for_state("down")
            assert "is pinned to" in summary["last_error"], summary
            remote.proxy.listen()
            go.touch()
            assert wire.receive() == "done"
        assert remote.summary()["endpoint"] == good


def test_none_that_answers_is_told_with_all_reasons(remote: Remote, closed: str) -> None:
    remote.proxy.refuse()
    refused = remote.connect("--endpoint", closed)
    assert refused.returncode != 0
    for address in (closed, remote.proxy.address):
        assert f"{address}: nobody listens there" in refused.stderr
    assert remote.here.json("ls --json").get("remotes", []) == []


def test_a_trickling_remote_leaves_others_alone(
    remote: Remote, make_daemon: Callable[..., TestDaemon]
) -> None:
    assert remote.connect().returncode == 0
    session = remote.new()
    local = remote.here.new()
    with remote_of(make_daemon, name="other", here=remote.here) as other:
        beside = other.new()
        before = remote.proxy.bytes["down"]
        remote.proxy.cut("trickle", interval=0.005)
        with remote.here.connect() as wire:
            wire.send(f"run {session.name}\n'x' * 3000")
            for number in range(100):
                assert local.value(str(number)) == str(number)
                assert beside.value(str(number)) == str(number)
            # It is still on its way, byte by byte.
            assert remote.proxy.bytes["down"] - before < 3000
            assert wire.receive() == "x" * 3000


def test_the_token_is_nowhere_to_be_seen(remote: Remote) -> None:
    token = remote.token_file.read_text()
    given = remote.here.pyctl(
        *("connect", remote.name, remote.proxy.address, "--tls", "--token-stdin"), input=token
    )
    assert given.returncode == 0, given.stderr
    session = remote.new()
    seen = session.out("import os; print(dict(os.environ))")
    seen += remote.here.ask("ls --json") + remote.here.ask("info") + given.stdout + given.stderr
    for daemon in (remote.here, remote.there):
        seen += daemon.access_log().read_text() + daemon.log.read_text()
        for pid in marked(daemon.mark, str(daemon.runtime)):
            for part in ("cmdline", "environ"):
                seen += Path(f"/proc/{pid}/{part}").read_bytes().decode(errors="replace")
    assert "far" in seen
    assert token not in seen
    kept = [path for path in remote.here.root.rglob("*.remote") if token in path.read_text()]
    assert [oct(path.stat().st_mode & 0o777) for path in kept] == ["0o600"]
    assert os.getuid() == kept[0].stat().st_uid


def test_words_of_a_stranger_show_no_control_characters(remote: Remote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = remote.here.popen(
            *("pyctl", "connect", "odd", f"127.0.0.1:{port}", "--token-file", remote.token_file)
        )
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(
                b"HTTP/1.1 500 Odd\r\nContent-Length: 23\r\n\r\n"
                b"\x1b[2Jhello\x07\xe2\x80\xaeworld\nline"
            )
            out, err = client.communicate(timeout=30)
        assert client.returncode != 0
        for text in (out, err, remote.here.log.read_bytes()):
            for bad in (b"\x1b", b"\x07", "\u202e".encode()):
                assert bad not in text
        assert b"hello" in err


def test_a_connection_that_stays_half_open_is_given_up(remote: Remote) -> None:
    assert remote.connect().returncode == 0
    session = remote.new()
    session.out("ran = []")
    remote.proxy.plan = lambda _: None
    for pair in list(remote.proxy.pairs):
        pair.cut = Cut("half", 0)
    answer = session.run("ran.append(1); len(ran)", 90)
    assert answer["result"] == "1", json.dumps(answer)
