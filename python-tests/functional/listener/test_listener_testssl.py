"""What another scanner of TLS finds: only what a certificate of our own kind implies."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support.network import Server

FINDINGS = ("LOW", "MEDIUM", "HIGH", "CRITICAL", "WARN", "FATAL")
IMPLIED = {
    # A client believes the key that its owner pinned, and no authority.
    "cert_chain_of_trust",
    # As long as the pin; `pyctl cert rotate` replaces it at any time.
    "cert_validityPeriod",
    # `pyctl unpin` revokes it; there is no authority that could.
    "cert_revocation",
    # No authority issues for the name, which need not be in any DNS.
    "DNS_CAArecord",
}


def scan(server: Server, folder: Path, *parts: str) -> dict[str, dict[str, str]]:
    """What testssl.sh says of a daemon, by the name of each question."""
    program = shutil.which("testssl") or shutil.which("testssl.sh")
    if not program:
        pytest.skip("testssl.sh is not installed (Debian: testssl.sh)")
    told = folder / "told.json"
    done = subprocess.run(
        [
            *(program, "--quiet", "--color", "0", "--warnings", "batch"),
            *(*parts, "--jsonfile", told, f"localhost:{server.port}"),
        ],
        env=server.daemon.environment | {"TERM": "dumb"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert told.exists(), done
    entries = {entry["id"]: entry for entry in json.loads(told.read_text())}
    # It came to its end.
    assert "scanTime" in entries, done
    return entries


def findings(told: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """What is not well with the daemon; what the scanner itself lacks has no address."""
    return {
        name: entry
        for name, entry in told.items()
        if entry["severity"] in FINDINGS and entry["ip"] != "/"
    }


@pytest.mark.timeout(600)
def test_testssl_finds_nothing_else(server: Server, tmp_path: Path) -> None:
    parts = ("--protocols", "--std", "--fs", "--server-defaults", "--vulnerable")
    told = scan(server, tmp_path, *parts)
    assert told["TLS1_3"]["severity"] == "OK", told
    assert told["heartbleed"]["severity"] == "OK", told
    found = findings(told)
    print({name: entry["finding"] for name, entry in found.items()})
    assert found.keys() == IMPLIED, found
    assert "self signed" in found["cert_chain_of_trust"]["finding"]
    # Nobody is kept out by it.
    server.ask("ls")


@pytest.mark.timeout(600)
def test_testssl_finds_an_order_of_the_suites(server: Server, tmp_path: Path) -> None:
    told = scan(server, tmp_path, "--server-preference")
    found = findings(told)
    assert not found, found
