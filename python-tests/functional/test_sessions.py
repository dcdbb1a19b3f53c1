"""Creating, listing, looking into and ending sessions."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import wait_until

BAD_NAMES = [
    "Work", "a.b", "..", ".", "é", "a%20b", "a:b", "a@b", "a+b", "a,b", "~", "a\\b", "a\x1bb",
    "con", "prn", "aux", "nul", "com0", "com1", "com9", "lpt0", "lpt1", "lpt9", "CON", "Nul", "COM1",
    "x" * 81, "x" * 5000, "ａ", "日本",
]  # fmt: skip
GOOD_NAMES = ["a", "0", "_", "-x", "gpu-1_b", "com", "com10", "lpt", "console", "x" * 80, "nul-"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_not_allowed_is_refused(shared_daemon: TestDaemon, name: str) -> None:
    assert shared_daemon.ask(f"new {name}") == "ERR invalid session name"
    reply = shared_daemon.json(f"new {name} --json")
    assert reply["ok"] is False
    assert reply["error"]["code"] == "bad_name"
    assert reply["error"]["hint"]
    made = shared_daemon.home / ".pythond" / "sessions"
    assert not made.exists() or name not in os.listdir(made)


def test_a_name_with_a_slash_is_one_of_a_remote(shared_daemon: TestDaemon) -> None:
    assert shared_daemon.ask("new a/b") == "ERR invalid session name"
    error = shared_daemon.json("new a/b --json")["error"]
    assert (error["code"], error["message"]) == ("no_session", "no remote named `a`")
    assert shared_daemon.pysh("new", "a/b").returncode == 4


@pytest.mark.parametrize("name", BAD_NAMES)
def test_pysh_refuses_a_name_that_is_not_allowed(shared_daemon: TestDaemon, name: str) -> None:
    done = shared_daemon.pysh("new", name)
    assert done.returncode == 2, done
    assert "name" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_that_is_allowed_works(shared_daemon: TestDaemon, name: str) -> None:
    with shared_daemon.session(name) as session:
        assert session.out("1 + 1") == "2\n"
        assert name in shared_daemon.list()
        assert shared_daemon.pysh("run", "--", name, "2 + 2").stdout == "4\n"


def test_an_empty_name_is_refused_by_pysh(shared_daemon: TestDaemon) -> None:
    for name in ("", " ", "a b", "a\n", "a\nb", "\t"):
        assert shared_daemon.pysh("new", name).returncode == 2


def test_new_answers_with_name_and_pid(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    answer = shared_daemon.ask(f"new {name}")
    pid = shared_daemon.list()[name]["pid"]
    assert answer == f"OK {name} pid={pid}"
    assert processes.is_alive(pid)
    assert shared_daemon.ask(f"run {name} os.getpid()") == str(pid)
    assert shared_daemon.ask(f"kill {name}") == f"OK killed {name}"


def test_the_structured_answer_of_new_has_its_fields(session: Session) -> None:
    reply = session.created
    assert reply["session"] == session.name
    assert len(reply["session_id"]) == 16
    assert reply["gen"] == 1
    assert reply["replaced"] is False
    assert reply["start"] in ("spare", "fork", "cold")
    assert (reply["start"] == "cold") == ("cold_reason" in reply)
    assert reply["python"]["version"].count(".") == 2
    assert reply["python"]["reason"]
    assert session.value("sys.executable") == reply["python"]["executable"]


def test_a_live_name_is_refused_and_untouched(session: Session) -> None:
    session.out("x = 42")
    plain = session.daemon.ask(f"new {session.name}")
    assert plain.startswith("ERR ")
    assert "--replace" in plain
    reply = session.daemon.json(f"new {session.name} --json")
    assert reply["error"]["code"] == "session_exists"
    done = session.daemon.pysh("new", session.name)
    assert done.returncode == 4
    assert "--replace" in done.stderr
    assert session.out("x") == "42\n"
    assert session.status()["pid"] == session.pid


def test_replace_makes_a_new_generation(session: Session) -> None:
    session.out("x = 42")
    done = session.daemon.pysh("new", session.name, "--replace", "--json")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["replaced"] is True
    assert reply["gen"] == session.created["gen"] + 1
    session.fails("x", "NameError")
    wait_until(lambda: not processes.is_alive(session.pid), what="the old process is gone")
    assert session.status()["gen"] == reply["gen"]
    assert session.daemon.ask(f"new {session.name} --replace").startswith(f"OK {session.name} pid=")


def test_replace_of_a_name_that_is_not_there_just_creates(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    reply = shared_daemon.json(f"new {name} --json --replace")
    assert (reply["ok"], reply["replaced"], reply["gen"]) == (True, False, 1)
    shared_daemon.ask(f"kill {name}")


def test_replace_tells_the_client_of_a_running_cell(session: Session) -> None:
    session.wire.send(f"run {session.name} --json\ntime.sleep(30)")
    session.wait_for_state("running")
    assert session.daemon.json(f"new {session.name} --json --replace")["ok"]
    reply = json.loads(session.wire.receive(20))
    assert reply["ok"] is False
    assert reply["status"] in ("killed", "interrupted")


def test_fifty_creators_of_one_name_have_one_winner(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    barrier = threading.Barrier(50)

    def create(_: int) -> dict:
        with shared_daemon.connect() as wire:
            barrier.wait(30)
            return wire.json(f"new {name} --json")

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(create, range(50)))
    winners = [reply for reply in replies if reply["ok"]]
    assert len(winners) == 1, replies
    assert {r["error"]["code"] for r in replies if not r["ok"]} == {"session_exists"}
    assert shared_daemon.list()[name]["pid"] == winners[0]["pid"]
    assert shared_daemon.ask(f"run {name} 1 + 1") == "2"
    shared_daemon.ask(f"kill {name}")


def test_many_names_created_at_once_all_work(shared_daemon: TestDaemon) -> None:
    names = [shared_daemon.unused_name("many") for _ in range(30)]

    def create(name: str) -> str:
        with shared_daemon.connect() as wire:
            assert wire.ask(f"new {name}").startswith("OK")
            return wire.ask(f"run {name}\n'{name}'")

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(create, names)) == names
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda name: shared_daemon.ask(f"kill {name}"), names))


def test_a_session_that_does_not_exist_is_named_with_what_to_do(shared_daemon: TestDaemon) -> None:
    for verb in ("run nosuch 1", "status nosuch", "vars nosuch", "complete nosuch x"):
        assert shared_daemon.ask(verb) == (
            "ERR no session 'nosuch' -- create it first with: new nosuch"
        )
    for verb in ("kill nosuch", "int nosuch"):
        assert shared_daemon.ask(verb).startswith("ERR no session 'nosuch'")
    for words in (["run", "nosuch", "1"], ["status", "nosuch"], ["vars", "nosuch"],
                  ["kill", "nosuch"], ["int", "nosuch"], ["complete", "nosuch", "x"]):  # fmt: skip
        done = shared_daemon.pysh(*words)
        assert done.returncode == 4, words
        assert "nosuch" in done.stderr
        assert "pysh new nosuch" in done.stderr
        assert done.stdout == ""
    assert shared_daemon.json("status nosuch --json")["error"]["code"] == "no_session"


# Listing.


def test_ls_without_sessions_says_so(daemon: TestDaemon) -> None:
    assert daemon.ask("ls") == "(no sessions)"
    assert daemon.json("ls --json") == {"ok": True, "sessions": []}
    assert daemon.pysh("ls").returncode == 0
    assert json.loads(daemon.pysh("ls", "--json").stdout)["sessions"] == []


def test_ls_has_a_line_for_each_session_by_name(daemon: TestDaemon) -> None:
    sessions = [daemon.new(name) for name in ("beta", "alpha", "gamma")]
    pids = {session.name: session.pid for session in sessions}
    assert daemon.ask("ls") == "\n".join(
        f"  {name}: alive pid={pids[name]} (pty)" for name in sorted(pids)
    )
    listed = daemon.json("ls --json")["sessions"]
    assert [entry["session"] for entry in listed] == ["alpha", "beta", "gamma"]
    for entry in listed:
        assert entry["state"] == "idle"
        assert entry["pid"] == pids[entry["session"]]
        assert entry["gen"] == 1
        assert entry["python"].startswith("/")
        assert entry.get("cause") is None
    done = daemon.pysh("ls")
    assert done.returncode == 0
    assert "alpha" in done.stdout
    assert "alive" in done.stdout


def test_ls_shows_a_running_session(session: Session) -> None:
    session.wire.send(f"run {session.name} --json\ntime.sleep(30)")
    session.wait_for_state("running")
    assert session.daemon.list()[session.name]["state"] == "running"
    assert session.daemon.json(f"int {session.name} --json")["interrupted"]
    session.wire.receive()


# Status.


def test_status_is_json_in_both_forms_with_the_old_fields_first(session: Session) -> None:
    session.out("x = 1; y = 2; _hidden = 3")
    text = session.daemon.ask(f"status {session.name}")
    status = json.loads(text)
    assert list(status)[:4] == ["state", "running", "vars", "cells"]
    assert status["state"] == "idle"
    assert status["running"] == []
    assert status["queued"] == []
    assert status["cells"] == 1
    assert status["ok"] is True
    assert status["session"] == session.name
    assert status["session_id"] == session.created["session_id"]
    assert status["gen"] == 1
    assert status["pid"] == session.pid
    assert status["python"] == session.created["python"]
    assert status["start"] == session.created["start"]
    assert status["cwd"].startswith("/")
    assert status["created_at"].endswith("Z")
    assert status["host"]
    assert "death" not in status
    names = json.loads(session.daemon.ask(f"vars {session.name}"))["vars"]
    assert status["vars"] == len(names)


def test_status_of_a_running_session_names_the_cell_and_the_queue(session: Session) -> None:
    first, second = session.daemon.connect(), session.daemon.connect()
    with first, second:
        first.send(f"run {session.name} --json\ntime.sleep(30)")
        session.wait_for_state("running")
        second.send(f"run {session.name} --json\n'queued'")
        status = wait_until(
            lambda: (s := session.status())["queued"] and s, what="the second cell is queued"
        )
        assert len(status["running"]) == 1
        assert len(status["queued"]) == 1
        interrupted = session.daemon.json(f"int {session.name} --json")["interrupted"]
        assert interrupted == status["running"]
        reply = json.loads(first.receive())
        assert reply["cell_id"] == status["running"][0]
        assert reply["status"] == "interrupted"
        reply = json.loads(second.receive())
        assert reply["cell_id"] == status["queued"][0]
        assert reply["stdout"] == "queued\n"


BLOCKERS = {
    "sleep": "time.sleep(30)",
    "loop": "while True: pass",
    "held_interpreter": "import ctypes; ctypes.PyDLL(None).sleep(3)",
}


@pytest.mark.parametrize("code", BLOCKERS.values(), ids=BLOCKERS)
def test_status_and_ls_answer_while_a_cell_runs(session: Session, code: str) -> None:
    session.wire.send(f"run {session.name} --json\n{code}")
    session.wait_for_state("running")
    with session.daemon.connect() as wire:
        for _ in range(5):
            assert wire.json(f"status {session.name} --json", 1)["state"] in ("running", "idle")
            assert session.name in wire.ask("ls", 1)
    session.daemon.json(f"int {session.name} --json")
    session.wire.receive()


def test_vars_and_complete_answer_while_python_code_runs(session: Session) -> None:
    session.out("visible = 1")
    session.wire.send(f"run {session.name} --json\nwhile True: pass")
    session.wait_for_state("running")
    with session.daemon.connect() as wire:
        assert "visible" in wire.json(f"vars {session.name}", 5)["vars"]
        assert "visible" in wire.json(f"complete {session.name} visi", 5)["matches"]
    session.daemon.ask(f"int {session.name}")
    session.wire.receive()


# Interrupting.


def test_int_ends_a_loop_and_leaves_the_namespace(session: Session) -> None:
    session.out("x = 1")
    session.wire.send(f"run {session.name} --json\nwhile True: pass")
    session.wait_for_state("running")
    assert session.daemon.ask(f"int {session.name}") == f"OK int {session.name}: 1 cell"
    reply = json.loads(session.wire.receive(10))
    assert reply["status"] == "interrupted"
    assert reply["error"]["type"] == "KeyboardInterrupt"
    assert "while True" in reply["error"]["traceback"]
    assert session.out("x") == "1\n"


def test_interrupt_after_finish_does_not_touch_next_cell(session: Session) -> None:
    assert session.daemon.ask(f"int {session.name}") == f"OK no running cells in {session.name}"
    assert session.daemon.json(f"int {session.name} --json")["interrupted"] == []
    for _ in range(50):
        session.daemon.ask(f"int {session.name}")
        assert session.out("sum(range(1000))") == "499500\n"


def test_int_reaches_a_cell_as_soon_as_it_is_told_to_run(shared_daemon: TestDaemon) -> None:
    for _ in range(40):
        with shared_daemon.session() as session:
            session.wire.send(f"run {session.name} --json\nwhile True: pass")
            session.wait_for_state("running")
            answer = shared_daemon.ask(f"int {session.name}")
            assert answer == f"OK int {session.name}: 1 cell"
            assert json.loads(session.wire.receive(10))["status"] == "interrupted"


def test_int_ends_a_child_that_the_cell_waits_for(session: Session) -> None:
    session.wire.send(f"run {session.name} --json\nsubprocess.run(['sleep', '300'])")
    session.wait_for_state("running")
    wait_until(lambda: processes.children(session.pid), what="the child runs")
    session.daemon.ask(f"int {session.name}")
    assert json.loads(session.wire.receive(10))["status"] == "interrupted"
    wait_until(lambda: not processes.children(session.pid), what="the child is gone")


def test_int_ends_an_awaiting_cell(session: Session) -> None:
    session.out("import asyncio")
    session.wire.send(f"run {session.name} --json\nawait asyncio.sleep(300)")
    session.wait_for_state("running")
    session.daemon.ask(f"int {session.name}")
    reply = json.loads(session.wire.receive(10))
    assert reply["status"] == "interrupted"
    assert reply["error"]["type"] == "KeyboardInterrupt"
    assert session.out("await asyncio.sleep(0, 5)") == "5\n"


def test_a_cell_may_catch_the_interrupt(session: Session) -> None:
    cell = session.detach(
        "try:\n    print('in')\n    time.sleep(300)\nexcept KeyboardInterrupt: r = 'caught'\nr"
    )
    session.wait_for_output(cell, "in")
    session.daemon.ask(f"int {session.name}")
    reply = session.ended(cell)
    assert (reply["status"], reply["result"]) == ("done", "caught")


# Looking into the namespace.


def test_vars_lists_public_names(session: Session) -> None:
    session.out("b = 1; a = 2; _private = 3; __dunder = 4")
    names = json.loads(session.daemon.ask(f"vars {session.name}"))["vars"]
    assert {"a", "b", "os"} <= set(names)
    assert not [name for name in names if name.startswith("_")]
    done = session.daemon.pysh("vars", session.name)
    assert done.returncode == 0
    assert "a" in json.loads(done.stdout)["vars"]


def test_vars_tells_types_and_sizes(session: Session) -> None:
    session.out(
        "n = 5; s = 'text'; l = [1, 2, 3]; d = {1: 2}; t = (1,); b = bytes(1000); f = lambda: 0\n"
        "class C:\n    def __len__(self): raise RuntimeError\n    def __sizeof__(self): 1/0\nc = C()"
    )
    reply = session.daemon.json(f"vars {session.name} --json")
    assert reply["ok"] is True
    found = {entry["name"]: entry for entry in reply["vars"]}
    types = {name: found[name]["type"] for name in "nsldtb"}
    assert types == {"n": "int", "s": "str", "l": "list", "d": "dict", "t": "tuple", "b": "bytes"}
    assert found["f"]["type"] == "function"
    assert found["c"]["type"].endswith("C")
    assert found["b"]["size_bytes"] == int(session.value("sys.getsizeof(b)") or 0)
    assert (found["s"]["length"], found["l"]["length"], found["b"]["length"]) == (4, 3, 1000)
    assert found["c"]["size_bytes"] is None
    assert "length" not in found["c"]
    assert found["os"]["type"] == "module"


def test_vars_runs_no_code_of_the_values(session: Session) -> None:
    session.out(
        "calls = []\nclass C:\n    def __repr__(self): calls.append('repr'); return ''\n"
        "    def __getattribute__(self, n): calls.append(n); raise RuntimeError\n"
        "    def __bool__(self): calls.append('bool'); return True\nc = C()"
    )
    session.daemon.json(f"vars {session.name} --json")
    session.daemon.ask(f"vars {session.name}")
    assert session.out("[c for c in calls if c not in ('__class__', '__sizeof__')]") == "[]\n"


def test_complete_offers_names_attributes_and_keywords(session: Session) -> None:
    session.out("variable_one = 1; variable_two = {'k': 1}\nclass C: attribute = 1\nc = C()")

    def matches(text: str) -> list[str]:
        answer = json.loads(session.daemon.ask(f"complete {session.name} {text}"))
        assert list(answer) == ["matches"]
        with_json = session.daemon.json(f"complete {session.name} --json {text}")
        assert with_json["matches"] == answer["matches"]
        return [match.rstrip("(") for match in answer["matches"]]

    assert {"variable_one", "variable_two"} <= set(matches("variab"))
    assert "c.attribute" in matches("c.attr")
    assert "os.path.join" in matches("os.path.jo")
    assert "print" in [match.rstrip("()") for match in matches("prin")]
    assert [match.strip() for match in matches("impor")] == ["import"]
    assert matches("no_such_name_at_all") == []
    assert matches("no_such.attr") == []


def test_complete_gives_at_most_two_hundred(session: Session) -> None:
    session.out("for i in range(500): globals()[f'many_{i:03}'] = i")
    answer = json.loads(session.daemon.ask(f"complete {session.name} many_"))
    assert len(answer["matches"]) == 200


def test_complete_survives_hostile_objects(session: Session) -> None:
    session.out(
        "class C:\n    def __getattr__(self, n): raise SystemExit\n    def __dir__(self): raise KeyboardInterrupt\n"
        "c = C()"
    )
    for text in ("c.", "c.a", "1/", "(", "'", "x.y.z", "\\", "...", "os.path.\x00"):
        answer = session.daemon.ask(f"complete {session.name}\n{text}", 10)
        assert answer.startswith("ERR ") or "matches" in json.loads(answer)
    assert session.out("1 + 1") == "2\n"


def test_complete_of_an_empty_text_answers(session: Session) -> None:
    assert "matches" in json.loads(session.daemon.ask(f"complete {session.name}"))


def test_complete_through_pysh(session: Session) -> None:
    session.out("unusual_name = 1")
    done = session.daemon.pysh("complete", session.name, "unusual_")
    assert done.returncode == 0
    assert "unusual_name" in json.loads(done.stdout)["matches"]


# Ending.


def test_kill_ends_the_process_and_forgets_the_name(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        assert shared_daemon.ask(f"kill {session.name}") == f"OK killed {session.name}"
        wait_until(lambda: not processes.is_alive(session.pid), what="the process is gone")
        assert session.name not in shared_daemon.list()
        assert shared_daemon.ask(f"kill {session.name}").startswith("ERR no session")


def test_kill_ends_a_session_whose_cell_runs_and_tells_the_client(
    shared_daemon: TestDaemon,
) -> None:
    for code in (
        "time.sleep(300)",
        "while True: pass",
        "import ctypes; ctypes.PyDLL(None).sleep(300)",
    ):
        with shared_daemon.session() as session:
            session.wire.send(f"run {session.name} --json\n{code}")
            session.wait_for_state("running")
            assert shared_daemon.ask(f"kill {session.name}", 20) == f"OK killed {session.name}"
            reply = json.loads(session.wire.receive(10))
            assert reply["ok"] is False
            assert reply["status"] in ("killed", "interrupted")
            assert not processes.is_alive(session.pid)


def test_kill_ends_a_session_that_ignores_signals(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        session.out(
            "import signal\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))"
        )
        assert shared_daemon.ask(f"kill {session.name}", 20) == f"OK killed {session.name}"
        wait_until(lambda: not processes.is_alive(session.pid), deadline=5)


def test_kill_leaves_no_children(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        session.out(
            "ps = [subprocess.Popen(['sleep', '300']) for _ in range(3)]\n"
            "child = os.fork()\nif child == 0:\n    time.sleep(300)\n    os._exit(0)"
        )
        children = processes.children(session.pid)
        assert len(children) >= 4
        shared_daemon.ask(f"kill {session.name}", 20)
        wait_until(
            lambda: not [pid for pid in children if processes.is_alive(pid)],
            deadline=5,
            what="the children are gone",
        )


def test_kill_of_a_stopped_session_works(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        os.kill(session.pid, 19)
        assert shared_daemon.ask(f"kill {session.name}", 20) == f"OK killed {session.name}"
        wait_until(lambda: not processes.is_alive(session.pid))


def test_kill_all_answers_with_a_receipt(daemon: TestDaemon) -> None:
    assert daemon.json("kill --all") == {"ok": True, "killed": [], "failed": []}
    pids = [daemon.new(name).pid for name in ("b", "a", "c")]
    assert json.loads(daemon.ask("kill --all")) == {
        "ok": True,
        "killed": ["a", "b", "c"],
        "failed": [],
    }
    assert daemon.ask("ls") == "(no sessions)"
    wait_until(lambda: not any(processes.is_alive(pid) for pid in pids))
    daemon.new("again")
    done = daemon.pysh("kill", "--all")
    assert done.returncode == 0
    assert json.loads(done.stdout)["killed"] == ["again"]


def test_pysh_kill_without_a_name_is_a_usage_error(shared_daemon: TestDaemon) -> None:
    assert shared_daemon.pysh("kill").returncode == 2
    assert shared_daemon.pysh("kill", "a", "--all").returncode == 2


def test_a_name_is_free_again_after_kill(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    for round_ in range(10):
        assert shared_daemon.ask(f"new {name}").startswith("OK"), round_
        assert shared_daemon.ask(f"run {name} 'x' in globals()") == "False"
        shared_daemon.ask(f"run {name} x = 1")
        assert shared_daemon.ask(f"kill {name}").startswith("OK")


def test_create_and_kill_race_without_leaks(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name("race")

    def work(number: int) -> None:
        with shared_daemon.connect() as wire:
            for _ in range(10):
                wire.ask(f"new {name}" if number % 2 else f"kill {name}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    shared_daemon.ask(f"kill {name}")
    assert shared_daemon.ask(f"new {name}").startswith("OK")
    assert shared_daemon.ask(f"run {name} 1 + 1") == "2"
    assert shared_daemon.ask(f"kill {name}") == f"OK killed {name}"


# Limits.


def test_the_number_of_sessions_is_limited(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon(PYTHOND_MAX_SESSIONS="3").start()
    assert daemon.info()["max_sessions"] == 3
    for name in "abc":
        daemon.new(name)
    reply = daemon.json("new d --json")
    assert reply["error"]["code"] == "limit"
    assert "3" in reply["error"]["message"]
    assert daemon.ask("new d").startswith("ERR ")
    assert daemon.pysh("new", "d").returncode == 4
    daemon.ask("kill a")
    assert daemon.ask("new d").startswith("OK")
    assert daemon.json("new b --json --replace")["ok"], "a replacement needs no further place"


def test_a_dead_session_takes_no_place(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon(PYTHOND_MAX_SESSIONS="1").start()
    daemon.new("a").run("os._exit(1)")
    assert daemon.ask("new b").startswith("OK")


# Directory and environment of a session.


def test_a_session_of_pysh_starts_in_the_clients_directory(
    shared_daemon: TestDaemon, tmp_path: Path
) -> None:
    name = shared_daemon.unused_name()
    assert shared_daemon.pysh("new", name, cwd=tmp_path).returncode == 0
    assert shared_daemon.ask(f"run {name} os.getcwd()") == str(tmp_path)
    assert shared_daemon.json(f"status {name}")["cwd"] == str(tmp_path)
    shared_daemon.ask(f"kill {name}")


def test_a_session_over_the_raw_wire_starts_in_the_daemons_directory(session: Session) -> None:
    assert session.value("os.getcwd()") == str(session.daemon.work)


def test_the_directory_of_a_session_can_be_chosen(
    shared_daemon: TestDaemon, tmp_path: Path
) -> None:
    name = shared_daemon.unused_name()
    (tmp_path / "sub dir").mkdir()
    assert shared_daemon.pysh("new", name, "--cwd", "sub dir", cwd=tmp_path).returncode == 0
    assert shared_daemon.ask(f"run {name} os.getcwd()") == str(tmp_path / "sub dir")
    shared_daemon.ask(f"kill {name}")
    done = shared_daemon.pysh("new", name, "--cwd", tmp_path / "missing")
    assert done.returncode in (2, 4)
    assert "missing" in done.stderr
    assert name not in shared_daemon.list()


def test_variables_of_the_environment_can_be_set(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    done = shared_daemon.pysh("new", name, "--env", "A=1", "--env", "B=x=y z", "--env", "EMPTY=")
    assert done.returncode == 0, done.stderr
    assert shared_daemon.ask(f"run {name} [os.environ[k] for k in ('A', 'B', 'EMPTY')]") == (
        "['1', 'x=y z', '']"
    )
    assert shared_daemon.ask(f"run {name} subprocess.getoutput('echo $B')") == "x=y z"
    shared_daemon.ask(f"kill {name}")
    for bad in ("NOEQUALS", "=x", "PYTHOND_SOCK=/x"):
        assert shared_daemon.pysh("new", name, "--env", bad).returncode == 2, bad


def test_a_session_sees_nothing_of_the_daemons_own_variables(session: Session) -> None:
    assert session.out("[k for k in os.environ if k.startswith('PYTHOND')]") == "[]\n"
    assert session.value("os.environ['HOME']") == str(session.daemon.home)
    threads = "[k for k in os.environ if k.endswith('_NUM_THREADS')]"
    assert session.out(threads) == "[]\n"


@pytest.mark.parametrize(
    "body",
    [
        "not json", "[]", "5", '{"nonsense": 1}', '{"python": 5}', '{"python": "relative"}',
        '{"cwd": "relative"}', '{"env": {"A=B": "x"}}', '{"env": {"A": 5}}', '{"env": {"A": "\\u0000"}}',
        '{"preload": ["no module"]}', '{"preload": ["os; import x"]}', '{"preload": "os"}',
        '{"env": {"PYTHOND_SOCK": "x"}}', '{"cwd": "/\\u0000"}',
    ],
)  # fmt: skip
def test_a_malformed_body_of_new_is_refused(shared_daemon: TestDaemon, body: str) -> None:
    name = shared_daemon.unused_name()
    reply = shared_daemon.json(f"new {name} --json\n{body}")
    assert reply["ok"] is False
    assert reply["error"]["code"] == "usage"
    assert name not in shared_daemon.list()


def test_a_directory_that_is_not_there_is_refused(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    reply = shared_daemon.json(f'new {name} --json\n{{"cwd": "/no/such/place"}}')
    assert reply["ok"] is False
    assert "/no/such/place" in reply["error"]["message"]
    assert name not in shared_daemon.list()
