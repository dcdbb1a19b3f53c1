"""A remote's certificate or token is replaced, with its clients connected or not."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.remotes import Remote, certificate, copy_token, pin, port_of, remote_of
from support.waiting import wait_until
from support.wire import Wire


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Remote]:
    """A remote that the test may hurt."""
    with remote_of(make_daemon) as remote:
        remote.new()
        yield remote


def stays_connected(remote: Remote) -> None:
    pass


def way_is_cut(remote: Remote) -> None:
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    remote.wait_for_state("down")


MEANWHILE = pytest.mark.parametrize("meanwhile", [stays_connected, way_is_cut])


def rotate(remote: Remote, *words: str) -> None:
    """Make the next certificate there, or use it."""
    rotated = remote.there.pyctl("cert", "rotate", *words)
    assert rotated.returncode == 0, rotated.stderr


def shows_its_certificate(daemon: TestDaemon) -> bool:
    """Tell whether a daemon has taken up the certificate that is on its disk."""
    shown = ssl.get_server_certificate(("127.0.0.1", port_of(daemon)))
    return shown.split() == certificate(daemon).read_text().split()


def begun(remote: Remote, go: Path) -> Wire:
    """A client whose cell, of key `k`, waits for a file."""
    wire = remote.here.connect()
    wire.send(asked(go))
    wait_until(
        lambda: remote.there.json(f"status {remote.name} --json").get("running"),
        what="a running cell",
    )
    return wire


def asked(go: Path) -> str:
    """A cell of key `k` that counts itself and waits for a file."""
    return (
        "run far --json --id=k\ncount = globals().get('count', 0) + 1\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\ncount"
    )


@MEANWHILE
def test_a_certificate_that_was_announced_and_pinned_takes_over_unnoticed(
    remote: Remote, tmp_path: Path, meanwhile: Callable[[Remote], None]
) -> None:
    go = tmp_path / "go"
    with begun(remote, go) as wire:
        rotate(remote)
        announced = certificate(remote.there).with_name("next-cert.pem")
        pinned = remote.here.pyctl("pin", announced, remote.proxy.address)
        assert pinned.returncode == 0, pinned.stderr
        meanwhile(remote)
        kept = certificate(remote.there).read_bytes()
        before = remote.proxy.accepted
        rotate(remote, "--now")
        assert certificate(remote.there).read_bytes() != kept
        if meanwhile is way_is_cut:
            # Before that it would still let in by the old one.
            wait_until(lambda: shows_its_certificate(remote.there), what="the new one is shown")
            remote.proxy.listen()
        # Whoever came in by the old one is shown the door, and comes by the new.
        remote.proxy.wait_for_connection(before)
        remote.wait_for_state("up")
        go.touch()
        reply = json.loads(wire.receive())
    assert reply["result"] == "1", reply
    # The old one is needed no more.
    unpinned = remote.here.pyctl("unpin", remote.proxy.address)
    assert unpinned.returncode == 0, unpinned.stderr
    pin(remote.here, remote.there, remote.proxy.address)
    remote.proxy.cut("rst")
    assert remote.here.ask("run far\ncount") == "1"


def test_an_announced_certificate_changes_nothing_yet(remote: Remote) -> None:
    rotate(remote)
    remote.proxy.cut("rst")
    assert remote.here.ask("run far\n6 * 7") == "42"


@MEANWHILE
def test_a_certificate_that_nobody_was_told_of_is_refused_with_a_word_how_to_go_on(
    remote: Remote, tmp_path: Path, meanwhile: Callable[[Remote], None]
) -> None:
    go = tmp_path / "go"
    with begun(remote, go) as wire:
        meanwhile(remote)
        rotate(remote, "--now")
        if meanwhile is way_is_cut:
            remote.proxy.listen()
        refused = json.loads(wire.receive())["error"]
    assert refused["code"] == "remote_refused", refused
    address = remote.proxy.address
    assert address in refused["message"], refused
    assert "--id=k" in refused["hint"], refused
    assert f"pyctl unpin {address}" in refused["hint"], refused
    assert remote.summary()["state"] == "refused"
    assert remote.summary()["last_error"] in remote.here.pysh("ls").stdout
    refused = remote.here.json("run far --json\n1")["error"]
    assert refused["code"] == "remote_refused", refused
    assert f"pyctl unpin {address}" in refused["hint"], refused
    # As the hint says.
    unpinned = remote.here.pyctl("unpin", address)
    assert unpinned.returncode == 0, unpinned.stderr
    pin(remote.here, remote.there, address)
    go.touch()
    assert remote.here.json(asked(go))["result"] == "1"
    assert remote.here.ask("run far\ncount") == "1"


@MEANWHILE
def test_a_cell_that_runs_while_the_token_is_rotated_is_found_by_its_key(
    remote: Remote, tmp_path: Path, meanwhile: Callable[[Remote], None]
) -> None:
    go = tmp_path / "go"
    with begun(remote, go) as wire:
        meanwhile(remote)
        rotated = remote.there.pyctl("token", "rotate")
        assert rotated.returncode == 0, rotated.stderr
        if meanwhile is way_is_cut:
            remote.proxy.listen()
        refused = json.loads(wire.receive())["error"]
    assert refused["code"] == "remote_refused", refused
    assert "--id=k" in refused["hint"], refused
    assert "pyctl token show" in refused["hint"], refused
    refused = remote.here.json("run far --json\n1")["error"]
    assert "pyctl token show" in refused["hint"], refused
    copy_token(remote.there, remote.token_file)
    go.touch()
    assert remote.here.json(asked(go))["result"] == "1"
    assert remote.here.ask("run far\ncount") == "1"
