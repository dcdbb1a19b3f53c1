"""What clients of TLS are offered, and what they are not."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Server


@pytest.fixture(scope="module")
def server(binaries: Path, mark: str) -> Iterator[Server]:
    """A daemon that listens encrypted."""
    daemon = TestDaemon(binaries, mark).listen(tls=True)
    try:
        yield Server(daemon.start())
    finally:
        left = daemon.destroy()
    assert not left, f"processes outlived their daemon: {left}"


def s_client(server: Server, *words: str, said: str = "") -> str:
    """What `openssl s_client` tells of a connection."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = ["openssl", "s_client", "-connect", f"{server.reachable}:{server.port}", *words]
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def agreed(text: str) -> tuple[str, str] | None:
    """Version and suite that were agreed on."""
    found = re.search(r"^New, (TLSv[\d.]+), Cipher is (\S+)$", text, re.M)
    return (found[1], found[2]) if found and found[2] != "(NONE)" else None


@pytest.mark.parametrize(
    "suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
)
def test_the_newest_version_has_its_three_suites(server: Server, suite: str) -> None:
    assert agreed(s_client(server, "-tls1_3", "-ciphersuites", suite)) == ("TLSv1.3", suite)


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"])
def test_the_version_before_has_suites_that_forget_their_keys(server: Server, suite: str) -> None:
    suite = f"ECDHE-ECDSA-{suite}"
    assert agreed(s_client(server, "-tls1_2", "-cipher", suite)) == ("TLSv1.2", suite)


def test_the_newest_version_is_preferred(server: Server) -> None:
    assert agreed(s_client(server))[0] == "TLSv1.3"


@pytest.mark.parametrize(
    "words",
    [
        ["-tls1"],
        ["-tls1_1"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384"],
        ["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA:kRSA"],
        ["-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384:kDHE"],
        ["-tls1_2", "-cipher", "aNULL:eNULL"],
        ["-tls1_2", "-psk", "1a2b3c4d", "-cipher", "PSK"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-CCM8"],
    ],
    ids=" ".join,
)
def test_what_is_old_or_weak_is_refused(server: Server, words: list[str]) -> None:
    # Old versions are off in OpenSSL too, and weak suites, unless its level is 0.
    if "-cipher" in words:
        words = [*words[:-1], words[-1] + ":@SECLEVEL=0"]
    else:
        words = [*words, "-cipher", "ALL:@SECLEVEL=0"]
    text = s_client(server, *words)
    assert agreed(text) is None, text
    # It was the daemon that refused, not the client that could not ask.
    assert re.search(r"alert (handshake failure|protocol version)", text), text


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_nothing_is_taken_up_again(server: Server, version: str, tmp_path: Path) -> None:
    kept = tmp_path / "session"
    text = s_client(server, version, "-sess_out", str(kept), "-ign_eof", said="Q\n\n")
    assert agreed(text)
    assert "New Session Ticket arrived" not in text
    assert not re.search(r"TLS session ticket:\n\s+0000", text), text
    if kept.exists():
        again = s_client(server, version, "-sess_in", str(kept))
        assert "Reused, " not in again
        assert agreed(again), again
    context = server.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with server.stream(context=context) as first:
        session = first.session
    with (
        server.tcp() as stream,
        context.wrap_socket(stream, server_hostname="localhost", session=session) as second,
    ):
        assert second.session_reused is False


def test_no_client_negotiates_again(server: Server) -> None:
    text = s_client(server, "-tls1_2", "-legacy_renegotiation", said="R\n")
    assert agreed(text), text
    assert "RENEGOTIATING" in text
    assert re.search(r"no.renegotiation|unexpected message|handshake failure|:error:", text), text
    # And the daemon says so before anybody asks.
    assert "Secure Renegotiation IS supported" in text
    server.ask("ls")


def test_nothing_is_sent_before_the_handshake_is_done(server: Server, tmp_path: Path) -> None:
    early = tmp_path / "early"
    early.write_bytes(raw.request_with(server.bearer))
    kept = tmp_path / "session"
    s_client(server, "-tls1_3", "-sess_out", str(kept), "-ign_eof", said="Q\n\n")
    words = ["-sess_in", str(kept)] if kept.exists() else []
    text = s_client(server, "-tls1_3", *words, "-early_data", str(early))
    assert "Early data was accepted" not in text
    assert " 101 " not in text
    assert (
        "Max Early Data: 0" in s_client(server, "-tls1_3", "-ign_eof", said="Q\n\n")
        or not kept.exists()
    )


def test_no_compression_and_no_certificate_but_ours(server: Server) -> None:
    text = s_client(server, "-showcerts", "-status", "-tlsextdebug")
    assert "Compression: NONE" in text
    assert text.count("BEGIN CERTIFICATE") == 1
    assert "OCSP response: no response sent" in text
    assert "No client certificate CA names sent" in text


def test_clients_of_both_versions_are_served(server: Server) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server.context()
        context.minimum_version = context.maximum_version = version
        with server.stream(context=context) as stream:
            assert stream.version() == version.name.replace("_", ".").replace("TLSv1.", "TLSv1.")
            assert b" 101 " in raw.shake(stream, raw.request_with(server.bearer))
            stream.sendall(raw.frame(b"version"))
            first, text = raw.message(stream)
            assert first == 0x81
            assert text.decode() == server.daemon.ask("version")


@pytest.mark.parametrize("name", ["localhost", "pythond", "127.0.0.1", "elsewhere.example", None])
def test_one_certificate_is_shown_whatever_name_is_asked_for(
    server: Server, name: str | None
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with server.tcp() as stream, context.wrap_socket(stream, server_hostname=name) as secure:
        shown = ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True))
    own = (server.machine.tls / "cert.pem").read_text()
    assert shown.split() == own.split()


def test_records_in_pieces_are_put_together(server: Server) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = server.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with server.tcp() as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange() -> None:
            for byte in outgoing.read():
                stream.sendall(bytes([byte]))
            incoming.write(stream.recv(1 << 16))

        while True:
            try:
                secure.do_handshake()
                break
            except ssl.SSLWantReadError:
                exchange()
        secure.write(raw.request_with(server.bearer))
        answer = b""
        while b"\r\n\r\n" not in answer:
            try:
                answer += secure.read(4096)
            except ssl.SSLWantReadError:
                exchange()
        assert b" 101 " in answer
