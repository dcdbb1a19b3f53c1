"""What a client is told that is not let in, or meets somebody it cannot believe."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.daemon import TestDaemon
from support.network import Machine, Server, made_by_openssl
from support.waiting import wait_until

Make = Callable[..., TestDaemon]


def ask(owner: Machine, server: Server, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `pysh --json ls` there; by TLS and with the right token unless `env` says otherwise."""
    way = {
        **{"PYTHOND_HOST": server.reachable, "PYTHOND_PORT": str(server.port)},
        **{"PYTHOND_TLS": "1", "PYTHOND_TOKEN": server.token},
    }
    return owner.run("pysh", "--json", "ls", **(way | env))


def error_of(done: subprocess.CompletedProcess[str], code: int) -> dict[str, Any]:
    """The error that a command failed with."""
    assert done.returncode == code, done
    return json.loads(done.stdout)["error"]


def pin(owner: Machine, server: Server, *address: str) -> None:
    """Pin the server's certificate."""
    owner.pyctl("pin", server.machine.tls / "cert.pem", *address)


def test_too_many_wrong_tokens_are_named_by_tls_too(server: Server, owner: Machine) -> None:
    pin(owner, server, f"{server.reachable}:{server.port}")
    for _ in range(10):
        assert error_of(ask(owner, server, PYTHOND_TOKEN="0" * 64), 4)["code"] == "unauthorized"
    error = error_of(ask(owner, server), 4)
    assert error["code"] == "too_many_wrong_tokens"
    assert "wait" in error["hint"]


def test_tls_where_there_is_none_is_named(make_daemon: Make, owner: Machine) -> None:
    server = Server(make_daemon().listen().start())
    assert not server.tls
    assert error_of(ask(owner, server), 3)["code"] == "no_tls"
    # And the daemon serves whoever knows.
    assert ask(owner, server, PYTHOND_TLS="0").returncode == 0


def test_a_trusted_certificate_that_has_expired_is_named(
    server: Server, owner: Machine, tmp_path: Path
) -> None:
    pin(owner, server, f"{server.reachable}:{server.port}")
    owner.certificate()
    made_by_openssl(tmp_path / "old", since="20200101000000Z", until="20210101000000Z")
    for name in ("cert.pem", "key.pem"):
        shutil.copyfile(tmp_path / "old" / name, owner.tls / name)
    server.machine.pyctl("trust", owner.tls / "cert.pem")
    wait_until(lambda: server.daemon.info()["network"]["client_certificates"])
    error = error_of(ask(owner, server), 4)
    assert error["code"] == "client_certificate_refused"
    assert "expired" in error["message"]
    assert "pyctl cert rotate --now" in error["hint"]
    # That advice helps, and so does the one without it: there is nothing to overlap with.
    assert owner.pyctl("cert", "rotate")["fingerprint"] != "", owner
    server.machine.pyctl("trust", owner.certificate())
    wait_until(lambda: ask(owner, server).returncode == 0)


def test_a_pin_that_gets_its_address_is_told_whatever_comes_next(
    server: Server, owner: Machine
) -> None:
    pin(owner, server)
    error = error_of(ask(owner, server, PYTHOND_TOKEN="0" * 64), 4)
    assert error["code"] == "unauthorized"
    address = f"{server.reachable}:{server.port}"
    assert f"is pinned to `{address}` now" in error["message"]
    # Once.
    assert ask(owner, server).stderr == ""


def test_connect_tells_that_a_pin_got_its_address(server: Server, make_daemon: Make) -> None:
    here = Machine.of(make_daemon().start())
    pin(here, server)
    address = f"{server.reachable}:{server.port}"
    token = {"PYTHOND_TOKEN": server.token}
    done = here.run("pyctl", "connect", "far", address, "--tls", **token)
    assert done.returncode == 0, done
    assert f"it is pinned to {address} now" in done.stderr
    done = here.run("pyctl", "connect", "again", address, "--tls", **token)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_certificate_too_old_to_say_what_it_may_is_not_pinned(
    owner: Machine, tmp_path: Path
) -> None:
    request = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-subj", "/CN=one"]
    signed = ["x509", "-req", "-in", "request.pem", "-signkey", "key.pem", "-out", "cert.pem"]
    for words in ([*request, "-out", "request.pem"], signed):
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)
    done = owner.run("pyctl", "--json", "pin", tmp_path / "cert.pem", "10.0.0.5")
    assert "version 1" in error_of(done, done.returncode)["message"]
    assert done.returncode != 0
