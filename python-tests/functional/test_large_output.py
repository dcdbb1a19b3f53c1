"""Much output, slow readers and none: whole, bounded, and nobody else notices."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.following import Follower
from support.waiting import wait_until

MIB = 1024 * 1024
ROOM = 64 * MIB
"""How much a process may grow, whatever passes through it."""

PRINTER = (
    "line = b'0123456789abcdef' * 4096\n"
    "for i in range({0}): sys.stdout.buffer.write(line)\nsys.stdout.flush()"
)
"""Writes as many times 64 KiB."""

ENDLESS = "i = 0\nwhile True:\n    print('x' * 1000); i += 1"


def peak(pid: int) -> int:
    """Return the greatest resident size that a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmHWM of {pid}")


def forget_peak(pid: int) -> int:
    """Begin a new measurement of the peak (proc(5), clear_refs) and return the size now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


@pytest.fixture
def quiet(daemon: TestDaemon) -> Session:
    """A session of a daemon that does nothing else."""
    session = daemon.new("work")
    session.out("print('x' * 100_000)")
    return session


@pytest.mark.parametrize("megabytes", [100, 300, 1024])
@pytest.mark.timeout(170)
def test_a_large_print_passes_with_bounded_memory(quiet: Session, megabytes: int) -> None:
    if megabytes > 300 and quiet.daemon.binaries.name != "release":
        pytest.skip("takes minutes with programs that are not optimised")
    daemon = quiet.daemon
    before = {pid: forget_peak(pid) for pid in (daemon.pid, quiet.pid)}
    client = daemon.popen("pysh", "run", "work", PRINTER.format(megabytes * 16), "--no-echo")
    assert client.stdout is not None
    assert client.stderr is not None
    digest, count, highest = hashlib.sha256(), 0, 0
    while chunk := client.stdout.read(MIB):
        digest.update(chunk)
        count += len(chunk)
        if count % (16 * MIB) < MIB and client.poll() is None:
            highest = max(highest, peak(client.pid))
    told = client.stderr.read().decode()
    assert client.wait(20) == 0, told
    assert told == ""
    want = hashlib.sha256()
    for _ in range(megabytes * 16):
        want.update(b"0123456789abcdef" * 4096)
    assert (count, digest.digest()) == (megabytes * MIB, want.digest())
    grown = {pid: peak(pid) - size for pid, size in before.items()}
    assert all(growth <= ROOM for growth in grown.values()), grown
    assert highest <= ROOM, highest
    assert quiet.value("1 + 1") == "2"


@pytest.mark.timeout(170)
def test_a_large_print_of_a_fire_cell_that_nobody_reads_takes_no_memory(quiet: Session) -> None:
    daemon = quiet.daemon
    before = {pid: forget_peak(pid) for pid in (daemon.pid, quiet.pid)}
    cell = quiet.fire(PRINTER.format(400 * 16))
    assert quiet.ask("wait", cell, 150)["ok"]
    grown = {pid: peak(pid) - size for pid, size in before.items()}
    assert all(growth <= ROOM for growth in grown.values()), grown
    assert quiet.cells()[cell]["output_bytes"] == 400 * MIB


def check_usable_soon(session: Session, cell: str) -> None:
    """Interrupt a cell; two seconds later the session must be of use."""
    started = time.monotonic()
    session.interrupt(cell)
    assert session.run("1 + 1", timeout=10)["result"] == "2"
    took = time.monotonic() - started
    assert took < 2, took


@pytest.mark.parametrize("verb", ["run", "fire"])
def test_an_endless_print_whose_reader_stopped_leaves_the_session_usable(
    quiet: Session, verb: str
) -> None:
    daemon = quiet.daemon
    before = {pid: forget_peak(pid) for pid in (daemon.pid, quiet.pid)}
    if verb == "run":
        client = daemon.popen("pysh", "run", "work", ENDLESS, "--no-echo")
        wait_until(lambda: quiet.status()["running"], what="it runs")
        (cell,) = quiet.status()["running"]
    else:
        cell = quiet.fire(ENDLESS)
        client = daemon.popen("pysh", "out", "work", cell, "--follow")
    assert client.stdout is not None
    assert client.stdout.read(100_000)
    os.kill(client.pid, signal.SIGSTOP)
    try:
        size = quiet.cells()[cell]["output_bytes"]
        wait_until(
            lambda: quiet.cells()[cell]["output_bytes"] > size + 20 * MIB, 60, what="it goes on"
        )
        with daemon.session() as neighbour:
            started = time.monotonic()
            assert neighbour.value("1 + 1") == "2"
            assert time.monotonic() - started < 2
        check_usable_soon(quiet, cell)
        grown = {pid: peak(pid) - size for pid, size in before.items()}
        assert all(growth <= ROOM for growth in grown.values()), grown
        assert peak(client.pid) <= ROOM
    finally:
        os.kill(client.pid, signal.SIGCONT)
        client.kill()
        client.communicate()
    assert quiet.ended(cell)["status"] == "interrupted"


def test_an_endless_print_whose_reader_vanished_leaves_the_session_usable(quiet: Session) -> None:
    client = quiet.daemon.popen("pysh", "run", "work", ENDLESS, "--no-echo")
    assert client.stdout is not None
    assert client.stdout.read(100_000)
    (cell,) = quiet.status()["running"]
    client.kill()
    client.communicate()
    size = quiet.cells()[cell]["output_bytes"]
    wait_until(lambda: quiet.cells()[cell]["output_bytes"] > size + MIB, what="it goes on")
    before = forget_peak(quiet.daemon.pid)
    check_usable_soon(quiet, cell)
    assert peak(quiet.daemon.pid) - before <= ROOM


def test_a_reader_whose_pipe_closes_leaves_the_cell_running(quiet: Session) -> None:
    client = quiet.daemon.popen("pysh", "run", "work", ENDLESS, "--no-echo")
    assert client.stdout is not None
    assert client.stdout.read(1000)
    client.stdout.close()
    client.wait(20)
    (cell,) = quiet.status()["running"]
    check_usable_soon(quiet, cell)


def test_a_slow_reader_gets_everything_and_slows_nobody_down(quiet: Session) -> None:
    cell = quiet.fire(PRINTER.format(320))
    with quiet.daemon.connect(max_queue=1) as slow:
        follower = Follower(slow, f"out work {cell} --follow")
        follower.next()
        assert quiet.ask("wait", cell)["ok"]
        for number in range(20):
            follower.next()
            assert quiet.value(str(number)) == str(number)
        follower.reply()
        assert follower.missing == 0
        assert len(follower.streams[1]) == 20 * MIB


def test_a_stopped_reader_goes_on_where_it_was(quiet: Session) -> None:
    client = quiet.daemon.popen("pysh", "run", "work", PRINTER.format(640), "--no-echo")
    assert client.stdout is not None
    got = len(client.stdout.read(MIB))
    os.kill(client.pid, signal.SIGSTOP)
    (cell,) = quiet.cells().keys() - {next(iter(quiet.cells()))}
    wait_until(
        lambda: quiet.cells()[cell]["status"] == "done", 60, what="the cell ends all the same"
    )
    assert quiet.value("1 + 1") == "2"
    os.kill(client.pid, signal.SIGCONT)
    while chunk := client.stdout.read(MIB):
        got += len(chunk)
    assert got == 40 * MIB
    assert client.wait(20) == 0


# Ctrl-C.


def test_the_first_ctrl_c_interrupts_the_cell(session: Session) -> None:
    session.out("kept = 1")
    client = session.daemon.popen("pysh", "run", session.name, "print('in')\nwhile True: pass")
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    client.send_signal(signal.SIGINT)
    _, told = client.communicate(timeout=10)
    assert client.returncode == 130
    assert b"KeyboardInterrupt" in told
    assert session.value("kept") == "1"


def test_the_second_ctrl_c_leaves_the_cell_running_and_says_its_id(session: Session) -> None:
    code = (
        "stop = False\ntry:\n    print('in')\n    time.sleep(300)\n"
        "except KeyboardInterrupt: print('caught')\nwhile not stop: time.sleep(0.01)\n'went on'"
    )
    client = session.daemon.popen("pysh", "run", session.name, code)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    client.send_signal(signal.SIGINT)
    assert client.stdout.readline() == b"caught\n"
    assert client.poll() is None
    client.send_signal(signal.SIGINT)
    _, told = client.communicate(timeout=10)
    (cell,) = session.status()["running"]
    assert client.returncode == 130
    assert cell.encode() in told
    assert session.ended(session.fire("stop = True"))["ok"]
    assert session.ended(cell)["ok"]


def test_ctrl_c_typed_at_a_terminal_interrupts_the_cell(session: Session) -> None:
    leader, follower = pty.openpty()
    client = subprocess.Popen(
        [session.daemon.binaries / "pysh", "run", session.name, "print('in')\ntime.sleep(60)"],
        env=session.daemon.environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(follower)
    try:
        text = b""
        while b"in\r\n" not in text:
            text += os.read(leader, 4096)
        os.write(leader, b"\x03")
        assert client.wait(10) == 130
    finally:
        client.kill()
        client.wait()
        os.close(leader)
    assert session.value("1 + 1") == "2"


def test_ctrl_c_of_a_cell_that_waits_takes_it_back(session: Session) -> None:
    running = session.detach("print('in'); time.sleep(60)")
    session.wait_for_output(running, "in")
    client = session.daemon.popen("pysh", "run", session.name, "never = 1")
    wait_until(lambda: session.status()["queued"], what="it waits")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=10)
    assert client.returncode == 130
    assert session.status()["queued"] == []
    session.interrupt(running)
    assert session.value("'never' in globals()") == "False"


def test_ctrl_c_while_following_leaves_the_cell_running(session: Session) -> None:
    cell = session.fire("print('in', flush=True); time.sleep(60)")
    client = session.daemon.popen("pysh", "out", session.name, cell, "--follow")
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=10)
    assert session.poll(cell)["status"] == "running"
    session.interrupt(cell)
