"""Sessions that die: who is told what, and that nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import faults, processes
from support.daemon import Session, TestDaemon
from support.pythons import version_parameters
from support.waiting import wait_until


@pytest.fixture(params=version_parameters())
def mortal(
    module_daemon: TestDaemon, pythons: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Session]:
    """A session that will die, of each supported version."""
    with module_daemon.session(python=str(pythons[request.param])) as session:
        yield session


DEATHS = {
    "segmentation_fault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "abort": ("os.abort()", "SIGABRT"),
    "exit_status": ("os._exit(7)", "exited with status 7"),
    "exit_status_zero": ("os._exit(0)", "exited with status 0"),
    "sigkill": ("os.kill(os.getpid(), 9)", "SIGKILL"),
    "sigterm": (
        "import signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15); time.sleep(20)",
        "SIGTERM",
    ),
    "bus_error": ("os.kill(os.getpid(), 7)", "SIGBUS"),
    "illegal_instruction": ("os.kill(os.getpid(), 4)", "SIGILL"),
    "stack_overflow_in_c": (
        "import ctypes, threading\n"
        "CB = ctypes.CFUNCTYPE(None)\n"
        "sys.setrecursionlimit(10**8)\n"
        "def f(): c()\nc = CB(f)\n"
        "threading.stack_size(64 * 1024)\n"
        "t = threading.Thread(target=c); t.start(); t.join()",
        "SIG",
    ),
    "exec_of_another_program": ("os.execv('/bin/sh', ['sh', '-c', 'exit 3'])", "status 3"),
}


@pytest.mark.parametrize(("code", "cause"), DEATHS.values(), ids=DEATHS)
def test_the_waiting_client_gets_cause_and_cell_at_once(
    mortal: Session, code: str, cause: str
) -> None:
    mortal.out("x = 1")
    started = time.monotonic()
    reply = mortal.run(f"print('last words', flush=True)\n{code}", timeout=20)
    assert time.monotonic() - started < 5
    assert not reply["ok"]
    assert reply["status"] == "killed"
    assert reply["error"]["code"] == "session_died"
    assert cause in reply["error"]["message"]
    assert reply["cell_id"]
    assert reply["session_id"] == mortal.created["session_id"]
    status = mortal.status()
    assert status["state"] == "dead"
    assert status["ok"] is False
    assert cause in status["death"]["cause"]
    assert status["death"]["cell_id"] == reply["cell_id"]
    assert status["death"]["died_at"]
    assert status["pid"] == mortal.pid
    listed = mortal.daemon.list()[mortal.name]
    assert listed["state"] == "dead"
    assert cause in listed["cause"]
    assert f"  {mortal.name}: DEAD pid={mortal.pid} (" in mortal.daemon.ask("ls")


def test_output_written_before_the_death_is_not_lost(mortal: Session) -> None:
    reply = mortal.run(
        "print('out before'); os.write(2, b'err before\\n'); sys.stdout.flush(); os.abort()"
    )
    assert reply["stdout"] == "out before\n"
    assert "err before\n" in reply["stderr"]


def test_a_clean_recursion_in_c_raises_or_kills_with_a_cause(mortal: Session) -> None:
    reply = mortal.run(
        "sys.setrecursionlimit(10**7)\nimport functools\np = functools.partial(int)\n"
        "for _ in range(200_000): p = functools.partial(p) if False else [p]\nrepr(p)\nNone",
        timeout=40,
    )
    if reply["ok"] or reply["status"] == "failed":
        assert mortal.out("1 + 1") == "2\n"
    else:
        assert reply["error"]["code"] == "session_died"
        assert "SIGSEGV" in mortal.status()["death"]["cause"]


def test_memory_beyond_a_limit_raises_or_kills_with_a_cause(mortal: Session) -> None:
    reply = mortal.run(
        "import resource\nused = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
        timeout=40,
    )
    if reply["status"] == "failed":
        assert reply["error"]["type"] == "MemoryError"
        after = mortal.run("kept = None")
        assert after["ok"] or after["error"]["code"] == "session_died"
    else:
        assert reply["error"]["code"] == "session_died"


def test_the_last_words_on_stderr_are_kept(mortal: Session) -> None:
    mortal.run("os.write(2, b'fatal: the reason\\n'); os.abort()")
    assert "fatal: the reason" in mortal.status()["death"]["last_stderr"]


def test_the_message_of_an_abort_in_c_is_kept(mortal: Session) -> None:
    mortal.run("import ctypes; ctypes.pythonapi.Py_FatalError(b'the fatal reason')")
    assert "the fatal reason" in mortal.status()["death"]["last_stderr"]


def test_the_last_words_are_bounded_and_their_end_is_kept(mortal: Session) -> None:
    mortal.run("os.write(2, b'x' * 30000 + b'the end'); os.abort()")
    last = mortal.status()["death"]["last_stderr"]
    assert "the end" in last
    assert len(last) <= 4096


def test_a_dead_session_answers_with_its_cause_and_can_be_created_again(mortal: Session) -> None:
    daemon = mortal.daemon
    mortal.run("os._exit(7)")
    reply = mortal.run("1 + 1")
    assert reply["ok"] is False
    assert reply["error"]["code"] == "session_died"
    assert "status 7" in reply["error"]["message"]
    assert daemon.ask(f"run {mortal.name} 1").startswith("ERR ")
    done = daemon.pysh("run", mortal.name, "1 + 1")
    assert done.returncode == 5
    assert "status 7" in done.stderr
    with daemon.connect() as wire:
        again = wire.new(mortal.name)
        assert again["ok"], again
        assert again["session_id"] != mortal.created["session_id"]
        assert wire.run(mortal.name, "1 + 1")["stdout"] == "2\n"
        assert "death" not in wire.json(f"status {mortal.name} --json")


def test_pysh_exits_with_five_and_names_the_cause(mortal: Session) -> None:
    done = mortal.pysh_run("print('kept')\nsys.stdout.flush()\nos.kill(os.getpid(), 11)")
    assert done.returncode == 5
    assert "SIGSEGV" in done.stderr
    assert done.stdout == "kept\n"
    assert "DEAD" in mortal.daemon.pysh("ls").stdout
    assert "SIGSEGV" in mortal.daemon.pysh("status", mortal.name).stdout


def test_the_plain_wire_names_the_cause(mortal: Session) -> None:
    text = mortal.plain("os._exit(3)")
    assert text.startswith("ERR ")
    assert "status 3" in text


def test_cells_that_wait_behind_the_fatal_one_are_told_too(mortal: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = mortal.daemon
    with daemon.connect() as first, daemon.connect() as second, daemon.connect() as third:
        first.send(
            f"run {mortal.name} --json\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
            "os.abort()"
        )
        mortal.wait_for_state("running")
        second.send(f"run {mortal.name} --json\n1")
        third.send(f"run {mortal.name} --json\n2")
        wait_until(lambda: len(mortal.status()["queued"]) == 2, what="two cells are queued")
        go.touch()
        replies = [json.loads(wire.receive(20)) for wire in (first, second, third)]
    assert [reply["error"]["code"] for reply in replies] == ["session_died"] * 3
    assert replies[0]["status"] == "killed"


def test_a_session_killed_from_outside_while_idle_is_shown_dead(mortal: Session) -> None:
    mortal.out("1")
    os.kill(mortal.pid, signal.SIGKILL)
    mortal.wait_for_state("dead")
    assert "SIGKILL" in mortal.status()["death"]["cause"]
    assert mortal.status()["death"]["cell_id"] is None


def test_a_session_killed_from_outside_while_it_runs_tells_its_client(mortal: Session) -> None:
    mortal.wire.send(f"run {mortal.name} --json\ntime.sleep(30)")
    mortal.wait_for_state("running")
    os.kill(mortal.pid, signal.SIGKILL)
    reply = json.loads(mortal.wire.receive(10))
    assert reply["error"]["code"] == "session_died"
    assert "SIGKILL" in reply["error"]["message"]


def test_children_of_a_dead_session_are_gone_within_a_second(
    mortal: Session, tmp_path: Path
) -> None:
    child = int(mortal.value("p = subprocess.Popen(['sleep', '300']); p.pid") or 0)
    forked = int(
        mortal.value("f = os.fork()\nif f == 0:\n    time.sleep(300)\n    os._exit(0)\nf") or 0
    )
    mortal.run("os.kill(os.getpid(), 9)")

    try:
        wait_until(
            lambda: not processes.is_alive(child) and not processes.is_alive(forked),
            deadline=2,
            what="the children are gone",
        )
    finally:
        processes.end({child, forked})


def test_no_other_session_notices(module_daemon: TestDaemon) -> None:
    with module_daemon.session() as other, module_daemon.session() as dying:
        other.out("x = 'untouched'")
        pid = module_daemon.pid
        other.wire.send(f"run {other.name} --json\ntime.sleep(0.3); x")
        other.wait_for_state("running")
        dying.run("os.abort()")
        reply = json.loads(other.wire.receive())
        assert reply["stdout"] == "untouched\n"
        assert other.status()["pid"] == other.pid
        assert module_daemon.info()["pid"] == pid


def test_many_deaths_leave_nothing_behind(module_daemon: TestDaemon) -> None:
    descriptors = len(os.listdir(f"/proc/{module_daemon.pid}/fd"))
    name = module_daemon.unused_name()
    for round_ in range(20):
        with module_daemon.connect() as wire:
            assert wire.new(name)["ok"]
            assert wire.run(name, f"os._exit({round_})")["error"]["code"] == "session_died"
    module_daemon.ask(f"kill {name}")
    wait_until(
        lambda: len(os.listdir(f"/proc/{module_daemon.pid}/fd")) <= descriptors + 2,
        what="the daemon's descriptors are closed",
    )


def test_killing_a_dead_session_forgets_it(mortal: Session) -> None:
    mortal.run("os._exit(1)")
    assert mortal.daemon.ask(f"kill {mortal.name}") == f"OK killed {mortal.name}"
    assert mortal.name not in mortal.daemon.list()


def test_what_is_being_taken_in_at_the_instant_of_death_is_kept(
    module_daemon: TestDaemon,
) -> None:
    for instant in range(80):
        with module_daemon.session() as session:
            reply = session.run(
                "import signal\n"
                "os.write(1, b'y' * 9000 + b'that was all')\n"
                "os.write(2, b'x' * 9000 + b'the end')\n"
                f"until = time.perf_counter_ns() + {instant} * 1000\n"
                "while time.perf_counter_ns() < until: pass\n"
                "signal.raise_signal(signal.SIGKILL)"
            )
            assert reply["status"] == "killed"
            assert reply["stdout"] == "y" * 9000 + "that was all"
            assert reply["stderr"] == "x" * 9000 + "the end"
            assert session.status()["death"]["last_stderr"].endswith("the end")


WHY_NO_TRACE = faults.why_not()


@pytest.mark.skipif(WHY_NO_TRACE is not None, reason=str(WHY_NO_TRACE))
def test_of_hosts_that_end_together_each_is_looked_at_once(daemon: TestDaemon) -> None:
    count = 20
    sessions = [daemon.new() for _ in range(count)]
    hosts = [entry["pid"] for entry in daemon.json("ls --json")["sessions"]]
    (zygote,) = (zygote["pid"] for zygote in daemon.info()["zygotes"])
    with faults.traced([zygote], "-e", "trace=openat") as calls:
        os.kill(zygote, signal.SIGSTOP)
        for pid in hosts:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(processes.is_zombie(pid) for pid in hosts), what="all have ended")
        os.kill(zygote, signal.SIGCONT)
        for session in sessions:
            session.wait_for_state("dead")
        wait_until(
            lambda: not any(os.path.exists(f"/proc/{pid}") for pid in hosts),
            what="all are reaped",
        )
    own = [line for line in calls if line.startswith(f"{zygote} ")]
    journals = [line for line in own if ".journal" in line]
    # For what its `fork` cells left, and for its last words.
    assert count <= len(journals) <= 2 * count, calls
