"""`fork` where it is hard: beside threads that are in libraries, with much memory, in every Python."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

# More by hand: PYTHOND_TEST_FORKS=1000.
FORKS = int(os.environ.get("PYTHOND_TEST_FORKS", "30"))
NEW_SESSIONS = 100

LOAD = """
import importlib, threading
stop = False
def allocate():
    while not stop:
        [bytes(n * 997 % 100000) for n in range(50)]
def imports():
    names = ['wave', 'chunk', 'colorsys', 'sndhdr', 'mailbox', 'zipapp', 'this_is_none', 'cgi']
    while not stop:
        for name in names:
            sys.modules.pop(name, None)
            try: importlib.import_module(name)
            except ImportError: pass
def prints():
    while not stop:
        print('x' * 100); time.sleep(0.001)
def multiply(n):
    square = np.ones((n, n))
    while not stop:
        square @ square; np.random.random(100)
work = [allocate, imports, prints]
if 'np' in globals():
    work += [lambda: multiply(20), lambda: multiply(300)]
threads = [threading.Thread(target=it, daemon=True) for it in work]
for it in threads: it.start()
"""


@pytest.fixture
def numeric(shared_daemon: TestDaemon, numpy_venv: Path) -> Iterator[Session]:
    """A session with numpy."""
    python = str(numpy_venv / "bin" / "python")
    with shared_daemon.session(python=python) as session:
        session.out("import numpy as np, numpy.random")
        yield session


def fork(session: Session, code: str, options: str = "", timeout: float = 120) -> dict:
    """Fork a cell that must succeed and return it when it has ended."""
    cell = session.submit("fork", code, options)["cell_id"]
    reply = session.ended(cell, timeout)
    assert reply["status"] == "done", (reply["error"], reply["stderr"])
    return reply


def test_forks_beside_threads_in_libraries_do_not_hang(numeric: Session) -> None:
    numeric.out("import warnings; warnings.simplefilter('ignore')")
    numeric.out(LOAD)
    try:
        for number in range(FORKS):
            reply = fork(
                numeric,
                "import wave, mailbox\nsquare = np.ones((200, 200)); r = (square @ square)[0, 0]\n"
                f"a = np.random.random(3); n = {number}; print(n)",
            )
            assert reply["stdout"] == f"{number}\n"
            assert set(reply["merged"]) >= {"r", "a", "n"}, reply
            assert numeric.value("r, n", timeout=60) == f"(np.float64(200.0), {number})"
        # What ran beside them still does.
        assert numeric.value("all(it.is_alive() for it in threads)", timeout=60) == "True"
    finally:
        numeric.out("stop = True", timeout=60)
        numeric.out(
            "for it in threads: it.join(20)\n"
            "assert not any(map(threading.Thread.is_alive, threads))"
        )


def test_parallel_forks_draw_different_numbers_with_numpy(numeric: Session) -> None:
    numeric.out("np.random.seed(1); np.ones((500, 500)) @ np.ones((500, 500))")
    cells = [
        numeric.submit("fork", f"d{i} = float(np.random.random())")["cell_id"] for i in range(4)
    ]
    for cell in cells:
        assert numeric.ended(cell)["status"] == "done"
    assert numeric.value("len({d0, d1, d2, d3})") == "4"


def test_large_arrays_come_back_writable_and_are_let_go_of(numeric: Session) -> None:
    size = 64 << 20
    fork(
        numeric,
        f"big = np.arange({size} // 8); table = {{'a': np.ones(200_000), 'b': [np.zeros(3)]}}\n"
        "small = np.arange(10)",
    )
    assert numeric.value("int(big[-1]), big.flags.writeable, small.flags.writeable") == (
        f"({size // 8 - 1}, True, True)"
    )
    numeric.out("big[0] = 5; small[0] = 7; table['a'][0] = 2")
    mapped = "sum('_pythond_fork' in line for line in open('/proc/self/maps'))"
    assert int(numeric.value(mapped)) > 0
    numeric.out("del big, table")
    assert numeric.value(mapped) == "0"


def test_dataframes_come_back(numeric: Session) -> None:
    reply = fork(
        numeric,
        "import pandas as pd\ndf = pd.DataFrame({'a': range(300_000), 'b': 'x'})\n"
        "s = df.groupby('b').a.sum()",
    )
    assert reply["skipped"] == {}, reply
    assert numeric.value("int(df.a.sum()), int(s['x'])") == "(44999850000, 44999850000)"


def test_a_large_pickle_of_small_objects_comes_back(session: Session) -> None:
    fork(session, "rows = [{'n': n, 's': str(n)} for n in range(200_000)]")
    assert session.value("len(rows), rows[-1]") == "(200000, {'n': 199999, 's': '199999'})"
    assert session.value("sum('_pythond_fork' in line for line in open('/proc/self/maps'))") == "0"


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_every_python_forks(
    shared_daemon: TestDaemon, pythons: dict[str, Path], version: str
) -> None:
    if version not in pythons:
        pytest.skip(f"no CPython {version} here")
    with shared_daemon.session(python=str(pythons[version])) as session:
        session.out("factor = 2\nclass Old: pass")
        session.out(LOAD)
        reply = fork(
            session,
            "class New(Old):\n    def get(self): return factor\n"
            "import enum\nclass Colour(enum.Enum):\n    RED = 1\n"
            "red = Colour.RED; new = New(); f = lambda n: n * factor; data = [bytes(2_000_000)]\n"
            "await __import__('asyncio').sleep(0)",
        )
        assert reply["skipped"] == {}, reply
        session.out("stop = True; factor = 5")
        assert (
            session.value("new.get(), f(2), red is Colour.RED, isinstance(new, Old), len(data[0])")
            == "(5, 10, True, True, 2000000)"
        )
        cell = session.submit("fork", "print('up', flush=True); time.sleep(60)")["cell_id"]
        session.wait_for_output(cell, "up")
        session.ask("int", f"--soft {cell}")
        assert session.ended(cell)["status"] == "interrupted"
        error = session.ended(session.submit("fork", "1/0")["cell_id"])["error"]
        assert error["type"] == "ZeroDivisionError"


def test_the_first_forks_of_a_session_come_beside_its_first_fires(
    shared_daemon: TestDaemon,
) -> None:
    """What a session makes when it first needs it, another thread may be making when it forks."""
    verbs = ["fork", "fire", "fork", "fire", "fork"]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(shared_daemon.connect()) for _ in verbs]
        for _ in range(NEW_SESSIONS):
            with shared_daemon.session() as session:
                for wire, verb in zip(wires, verbs, strict=True):
                    wire.send(f"{verb} {session.name} --json\nvalue = 1")
                for wire in wires:
                    cell = json.loads(wire.receive())["cell_id"]
                    assert session.ended(cell)["status"] == "done"


STANDS_STILL = """
import ctypes
@ctypes.CFUNCTYPE(None)
def stand_still():
    try:
        os.unlink({once!r})
    except FileNotFoundError:
        return
    time.sleep(600)
