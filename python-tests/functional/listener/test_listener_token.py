"""The token: what is refused before a request means anything, and how guessing ends."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Machine, Server
from support.waiting import wait_until

Make = Callable[..., TestDaemon]


@pytest.fixture(params=["ws", "wss"])
def server(make_daemon: Make, request: pytest.FixtureRequest) -> Server:
    """A daemon of its own: whoever guessed is not heard for a while."""
    server = Server(make_daemon().listen(tls=request.param == "wss").start())
    assert server.tls is (request.param == "wss")
    return server


def status(answer: bytes) -> int:
    """The status of an HTTP answer; 0 for none."""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found[1]) if found else 0


def log_of(server: Server, text: str) -> str:
    """The access log, once it has this text."""
    log = server.daemon.access_log()
    return wait_until(lambda: log.read_text() if text in log.read_text() else "", what=text)


def told_of(server: Server, expected: int, reason: str, *lines: str, **options: Any) -> None:
    """Check that a request is refused, and the reason in the log, which has room for some only."""
    log = server.daemon.access_log()

    def told() -> bool:
        answer = server.asks(*lines, **options)
        assert status(answer) == expected, answer
        return f"status=rejected {reason}\n" in log.read_text()

    wait_until(told, what=reason, every=0.2)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Authorization: {token}"],
        ["Authorization: Basic {token}"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        ["Authorization:"],
        ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
        ["Authorization: Bearer wrong", "Authorization: Bearer {token}"],
        ["Authorization: Bearer {token}{token}"],
        ["Authorization: Bearer {token}, Bearer {token}"],
        ["Authorization: Bearer {upper}"],
        ["Authorization: Bearer {short}"],
        ["Authorization: Bearer \x80\xff"],
        ["Cookie: token={token}"],
        ["Proxy-Authorization: Bearer {token}"],
        ["X: 1", "Authorization: Bearer " + "x" * 30_000],
    ],
)
def test_nobody_comes_in_without_the_one_token(shared: dict[str, Server], lines: list[str]) -> None:
    for server in shared.values():
        # Each case comes from an address of its own, lest one is taken for a guesser.
        source = f"127.1.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"
        token = server.token
        assert token != token.upper()
        words = {"token": token, "upper": token.upper(), "short": token[:-1]}
        head = [line.format(**words).encode("latin-1") for line in lines]
        with server.stream(source=source) as stream:
            # What follows is never carried out.
            command = raw.frame(b"new sneaked\n{}")
            stream.sendall(raw.request_with(*head))
            answer = raw.head(stream)
            assert status(answer) == 401, answer
            assert b"WWW-Authenticate: Bearer" in answer.title().replace(b"Www", b"WWW"), answer
            assert b" 101 " not in answer
            try:
                stream.sendall(command)
                rest = raw.drain(stream)
            except OSError:
                rest = b""
            assert b"OK" not in rest
        assert "sneaked" not in server.daemon.list()


@pytest.fixture(scope="module")
def shared(binaries: Path, mark: str) -> Iterator[dict[str, Server]]:
    """One that is encrypted and one that is not, for what hurts neither."""
    daemons = [TestDaemon(binaries, mark).listen(tls=tls) for tls in (False, True)]
    try:
        yield {d.arguments[-1]: Server(d.start()) for d in daemons}
    finally:
        left = [entry for daemon in daemons for entry in daemon.destroy().items()]
    assert not left, f"processes outlived their daemon: {left}"


def test_the_scheme_is_written_in_any_case(shared: dict[str, Server]) -> None:
    for server in shared.values():
        for scheme in ("bearer", "BEARER"):
            assert status(server.asks(f"Authorization: {scheme}  {server.token} ")) == 101


def test_web_pages_are_refused_whatever_they_know(shared: dict[str, Server]) -> None:
    for server in shared.values():
        for origin in (
            "https://example.org",
            "null",
            "http://localhost",
            f"https://127.0.0.1:{server.port}",
        ):
            told_of(server, 403, "detail=origin", server.bearer, f"Origin: {origin}")


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "127.0.0.1.example.org",
        "localhost.example.org:80",
        "10.0.0.5",
        "[::2]:7",
        "@localhost",
    ],
)
def test_requests_for_another_host_are_refused_on_loopback(
    shared: dict[str, Server], host: str
) -> None:
    for server in shared.values():
        told_of(server, 403, "detail=host", server.bearer, host=host)
    for good in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:7399"):
        assert status(server.asks(server.bearer, host=good)) == 101


def test_a_request_has_one_host(make_daemon: Make, shared: dict[str, Server]) -> None:
    everywhere = Server(make_daemon().listen("0.0.0.0:0").start())
    for server in (*shared.values(), everywhere):
        for host, lines in ((None, []), ("localhost", ["Host: localhost"]), ("", [])):
            answer = server.asks(server.bearer, *lines, host=host)
            assert status(answer) in (400, 403), (host, lines, answer)
    assert status(everywhere.asks(everywhere.bearer, host="gpu.example:7399")) == 101


def test_heads_that_are_huge_end_and_cost_little(shared: dict[str, Server]) -> None:
    for server in shared.values():
        for huge in (b"X: " + b"y" * 100_000, b"\r\n".join(b"A%d: b" % n for n in range(3000))):
            with server.stream() as stream:
                answer = raw.shake(stream, raw.request_with(server.bearer, huge))
                assert status(answer) != 101, answer
                assert not raw.drain(stream)
        server.ask("ls")


def guess(server: Server, seconds: float, guessers: int, **options: object) -> Counter[int]:
    """Guess from many connections at once, and count what is answered."""
    until = time.monotonic() + seconds

    def guesses(_: int) -> Counter[int]:
        answers: Counter[int] = Counter()
        while time.monotonic() < until:
            line = f"Authorization: Bearer {secrets.token_hex(32)}"
            try:
                answers[status(server.asks(line, **options))] += 1
            except OSError:
                # An alert of TLS.
                answers[0] += 1
        return answers

    with ThreadPoolExecutor(guessers) as pool:
        return sum(pool.map(guesses, range(guessers)), Counter())


def test_guessing_ends_and_the_owner_still_gets_in(server: Server, tmp_path: Path) -> None:
    with server.connect() as there, server.daemon.session() as session:
        assert session.name in there.ask("ls")
        began = time.monotonic()
        answers = guess(server, 3, 50)
        # Ten at once, then one in five seconds: on a machine with much to do the
        # last ones are answered later than they were sent.
        assert 10 <= answers[401] <= 10 + (time.monotonic() - began) // 5, answers
        assert answers[101] == 0, answers
        assert answers[429] + answers[0] > 50, answers
        # Whoever is in stays, the machine's own socket is open, other sources come in.
        assert session.name in there.ask("ls")
        assert session.out("1 + 1") == "2\n"
        assert session.name in server.ask("ls", source="127.0.0.2")
        # The guesser is not let in by the right one either.
        if not server.tls:
            assert status(server.asks(server.bearer)) == 429
        log = log_of(server, "detail=too-many-tokens")
        assert log.count("detail=auth-failed") == answers[401]
        rejected = [line for line in log.splitlines() if "detail=too-many-tokens" in line]
        assert len(rejected) <= 20 * 10
        log_of(server, "event=left_out kind=handshake count=")


def test_no_guesser_keeps_a_trusted_client_out(
    make_daemon: Make, binaries: Path, mark: str, tmp_path: Path
) -> None:
    server = Server(make_daemon().listen(tls=True).start())
    owner, guesser = (Machine(tmp_path / name, binaries, mark) for name in ("owner", "guesser"))
    for machine in (owner, guesser):
        server.machine.trust(machine)
    wait_until(lambda: server.daemon.info()["network"]["client_certificates"], what="it is known")
    # Without a certificate no token is looked at, so no guess counts.
    assert guess(server, 1, 10)[401] == 0
    context = server.context(guesser)
    began = time.monotonic()
    answers = guess(server, 3, 20, context=context)
    assert 10 <= answers[401] <= 10 + (time.monotonic() - began) // 5, answers
    assert answers[429] > 10, answers
    server.ask("ls", owner)
    assert server.daemon.ask("ls") is not None
    assert status(server.asks(server.bearer, context=context)) == 429


def test_a_guess_in_a_while_does_not_add_up(server: Server) -> None:
    wrong = f"Authorization: Bearer {secrets.token_hex(32)}"
    for _ in range(9):
        assert status(server.asks(wrong)) == 401
    # Nine are few enough for somebody who mistyped.
    assert status(server.asks(server.bearer)) == 101


def test_the_token_is_nowhere_to_be_read(server: Server) -> None:
    daemon, token = server.daemon, server.token
    daemon.pyctl("status")
    wrong = secrets.token_hex(32)
    with daemon.session() as session, server.connect() as wire:
        wire.ask(f"run {session.name}\n1")
        server.asks(f"Authorization: Bearer {wrong}")
        server.asks(f"Authorization: Bearer {token}", "Origin: x")
        everything = (
            "import os, sys; print(os.environ, sys.argv, open('/proc/self/environ').read())"
        )
        assert token not in session.out(everything)
        for pid in daemon.processes():
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    text = file.read()
                assert token.encode() not in text, (pid, name)
        daemon.pyctl("restart")
        assert wait_until(lambda: daemon.ask("ls"), what="it is back")
        assert token.encode() not in Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
        assert token.encode() not in Path(f"/proc/{daemon.pid}/environ").read_bytes()
    log_of(server, "detail=origin")
    searched = 0
    for root in (daemon.root, daemon.home, daemon.access_log().parent):
        for folder, _, files in os.walk(root):
            for file in files:
                path = Path(folder) / file
                if path.is_file() and path.name != "daemon.json":
                    searched += 1
                    content = path.read_bytes()
                    assert token.encode() not in content, path
                    assert wrong.encode() not in content, path
    assert searched >= 2
    assert token not in str(daemon.info())
