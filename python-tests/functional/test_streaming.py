"""Output while a cell runs: as events, by offset, live and later."""

from __future__ import annotations

import subprocess
import time

import pytest

from support.daemon import Session
from support.following import Follower

MIB = 1024 * 1024


# As it happens.


def test_output_comes_while_the_cell_runs(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    with session.daemon.connect() as wire:
        follower = Follower(
            wire, f"run {session.name} --stream\nprint('early'); go.wait(30); print('late')"
        )
        accepted = follower.next()
        assert accepted["event"] == "accepted"
        while follower.streams[1] != b"early\n":
            assert follower.next()["event"] == "output"
        assert session.ended(session.fire("go.set()"))["ok"]
        reply = follower.reply()
        assert follower.streams[1] == b"early\nlate\n"
        assert reply["cell_id"] == accepted["cell_id"]
        assert (reply["ok"], reply["streamed"], reply["output_bytes"]) == (True, True, 11)
        assert (reply["stdout"], reply["stderr"]) == ("", "")


def test_output_without_a_newline_and_of_children_comes_at_once_as_well(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    code = "print('no newline', end=''); subprocess.run(['echo', 'child']); os.write(1, b'raw'); go.wait(30)"
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"run {session.name} --stream\n{code}")
        while follower.streams[1] != b"no newlinechild\nraw":
            follower.next(10)
        assert session.ended(session.fire("go.set()"))["ok"]
        assert follower.reply()["ok"]


def test_what_was_written_last_before_a_long_silence_comes_at_once(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    code = "for n in range(2000): print(n)\ngo.wait(30)"
    for _ in range(5):
        with session.daemon.connect() as wire:
            follower = Follower(wire, f"run {session.name} --stream\n{code}")
            while not follower.streams[1].endswith(b"\n1999\n"):
                follower.next(10)
            session.ended(session.fire("go.set(); go.clear()"))
            assert follower.reply()["ok"]


def test_several_readers_of_a_flow_all_get_it_in_time(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    cell = session.fire("n = 0\nwhile not go.is_set():\n    print(n); n += 1; time.sleep(0.0003)")
    with session.daemon.connect() as one, session.daemon.connect() as two:
        followers = [
            Follower(one, f"out {session.name} {cell} --follow --stream"),
            Follower(two, f"out {session.name} {cell} --follow --stream"),
        ]
        for _ in range(3):
            for follower in followers:
                lines = follower.streams[1].count(b"\n")
                while follower.streams[1].count(b"\n") < lines + 200:
                    follower.next(10)
        session.out("go.set()")
        whole = "".join(f"{n}\n" for n in range(followers[0].streams[1].count(b"\n")))
        assert followers[0].streams[1] == whole.encode()


def test_streams_are_told_apart_in_order_with_offsets(session: Session) -> None:
    code = "for i in range(300):\n    print('o', i)\n    print('e', i, file=sys.stderr)"
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"run {session.name} --stream\n{code}")
        reply = follower.reply()
        assert follower.streams[1].decode() == "".join(f"o {i}\n" for i in range(300))
        assert follower.streams[2].decode() == "".join(f"e {i}\n" for i in range(300))
        at = 0
        for event in follower.events:
            if event.get("event") == "output":
                assert event["offset"] == at
                at += event["bytes"]
        assert at == reply["output_bytes"]
        order = [e["stream"] for e in follower.events if e.get("event") == "output"]
        changes = [
            stream for stream, before in zip(order, [0, *order], strict=False) if stream != before
        ]
        assert changes == [1, 2] * 300


def test_characters_are_whole_and_other_bytes_survive(session: Session) -> None:
    code = (
        "for byte in 'é🐍'.encode() * 20:\n    os.write(1, bytes([byte])); time.sleep(0.0005)\n"
        "os.write(1, b'\\xff\\x00\\xfe'); print('é' * 100_000)"
    )
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"run {session.name} --stream\n{code}")
        assert follower.reply()["ok"]
        whole = "é🐍".encode() * 20 + b"\xff\x00\xfe" + "é".encode() * 100_000 + b"\n"
        assert follower.streams[1] == whole
    done = session.daemon.pysh("run", session.name, code, bytes=True)
    assert done.stdout == whole


def test_an_error_comes_after_the_streamed_output(session: Session) -> None:
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"run {session.name} --stream\nprint('before'); 1/0")
        reply = follower.reply()
        assert follower.streams[1] == b"before\n"
        assert reply["status"] == "failed"
        assert reply["error"]["type"] == "ZeroDivisionError"


def test_a_streamed_cell_that_waits_for_its_turn_says_so(session: Session) -> None:
    running = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(running, "in")
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"run {session.name} --stream\nprint('ran')")
        assert follower.next()["status"] == "queued"
        session.interrupt(running)
        assert follower.reply()["ok"]
        assert follower.streams[1] == b"ran\n"