# The C library calls it in each child, before CPython does anything there.
ctypes.CDLL(None).__register_atfork(None, None, stand_still, None)
"""


def test_a_child_that_stands_still_before_it_is_python_again_is_replaced(
    session: Session, tmp_path: Path
) -> None:
    """As one does that a library's thread left without a lock of CPython's."""
    once, ran = tmp_path / "once", tmp_path / "ran"
    once.touch()
    session.out(STANDS_STILL.format(once=str(once)))
    reply = fork(session, f"print('here', file=open({str(ran)!r}, 'a')); n = 1")
    assert not once.exists()
    assert ran.read_text() == "here\n"
    assert session.value("n") == "1"
    assert reply["merged"] == ["n"], reply


def test_a_child_that_stands_still_can_be_interrupted(session: Session, tmp_path: Path) -> None:
    once, ran = tmp_path / "once", tmp_path / "ran"
    once.touch()
    session.out(STANDS_STILL.format(once=str(once)))
    cell = session.submit("fork", f"print('here', file=open({str(ran)!r}, 'a'))")["cell_id"]
    wait_until(lambda: not once.exists(), what="the child stands still")
    session.ask("int", f"--soft {cell}")
    assert session.ended(cell)["status"] == "interrupted"
    assert not ran.exists()


def test_forks_that_hooks_of_forks_make_hurt_nobody(session: Session) -> None:
    """On every way: before, in the session after it, and in the child."""
    session.out(
        "def fork():\n"
        "    if not forking:\n"
        "        forking.append(1)\n"
        "        child = os.fork()\n"
        "        if child == 0: os._exit(0)\n"
        "        forks.append(os.waitpid(child, 0)[1])\n"
        "        forking.clear()\n"
        "forking, forks, session = [], [], os.getpid()\n"
        "class ForksWhenItGoes:\n"
        "    def __del__(self):\n"
        "        if os.getpid() == session: fork()\n"
        "def litter():\n"
        "    # Found by the collector somewhere behind this hook.\n"
        "    it = ForksWhenItGoes(); it.it = it\n"
        "os.register_at_fork(before=litter, after_in_parent=fork, after_in_child=fork)\n"
        "import gc; gc.set_threshold(1)"
    )
    for number in range(5):
        reply = fork(session, f"n = {number}")
        assert reply["merged"] == ["n"], reply
    assert session.value("n, set(forks), len(forks) > 5") == "(4, {0}, True)"
    # Those that attach later find no lock that is held.
    cell = session.fire("m = 1")
    assert session.ended(cell)["status"] == "done"


FORKS_AFTER_IT = """
def fork():
    child = os.fork()
    if child == 0: os._exit(0)
    os.waitpid(child, 0)
