"""A remote daemon restarts, dies, stalls, changes its token; so does the daemon here."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cutting import Cut
from support.daemon import TestDaemon
from support.remotes import Remote, copy_token, listening, port_of, remote_of
from support.waiting import wait_until
from support.wire import Wire


def until(go: Path) -> str:
    """Return code that counts itself and waits for a file."""
    return (
        "count = globals().get('count', 0) + 1\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\ncount"
    )


def begun(remote: Remote, form: str, code: str) -> Wire:
    """Send a cell and wait until it runs."""
    wire = remote.here.connect()
    wire.send(f"run {remote.name} {form}\n{code}")
    wait_until(
        lambda: remote.there.json(f"status {remote.name} --json").get("running"),
        what="a running cell",
    )
    return wire


def restart(remote: Remote) -> None:
    """Have the remote daemon restart in its place."""
    restarted = remote.there.pyctl("restart")
    assert restarted.returncode == 0, restarted.stderr
    remote.there.wait_until_it_answers()
    remote.proxy.target = port_of(remote.there)


def replace(remote: Remote) -> None:
    """Kill the remote daemon and start the next one on the same port."""
    remote.there.crash()
    listening(remote.there, port=remote.proxy.target)


@pytest.mark.parametrize("happens", [restart, replace])
def test_the_next_remote_daemon_delivers_what_was_asked_of_the_one_before(
    remote: Remote, tmp_path: Path, happens: Callable[[Remote], None]
) -> None:
    session = remote.new()
    go = tmp_path / "go"
    with (
        begun(remote, "--json", until(go)) as wire,
        remote.here.connect() as waiting,
        remote.here.connect() as events,
    ):
        waiting.send(f"wait {session.name}")
        assert events.json(f"events {session.name}")["event"] == "ready"
        happens(remote)
        go.touch()
        assert wire.json(f"status {session.name} --json")["result"] == "1"
        assert waiting.receive().startswith("{")
        told = []
        while not told or told[-1]["event"] not in ("cell_done", "reset"):
            told.append(json.loads(events.receive()))
        assert "ready" not in [event["event"] for event in told]
        assert session.value("count") == "1"


def test_a_clean_close_after_the_cell_ran_does_not_run_it_again(
    remote: Remote, tmp_path: Path
) -> None:
    session = remote.new()
    done = tmp_path / "done"
    before = remote.proxy.accepted
    # All that comes from there is lost from now on.
    remote.proxy.cut("half")
    with remote.here.connect() as wire:
        wire.send(
            f"run {session.name}\ncount = globals().get('count', 0) + 1\n"
            f"open({str(done)!r}, 'w').close()\ncount"
        )
        # It never arrived: the proxy takes what comes and forwards nothing.
        remote.proxy.cut("fin")
        assert wire.receive() == "1"
    assert done.exists()
    assert remote.proxy.accepted > before
    assert session.value("count") == "1"


def test_an_answer_that_is_cut_off_by_a_clean_close_is_fetched(remote: Remote) -> None:
    session = remote.new()
    session.out("ran = []")
    for number in range(20):
        # Somewhere in the answer, or right before it.
        for pair in list(remote.proxy.pairs):
            sent = pair.passed["down"]
            remote.proxy.cut_after("fin", sent + 1 + number * 7)
        assert session.out(f"ran.append({number}); print('x' * 300)") == "x" * 300 + "\n"
    assert session.value("ran == list(range(20))") == "True"


def test_a_remote_that_says_nothing_is_named_and_hurts_nothing_else(
    remote: Remote, tmp_path: Path
) -> None:
    session = remote.new()
    local = remote.here.new()
    wire = begun(remote, "", until(tmp_path / "go"))
    os.kill(remote.there.pid, signal.SIGSTOP)
    try:
        down = wait_until(
            lambda: (summary := remote.summary()).get("last_error") and summary,
            30,
            what="word of the remote",
            every=0.2,
        )
        assert "has said nothing for" in down["last_error"]
        assert remote.name in remote.here.ask("ls")
        assert local.value("1") == "1"
    finally:
        os.kill(remote.there.pid, signal.SIGCONT)
        (tmp_path / "go").touch()
    assert wire.receive() == "1"
    wire.close()
    assert session.value("count") == "1"


def test_status_tells_of_a_way_that_is_broken(remote: Remote) -> None:
    name = remote.new().name
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    refused = remote.here.json(f"status {name} --json", 60)
    assert (refused["ok"], refused["error"]["code"]) == (False, "session_unreachable")
    way = refused["remote"]
    assert way["name"] == remote.name
    # It may be in the midst of its next try.
    assert way["state"] in ("down", "connecting")
    assert way["last_error"] in refused["error"]["message"]
    assert way["endpoint_attempts"][-1]["error"]
    shown = remote.here.pysh("status", name)
    assert shown.returncode != 0
    assert shown.stderr.startswith(f"error: remote `{remote.name}` cannot be reached")


def test_a_rotated_token_is_told_at_once_and_a_new_one_recovers(remote: Remote) -> None:
    session = remote.new()
    with remote.here.connect() as events:
        assert events.json(f"events {session.name}")["event"] == "ready"
        rotated = remote.there.pyctl("token", "rotate")
        assert rotated.returncode == 0, rotated.stderr
        remote.proxy.cut("rst")
        refused = json.loads(events.receive())
    assert refused["error"]["code"] == "remote_refused", refused
    assert "refuses our token" in refused["error"]["message"]
    assert "pyctl token show" in refused["error"]["hint"]
    assert remote.summary()["state"] == "refused"
    answer = remote.here.json(f"run {session.name} --json\n1")
    assert answer["error"]["code"] == "remote_refused"
    assert answer["error"]["reason"] == "unauthorized"
    copy_token(remote.there, remote.token_file)
    assert session.value("1") == "1"


def test_a_rotated_token_is_replaced_by_connecting_again(remote: Remote) -> None:
    session = remote.new()
    assert remote.there.pyctl("token", "rotate").returncode == 0
    remote.proxy.cut("rst")
    copy_token(remote.there, remote.token_file)
    refused = remote.connect()
    assert refused.returncode != 0
    # A rotation is noticed within a second or so.
    wait_until(lambda: remote.connect("--replace").returncode == 0, what="the new token", every=0.3)
    assert session.value("1") == "1"


def test_a_pin_that_is_taken_away_is_told(remote: Remote) -> None:
    session = remote.new()
    assert remote.here.pyctl("unpin", remote.proxy.address).returncode == 0
    remote.proxy.cut("rst")
    answer = remote.here.json(f"run {session.name} --json\n1")
    assert answer["error"]["code"] == "remote_refused", answer
    assert "pin" in answer["error"]["hint"]


def again_here(remote: Remote) -> None:
    remote.here.crash()
    remote.here.start()


def restart_here(remote: Remote) -> None:
    assert remote.here.pyctl("restart").returncode == 0
    remote.here.wait_until_it_answers()


@pytest.mark.parametrize("happens", [again_here, restart_here])
def test_the_next_daemon_here_knows_its_remotes(
    remote: Remote, tmp_path: Path, happens: Callable[[Remote], None]
) -> None:
    session = remote.new()
    go = tmp_path / "go"
    client = remote.here.popen(
        "pysh", "run", session.name, f"print('in', flush=True)\n{until(go)}", bufsize=0
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    happens(remote)
    go.touch()
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out) == (0, b"1\n"), err
    assert session.value("count") == "1"
    assert remote.summary()["endpoints"] == [remote.proxy.address]


def test_who_waits_for_a_remote_that_is_disconnected_is_told(
    remote: Remote, tmp_path: Path
) -> None:
    remote.new()
    go = tmp_path / "go"
    with begun(remote, "--json", until(go)) as wire:
        assert remote.here.pyctl("disconnect", remote.name).returncode == 0
        answer = json.loads(wire.receive())
    assert answer["error"]["code"] == "session_unreachable", answer
    assert "disconnected" in answer["error"]["message"]
    go.touch()
    wait_until(lambda: remote.there.ask(f"run {remote.name}\ncount") == "1", what="the cell's end")
    assert remote.here.json("ls --json").get("remotes", []) == []
    assert remote.here.ask("run far\n1").startswith("ERR no session")


def test_a_wait_without_ids_is_for_the_cells_that_were_there_when_it_began(
    remote: Remote, tmp_path: Path
) -> None:
    session = remote.new()
    go, done = tmp_path / "go", tmp_path / "done"
    cell = session.fire(f"{until(go)}\nopen({str(done)!r}, 'w').close()\n1 / 0")
    client = remote.here.popen("pysh", "wait", session.name)
    log, port = remote.there.access_log(), port_of(remote.there)
    wait_until(lambda: "cmd=wait" in log.read_text(), what="it waits")
    remote.there.crash()
    go.touch()
    wait_until(done.exists, what="the cell's end")
    listening(remote.there, port=port)
    out, err = client.communicate(timeout=60)
    assert (client.returncode, err) == (1, b"")
    assert cell in out.decode()
    assert "failed" in out.decode()


def test_a_slow_reader_of_a_remote_that_is_disconnected_is_told(remote: Remote) -> None:
    remote.new()
    with remote.here.connect() as wire:
        before = remote.proxy.accepted
        wire.send("run far --json --stream --id=slow\nfor n in range(1 << 30): print('x' * 9999)")
        pause = threading.Event()
        # Read too slowly, it gets a connection of its own.
        while remote.proxy.accepted == before:
            pause.wait(0.01)
            assert "event" in json.loads(wire.receive())
        assert remote.here.pyctl("disconnect", remote.name).returncode == 0
        while "event" in (answer := json.loads(wire.receive())):
            pass
    assert answer["error"]["code"] == "session_unreachable", answer
    assert "disconnected" in answer["error"]["message"]
    assert remote.there.json("int far --json")["ok"]


def test_names_that_are_taken_are_refused(remote: Remote) -> None:
    local = remote.here.new("local")
    for name in ("local", remote.name):
        refused = remote.connect(name=name)
        assert refused.returncode != 0
        assert name in refused.stderr
    refused = remote.connect("--replace", name="local")
    assert refused.returncode != 0
    assert local.value("1") == "1"
    assert remote.connect(name="CON").returncode != 0
    assert remote.here.pyctl("disconnect", "local").returncode != 0
    assert remote.here.pyctl("disconnect", "unheard").returncode != 0


def test_nobody_tries_on_for_a_client_that_left(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    with remote_of(make_daemon, connect=False) as remote:
        remote.proxy.plan = lambda number: Cut("half", 0, "up") if number == 1 else None
        client = remote.here.popen(
            *("pyctl", "connect", "left", remote.proxy.address, "--tls"),
            *("--token-file", remote.token_file),
        )
        remote.proxy.wait_for_connection()
        client.kill()
        client.communicate(timeout=20)
        for _ in range(5):
            wait_until(lambda: remote.proxy.open == 0, what="an end of trying")
            assert remote.connect().returncode == 0
            assert remote.here.pyctl("disconnect", remote.name).returncode == 0
        wait_until(lambda: remote.proxy.open == 0, what="an end of trying")
        assert remote.proxy.accepted == 6
