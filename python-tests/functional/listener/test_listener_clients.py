"""Clients that need a certificate, and files that cannot be read: who comes in."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Machine, Server, fingerprint, made_by_openssl
from support.waiting import wait_until

Make = Callable[..., TestDaemon]


@pytest.fixture
def server(make_daemon: Make) -> Server:
    """A daemon that listens encrypted, and beside that as it is."""
    return Server(make_daemon().listen("127.0.0.1:0", tls=True).start())


@pytest.fixture
def stranger(tmp_path: Path, binaries: Path, mark: str) -> Machine:
    """The machine of somebody who is not."""
    return Machine(tmp_path / "stranger", binaries, mark)


def network(server: Server) -> dict[str, Any]:
    """What the daemon says of who may come in."""
    return server.daemon.info()["network"]


def demand_certificates(server: Server, owner: Machine) -> None:
    """Trust a client, and wait until the daemon knows."""
    server.machine.trust(owner)
    wait_until(lambda: network(server)["client_certificates"], what="certificates are demanded")


def alert(server: Server, **options: Any) -> str:
    """The alert of TLS that a client is refused with that has the token."""
    try:
        answer = server.asks(server.bearer, **options)
    except ssl.SSLError as error:
        return error.reason or ""
    raise AssertionError(f"no alert, but {answer!r}")


def comes_in(server: Server, client: Machine | None = None, **options: Any) -> bool:
    """Whether a client is let in that has the token."""
    try:
        answer = server.asks(server.bearer, client=client, **options)
    except OSError:
        return False
    return answer.startswith(b"HTTP/1.1 101 ")


def test_a_trusted_client_makes_certificates_and_the_token_needed(
    server: Server, owner: Machine, stranger: Machine
) -> None:
    with server.daemon.session() as session:
        assert session.name in server.ask("ls")
        demand_certificates(server, owner)
        assert "need the token and a trusted cert" in server.daemon.pyctl("status").stdout
        assert session.name in server.ask("ls", owner)
        assert server.ask(f"run {session.name}\n6 * 7", owner) == "42"
        assert "CERTIFICATE_REQUIRED" in alert(server)
        assert alert(server, client=stranger)
        log = server.daemon.access_log()
        for reason in (r"certificate\sis\sneeded", r"certificate\sis\snot\strusted"):
            wait_until(lambda reason=reason: reason in log.read_text(), what=reason)
        # The token is needed all the same.
        for line in ("X: y", "Authorization: Bearer " + "0" * 64):
            assert server.asks(line, client=owner).startswith(b"HTTP/1.1 401 ")
        server.machine.trust(stranger)
        wait_until(lambda: comes_in(server, stranger), what="the second is known")
        server.machine.untrust(owner)
        wait_until(lambda: not comes_in(server, owner), what="the first is not known any more")
        assert comes_in(server, stranger)
        server.machine.untrust(stranger)
        wait_until(lambda: comes_in(server), what="no certificate is needed any more")


def test_both_versions_of_tls_demand_the_certificate(server: Server, owner: Machine) -> None:
    demand_certificates(server, owner)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for client in (owner, None):
            context = server.context(client)
            context.minimum_version = context.maximum_version = version
            if client:
                assert server.asks(server.bearer, context=context).startswith(b"HTTP/1.1 101 ")
            else:
                assert alert(server, context=context)


def know_by_fingerprint(server: Server, folder: Path) -> None:
    """Trust a certificate as published versions may, which look at nothing else of it."""
    known = server.machine.trusted / f"{folder.name}.fingerprint"
    known.touch(0o600)
    known.write_text(fingerprint(folder / "cert.pem") + "\n")


@pytest.mark.parametrize(
    ("options", "reason", "logged"),
    [
        ({"until": "20210101000000Z"}, "EXPIRED", "has\\sexpired"),
        ({"since": "20980101000000Z"}, "", "is\\snot\\svalid\\syet"),
        ({"authority": True}, "", "it\\scan\\ssign\\sothers"),
    ],
    ids=["expired", "not yet valid", "an authority"],
)
def test_certificates_of_no_use_are_refused_by_tls(
    server: Server, tmp_path: Path, options: dict[str, Any], reason: str, logged: str
) -> None:
    of_no_use = made_by_openssl(tmp_path / "useless", **options)
    know_by_fingerprint(server, tmp_path / "useless")
    # Once the good one comes in, the daemon has read what is known of the other.
    good = made_by_openssl(tmp_path / "good")
    know_by_fingerprint(server, tmp_path / "good")
    wait_until(lambda: network(server)["client_certificates"], what="certificates are demanded")
    wait_until(lambda: comes_in(server, context=good), what="the good one comes in")
    assert len(server.machine.pyctl("trust")["clients"]) == 2
    assert reason in alert(server, context=of_no_use)
    log = server.daemon.access_log()
    wait_until(
        lambda: any("detail=tls:" in line and logged in line for line in log.open()),
        what=f"{logged} in the log",
    )


def test_what_is_not_encrypted_lets_nobody_in_then(make_daemon: Make, owner: Machine) -> None:
    daemon = make_daemon().listen("127.0.0.1:0", "0.0.0.0:0").start()
    plain, secure = sorted((Server(daemon, 0), Server(daemon, 1)), key=lambda it: it.tls)
    assert (plain.tls, secure.tls) == (False, True)
    plain.ask("ls")
    with plain.shaken() as there:
        demand_certificates(secure, owner)
        answer = plain.asks(plain.bearer)
        assert answer.startswith(b"HTTP/1.1 403 "), answer
        # So is whoever was in.
        assert raw.message(there)[0] == 0x88
    secure.ask("ls", owner)
    log = daemon.access_log()
    wait_until(lambda: "detail=no-certificate" in log.read_text(), what="the reason in the log")


def broken_files(machine: Machine) -> dict[str, tuple[Callable[[], Any], Callable[[], Any], str]]:
    """How a file is damaged, how it is mended, and what is said of it."""
    tls, top = machine.tls, machine.home / ".pythond"
    garbage = machine.trusted / "garbage.pem"
    cert, key, token = tls / "cert.pem", tls / "key.pem", top / "daemon.json"
    kept = {path: path.read_bytes() for path in (cert, key, token)}
    other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

    def written(path: Path, content: bytes) -> Callable[[], Any]:
        return lambda: path.write_bytes(content)

    def mode(path: Path, bits: int) -> Callable[[], Any]:
        return lambda: path.chmod(bits)

    return {
        "garbage among the clients": (
            written(garbage, b"garbage"),
            garbage.unlink,
            "garbage.pem",
        ),
        "an empty file among the clients": (written(garbage, b""), garbage.unlink, "garbage.pem"),
        "half a certificate": (written(garbage, other.encode()), garbage.unlink, "garbage.pem"),
        "clients that others may change": (
            mode(machine.trusted, 0o777),
            mode(machine.trusted, 0o700),
            "trusted_clients",
        ),
        "a key that others can read": (mode(key, 0o644), mode(key, 0o600), "key.pem"),
        "a key that is damaged": (written(key, b"-----BEGIN"), written(key, kept[key]), "key.pem"),
        "a certificate that is damaged": (
            written(cert, b"no"),
            written(cert, kept[cert]),
            "cert.pem",
        ),
        "a key without its certificate": (cert.unlink, written(cert, kept[cert]), "cert.pem"),
        "a directory that others may change": (mode(tls, 0o777), mode(tls, 0o700), "tls"),
        "all of it open to others": (mode(top, 0o777), mode(top, 0o700), ".pythond"),
        "a token that others can read": (mode(token, 0o644), mode(token, 0o600), "daemon.json"),
        "a token that is damaged": (
            written(token, b"{"),
            written(token, kept[token]),
            "daemon.json",
        ),
        "a token that can be guessed": (
            written(token, b'{"token": "short"}'),
            written(token, kept[token]),
            "daemon.json",
        ),
    }


@pytest.mark.parametrize("trusting", [True, False], ids=["with certificates", "with the token"])
def test_damaged_files_let_nobody_in_until_they_are_mended(
    make_daemon: Make, owner: Machine, trusting: bool
) -> None:
    daemon = make_daemon().listen("127.0.0.1:0", "0.0.0.0:0").start()
    plain, server = sorted((Server(daemon, 0), Server(daemon, 1)), key=lambda it: it.tls)
    if trusting:
        demand_certificates(server, owner)
    client = owner if trusting else None
    token, certificate = server.token, (server.machine.tls / "cert.pem").read_bytes()
    context = server.context(client)
    session = daemon.new()
    for name, (damage, mend, said) in broken_files(server.machine).items():
        damage()
        why = wait_until(lambda: network(server).get("error"), what=f"{name} is noticed")
        assert said in why, (name, why)
        for one, context_of_it in ((server, context), (plain, None)):
            try:
                answer = one.asks(f"Authorization: Bearer {token}", context=context_of_it)
            except OSError:
                answer = b""
            assert not answer.startswith(b"HTTP/1.1 101 "), name
            if not one.tls:
                assert answer.startswith(b"HTTP/1.1 503 "), (name, answer)
        told = daemon.pyctl("status")
        assert told.returncode == 0, told
        assert "clients: nobody is let in: " in told.stdout, (name, told)
        assert said in told.stdout, (name, told)
        # Whoever is on this machine is not concerned.
        assert session.out("1 + 1") == "2\n"
        mend()
        wait_until(lambda: "error" not in network(server), what=f"{name} is mended")
        wait_until(lambda: comes_in(server, context=context), what=f"{name}: clients come in again")
        assert token == server.token
    assert (server.machine.tls / "cert.pem").read_bytes() == certificate
    log = daemon.log.read_text()
    assert log.count("WARN: nobody is let in from a network: ") == len(broken_files(server.machine))
    session.kill()


def test_what_is_removed_under_a_daemon_is_not_made_again_silently(
    server: Server, owner: Machine
) -> None:
    demand_certificates(server, owner)
    tls, context = server.machine.tls, server.context(owner)
    token = server.machine.home / ".pythond" / "daemon.json"

    def lets_nobody_in(said: str) -> None:
        why = wait_until(lambda: network(server).get("error"), what=f"{said} is noticed")
        assert said in why
        assert not comes_in(server, context=context)
        assert not comes_in(server)

    shutil.move(server.machine.trusted, tls.parent / "away")
    lets_nobody_in("the directory of trusted clients was removed")
    assert not server.machine.trusted.exists()
    shutil.move(tls.parent / "away", server.machine.trusted)
    wait_until(lambda: comes_in(server, context=context), what="clients come in again")

    kept = token.read_bytes()
    token.unlink()
    wait_until(lambda: network(server).get("error"), what="the token is missed")
    assert "the token was removed" in network(server)["error"]
    assert not token.exists()
    token.write_bytes(kept)
    token.chmod(0o600)
    wait_until(lambda: comes_in(server, context=context), what="clients come in again")

    for name in ("cert.pem", "key.pem"):
        (tls / name).rename(tls.parent / name)
    wait_until(lambda: network(server).get("error"), what="the certificate is missed")
    assert not (tls / "cert.pem").exists()


def test_a_daemon_does_not_begin_to_listen_with_damaged_files(make_daemon: Make) -> None:
    daemon = make_daemon().listen(tls=True)
    machine = Machine.of(daemon)
    machine.certificate()
    machine.pyctl("token", "show")
    machine.trusted.mkdir(mode=0o700)
    for name, (damage, mend, said) in broken_files(machine).items():
        damage()
        for words in (["start"], ["start", "-d"]):
            done = daemon.pyctl(*words, *daemon.arguments)
            assert done.returncode == 4, (name, done)
            assert said in done.stderr, (name, done)
        assert not daemon.socket.exists(), name
        mend()
    daemon.start()
    Server(daemon).ask("ls")


def test_a_restart_with_damaged_files_keeps_the_daemon_and_lets_nobody_in(
    server: Server, owner: Machine
) -> None:
    daemon = server.daemon
    demand_certificates(server, owner)
    context = server.context(owner)
    session = daemon.new()
    session.out("x = 5")
    garbage = server.machine.trusted / "garbage.pem"
    garbage.write_bytes(b"garbage")
    boot = daemon.info()["boot"]
    told = daemon.pyctl("restart")
    assert told.returncode == 0, told
    assert daemon.info()["boot"] != boot
    assert "garbage.pem" in network(server)["error"]
    assert "garbage.pem" in daemon.pyctl("status").stdout
    assert not comes_in(server, context=context)
    assert session.out("x") == "5\n"
    garbage.unlink()
    wait_until(lambda: comes_in(server, context=context), what="it is mended")
    session.kill()
