"""Clients on other machines: their homes, certificates and connections."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import raw
from .daemon import TestDaemon, clean_environment
from .waiting import DEADLINE
from .wire import Wire


class Machine:
    """A home directory of its own, and the commands of its owner."""

    def __init__(self, home: Path, binaries: Path, mark: str) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home = home
        self.tls = home / ".pythond" / "tls"
        self.binaries = binaries
        self.environment = clean_environment(mark) | {"HOME": str(home)}

    @classmethod
    def of(cls, daemon: TestDaemon) -> Machine:
        """The machine that a daemon is on."""
        machine = cls(daemon.home, daemon.binaries, "")
        machine.environment = daemon.environment
        return machine

    def run(self, program: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of our programs to its end."""
        return subprocess.run(
            [str(self.binaries / program), *map(str, words)],
            env=self.environment | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def pyctl(self, *words: str | Path) -> dict[str, Any]:
        """Run `pyctl`, which must succeed, and return the object that it printed."""
        done = self.run("pyctl", "--json", *words)
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def certificate(self) -> Path:
        """The machine's certificate, made if there is none."""
        return Path(self.pyctl("cert")["cert"])

    def trust(self, other: Machine) -> None:
        """Let another machine connect to this one."""
        self.pyctl("trust", other.certificate())

    def untrust(self, other: Machine) -> None:
        """Let another machine connect no more."""
        self.pyctl("untrust", other.pyctl("cert")["fingerprint"])

    @property
    def trusted(self) -> Path:
        """Where the certificates of clients are that may connect."""
        return self.tls / "trusted_clients"


class Server:
    """One address of a daemon, as another machine sees it."""

    def __init__(self, daemon: TestDaemon, which: int = 0) -> None:
        self.daemon = daemon
        self.machine = Machine.of(daemon)
        endpoint = daemon.info()["listen"][which]
        host, _, port = endpoint["address"].rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.tls: bool = endpoint["tls"]

    @property
    def token(self) -> str:
        """The token as it is now."""
        return json.loads((self.daemon.home / ".pythond" / "daemon.json").read_text())["token"]

    @property
    def reachable(self) -> str:
        """An address that clients on this machine can use."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def bearer(self) -> str:
        """The header line that lets clients in."""
        return f"Authorization: Bearer {self.token}"

    def context(self, client: Machine | None = None) -> ssl.SSLContext:
        """What a client demands of us that has our certificate, and shows its own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.machine.tls / "cert.pem")
        if client:
            context.load_cert_chain(client.certificate(), client.tls / "key.pem")
        return context

    def tcp(self, source: str | None = None) -> socket.socket:
        """Open a TCP connection that says nothing; `source` is another address to come from."""
        address = (self.reachable, self.port)
        return socket.create_connection(
            address, DEADLINE, source_address=(source, 0) if source else None
        )

    def stream(
        self,
        client: Machine | None = None,
        *,
        source: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> socket.socket:
        """Open a connection, encrypted where it has to be, that has said nothing yet."""
        stream = self.tcp(source)
        if not self.tls:
            return stream
        try:
            context = context or self.context(client)
            return context.wrap_socket(stream, server_hostname="localhost")
        except BaseException:
            stream.close()
            raise

    def asks(self, *lines: str | bytes, host: str | None = "localhost", **options: Any) -> bytes:
        """What is answered to a request for the upgrade with these lines in its head."""
        with self.stream(**options) as stream:
            return raw.shake(stream, raw.request_with(*lines, host=host))

    def shaken(self, client: Machine | None = None, **options: Any) -> socket.socket:
        """Open a connection that has been let in."""
        stream = self.stream(client, **options)
        answer = raw.shake(stream, raw.request_with(self.bearer))
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return stream

    def connect(
        self,
        client: Machine | None = None,
        *,
        source: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Wire:
        """Open a connection with the token."""
        stream = self.tcp(source)
        options["additional_headers"] = {"Authorization": f"Bearer {token or self.token}"}
        if self.tls:
            options["ssl"] = self.context(client)
            options["server_hostname"] = "localhost"
        scheme = "wss" if self.tls else "ws"
        try:
            return Wire.over(stream, f"{scheme}://localhost:{self.port}/", **options)
        except BaseException:
            stream.close()
            raise

    def ask(self, text: str, client: Machine | None = None, **options: Any) -> str:
        """Ask one frame on a connection of its own."""
        with self.connect(client, **options) as wire:
            return wire.ask(text)


def reset(stream: socket.socket) -> None:
    """Close a connection as a machine does that lost it: by RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


@contextlib.contextmanager
def many(server: Server, count: int, *, tls: bool = False) -> Iterator[list[socket.socket]]:
    """Hold many connections that say nothing, or nothing after the handshake of TLS."""
    held: list[socket.socket] = []
    context = server.context()
    try:
        for _ in range(count):
            stream = server.tcp()
            held.append(stream)
            if tls:
                # One that has to go before it is ready is one all the same.
                with contextlib.suppress(OSError):
                    held[-1] = context.wrap_socket(stream, server_hostname="localhost")
        yield held
    finally:
        for stream in held:
            stream.close()


def made_by_openssl(
    folder: Path,
    *,
    since: str = "20200101000000Z",
    until: str = "20990101000000Z",
    authority: bool = False,
    subject: str = "/CN=client",
) -> ssl.SSLContext:
    """What shows a client's certificate that `pyctl cert` would not make.

    It is in `folder`, as `cert.pem` and `key.pem`; no server is verified.
    """
    folder.mkdir()
    (folder / "db").touch()
    (folder / "serial").write_text("01\n")
    (folder / "config").write_text(
        "[ca]\ndefault_ca=c\n[c]\ndatabase=db\nserial=serial\nnew_certs_dir=.\n"
        "default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
        f"[e]\nbasicConstraints=critical,CA:{str(authority).upper()}\n"
    )
    request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += ["-keyout", "key.pem", "-utf8", "-subj", subject, "-out", "request.pem"]
    signed = ["ca", "-batch", "-notext", "-selfsign", "-config", "config", "-in", "request.pem"]
    signed += ["-keyfile", "key.pem", "-out", "cert.pem", "-startdate", since, "-enddate", until]
    for words in (request, signed):
        done = subprocess.run(
            ["openssl", *words], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def fingerprint(certificate: Path) -> str:
    """A certificate's fingerprint, as published versions write it into a file."""
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    digits = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
