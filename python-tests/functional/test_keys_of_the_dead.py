"""What is told of a key that is sent again to a session that died meanwhile."""

from __future__ import annotations

import json
import os
import signal

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

ONLY = "import threading; print('here', flush=True); threading.Event().wait()"
# Records that a journal holds; a cell that ends makes three.
RECORDS = 1024


def kill_and_see(session: Session) -> None:
    """End a session's process from outside and wait until that is known."""
    os.kill(session.pid, signal.SIGKILL)
    session.wait_for_state("dead")


def told(reply: dict) -> tuple[str, str | None, str | None]:
    """Return what a reply says of a cell whose session died."""
    assert not reply["ok"]
    error = reply["error"]
    return error["code"], error.get("fate"), reply.get("cell_id")


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "without a daemon"])
def test_a_key_that_is_sent_again_is_told_what_became_of_its_cell(
    daemon: TestDaemon, seen: bool
) -> None:
    session = daemon.new("work")
    fate = {}
    sent = {}

    def send(verb: str, key: str, code: str, becomes: str) -> str:
        option = "--detach " if verb == "run" else ""
        cell = session.submit(verb, code, f"{option}--id={key}")["cell_id"]
        sent[key] = (verb, code)
        fate[key] = (becomes, cell)
        return cell

    for verb in ("run", "fire", "fork"):
        session.ended(send(verb, f"ended-{verb}", "6 * 7", "had_ended"))
    for verb in ("fire", "fork", "run"):
        session.wait_for_output(send(verb, f"runs-{verb}", ONLY, "was_running"), "here")
    send("run", "waits", f"open({str(daemon.work / 'ran')!r}, 'w')", "not_started")
    if seen:
        kill_and_see(session)
    else:
        daemon.crash()
        os.kill(session.pid, signal.SIGKILL)
        wait_until(lambda: not processes.is_alive(session.pid), what="the host is gone")
        daemon.start()
        session.wait_for_state("dead")

    def check() -> None:
        for key, (verb, code) in sent.items():
            becomes, cell = fate[key]
            for option in ("", "--resent=0 "):
                reply = session.submit(verb, code, f"{option}--id={key}")
                assert told(reply) == ("session_died", becomes, cell), key
                if verb == "run":
                    assert reply["status"] == ("lost" if becomes == "had_ended" else "killed")
            other = session.submit(verb, code + " ", f"--id={key}")
            assert told(other)[0] == "id_reused"
            assert cell in other["error"]["message"]
        new = session.submit("run", "1", "--id=new --resent=0")
        assert told(new) == ("session_died", "never_accepted", None)
        assert "it never ran" in new["error"]["hint"]
        # By its id a cell is told the same.
        _, cell = fate["waits"]
        assert told(session.ask("wait", cell)) == ("session_died", "not_started", cell)

    check()
    daemon.crash()
    daemon.start()
    check()
    assert not (daemon.work / "ran").exists()


def test_our_client_tells_of_a_key_that_is_sent_again(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    ended = daemon.pysh("run", "work", "--id", "mine", "--json", "6 * 7")
    assert ended.returncode == 0, ended
    cell = json.loads(ended.stdout)["cell_id"]
    fired = session.fire(ONLY, "--id=other")
    session.wait_for_output(fired, "here")
    kill_and_see(session)
    again = daemon.pysh("run", "work", "--id", "mine", "6 * 7")
    assert again.returncode == 5
    assert f"cell {cell} had ended, and its result went with the session" in again.stderr
    again = daemon.pysh("run", "work", "--id", "mine", "--json", "6 * 7")
    assert again.returncode == 5
    assert told(json.loads(again.stdout)) == ("session_died", "had_ended", cell)
    again = daemon.pysh("fire", "work", "--id", "other", "--json", ONLY)
    assert again.returncode == 5
    assert told(json.loads(again.stdout)) == ("session_died", "was_running", fired)
    never = daemon.pysh("run", "work", "1")
    assert never.returncode == 5
    assert "it never accepted this cell" in never.stderr
    assert "it never ran" in never.stderr
    reused = daemon.pysh("run", "work", "--id", "mine", "6 * 8")
    assert reused.returncode == 4


def test_a_cell_in_flight_has_a_known_fate_when_its_session_dies(daemon: TestDaemon) -> None:
    for _ in range(20):
        session = daemon.new()
        first = session.detach(ONLY, "--id=a")
        session.wait_for_output(first, "here")
        # A stopped host takes neither of these two.
        os.kill(session.pid, signal.SIGSTOP)
        session.wait_for_state("stopped")
        with daemon.connect() as known, daemon.connect() as new:
            known.send(f"run {session.name} --json --id=a\n{ONLY}")
            new.send(f"run {session.name} --json --id=b\n1")
            os.kill(session.pid, signal.SIGKILL)
            replies = [json.loads(client.receive()) for client in (known, new)]
        # Who was told that it is stopped waits no more.
        if not any(it["error"]["code"] == "session_unreachable" for it in replies):
            break
    assert [told(reply) for reply in replies] == [
        ("session_died", "was_running", first),
        ("session_died", "never_accepted", None),
    ]


def test_what_a_journal_does_not_reach_back_to_is_lost(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    old = session.submit("run", "0", "--id=old")["cell_id"]
    for number in range(RECORDS // 3 + 1):
        session.out(f"{number}")
    new = session.submit("run", "0", "--id=new")["cell_id"]
    kill_and_see(session)
    for _ in range(2):
        for key in ("old", "unknown"):
            reply = session.submit("run", "0", f"--id={key}")
            assert told(reply) == ("lost", None, None)
            assert "died: killed by SIGKILL" in reply["error"]["message"]
        assert told(session.submit("run", "0", "--id=new")) == ("session_died", "had_ended", new)
        assert session.ask("wait", old)["error"]["code"] == "session_died"
        # Without a key there is nothing to know.
        assert session.run("0")["error"]["code"] == "session_died"
        daemon.crash()
        daemon.start()


def test_a_dead_session_that_is_younger_than_the_request_knows_nothing(
    daemon: TestDaemon,
) -> None:
    daemon.new("work").kill()
    session = daemon.new("work")
    kill_and_see(session)
    for _ in range(2):
        reply = session.submit("run", "1", "--id=k --resent=86400")
        assert told(reply) == ("lost", None, None)
        daemon.crash()
        daemon.start()


def test_word_of_a_death_by_an_older_build_tells_of_no_key(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    cell = session.submit("run", "1", "--id=k")["cell_id"]
    kill_and_see(session)
    daemon.crash()
    [file] = daemon.runtime.rglob("h-*.tombstone")
    word = json.loads(file.read_text())
    for field in ("fates_are_all", "born_ns"):
        del word[field]
    for fate in word["fates"]:
        fate.pop("key", None)
    file.write_text(json.dumps(word))
    daemon.start()
    assert told(session.submit("run", "1", "--id=k")) == ("lost", None, None)
    error = session.ask("wait", cell)
    assert told(error) == ("session_died", "had_ended", cell)