def test_the_first_byte_reaches_the_command_line_before_the_cell_ends(session: Session) -> None:
    client = session.daemon.popen("pysh", "run", session.name, "print('early'); time.sleep(60)")
    assert client.stdout is not None
    started = time.monotonic()
    assert client.stdout.readline() == b"early\n"
    assert time.monotonic() - started < 10
    session.interrupt()
    client.communicate(timeout=10)
    assert client.returncode == 1 or client.returncode == 130


# By offset.


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_output_is_read_from_any_offset(session: Session, verb: str) -> None:
    code = "print('0123456789'); print('abc', file=sys.stderr); print('xyz')"
    cell = session.detach(code) if verb == "run" else session.fire(code)
    session.ended(cell)
    whole = session.ask("out", cell)
    assert (whole["stdout"], whole["stderr"]) == ("0123456789\nxyz\n", "abc\n")
    assert (whole["offset"], whole["next"], whole["missing"], whole["ended"]) == (0, 19, 0, True)
    part = session.ask("out", f"{cell} --since=5")
    assert (part["stdout"], part["stderr"], part["offset"], part["next"]) == (
        "56789\nxyz\n",
        "abc\n",
        5,
        19,
    )
    part = session.ask("out", f"{cell} --since=5 --max=8")
    assert (part["stdout"], part["stderr"], part["next"]) == ("56789\n", "ab", 13)
    assert part["ended"] is False
    part = session.ask("out", f"{cell} --since=19")
    assert (part["stdout"], part["stderr"], part["ended"]) == ("", "", True)
    part = session.ask("out", f"{cell} --stderr --since=1")
    assert (part["stdout"], part["stderr"], part["next"]) == ("", "bc\n", 4)
    part = session.ask("out", f"{cell} --stdout --since=11")
    assert part["stdout"] == "xyz\n"
    past = session.ask("out", f"{cell} --since=1000")
    assert (past["stdout"], past["missing"]) == ("", 0)
    assert session.daemon.ask(f"out {session.name} {cell} --stderr").strip() == "abc"
    assert session.ask("out", "deadbeef0000")["error"]["code"] == "unknown_cell"
    assert session.ask("out", f"{cell} --since=x")["error"]["code"] == "usage"


def test_following_reads_what_is_there_and_what_comes(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    cell = session.fire("print('one'); print('err', file=sys.stderr); go.wait(30); print('two')")
    session.wait_for_output(cell, "one")
    with session.daemon.connect() as all_, session.daemon.connect() as late:
        first = Follower(all_, f"out {session.name} {cell} --follow")
        second = Follower(late, f"out {session.name} {cell} --follow --stdout --since=2")
        while b"err" not in first.streams[2]:
            first.next()
        assert session.ended(session.fire("go.set()"))["ok"]
        reply = first.reply()
        assert (first.streams[1], first.streams[2]) == (b"one\ntwo\n", b"err\n")
        assert (reply["ended"], reply["status"], reply["next"]) == (True, "done", 12)
        second.reply()
        assert (second.streams[1], second.streams[2]) == (b"e\ntwo\n", b"")
    done = session.daemon.pysh("out", session.name, cell, "--follow")
    assert (done.stdout, done.stderr) == ("one\ntwo\n", "err\n")


def test_many_followers_of_one_cell_all_get_everything(session: Session) -> None:
    cell = session.fire(
        "for i in range(2000):\n    print(i)\n    if i % 100 == 0: time.sleep(0.01)"
    )
    want = "".join(f"{i}\n" for i in range(2000)).encode()
    wires = [session.daemon.connect() for _ in range(8)]
    followers = [Follower(wire, f"out {session.name} {cell} --follow") for wire in wires]
    for follower in followers:
        assert follower.reply()["ended"] is True
        assert follower.streams[1] == want
    for wire in wires:
        wire.close()


def test_output_past_what_is_kept_is_counted_exactly(session: Session) -> None:
    """A cell keeps 256 MiB: what is dropped before is said with its number of bytes."""
    total = 300 * MIB
    cell = session.fire(
        f"block = b'x' * 65535 + b'\\n'\nfor _ in range({total // 65536}): sys.stdout.buffer.write(block)"
        "\nsys.stdout.flush()"
    )
    assert session.ask("wait", cell, 100)["ok"]
    summary = session.cells()[cell]
    assert summary["output_bytes"] == total
    assert 0 < summary["truncated"] < total
    first = session.ask("out", f"{cell} --max=1000")
    assert first["missing"] == first["offset"] == summary["truncated"]
    assert len(first["stdout"]) == 1000
    inside = session.ask("out", f"{cell} --since=1000 --max=1")
    assert inside["missing"] == summary["truncated"] - 1000
    with session.daemon.connect() as wire:
        follower = Follower(wire, f"out {session.name} {cell} --follow")
        reply = follower.reply(60)
        got = len(follower.streams[1])
        assert got + follower.missing == total
        assert follower.missing == summary["truncated"]
        assert reply["next"] == total
    done = session.daemon.pysh(
        "out", session.name, cell, "--since", "1000", stdout=subprocess.DEVNULL
    )
    assert str(summary["truncated"] - 1000) in done.stderr
