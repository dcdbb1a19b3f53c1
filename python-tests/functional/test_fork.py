"""`fork`: cells in child processes, and what comes back from them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.processes import is_alive as running
from support.waiting import wait_until


def forked(session: Session, code: str, options: str = "") -> str:
    """Fork a cell, which must be accepted, and return its id."""
    reply = session.submit("fork", code, options)
    assert reply["ok"], reply
    return reply["cell_id"]


def outcome(session: Session, code: str, options: str = "", timeout: float = 60) -> dict:
    """Fork a cell and return it when it has ended."""
    return session.ended(forked(session, code, options), timeout)


def done(session: Session, code: str, options: str = "", timeout: float = 60) -> dict:
    """Fork a cell that must succeed and return it when it has ended."""
    reply = outcome(session, code, options, timeout)
    assert reply["status"] == "done", reply
    return reply


def test_new_and_reassigned_names_come_back(session: Session) -> None:
    session.out("a = 1; b = 2; kept = object(); before = id(kept)")
    reply = done(session, "a = 10; c = [a, b]; print('hi'); c")
    assert reply["stdout"] == "hi\n[10, 2]\n"
    assert reply["result"] == "[10, 2]"
    assert reply["merged"] == ["a", "c"]
    assert reply["skipped"] == {}
    assert reply["mutated"] == []
    assert session.value("a, b, c, id(kept) == before") == "(10, 2, [10, 2], True)"


def test_the_plain_wire_has_the_shapes_of_0_4(session: Session) -> None:
    code = "x = 6 * 7\nl = __import__('threading').Lock()\nx"
    answer = json.loads(session.wire.ask(f"fork {session.name}\n{code}"))
    assert set(answer) == {"cell_id", "status"}
    assert answer["status"] == "forked"
    session.ended(answer["cell_id"])
    assert json.loads(session.wire.ask(f"poll {session.name}")) == {
        "cell_id": answer["cell_id"],
        "status": "done",
        "output": "42",
        "merged": ["x"],
        "skipped": ["l"],
    }


# What comes back, and what does not.


def test_functions_classes_and_instances_come_back_and_live_in_the_session(
    session: Session,
) -> None:
    session.out("factor = 2\nclass Old:\n    class Inner: pass\ndef old(): return 'old'")
    reply = done(
        session,
        "def times(n): return n * factor\n"
        "twice = lambda n: times(n) + 0\n"
        "class New:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def get(self): return times(self.n)\n"
        "class Sub(Old): pass\n"
        "new = New(5); sub = Sub(); one = Old(); inner = Old.Inner(); uses = [old, Old]\n"
        "def outer():\n    count = 3\n    def inside(): return count * factor\n    return inside\n"
        "closure = outer()",
    )
    assert reply["skipped"] == {}, reply
    assert session.value("times(4), twice(4), new.get(), closure()") == "(8, 8, 10, 6)"
    # The session's own names are what its functions see.
    assert session.value("factor = 10; times(4), twice(4), new.get(), closure()") == (
        "(40, 40, 50, 30)"
    )
    assert (
        session.value(
            "type(new) is New, type(sub) is Sub, Sub.__bases__ == (Old,), type(one) is Old, "
            "type(inner) is Old.Inner, uses[0] is old, uses[1] is Old, times.__globals__ is globals()"
        )
        == "(" + ", ".join(["True"] * 8) + ")"
    )
    assert session.value("times.__builtins__ is New.get.__builtins__") == "True"


def test_enums_dataclasses_and_aliases_come_back(session: Session) -> None:
    reply = done(
        session,
        "import enum, dataclasses, collections\n"
        "class Colour(enum.Enum):\n    RED = 1\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int = 1\n"
        "Pair = collections.namedtuple('Pair', 'a b')\n"
        "red = Colour.RED; point = Point(3); pair = Pair(1, 2); a = b = []",
    )
    assert reply["skipped"] == {}, reply
    assert session.value("red is Colour.RED, point == Point(3), pair == Pair(1, 2), a is b") == (
        "(True, True, True, True)"
    )


def test_what_cannot_be_pickled_is_named_with_the_reason(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "written"
    reply = done(
        session,
        "import threading\nlock = threading.Lock()\ngen = (n for n in range(3))\n"
        f"sock = socket.socket()\nfile = open({str(path)!r}, 'w'); file.write('all of it')\n"
        "good = 1; names = globals()",
    )
    assert set(reply["merged"]) == {"good", "threading"}
    assert set(reply["skipped"]) == {"lock", "gen", "sock", "file", "names"}
    assert "lock" in reply["skipped"]["lock"]
    assert "generator" in reply["skipped"]["gen"]
    assert "socket" in reply["skipped"]["sock"]
    assert "open file" in reply["skipped"]["file"]
    assert path.read_text() == "all of it"
    assert session.value("good, 'lock' in globals()") == "(1, False)"


def test_names_that_were_changed_in_place_are_reported(session: Session) -> None:
    session.out(
        "items = [1]; table = {}; nested = {'a': [1]}; same = [1, 2]; big = list(range(100000))\n"
        "class Box: pass\nbox = Box(); box.v = 1; other = Box(); other.v = 1\n"
        "raw = bytearray(b'abc'); group = {1}; small = (1, [2])"
    )
    reply = done(
        session,
        "items.append(2); table['k'] = 1; nested['a'].append(2); big[0] = -1; box.v = 2\n"
        "raw[0] = 0; group.add(2); small[1].append(3)",
    )
    assert reply["mutated"] == sorted(
        ["items", "table", "nested", "big", "box", "raw", "group", "small"]
    )
    assert reply["merged"] == []
    session.out("class Kind: pass")
    assert done(session, "Kind.added = 1")["mutated"] == ["Kind"]
    assert done(session, "kind = Kind()")["mutated"] == []
    assert session.value("hasattr(Kind, 'added'), type(kind) is Kind") == "(False, True)"
    assert session.value("items, table, nested, box.v, big[0], raw, group, small") == (
        "([1], {}, {'a': [1]}, 1, 0, bytearray(b'abc'), {1}, (1, [2]))"
    )
    # What was looked at by a sample only, and seemed to be the same, is said.
    reply = done(session, "fresh = 1")
    assert reply["mutated"] == []
    assert "big" in reply["unchecked"]
    assert "same" not in reply["unchecked"]


def test_a_failed_cell_merges_nothing_and_keeps_its_output(session: Session) -> None:
    session.out("x = 1")
    reply = outcome(session, "x = 2; y = 3; print('before'); 1/0")
    assert reply["status"] == "failed"
    assert reply["error"]["type"] == "ZeroDivisionError"
    assert "1/0" in reply["error"]["traceback"]
    assert reply["stdout"] == "before\n"
    assert reply["merged"] == []
    reply = outcome(session, "x = 2; raise SystemExit(3)")
    assert reply["status"] == "failed"
    assert reply["error"]["message"] == "exit(3)"
    reply = outcome(session, "x = ")
    assert reply["error"]["type"] == "SyntaxError"
    assert session.value("x, 'y' in globals()") == "(1, False)"


def test_the_last_writer_wins(session: Session) -> None:
    session.out("x = 'session'")
    slow = forked(session, "print('up', flush=True)\ntime.sleep(0.3)\nx = 'slow'")
    session.wait_for_output(slow, "up")
    session.out("x = 'later'")
    done(session, "x = 'quick'")
    assert session.value("x") == "quick"
    assert session.ended(slow)["merged"] == ["x"]
    assert session.value("x") == "slow"


HOSTILE = (
    "class Raises:\n    def __reduce__(self): return (eval, ('1/0',))\n"
    "class Exits:\n    def __reduce__(self): return (os._exit, (3,))\n"
    "class Quits:\n    def __reduce__(self): return (exit, (4,))\n"
    "class Sleeps:\n    def __reduce__(self): return (time.sleep, (1000,))\n"
    "class Forks:\n    def __reduce__(self): return (os.fork, ())\n"
    "class Dies:\n    def __reduce__(self): return (os.kill, (0, 0))\n"
    "class Aborts:\n    def __setstate__(self, state): os.abort()\n"
    "    def __init__(self): self.x = 1\n"
    "class Unpicklable:\n    def __reduce__(self): raise ValueError('no, never')\n"
)


def test_a_value_whose_unpickling_goes_wrong_loses_only_itself(session: Session) -> None:
    session.out(HOSTILE + "good = 0")
    reply = done(
        session,
        "good = 1; raises = Raises(); exits = Exits(); sleeps = Sleeps(); also = [1, 2]\n"
        "forks = Forks(); quits = Quits(); aborts = Aborts(); never = Unpicklable(); last = {}",
    )
    assert reply["merged"] == ["also", "good", "last"]
    skipped = reply["skipped"]
    assert "ZeroDivisionError" in skipped["raises"]
    assert "status 3" in skipped["exits"]
    assert "SystemExit" in skipped["quits"]
    assert "has not ended" in skipped["sleeps"]
    assert "starts processes" in skipped["forks"]
    assert "signal 6" in skipped["aborts"]
    assert "no, never" in skipped["never"]
    assert session.value("good, also, last") == "(1, [1, 2], {})"


# While it runs.


def test_output_streams_in_order_whoever_writes_it(session: Session) -> None:
    session.out("import sys")
    cell = forked(
        session,
        "print('first', flush=True)\n"
        "import subprocess\n"
        "for n in range(30):\n"
        "    print('p', n)\n    os.write(1, b'd %d\\n' % n)\n"
        "    subprocess.run(['echo', 's', str(n)])\n    sys.stderr.write('e %d\\n' % n)\n"
        "print('waiting'); time.sleep(60)",
    )
    out = session.wait_for_output(cell, "waiting")
    expected = ["first"]
    for n in range(30):
        expected += [f"p {n}", f"d {n}", f"s {n}"]
    assert out.splitlines() == [*expected, "waiting"]
    session.interrupt(cell)
    ended = session.ended(cell)
    assert ended["status"] == "killed"
    assert ended["stdout"] == out
    assert ended["stderr"].splitlines() == [f"e {n}" for n in range(30)]
    # Both streams as they were written by Python.
    both = done(session, "for n in range(20):\n    print(n); print(-n, file=sys.stderr)")
    assert len(both["order"]) == 40


def test_int_kills_a_fork_with_the_processes_that_it_started(session: Session) -> None:
    cell = forked(
        session,
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "if os.fork() == 0: time.sleep(1000)\n"
        "print(os.getpid(), child.pid, flush=True)\nwhile True: pass",
    )
    pids = [int(pid) for pid in session.wait_for_output(cell, "\n").split()]
    answer = session.interrupt(cell)
    # It is waited for, and not for long.
    assert [it["outcome"] for it in answer["cells"]] in (["ended"], ["pending"]), answer
    ended = session.ended(cell)
    assert ended["status"] == "killed"
    assert ended["error"]["type"] == "ChildProcessError"
    assert "killed" in ended["error"]["message"]
    assert ended["merged"] == []
    wait_until(lambda: not any(running(pid) for pid in pids), what="all are gone")
    assert session.value("1 + 1") == "2"


def test_a_soft_interrupt_can_be_caught(session: Session) -> None:
    cell = forked(
        session,
        "try:\n    print('up', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    caught = True",
    )
    session.wait_for_output(cell, "up")
    session.ask("int", f"--soft {cell}")
    assert session.ended(cell)["merged"] == ["caught"]
    cell = forked(session, "print('up', flush=True)\ntime.sleep(60)")
    session.wait_for_output(cell, "up")
    session.ask("int", f"--soft {cell}")
    ended = session.ended(cell)
    assert ended["status"] == "interrupted"
    assert ended["error"]["type"] == "KeyboardInterrupt"


def test_int_without_an_id_reaches_forks_too(session: Session) -> None:
    cells = [forked(session, "print('up', flush=True)\ntime.sleep(60)") for _ in range(3)]
    for cell in cells:
        session.wait_for_output(cell, "up")
    assert sorted(session.interrupt()["interrupted"]) == sorted(cells)
    assert {session.ended(cell)["status"] for cell in cells} == {"killed"}


def test_a_timeout_kills_and_says_so(session: Session) -> None:
    reply = outcome(session, "print('early', flush=True)\nwhile True: pass", "--timeout=0.3")
    assert reply["status"] == "killed"
    assert reply["timed_out"] is True
    assert reply["stdout"] == "early\n"


def test_a_child_that_ends_without_a_word_is_told_of(session: Session) -> None:
    reply = outcome(session, "print('x', flush=True); os._exit(3)")
    assert reply["status"] == "failed"
    assert reply["stdout"] == "x\n"
    assert "status 3" in reply["error"]["message"]
    reply = outcome(session, "import ctypes; ctypes.string_at(0)")
    assert reply["status"] == "killed"
    assert "SIGSEGV" in reply["error"]["message"]
    assert "Segmentation fault" in reply["stderr"]
    reply = outcome(session, "x = 1; os.closerange(3, 4096); print('still')")
    assert reply["status"] == "failed"
    assert reply["merged"] == []
    assert "still" in reply["stdout"]
    assert session.value("1 + 1") == "2"


def test_children_that_a_cell_leaves_do_not_hold_it(session: Session) -> None:
    began = time.monotonic()
    reply = done(
        session,
        "left = subprocess.Popen(['sleep', '600']).pid\n"
        "away = subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
        "if os.fork() == 0:\n    time.sleep(600)\n",
    )
    assert reply["merged"] == ["away", "left"]
    assert time.monotonic() - began < 20
    left, away = (int(session.value(name)) for name in ("left", "away"))
    wait_until(lambda: not running(left), 1, what="what stayed in the group is gone")
    assert running(away)
    os.kill(away, signal.SIGKILL)


def test_stdin_is_empty_and_input_says_so(session: Session) -> None:
    reply = outcome(session, "print(sys.stdin.read() == '', os.read(0, 10)); input()")
    assert reply["stdout"] == "True b''\n"
    assert reply["error"]["type"] == "EOFError"


def test_top_level_await_works(session: Session) -> None:
    session.out("import asyncio; task = asyncio.create_task(asyncio.sleep(0))")
    reply = done(session, "import asyncio\ngot = await asyncio.sleep(0.01, 'slept')\ngot")
    assert reply["result"] == "'slept'" or reply["result"] == "slept"
    assert session.value("got") == "slept"


def test_several_run_at_once_and_draw_different_numbers(session: Session) -> None:
    session.out("import random; random.seed(1)")
    cells = [
        forked(session, f"n{i} = random.random(); print('up', flush=True); time.sleep(1)")
        for i in range(6)
    ]
    for cell in cells:
        session.wait_for_output(cell, "up")
    assert {session.cells()[cell]["status"] for cell in cells} == {"running"}
    for cell in cells:
        assert session.ended(cell)["status"] == "done"
    assert session.value("len({n0, n1, n2, n3, n4, n5})") == "6"


def test_a_fork_runs_while_run_and_fire_cells_run(session: Session) -> None:
    session.out("x = 1; stop = False")
    fire = session.fire("while not stop: x += 1")
    run = session.detach("while not stop: time.sleep(0.001)")
    session.wait_for_state("running")
    assert done(session, "y = x; y > 0")["result"] == "True"
    assert session.ended(session.fire("stop = True; y > 0"))["result"] == "True\n".strip()
    session.ended(fire)
    session.ended(run)


def test_a_fork_that_waits_for_the_interpreter_can_be_taken_back(session: Session) -> None:
    # `sum` over a range is C code that does not let go of the interpreter's lock.
    busy = session.detach("print('up', flush=True); sum(range(10**8)) and None")
    session.wait_for_output(busy, "up")
    cell = forked(session, "never = 1")
    outcomes = [it["outcome"] for it in session.interrupt(cell)["cells"]]
    assert outcomes in (["dequeued"], ["ended"]), outcomes
    assert session.ended(cell)["status"] in ("interrupted", "killed")
    session.ended(busy, 60)
    assert session.value("'never' in globals()") == "False"


# What is known of it.


def test_a_fork_is_listed_recorded_and_keyed(session: Session) -> None:
    first = session.submit("fork", "k = 1", "--id=key --author=ann")
    session.ended(first["cell_id"])
    again = session.submit("fork", "k = 1", "--id=key")
    assert again["cell_id"] == first["cell_id"]
    assert again["existing"] is True
    listed = session.cells()[first["cell_id"]]
    assert (listed["kind"], listed["author"], listed["status"]) == ("fork", "ann", "done")
    history = session.daemon.home / ".pythond" / "sessions" / session.name / "history.py"
    wait_until(lambda: history.exists() and "k = 1" in history.read_text(), what="it is recorded")
    outcome(session, "never = 1; 1/0")
    session.out("after = 1")
    wait_until(lambda: "after = 1" in history.read_text(), what="the next is recorded")
    assert "never" not in history.read_text()


def test_events_tell_of_a_fork(session: Session) -> None:
    with session.daemon.connect() as wire:
        wire.send(f"events {session.name} --tag=e")
        assert json.loads(wire.receive())["event"] == "ready"
        cell = forked(session, "1")
        started, ended = json.loads(wire.receive()), json.loads(wire.receive())
        assert (started["event"], started["kind"]) == ("cell_started", "fork")
        assert (ended["event"], ended["status"], ended["cell_id"]) == ("cell_done", "done", cell)


# Limits.


def test_what_is_too_large_merges_nothing_and_says_why(session: Session) -> None:
    reply = outcome(session, "a = 1; b = bytes(3_000_000)", "--max-result=1000000")
    assert reply["status"] == "failed"
    assert reply["error"]["type"] == "ResultTooLarge"
    assert "1000000 bytes" in reply["error"]["message"]
    assert "--max-result" in reply["error"]["message"]
    assert reply["merged"] == []
    assert session.value("'a' in globals()") == "False"
    assert done(session, "b = bytes(3_000_000)", "--max-result=4000000")["merged"] == ["b"]
    assert session.value("len(b)") == "3000000"


def test_more_forks_than_a_session_may_have_are_refused(session: Session) -> None:
    cells = [forked(session, "time.sleep(60)") for _ in range(100)]
    refused = session.submit("fork", "1")
    assert refused["error"]["code"] == "limit"
    assert "100" in refused["error"]["message"]
    session.interrupt()
    assert {session.ended(cell)["status"] for cell in cells} <= {"killed", "interrupted"}
    assert done(session, "1")["result"] == "1"


def test_code_of_the_session_that_waits_for_any_child_takes_no_result(session: Session) -> None:
    waits = (
        "while True:\n    try: os.wait(); break\n    except ChildProcessError: time.sleep(0.001)"
    )
    waiting = session.fire(waits)
    assert done(session, "z = 5")["merged"] == ["z"]
    # Whoever comes first takes the child; the other may have none left.
    session.interrupt(waiting)
    session.ended(waiting)
    assert session.value("z") == "5"


# Ends.


def fork_pids(session: Session, extra: str = "") -> tuple[str, list[int]]:
    """Fork a cell with a child process of its own and return the cell and both pids."""
    cell = forked(
        session,
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"print(os.getpid(), child.pid, flush=True)\n{extra}\nwhile True: pass",
    )
    return cell, [int(pid) for pid in session.wait_for_output(cell, "\n").split()]


@pytest.mark.parametrize("how", ["kill", "sigkill", "stopped", "exit", "zygote"])
def test_children_of_a_dead_session_are_gone_within_a_second(daemon: TestDaemon, how: str) -> None:
    with daemon.session() as session:
        pids = fork_pids(session)[1] + fork_pids(session)[1]
        assert all(running(pid) for pid in pids)
        if how == "stopped":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        if how == "zygote":
            # Nobody is left to see the session die but the children themselves.
            for zygote in daemon.info()["zygotes"]:
                os.kill(zygote["pid"], signal.SIGKILL)
        if how == "kill":
            session.kill()
        elif how == "exit":
            session.daemon.ask(f"run {session.name}\nos._exit(1)")
        else:
            os.kill(session.pid, signal.SIGKILL)
        wait_until(lambda: not any(running(pid) for pid in pids), 1, what="all are gone")


def test_a_fork_outlives_the_daemon_and_is_adopted(make_daemon) -> None:
    daemon = make_daemon().start()
    session = daemon.new("work")
    cell = forked(session, "print('up', flush=True)\ntime.sleep(1.0)\nx = 'merged'")
    session.wait_for_output(cell, "up")
    daemon.crash()
    daemon.start()
    assert session.ended(cell)["merged"] == ["x"]
    assert daemon.json("run work --json\nx")["result"] == "merged"


def test_pysh_says_what_came_back_and_what_not(session: Session) -> None:
    name, pysh = session.name, session.daemon.pysh
    session.out("items = []")
    code = "import threading; x = 1; lock = threading.Lock(); items.append(1)"
    printed = pysh("fork", name, code, "--max-result=1000000").stdout
    assert json.loads(printed)["status"] == "forked"
    cell = json.loads(printed)["cell_id"]
    waited = pysh("wait", name, cell)
    assert waited.returncode == 0
    for said in (waited.stderr, pysh("poll", name, cell).stderr):
        assert "set in the session: threading, x" in said
        assert "`lock` did not come back: TypeError" in said
        assert "`items` was changed in place" in said
    polled = json.loads(pysh("poll", name, cell).stdout)
    assert polled["merged"] == ["threading", "x"]
    assert polled["skipped"] == ["lock"]
    stuck = json.loads(pysh("fork", name, "while True: pass").stdout)["cell_id"]
    assert pysh("int", name, stuck).stdout == f"OK int {name}: 1 cell\n"
    assert pysh("wait", name, stuck).returncode == 1


# Libraries.


def test_a_session_with_a_cuda_context_is_not_forked(session: Session) -> None:
    session.out(
        "import types, sys\ntorch = types.ModuleType('torch')\n"
        "torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)\nsys.modules['torch'] = torch"
    )
    reply = outcome(session, "1")
    assert reply["status"] == "failed"
    assert "CUDA" in reply["error"]["message"]
    session.out("torch.cuda.is_initialized = lambda: False")
    assert done(session, "7")["result"] == "7"


def test_libraries_whose_threads_are_missing_are_warned_of(session: Session) -> None:
    session.out("import types, sys\nsys.modules['polars'] = types.ModuleType('polars')")
    assert "polars" in done(session, "1")["warnings"][0]


def test_nothing_of_ours_is_left_in_the_session(session: Session) -> None:
    session.out("names = set(sys.modules); fds = len(os.listdir('/proc/self/fd'))")
    for _ in range(3):
        done(session, "class A:\n    x = 1\na = A(); f = lambda: a")
    assert session.value("[n for n in set(sys.modules) - names if 'pythond' in n]") == "[]"
    assert session.value("[n for n in sys.modules if 'cloudpickle' in n]") == "[]"
    assert session.value("len(os.listdir('/proc/self/fd')) - fds") == "0"
    threads = "len(os.listdir('/proc/self/task'))"
    wait_until(lambda: session.value(threads) == "4", what="no thread is left")
    zombies = "[p for p in open(f'/proc/self/task/{os.getpid()}/children').read().split()]"
    assert session.value(zombies) == "[]"


def test_what_the_interpreter_notes_of_warnings_does_not_come_back(session: Session) -> None:
    code = "import warnings; warnings.warn('careful'); n = 1"
    reply = session.ended(session.submit("fork", code)["cell_id"])
    assert "careful" in reply["stderr"], reply
    assert reply["merged"] == ["n", "warnings"], reply
    assert session.value("'__warningregistry__' in globals()") == "False"
