"""Certificates, pins and trusted clients of published versions, read by us and they by them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from support.daemon import clean_environment
from support.pythons import base_python
from support.venvs import venv_with

pytestmark = pytest.mark.packages


class Machine:
    """A home that both versions use."""

    def __init__(self, home: Path, binaries: Path, mark: str) -> None:
        home.mkdir(mode=0o700)
        self.home = home
        self.tls = home / ".pythond" / "tls"
        self.binaries = binaries
        self.earlier_bin = venv_with(base_python(), "pythond==0.4.0") / "bin"
        run = home / "run"
        run.mkdir(mode=0o700)
        self.environment = clean_environment(mark) | {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(run),
        }

    def _ok(self, *words: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done
        assert "WARN" not in done.stderr, done
        return done.stdout

    def ours(self, *words: str | Path) -> dict:
        """Run our pyctl."""
        return json.loads(self._ok(self.binaries / "pyctl", "--json", *words))

    def earlier(self, *words: str | Path) -> str:
        """Run the published pyctl."""
        return self._ok(self.earlier_bin / "pyctl", *words)

    def earlier_trusts(self, directory: str) -> set[str]:
        """The fingerprints that the published version reads in a directory."""
        code = "import pythond, sys; print(*pythond._trusted_fingerprints(sys.argv[1]))"
        return set(self._ok(self.earlier_bin / "python", "-c", code, self.tls / directory).split())


@pytest.fixture
def machine(tmp_path: Path, binaries: Path, mark: str) -> Machine:
    """One machine."""
    return Machine(tmp_path / "home", binaries, mark)


@pytest.fixture
def other(tmp_path: Path, binaries: Path, mark: str) -> Machine:
    """Another one."""
    return Machine(tmp_path / "other", binaries, mark)


def fingerprint_in(text: str) -> str:
    """The fingerprint that a command printed."""
    return re.search(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", text)[0]


def test_a_pair_that_they_made_is_ours(machine: Machine) -> None:
    made = fingerprint_in(machine.earlier("cert"))
    key = (machine.tls / "key.pem").read_bytes()
    assert machine.ours("cert")["fingerprint"] == made
    assert (machine.tls / "key.pem").read_bytes() == key


def test_a_pair_that_we_made_is_theirs(machine: Machine) -> None:
    made = machine.ours("cert")["fingerprint"]
    key = (machine.tls / "key.pem").read_bytes()
    assert fingerprint_in(machine.earlier("cert")) == made
    assert (machine.tls / "key.pem").read_bytes() == key


def test_clients_that_they_trust_are_trusted_and_taken_back(
    machine: Machine, other: Machine
) -> None:
    other.earlier("cert")
    cert = other.tls / "cert.pem"
    trusted = fingerprint_in(machine.earlier("trust", cert))
    assert [c["fingerprint"] for c in machine.ours("trust")["clients"]] == [trusted]
    assert machine.ours("trust", cert)["trusted"] is False
    machine.ours("untrust", trusted)
    assert machine.earlier_trusts("trusted_clients") == set()


def test_clients_that_we_trust_are_trusted_by_them(machine: Machine, other: Machine) -> None:
    made = other.ours("cert")
    machine.ours("trust", made["cert"])
    assert machine.earlier_trusts("trusted_clients") == {made["fingerprint"]}
    machine.earlier("trust", made["cert"])
    assert len(machine.ours("trust")["clients"]) == 1


def test_servers_that_they_pinned_are_pinned_until_they_are_not(
    machine: Machine, other: Machine
) -> None:
    other.earlier("cert")
    cert = other.tls / "cert.pem"
    pinned = fingerprint_in(machine.earlier("pin", cert))
    (pin,) = machine.ours("pin")["pins"]
    assert pin["address"] is None
    assert pin["fingerprint"] == pinned
    assert pin["public_key"] == other.ours("cert")["public_key"]
    machine.ours("pin", cert, "server")
    (pin,) = machine.ours("pin")["pins"]
    assert pin["address"] == "server:7399"
    machine.ours("unpin", "server")
    assert machine.ours("pin")["pins"] == []
    assert machine.earlier_trusts("trusted_servers") == set()