os.register_at_fork(after_in_parent=lambda: forking and forking.pop() and fork())
forking = [True]
"""


def test_a_child_of_somebody_elses_does_not_speak_for_that_of_a_cell(
    session: Session, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    session.out(STANDS_STILL.format(once=str(once)) + FORKS_AFTER_IT)
    once.touch()
    fork(session, "n = 1")
    assert session.value("n") == "1"


CHURN = """
import threading
globals().update({f'k{n}': n for n in range(20_000)})
stop = False
def churn():
    while not stop:
        thread = threading.Thread(target=len, args=('',)); thread.start(); thread.join()
def spin():
    while not stop: sum(range(200))
sys.setswitchinterval(1e-4)
threads = [threading.Thread(target=it, daemon=True) for it in (churn, churn, spin)]
for it in threads: it.start()
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_forks_beside_threads_that_start_threads_do_not_hang(
    shared_daemon: TestDaemon, pythons: dict[str, Path], version: str
) -> None:
    """CPython 3.13 has its list of threads locked from its preparations to the fork."""
    if version not in pythons:
        pytest.skip(f"no CPython {version} here")
    with shared_daemon.session(python=str(pythons[version])) as session:
        session.out("import sys\n" + CHURN)
        for number in range(max(FORKS, 40)):
            fork(session, f"n = {number}")
        session.out("stop = True\nfor it in threads: it.join(20)")


def test_a_slow_hook_of_the_users_runs_once_in_the_child(session: Session, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    session.out(
        "def hook():\n"
        f"    print('here', file=open({str(ran)!r}, 'a'))\n"
        "    time.sleep(4)\n"
        "os.register_at_fork(after_in_child=hook)"
    )
    fork(session, "n = 1")
    assert ran.read_text() == "here\n"


def test_a_fork_does_not_hold_up_what_runs(session: Session) -> None:
    session.out("many = [[n] for n in range(2_000_000)]")
    cell = session.submit("fork", "print('up', flush=True); time.sleep(60)")["cell_id"]
    session.wait_for_output(cell, "up")
    began = time.monotonic()
    assert session.value("len(many)") == "2000000"
    assert time.monotonic() - began < 5
    session.interrupt(cell)
    assert session.ended(cell)["status"] == "killed"
