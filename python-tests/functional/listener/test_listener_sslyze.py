"""What a scanner of TLS that others maintain finds: nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.network import Server
from support.pythons import base_python
from support.venvs import venv_with

pytestmark = pytest.mark.packages

SCANS = [
    "--sslv2",
    "--sslv3",
    "--tlsv1",
    "--tlsv1_1",
    "--tlsv1_2",
    "--tlsv1_3",
    "--compression",
    "--elliptic_curves",
    "--fallback",
    "--heartbleed",
    "--openssl_ccs",
    "--reneg",
    "--resum",
    "--robot",
]


@pytest.mark.timeout(240)
def test_sslyze_finds_nothing(make_daemon: Callable[..., TestDaemon], tmp_path: Path) -> None:
    server = Server(make_daemon().listen(tls=True).start())
    found = tmp_path / "found.json"
    done = subprocess.run(
        [
            venv_with(base_python(), "sslyze==6.3.1") / "bin" / "sslyze",
            *SCANS,
            f"--json_out={found}",
            f"localhost:{server.port}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert found.exists(), done
    (scanned,) = json.loads(found.read_text())["server_scan_results"]
    assert scanned["scan_status"] == "COMPLETED", done.stdout
    results = scanned["scan_result"]
    asked = {name: of for name, of in results.items() if of["status"] != "NOT_SCHEDULED"}
    assert all(of["status"] == "COMPLETED" for of in asked.values()), asked
    found_of = {name: of["result"] for name, of in asked.items()}

    def accepted(version: str) -> set[str]:
        suites = found_of[f"{version}_cipher_suites"]["accepted_cipher_suites"]
        return {suite["cipher_suite"]["name"] for suite in suites}

    for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert accepted(version) == set(), version
    assert accepted("tls_1_2") == {
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    }
    assert accepted("tls_1_3") == {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    }
    assert found_of["tls_compression"]["supports_compression"] is False
    assert found_of["tls_fallback_scsv"]["supports_fallback_scsv"] is True
    assert found_of["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert found_of["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    renegotiated = found_of["session_renegotiation"]
    assert renegotiated["is_vulnerable_to_client_renegotiation_dos"] is False
    assert renegotiated["supports_secure_renegotiation"] is True
    assert found_of["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    resumed = found_of["session_resumption"]
    for kind in ("session_id_resumption_result", "tls_ticket_resumption_result"):
        assert resumed[kind] == "NOT_SUPPORTED", resumed
    curves = {c["name"] for c in found_of["elliptic_curves"]["supported_curves"]}
    assert curves == {"X25519", "secp256r1", "secp384r1"}
    # Nobody is kept out by it.
    server.ask("ls")
