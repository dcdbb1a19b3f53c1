"""`pyctl cert`, `pin`, `trust` and `token`: what people type, and what others read of it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.daemon import clean_environment

HEX = r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}"
KEY = r"SHA256:[A-Za-z0-9+/]{43}"


class Person:
    """A home directory and the commands of its owner."""

    def __init__(self, home: Path, binaries: Path, mark: str) -> None:
        home.mkdir(mode=0o700)
        self.home = home
        self.tls = home / ".pythond" / "tls"
        self.pyctl = binaries / "pyctl"
        self.environment = clean_environment(mark) | {"HOME": str(home)}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run pyctl to its end."""
        return subprocess.run(
            [str(self.pyctl), *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, *words: str | Path) -> str:
        """Run pyctl, which must succeed, and return what it printed."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def json(self, *words: str | Path) -> dict[str, Any]:
        """The object that a command that succeeds prints."""
        return json.loads(self.ok("--json", *words))

    def refused(self, *words: str | Path, code: int = 4) -> str:
        """Run pyctl, which must fail with a word about it, in both forms."""
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith("error: "), done
        told = self.run("--json", *words)
        assert told.returncode == code
        error = json.loads(told.stdout)["error"]
        assert f"error: {error['message']}\n" in done.stderr
        assert error["code"]
        return done.stderr


@pytest.fixture
def person(tmp_path: Path, binaries: Path, mark: str) -> Person:
    """Somebody with an empty home."""
    return Person(tmp_path / "home", binaries, mark)


@pytest.fixture
def other(tmp_path: Path, binaries: Path, mark: str) -> Person:
    """Somebody on another machine."""
    return Person(tmp_path / "other", binaries, mark)


def openssl(*words: str | Path) -> str:
    """What openssl says."""
    done = subprocess.run(
        ["openssl", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    return done.stdout


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


# The certificate.


def test_the_certificate_is_what_was_promised(person: Person) -> None:
    shown = person.ok("cert")
    assert person.ok("cert", "show") == shown
    cert, key = person.tls / "cert.pem", person.tls / "key.pem"
    assert f"cert: {cert}\nkey:  {key}\n" in shown
    assert "pyctl pin" in shown
    assert "pyctl trust" in shown
    assert [mode(p) for p in (cert, key, person.tls, person.tls.parent)] == [
        0o600,
        0o600,
        0o700,
        0o700,
    ]
    text = openssl("x509", "-in", cert, "-noout", "-text")
    assert re.search(r"Subject: ?CN ?= ?pythond\n", text)
    assert "CA:FALSE" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert "prime256v1" in text
    names = "DNS:localhost, DNS:pythond"
    assert names in text
    assert "IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in text
    machine = socket.gethostname().lower()
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", machine):
        assert f"DNS:{machine}" in text
    day = 24 * 3600
    openssl("x509", "-in", cert, "-noout", "-checkend", str(3649 * day))
    late = subprocess.run(
        ["openssl", "x509", "-in", cert, "-noout", "-checkend", str(3651 * day)],
        stdout=subprocess.DEVNULL,
    )
    assert late.returncode == 1
    openssl("verify", "-CAfile", cert, "-purpose", "sslserver", cert)
    openssl("verify", "-CAfile", cert, "-purpose", "sslclient", cert)


def test_both_fingerprints_are_those_of_openssl(person: Person) -> None:
    shown = person.json("cert")
    cert, key = person.tls / "cert.pem", person.tls / "key.pem"
    printed = openssl("x509", "-in", cert, "-noout", "-fingerprint", "-sha256")
    assert printed.strip().split("=")[1] == shown["fingerprint"]
    public = person.home / "public.der"
    openssl("pkey", "-in", key, "-pubout", "-outform", "DER", "-out", public)
    digest = openssl("dgst", "-sha256", "-r", public).split()[0]
    encoded = base64.b64encode(bytes.fromhex(digest)).decode().rstrip("=")
    assert shown["public_key"] == f"SHA256:{encoded}"
    assert shown["state"] == "valid"


def test_many_who_ask_first_at_once_get_one_pair(person: Person) -> None:
    with ThreadPoolExecutor(8) as pool:
        shown = list(pool.map(lambda _: person.json("cert"), range(8)))
    assert len({reply["fingerprint"] for reply in shown}) == 1


def test_a_rotation_is_announced_and_then_finished(person: Person, other: Person) -> None:
    first = person.json("cert")
    announced = person.json("cert", "rotate", "--overlap", "3")
    assert announced["done"] == "announced"
    assert announced["fingerprint"] == first["fingerprint"]
    new = announced["next"]
    assert new["state"] == "valid"
    assert person.json("cert")["next"] == new
    assert "rotate --now" in person.refused("cert", "rotate")
    # The other machine knows both meanwhile.
    for path in (first["cert"], new["cert"]):
        other.ok("pin", path, "server")
    assert other.json("pin", new["cert"], "server")["keys_of_address"] == 2
    finished = person.json("cert", "rotate", "--now")
    assert finished["done"] == "finished"
    assert finished["fingerprint"] == new["fingerprint"]
    assert "next" not in finished
    text = other.ok("unpin", first["fingerprint"])
    assert first["public_key"] in text
    assert [pin["public_key"] for pin in other.json("pin")["pins"]] == [new["public_key"]]


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
@pytest.mark.parametrize("harm", ["missing", "empty", "garbage", "other", "link", "fifo", "open"])
def test_a_pair_of_no_use_is_told_and_kept(
    person: Person, other: Person, name: str, harm: str
) -> None:
    person.ok("cert")
    other.ok("cert")
    path = person.tls / name
    if harm == "missing":
        path.unlink()
    elif harm in ("empty", "garbage"):
        path.write_bytes(b"" if harm == "empty" else b"\x00\xffgarbage")
    elif harm == "other":
        path.write_bytes((other.tls / name).read_bytes())
    elif harm == "link":
        kept = path.rename(person.home / "kept")
        path.symlink_to(kept)
    elif harm == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        path.chmod(0o666)
    before = {p.name: p.lstat().st_mtime_ns for p in person.tls.iterdir()}
    told = person.refused("cert")
    assert str(path) in told
    assert {p.name: p.lstat().st_mtime_ns for p in person.tls.iterdir()} == before
    if harm in ("link", "fifo"):
        # What somebody planted is for its owner to look at.
        person.refused("cert", "rotate")
    elif harm == "open" and name == "cert.pem":
        assert "chmod 600" in told
    else:
        assert "hint: " in told or "chmod 600" in told
        assert person.json("cert", "rotate")["done"] == "repaired"
        person.ok("cert")


@pytest.mark.parametrize("place", [".", ".pythond", ".pythond/tls"])
def test_directories_that_others_may_write_to_are_refused(person: Person, place: str) -> None:
    person.ok("cert")
    person.ok("token", "show")
    directory = person.home / place
    directory.chmod(0o770)
    for words in (["cert"], ["pin"], ["trust"], ["token", "show"], ["token", "rotate"]):
        assert "chmod" in person.refused(*words)
    assert mode(directory) == 0o770, "it is not ours to change"


def test_without_a_home_nothing_is_made(person: Person) -> None:
    for home in (None, "", "relative"):
        if home is None:
            del person.environment["HOME"]
        else:
            person.environment["HOME"] = home
        assert "HOME" in person.refused("cert", code=2)


# Pins and trusted clients.


def test_pins_are_made_listed_and_taken_back(person: Person, other: Person) -> None:
    cert = other.json("cert")
    assert person.ok("pin") == "no pins\n"
    text = person.ok("pin", cert["cert"], "Host.Example.")
    assert text.startswith("OK pinned to host.example:7399\n")
    assert cert["fingerprint"] in text
    assert cert["public_key"] in text
    assert person.ok("pin", cert["cert"], "host.example:7399").startswith("OK it was pinned")
    person.ok("pin", cert["cert"], "[::1]:9")
    listed = person.ok("pin").splitlines()
    assert [re.fullmatch(rf"  (\S+) {KEY} {HEX}", line)[1] for line in listed] == [
        "host.example:7399",
        "[::1]:9",
    ]
    person.ok("unpin", "HOST.example")
    assert "pyctl pin" in person.refused("unpin", "host.example")
    person.ok("unpin", cert["public_key"])
    assert person.json("pin")["pins"] == []


def untrust_the_last(person: Person, which: str) -> None:
    """Take back the last client; who does so is told what it means."""
    done = person.run("untrust", which)
    assert done.returncode == 0, done
    assert "`pyctl token rotate`" in done.stderr


def test_clients_are_trusted_listed_and_taken_back(person: Person, other: Person) -> None:
    cert = other.json("cert")
    assert person.ok("trust") == "no trusted clients\n"
    assert person.json("trust", cert["cert"])["trusted"] is True
    assert person.json("trust", cert["cert"])["trusted"] is False
    assert [c["fingerprint"] for c in person.json("trust")["clients"]] == [cert["fingerprint"]]
    untrust_the_last(person, cert["cert"])
    person.refused("untrust", cert["cert"])
    for form in (
        cert["fingerprint"],
        cert["fingerprint"].lower(),
        cert["fingerprint"].replace(":", ""),
        cert["public_key"],
    ):
        person.ok("trust", cert["cert"])
        untrust_the_last(person, form)
    assert person.json("trust")["clients"] == []


def test_what_is_no_good_certificate_is_refused_with_its_reason(
    person: Person, other: Person, tmp_path: Path
) -> None:
    other.ok("cert")
    cert = (other.tls / "cert.pem").read_text()
    authority = tmp_path / "authority.pem"
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", tmp_path / "k", "-out", authority, "-subj", "/CN=a", "-days", "9",
    )  # fmt: skip
    files = {
        "authority": authority.read_text(),
        "private key": (other.tls / "key.pem").read_text(),
        "more than one": cert * 2,
        "cut short": cert[:200],
        "no certificate": "hello",
        "no X.509": "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
        "greater than": "x" * 70_000,
    }
    for reason, content in files.items():
        path = tmp_path / "file.pem"
        path.write_text(content)
        for words in (["pin", path, "host"], ["trust", path]):
            assert reason in person.refused(*words), reason
    assert person.json("pin")["pins"] == person.json("trust")["clients"] == []


def test_a_certificate_may_come_through_a_pipe(
    person: Person, other: Person, tmp_path: Path
) -> None:
    other.ok("cert")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = (other.tls / "cert.pem").read_text()
    writer = threading.Thread(target=pipe.write_text, args=(content,))
    writer.start()
    person.ok("pin", pipe, "host")
    writer.join(60)
    assert not writer.is_alive()


@pytest.mark.parametrize("command", ["pin", "trust"])
def test_a_damaged_store_is_told_and_nothing_is_added(
    person: Person, other: Person, command: str
) -> None:
    cert = other.json("cert")["cert"]
    person.ok(command)
    directory = "trusted_clients" if command == "trust" else "trusted_servers"
    (person.tls / directory).mkdir(mode=0o700, exist_ok=True)
    planted = person.tls / directory / "laptop.crt"
    planted.write_text("hello")
    for words in ([command], [command, cert]):
        assert str(planted) in person.refused(*words)
    planted.unlink()
    assert "no " in person.ok(command)


def test_many_who_trust_at_once_lose_nothing(person: Person, tmp_path: Path) -> None:
    paths = []
    for number in range(8):
        path = tmp_path / f"{number}.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", tmp_path / "k", "-out", path, "-subj", "/CN=c", "-days", "9",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        paths.append(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: person.ok("trust", path), paths))
        list(pool.map(lambda path: person.ok("pin", path, "host"), paths))
    assert len(person.json("trust")["clients"]) == len(person.json("pin")["pins"]) == 8


def test_a_lock_that_is_never_given_back_is_told(person: Person, other: Person) -> None:
    cert = other.json("cert")["cert"]
    person.ok("cert")
    person.ok("pin", cert)
    with (person.home / ".pythond/identity.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in person.refused("trust", cert)
        person.ok("cert")
        person.ok("pin")


# The token.


def test_the_token_is_made_once_and_shown_by_show_alone(person: Person) -> None:
    token = person.ok("token", "show").strip()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert person.json("token", "show")["token"] == token
    path = person.home / ".pythond/daemon.json"
    assert mode(path) == 0o600
    assert json.loads(path.read_text())["token"] == token
    rotated = person.ok("token", "rotate") + json.dumps(person.json("token", "rotate"))
    new = person.ok("token", "show").strip()
    assert new != token
    assert new not in rotated


@pytest.mark.parametrize("command", ["show", "rotate"])
def test_whose_token_it_is_is_told_where_commands_go_elsewhere(
    person: Person, command: str
) -> None:
    person.ok("token", "show")
    for host in ("far.example", "ssh://far", "far:no port"):
        person.environment["PYTHOND_HOST"] = host
        done = person.run("token", command)
        assert done.returncode == 0, done
        assert done.stderr.startswith(f"warning: `PYTHOND_HOST` is set: commands go to `{host}`")
        assert "this machine" in done.stderr
    person.environment["PYTHOND_HOST"] = ""
    person.ok("token", command)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"token": "short"}', '{"token": null}'])
def test_a_damaged_token_is_told_without_it(person: Person, content: str) -> None:
    person.ok("token", "show")
    path = person.home / ".pythond/daemon.json"
    path.write_text(content)
    told = person.refused("token", "show")
    assert "pyctl token rotate" in told
    assert 'short"' not in told
    assert path.read_text() == content
    person.ok("token", "rotate")
    person.ok("token", "show")


def test_a_reader_that_goes_away_is_no_failure(person: Person) -> None:
    person.ok("cert")
    for words in (["cert"], ["token", "show"], ["pin"], ["trust"]):
        process = subprocess.Popen(
            [person.pyctl, *words],
            env=person.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
        )
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
        process.stderr.close()
