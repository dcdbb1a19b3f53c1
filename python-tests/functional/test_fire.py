"""`fire`: cells in threads of their own, and what `poll`, `wait` and `cells` say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.daemon import Session
from support.waiting import wait_until


def plain_poll(session: Session, cell: str = "") -> dict:
    """Ask as a client of 0.4 does."""
    return json.loads(session.daemon.ask(f"poll {session.name} {cell}".strip()))


# The shapes that clients of 0.4 read.


def test_fire_answers_at_once_with_the_cells_id(session: Session) -> None:
    session.out("import threading; go = threading.Event()")
    answer = json.loads(session.wire.ask(f"fire {session.name}\ngo.wait(60); print('went')"))
    assert set(answer) == {"cell_id", "status"}
    assert answer["status"] == "fired"
    assert len(answer["cell_id"]) == 12
    assert int(answer["cell_id"], 16) > 0
    assert plain_poll(session, answer["cell_id"]) == {
        "cell_id": answer["cell_id"],
        "status": "running",
        "output": "",
    }
    session.out("go.set()")
    session.ended(answer["cell_id"])
    assert plain_poll(session, answer["cell_id"]) == {
        "cell_id": answer["cell_id"],
        "status": "done",
        "output": "went",
    }


def test_a_running_cell_is_polled_with_empty_output_also_when_it_has_written(
    session: Session,
) -> None:
    cell = session.fire("print('early'); time.sleep(30)")
    session.wait_for_output(cell, "early")
    assert plain_poll(session, cell) == {"cell_id": cell, "status": "running", "output": ""}
    session.interrupt(cell)


def test_a_failed_cell_is_polled_as_done_with_an_error(session: Session) -> None:
    cell = session.fire("print('before'); 1/0")
    session.ended(cell)
    answer = plain_poll(session, cell)
    assert answer["status"] == "done"
    assert answer["error"] is True
    assert answer["output"].startswith("before\nTraceback (most recent call last):")
    assert answer["output"].endswith("ZeroDivisionError: division by zero")


def test_a_cell_nobody_knows_is_polled_as_an_error(session: Session) -> None:
    for unknown in ("deadbeef0000", "nonsense", "1"):
        assert plain_poll(session, unknown) == {
            "cell_id": unknown,
            "status": "error",
            "output": "unknown cell",
        }


def test_poll_without_an_id_is_idle_or_the_newest_fire_cell(session: Session) -> None:
    assert plain_poll(session) == {"status": "idle"}
    first = session.fire("1")
    second = session.fire("2")
    session.ended(first)
    session.ended(second)
    session.out("3")
    assert plain_poll(session)["cell_id"] == second


def test_fire_takes_its_code_inline_as_well(session: Session) -> None:
    answer = json.loads(session.wire.ask(f"fire {session.name} 1 + 1"))
    assert session.ended(answer["cell_id"])["stdout"] == "2\n"


def test_fire_without_code_or_session_is_refused(session: Session) -> None:
    assert session.wire.ask(f"fire {session.name}").startswith("ERR")
    assert session.wire.ask("fire nosuch\n1").startswith("ERR no session 'nosuch'")
    assert session.wire.ask("poll nosuch").startswith("ERR no session 'nosuch'")
    assert session.submit("fire", "1", "--nonsense")["error"]["code"] == "usage"


# What is shared and what runs beside what.


def test_a_fire_cell_runs_beside_a_run_and_both_see_the_same_names(session: Session) -> None:
    session.out("losses = []; stop = False; seen = None")
    train = session.fire(
        "import itertools\nfor step in itertools.count():\n"
        "    losses.append(step)\n    if stop: break\n    time.sleep(0.001)"
    )
    wait_until(lambda: int(session.out("len(losses)")) > 3, what="the run looks at the losses")
    busy = session.detach("while not stop: time.sleep(0.001)\nseen = len(losses)")
    session.wait_for_state("running")
    peek = session.ended(session.fire("len(losses)"))
    assert peek["ok"], peek
    assert session.poll(busy)["status"] == session.poll(train)["status"] == "running"
    assert session.ended(session.fire("stop = True"))["ok"]
    assert session.ended(train)["ok"]
    assert session.ended(busy)["ok"]
    assert session.value("seen == len(losses) or seen + 1 == len(losses)") == "True"


def test_many_fire_cells_run_at_once(session: Session) -> None:
    session.out("import threading; meet = threading.Barrier(20, timeout=30)")
    cells = [session.fire(f"meet.wait(); print({n})") for n in range(20)]
    for number, cell in enumerate(cells):
        assert session.ended(cell)["stdout"] == f"{number}\n"


def test_queued_fire_cells_run_one_after_the_other_in_order(session: Session) -> None:
    session.out("import threading; go = threading.Event(); order = []")
    first = session.fire("go.wait(60); order.append(0)")
    queued = [session.fire(f"order.append({n})", "--queue") for n in range(1, 6)]
    listed = session.cells()
    assert [listed[cell]["status"] for cell in queued] == ["queued"] * 5
    assert [listed[cell]["queue_position"] for cell in queued] == [1, 2, 3, 4, 5]
    beside = session.fire("order.append('beside')")
    assert session.ended(beside)["ok"]
    session.out("go.set()")
    for cell in [first, *queued]:
        assert session.ended(cell)["ok"]
    assert session.value("order") == "['beside', 0, 1, 2, 3, 4, 5]"


def test_a_queued_fire_cell_with_nothing_before_it_starts_at_once(session: Session) -> None:
    busy = session.detach("time.sleep(30)")
    assert session.ended(session.fire("7", "--queue"))["result"] == "7"
    session.interrupt(busy)


def test_names_functions_and_open_things_pass_between_run_and_fire(
    session: Session, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_text("one\ntwo\nthree\n")
    session.out(f"handle = open({str(path)!r}); first = handle.readline(); fd = os.dup(0)")
    assert session.ended(session.fire("handle.readline()"))["result"] == "two\n"
    assert session.out("handle.readline()").startswith("three")
    cell = session.fire("r, w = os.pipe(); os.write(w, b'through')")
    assert session.ended(cell)["ok"]
    assert session.value("os.read(r, 99)") == "b'through'"
    session.out("child = subprocess.Popen(['cat'], stdin=-1, stdout=-1)")
    assert session.ended(session.fire("child.communicate(b'hello')[0]"))["result"] == "b'hello'"
    session.out(
        "db = sqlite3.connect(':memory:', check_same_thread=False); _ = db.execute('create table t(x)')"
    )
    assert session.ended(session.fire("_ = db.execute('insert into t values (42)')"))["ok"]
    assert session.value("db.execute('select x from t').fetchall()") == "[(42,)]"
    assert session.ended(session.fire("def area(r): return 3 * r * r"))["ok"]
    assert session.value("area(2)") == "12"


# What a cell may do in its thread.


def test_the_value_of_a_last_expression_is_shown(session: Session) -> None:
    assert session.ended(session.fire("'text'"))["stdout"] == "text\n"
    assert session.ended(session.fire("(42,)"))["stdout"] == "(42,)\n"
    assert session.ended(session.fire("None"))["stdout"] == ""
    reply = session.ended(session.fire("print('p'); 5"))
    assert (reply["stdout"], reply["result"], reply["kind"]) == ("p\n5\n", "5", "fire")


def test_top_level_await_works_in_fire_cells_also_in_several_at_once(session: Session) -> None:
    code = "import asyncio\nasync def f(n):\n    await asyncio.sleep(0.05)\n    return n\n"
    session.out(code)
    assert session.ended(session.fire("await asyncio.gather(f(3), f(4))"))["result"] == "[3, 4]"
    cells = [session.fire(f"await f({n})") for n in range(5)]
    assert [session.ended(cell)["result"] for cell in cells] == ["0", "1", "2", "3", "4"]
    assert session.value("await f(9)") == "9"


def test_await_in_a_fire_cell_goes_on_while_a_run_awaits(session: Session) -> None:
    run = session.detach("import asyncio; await asyncio.sleep(30)")
    session.wait_for_state("running")
    assert (
        session.ended(session.fire("import asyncio; await asyncio.sleep(0.01); 'x'"))["stdout"]
        == "x\n"
    )
    session.interrupt(run)
    assert session.ended(run)["status"] == "interrupted"


def test_exit_ends_the_fire_cell_and_not_the_session(session: Session) -> None:
    reply = session.ended(session.fire("import sys; print('x'); sys.exit(3)"))
    assert reply["status"] == "failed"
    assert reply["error"]["type"] == "SystemExit"
    assert reply["error"]["message"] == "exit(3)"
    assert session.value("1 + 1") == "2"


def test_deep_recursion_fails_the_fire_cell_only(session: Session) -> None:
    reply = session.ended(session.fire("def deep(n): return deep(n + 1)\ndeep(0)"))
    assert reply["error"]["type"] == "RecursionError"
    code = "sys.setrecursionlimit(20000)\ndef down(n): return n and down(n - 1)\ndown(9000)"
    assert session.ended(session.fire(code))["stdout"] == "0\n"
    assert session.value("1 + 1") == "2"


def test_a_traceback_of_a_fire_cell_has_the_users_lines_and_none_of_ours(session: Session) -> None:
    reply = session.ended(session.fire("def f():\n    raise ValueError('here')\n\nf()"))
    text = reply["error"]["traceback"]
    assert "    raise ValueError('here')\n" in text
    assert text.count("  File ") == 2
    assert text.endswith("ValueError: here\n")


def test_a_syntax_error_is_the_cells_error(session: Session) -> None:
    reply = session.ended(session.fire("x = = 1"))
    assert reply["error"]["type"] == "SyntaxError"


def test_fork_inside_a_fire_cell_leaves_the_session_whole(session: Session) -> None:
    code = (
        "r, w = os.pipe()\npid = os.fork()\n"
        "if pid == 0:\n    os.write(w, b'child'); os._exit(7)\n"
        "got = os.read(r, 99); status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "(got, status)"
    )
    assert session.ended(session.fire(code))["result"] == "(b'child', 7)"
    assert session.value("1 + 1") == "2"
    code = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))"
    assert session.ended(session.fire(code))["stdout"] == "[1, 2]\n"


def test_input_in_a_fire_cell_fails_at_once(session: Session) -> None:
    assert session.ended(session.fire("input('? ')"))["error"]["type"] == "EOFError"


def test_a_fire_cell_is_not_the_main_thread_and_has_a_name_of_its_own(session: Session) -> None:
    session.out("import threading")
    code = "threading.current_thread() is threading.main_thread()"
    assert session.ended(session.fire(code))["result"] == "False"
    cell = session.fire("threading.current_thread().name")
    assert cell in session.ended(cell)["stdout"]
    assert session.value("threading.active_count()") == "1"


def test_the_default_time_limit_of_a_fire_cell_is_none_and_a_chosen_one_interrupts(
    session: Session,
) -> None:
    reply = session.ended(session.fire("while True: pass", "--timeout=0.2"))
    assert (reply["status"], reply["timed_out"]) == ("interrupted", True)
    assert reply["error"]["type"] == "KeyboardInterrupt"


# Whose output.


def test_output_of_concurrent_fire_cells_is_told_apart(session: Session) -> None:
    session.out("import threading; meet = threading.Barrier(4, timeout=30)")
    code = (
        "meet.wait()\nfor i in range(300):\n"
        "    print('{0}', i); print('e{0}', file=sys.stderr)\n    if i % 50 == 0: time.sleep(0.001)"
    )
    cells = [session.fire(code.format(n)) for n in range(3)]
    run = session.run(code.format("run"))
    assert run["stdout"] == "".join(f"run {i}\n" for i in range(300))
    for number, cell in enumerate(cells):
        reply = session.ended(cell)
        assert reply["stdout"] == "".join(f"{number} {i}\n" for i in range(300))
        assert reply["stderr"] == f"e{number}\n" * 300


def test_output_of_threads_and_tasks_belongs_to_the_fire_cell_that_started_them(
    session: Session,
) -> None:
    session.out("import threading, asyncio; from concurrent.futures import ThreadPoolExecutor")
    # Names are shared, so each cell keeps its own in a function.
    code = (
        "async def main_{0}():\n"
        "    def work(): print('thread of {0}')\n"
        "    t = threading.Thread(target=work); t.start(); t.join()\n"
        "    with ThreadPoolExecutor(2) as pool: pool.submit(print, 'pool of {0}').result()\n"
        "    async def task(): print('task of {0}')\n"
        "    await asyncio.create_task(task())\n"
        "await main_{0}()"
    )
    cells = [session.fire(code.format(n)) for n in range(6)]
    for number, cell in enumerate(cells):
        want = f"thread of {number}\npool of {number}\ntask of {number}\n"
        assert session.ended(cell)["stdout"] == want


# What is written down.


def test_fire_cells_reach_the_records_when_they_complete(session: Session) -> None:
    directory = session.daemon.session_directory(session.name)
    session.out("import threading; go = threading.Event()")
    slow = session.fire("go.wait(60); slow_one = 1; print('slow output')")
    fast = session.ended(session.fire("fast_one = 1"))
    assert fast["ok"]
    assert session.ended(session.fire("failed_one = 1/0"))["status"] == "failed"
    session.out("run_one = go.set()")
    session.ended(slow)
    history = wait_until(
        lambda: (t := (directory / "history.py").read_text()) and "slow_one" in t and t,
        what="the slow cell is in history.py",
    )
    assert history.index("fast_one") < history.index("slow_one")
    assert "failed_one" not in history
    log = wait_until(
        lambda: (t := (directory / "session.log").read_text()) and "# > slow output" in t and t,
        what="the slow cell is in session.log",
    )
    assert "failed_one = 1/0" in log
    assert "ZeroDivisionError" in log


@pytest.mark.parametrize(
    "sabotage",
    [
        "threading.Thread.start = lambda self: None",
        "threading.Thread.run = lambda self: None",
        "threading.Event = threading.Condition = threading.Lock = None",
        "threading.setprofile(lambda *arguments: 1 / 0)",
    ],
)
def test_whatever_a_cell_does_to_threading_a_fire_cell_ends(
    session: Session, sabotage: str
) -> None:
    session.out(f"import threading\n{sabotage}")
    ended = session.ended(session.fire("21 * 2"))
    assert ended["status"] in ("done", "failed"), ended
    assert session.value("1 + 1") == "2"
