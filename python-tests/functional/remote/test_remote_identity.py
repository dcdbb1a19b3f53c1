"""A server that is not believed hears no word; each reason has its own message."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.remotes import Remote, certificate, remote_of
from support.waiting import wait_until


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Remote]:
    """Two daemons that are not connected yet."""
    with remote_of(make_daemon, connect=False) as remote:
        yield remote


class Recorder:
    """Accepts connections, shows a certificate if it has one, and keeps what comes."""

    def __init__(self, pair: tuple[Path, Path] | None = None) -> None:
        self.heard = b""
        self.decrypted = b""
        self.met = 0
        self._context = None
        if pair:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*pair)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(20)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.met += 1
            connection.settimeout(20)
            with connection, contextlib.suppress(OSError):
                self._meet(connection)

    def _meet(self, connection: socket.socket) -> None:
        if self._context is None:
            self.heard += connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        while data := connection.recv(1 << 16):
            self.heard += data
            incoming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                self.decrypted += tls.read(1 << 16)
            connection.sendall(outgoing.read())


def openssl_pair(place: Path, *options: str) -> tuple[Path, Path]:
    """Make a key and a certificate for 127.0.0.1."""
    place.mkdir()
    cert, key = place / "cert.pem", place / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 "
        f"-keyout {key} -out {cert} -subj /CN=pythond -addext basicConstraints=critical,CA:FALSE "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
        "-addext extendedKeyUsage=serverAuth,clientAuth"
    )
    subprocess.run([*command.split(), *options], check=True, capture_output=True, timeout=60)
    return cert, key


def refused(remote: Remote, recorder: Recorder, reason: str) -> str:
    """Connect, which must fail for this reason without a word of ours; say what was told."""
    done = remote.connect("--json", address=recorder.address, name="bad")
    assert json.loads(done.stdout)["error"]["reason"] == reason, done
    done = remote.connect(address=recorder.address, name="bad")
    assert done.returncode != 0
    assert recorder.met > 0
    token = remote.token_file.read_bytes()
    for heard in (recorder.heard, recorder.decrypted):
        assert token not in heard
        assert b"Bearer" not in heard
    # A record of a TLS handshake, or nothing.
    assert recorder.heard[:2] == b"\x16\x03"
    assert recorder.decrypted == b""
    assert "bad" not in remote.here.ask("ls")
    return done.stderr


def test_a_key_that_is_not_pinned(remote: Remote, tmp_path: Path) -> None:
    with Recorder(openssl_pair(tmp_path / "x")) as recorder:
        told = refused(remote, recorder, "server_unpinned")
    assert "no certificate is pinned for" in told, told
    assert f"pyctl pin CERT {recorder.address}" in told


def test_another_key_than_the_pinned_one(remote: Remote, tmp_path: Path) -> None:
    with Recorder(openssl_pair(tmp_path / "x")) as recorder:
        pinned = remote.here.pyctl("pin", certificate(remote.there), recorder.address)
        assert pinned.returncode == 0, pinned.stderr
        told = refused(remote, recorder, "server_key_changed")
    assert f"pyctl unpin {recorder.address}" in told, told


def test_a_key_that_is_pinned_to_another_address(remote: Remote, tmp_path: Path) -> None:
    with Recorder(openssl_pair(tmp_path / "x")) as recorder:
        pinned = remote.here.pyctl("pin", tmp_path / "x" / "cert.pem", "127.0.0.1:9")
        assert pinned.returncode == 0, pinned.stderr
        told = refused(remote, recorder, "server_wrong_address")
    assert "127.0.0.1:9" in told, told


def of_the_past(pair: tuple[Path, Path], place: Path) -> tuple[Path, Path]:
    """The same key in a certificate that is not valid any more."""
    place.mkdir()
    (place / "index.txt").touch()
    (place / "serial").write_text("01\n")
    (place / "ca.cnf").write_text(
        "[ca]\ndefault_ca = this\n"
        f"[this]\ndatabase = {place}/index.txt\nserial = {place}/serial\n"
        f"new_certs_dir = {place}\ndefault_md = sha256\npolicy = any\nx509_extensions = ext\n"
        "[any]\ncommonName = supplied\n"
        "[ext]\nbasicConstraints = critical,CA:FALSE\n"
        "subjectAltName = DNS:localhost,IP:127.0.0.1\nextendedKeyUsage = serverAuth,clientAuth\n"
    )
    request, cert = place / "request.pem", place / "cert.pem"
    for command in (
        f"openssl req -new -key {pair[1]} -subj /CN=pythond -out {request}",
        f"openssl ca -batch -selfsign -config {place}/ca.cnf -keyfile {pair[1]} -in {request} "
        f"-startdate 20200101000000Z -enddate 20210101000000Z -notext -out {cert}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, timeout=60)
    return cert, pair[1]


def test_a_certificate_that_has_expired(remote: Remote, tmp_path: Path) -> None:
    pair = openssl_pair(tmp_path / "now")
    with Recorder(of_the_past(pair, tmp_path / "then")) as recorder:
        # A pin is for a key.
        assert remote.here.pyctl("pin", pair[0], recorder.address).returncode == 0
        told = refused(remote, recorder, "certificate_expired")
    assert "expired" in told, told
    assert "pyctl cert rotate" in told


def test_a_server_without_tls(remote: Remote) -> None:
    with Recorder() as recorder:
        told = refused(remote, recorder, "no_tls")
    assert "another program may listen there" in told, told


def test_a_server_that_speaks_tls_where_none_was_asked_for(remote: Remote) -> None:
    way = remote.address, "--token-file", remote.token_file
    done = remote.here.pyctl("connect", "plain", *way)
    assert done.returncode == 4, done
    assert f"{remote.address}: it speaks TLS\n" in done.stderr
    assert "hint: connect again with `--tls`" in done.stderr


def test_a_status_that_is_not_told_says_how_to_go_on(remote: Remote) -> None:
    host, _, port = remote.address.rpartition(":")
    way = remote.here.environment | {"PYTHOND_HOST": host, "PYTHOND_PORT": port}
    way["PYTHOND_TLS"] = "0"
    done = remote.here.pyctl("status", env=way | {"PYTHOND_TOKEN": "0" * 64})
    assert done.returncode == 3, done
    assert "alive: True\nerror: " in done.stdout
    assert done.stdout.endswith("speaks TLS\nhint: set `PYTHOND_TLS=1`\n")
    done = remote.here.pyctl("status", "--json", env=way)
    told = json.loads(done.stdout)
    assert told["alive"] is None
    assert told["error"]["code"] == "no_token"
    assert "pyctl token show" in told["error"]["hint"]


def test_a_server_that_demands_a_certificate(remote: Remote) -> None:
    someone = remote.there.pyctl("trust", certificate(remote.there))
    assert someone.returncode == 0, someone.stderr
    wait_until(lambda: remote.connect("--replace").returncode != 0, what="the demand", every=0.3)
    told = remote.connect("--replace").stderr
    assert "certificate" in told
    assert "pyctl trust CERT" in told
    mine = remote.here.pyctl("cert")
    assert mine.returncode == 0, mine.stderr
    assert "pyctl trust CERT" in remote.connect("--replace").stderr
    assert remote.there.pyctl("trust", certificate(remote.here)).returncode == 0
    wait_until(lambda: remote.connect("--replace").returncode == 0, what="trust", every=0.3)
    assert remote.new().value("1") == "1"


def test_without_tls_only_this_machine_is_reached(remote: Remote) -> None:
    done = remote.here.pyctl(
        "connect", "plain", "192.0.2.1:7399", "--token-file", remote.token_file
    )
    assert done.returncode != 0
    assert "by TLS only" in done.stderr


def test_a_token_file_that_others_can_read_is_refused(remote: Remote) -> None:
    remote.token_file.chmod(0o644)
    done = remote.connect()
    assert done.returncode != 0
    assert f"chmod 600 {remote.token_file}" in done.stderr
