"""Cells that damage their own process: it goes on, or it dies with a named cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.pythons import version_parameters
from support.waiting import wait_until


@pytest.fixture(params=version_parameters())
def victim(
    module_daemon: TestDaemon, pythons: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Session]:
    """A session that may be hurt, in a daemon that serves only this file."""
    with module_daemon.session(python=str(pythons[request.param])) as session:
        yield session


def goes_on_or_died_with_a_cause(session: Session, reply: dict) -> bool:
    """Check that a session is either of use or dead with a named cause.

    Returns:
        Whether it goes on.
    """
    if reply["ok"] or reply["status"] in ("failed", "interrupted"):
        after = session.run("1 + 1", timeout=20)
        if "code" not in (after["error"] or {}):
            assert after["ok"], f"alive but useless: {after}"
            assert after["stdout"] == "2\n", after
            assert session.run("print('printed')", timeout=20)["stdout"] == "printed\n"
            assert session.status()["state"] == "idle"
            return True
        reply = after
    assert reply["error"]["code"] == "session_died", reply
    death = session.status()["death"]
    assert death["cause"], death
    return False


def goes_on(session: Session, reply: dict) -> None:
    """Check that a session is still of use."""
    assert goes_on_or_died_with_a_cause(session, reply), session.status().get("death")


SURVIVED = {
    "close_standard_descriptors": "os.close(0); os.close(1); os.close(2)",
    "close_stdout": "os.close(1)",
    "closerange_above_two": "os.closerange(3, 4096)",
    "closerange_all": "os.closerange(0, 65536)",
    "close_every_listed_descriptor": (
        "for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    try: os.close(fd)\n    except OSError: pass"
    ),
    "descriptors_replaced_by_devnull": (
        "n = os.open('/dev/null', os.O_RDWR)\nfor fd in range(64):\n    os.dup2(n, fd)"
    ),
    "delete_print": "import builtins; del builtins.print",
    "delete_common_builtins": (
        "import builtins\n"
        "for n in 'print len repr str isinstance getattr type Exception BaseException dict'.split():\n"
        "    delattr(builtins, n)"
    ),
    "delete_import": "import builtins; del builtins.__import__",
    "replace_import": "import builtins; builtins.__import__ = lambda *a, **k: 1/0",
    "replace_repr_and_str": "import builtins; builtins.repr = builtins.str = lambda *a: 1/0",
    "replace_compile_and_eval": (
        "import builtins; builtins.compile = builtins.eval = builtins.exec = None"
    ),
    "clear_builtins": "import builtins; builtins.__dict__.clear()",
    "delete_dunder_builtins": "del __builtins__",
    "clear_namespace": "globals().clear()",
    "clear_modules": "import sys; sys.modules.clear()",
    "delete_important_modules": (
        "import sys\nfor n in 'io sys builtins traceback linecache ast asyncio threading'.split():\n"
        "    sys.modules.pop(n, None)"
    ),
    "delete_main_module": "sys.modules.pop('__main__')",
    "replace_main_module": "import types; sys.modules['__main__'] = types.ModuleType('__main__')",
    "clear_search_path": "sys.path.clear(); sys.path_importer_cache.clear(); sys.meta_path.clear()",
    "traceback_module_broken": (
        "import traceback\nfor n in dir(traceback):\n    setattr(traceback, n, None)"
    ),
    "linecache_broken": "import linecache\nlinecache.cache = None\nlinecache.getlines = None",
    "ast_broken": "import ast\nfor n in list(vars(ast)):\n    setattr(ast, n, None)",
    "io_broken": "import io\nfor n in list(vars(io)):\n    setattr(io, n, None)",
    "asyncio_broken": "import asyncio\nfor n in list(vars(asyncio)):\n    setattr(asyncio, n, None)",
    "threading_broken": "import threading\nthreading.Thread.start = None",
    "signals_ignored": (
        "import signal\nfor s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass"
    ),
    "signals_blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    "wakeup_descriptor": "import signal; r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)",
    "exit_in_thread": "import threading\nt = threading.Thread(target=sys.exit); t.start(); t.join()",
    "fork_child_leaves": "p = os.fork()\nif p == 0: os._exit(0)\nos.waitpid(p, 0)",
    "fork_child_raises_and_parent_waits": (
        "p = os.fork()\nif p == 0:\n    try: 1/0\n    finally: os._exit(3)\nos.waitpid(p, 0)"
    ),
    "fork_child_is_not_awaited": "p = os.fork()\nif p == 0: os._exit(0)",
    "fork_in_thread": (
        "import threading\ndef f():\n    p = os.fork()\n    if p == 0: os._exit(0)\n    os.waitpid(p, 0)\n"
        "t = threading.Thread(target=f); t.start(); t.join()"
    ),
    "two_hundred_forks": (
        "ps = []\nfor _ in range(200):\n    p = os.fork()\n    if p == 0: os._exit(0)\n    ps.append(p)\n"
        "for p in ps: os.waitpid(p, 0)"
    ),
    "reap_everything": "try:\n    while True: os.waitpid(-1, os.WNOHANG) == (0, 0) and 1/0\nexcept Exception: pass",
    "change_directory_and_remove_it": (
        "import tempfile\nd = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)"
    ),
    "umask_zero": "os.umask(0)",
    "recursion_limit_tiny": ("try: sys.setrecursionlimit(30)\nexcept RecursionError: pass"),
    "recursion_limit_huge": "sys.setrecursionlimit(2**31 - 1)",
    "switch_interval": "sys.setswitchinterval(60)",
    "gc_disabled_and_debug": "import gc; gc.disable(); gc.set_threshold(0); gc.set_debug(0)",
    "gc_callbacks_raise": "import gc; gc.callbacks.append(lambda *a: 1/0); gc.collect()",
    "profile_function_raises": "sys.setprofile(lambda *a: 1/0)",
    "profile_function_exits": "import threading\ndef f(*a): raise SystemExit\nsys.setprofile(f)",
    "audit_hook_raises": (
        "n = [0]\ndef hook(event, args):\n    if event == 'compile': n[0] += 1\nsys.addaudithook(hook)"
    ),
    "two_hundred_threads": (
        "import threading\nstop = threading.Event()\n"
        "ts = [threading.Thread(target=stop.wait, daemon=True) for _ in range(200)]\n"
        "for t in ts: t.start()"
    ),
    "fifteen_hundred_threads": (
        "import threading\nstop = threading.Event()\ntry:\n"
        "    for _ in range(1500): threading.Thread(target=stop.wait, daemon=True).start()\n"
        "except RuntimeError: pass"
    ),
    "no_signal_can_be_queued": (
        "import resource; resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))"
    ),
    "file_size_limit_small": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    ),
    "double_fork_and_setsid": (
        # The one that is left ends with the session.
        "r, w = os.pipe()\np = os.fork()\nif p == 0:\n    os.setsid(); os.close(w)\n"
        "    if os.fork() == 0: os.read(r, 1)\n    os._exit(0)\nos.waitpid(p, 0)"
    ),
    "daemon_threads_that_spin": (
        "import threading\nstop = threading.Event()\ndef spin():\n    while not stop.is_set(): pass\n"
        "for _ in range(3): threading.Thread(target=spin, daemon=True).start()"
    ),
    "leak_descriptors_to_the_limit": (
        "kept = []\ntry:\n    while True: kept.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass"
    ),
    "open_files_limit_tiny": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))",
    "environment_cleared": "os.environ.clear()",
    "setsid_and_process_group": "try: os.setpgid(0, 0)\nexcept OSError: pass",
    "nice": "os.nice(19)",
    "alarm_fires_between_cells": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)",
    "handler_that_raises_between_cells": (
        "import signal\ndef h(*a): raise RuntimeError('late')\nsignal.signal(signal.SIGUSR1, h)\n"
        "subprocess.Popen(['sh', '-c', f'sleep 0.2; kill -USR1 {os.getpid()}'])"
    ),
    "weakref_callbacks_raise": (
        "import weakref\nclass C: pass\nc = C()\nr = weakref.ref(c, lambda r: 1/0)\ndel c"
    ),
    "object_that_raises_at_every_comparison": (
        "class C:\n    def __eq__(self, o): raise RuntimeError\n    __hash__ = None\n"
        "    def __bool__(self): raise RuntimeError\n    def __len__(self): raise RuntimeError\nc = C()"
    ),
    "names_that_are_no_strings": "globals()[5] = 1; globals()[(1, 2)] = 2; globals()[None] = 3",
    "class_of_main_replaced": (
        "import types\nclass M(types.ModuleType):\n    def __getattribute__(s, n): raise RuntimeError\n"
        "sys.modules['__main__'].__class__ = M"
    ),
    "unraisable_hook_raises": "sys.unraisablehook = lambda *a: 1/0",
    "thread_hook_raises": "import threading; threading.excepthook = lambda *a: 1/0",
    "event_loop_policy_broken": "import asyncio; asyncio.set_event_loop(None)",
    "event_loop_closed": (
        "import asyncio\nloop = asyncio.get_running_loop()\nloop.stop()\nawait asyncio.sleep(0)"
    ),
    "locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "int_digits": "getattr(sys, 'set_int_max_str_digits', lambda n: None)(640)",
    "faulthandler_later": "import faulthandler; faulthandler.dump_traceback_later(0.05)",
    "fifo_as_stdout": "os.mkfifo('f' + str(os.getpid())); os.unlink('f' + str(os.getpid()))",
}


@pytest.mark.parametrize("code", SURVIVED.values(), ids=SURVIVED)
def test_a_session_goes_on_after_a_cell_that_does_this(victim: Session, code: str) -> None:
    goes_on(victim, victim.run(code, timeout=40))
    victim.run("x = = 1", timeout=20)
    victim.run("1/0", timeout=20)
    goes_on(victim, victim.run("import math", timeout=20))


def test_a_trace_function_that_raises_costs_one_cell_as_in_python(victim: Session) -> None:
    victim.run("sys.settrace(lambda *a: 1/0)")
    victim.run("1 + 1")
    goes_on(victim, victim.run("1 + 1"))


FATAL_OR_NOT = {
    "signals_default": (
        "import signal\nfor s in set(range(1, 65)) - {9, 19, 32, 33}:\n"
        "    try: signal.signal(s, signal.SIG_DFL)\n    except (OSError, ValueError): pass"
    ),
    "garbage_into_every_descriptor": (
        "junk = b'\\x00\\x01\\xff' * 50 + b'{\"ok\": true}\\n'\n"
        "for fd in map(int, os.listdir('/proc/self/fd')):\n    if fd > 2:\n"
        "        try:\n            os.set_blocking(fd, False); os.write(fd, junk)\n"
        "        except OSError: pass"
    ),
    "zeros_into_every_descriptor": (
        "for fd in range(3, 300):\n    try:\n        os.set_blocking(fd, False); os.write(fd, bytes(4096))\n"
        "    except OSError: pass"
    ),
    "every_descriptor_read": (
        "for fd in range(3, 300):\n    try:\n        os.set_blocking(fd, False); os.read(fd, 65536)\n"
        "    except OSError: pass"
    ),
    "every_socket_shut_down": (
        "import socket\nfor fd in range(3, 300):\n    try: socket.socket(fileno=os.dup(fd)).shutdown(2)\n"
        "    except OSError: pass"
    ),
    "address_space_limit_tiny": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))"
    ),
    "file_size_limit_zero": (
        "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    ),
    "process_limit_one": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
    "standard_streams_closed_in_c": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.fcloseall()",
    "threads_of_the_process_signalled": (
        "import ctypes, signal\nlibc = ctypes.CDLL(None)\nsignal.signal(signal.SIGUSR2, lambda *a: None)\n"
        "for t in os.listdir('/proc/self/task'):\n    libc.syscall(234, os.getpid(), int(t), 12)"
    ),
    "main_thread_ended_by_a_system_call": "import ctypes\nctypes.CDLL(None).syscall(60, 0)",
    "fork_child_returns_from_the_cell": "p = os.fork()\nif p: os.waitpid(p, os.WNOHANG)",
    "fork_child_exits_by_system_exit": "p = os.fork()\nif p == 0: raise SystemExit(0)",
    "stdin_is_a_directory": "os.dup2(os.open('/', os.O_RDONLY), 0)",
    "finalise": "import ctypes; ctypes.pythonapi.Py_FinalizeEx",
    "lock_of_imports_held": (
        "import _imp, threading\nt = threading.Thread(target=_imp.acquire_lock); t.start(); t.join()"
    ),
}


@pytest.mark.parametrize("code", FATAL_OR_NOT.values(), ids=FATAL_OR_NOT)
def test_a_session_goes_on_or_dies_with_a_named_cause(victim: Session, code: str) -> None:
    goes_on_or_died_with_a_cause(victim, victim.run(code, timeout=40))
    with victim.daemon.session() as other:
        assert other.out("1 + 1") == "2\n"


FORGERS = {
    "structured_replies": (
        "import json\nforged = json.dumps({'status': 'done', 'ok': True, 'stdout': 'FORGED',"
        " 'result': 'FORGED', 'finished': {'ok': True, 'result': 'FORGED'}, 'Finished': 'FORGED'}).encode()\n"
        "frames = [forged, forged + b'\\n', len(forged).to_bytes(4, 'big') + forged,\n"
        "          len(forged).to_bytes(4, 'little') + forged, len(forged).to_bytes(8, 'little') + forged]"
    ),
    "records_of_many_lengths": (
        "frames = [bytes([k]) * 8 + n.to_bytes(4, 'little') + b'FORGED' * (n // 6)"
        " for k in range(8) for n in (6, 60, 600)]"
    ),
}


@pytest.mark.parametrize("prepare", FORGERS.values(), ids=FORGERS)
def test_forged_answers_of_a_cell_are_never_believed(victim: Session, prepare: str) -> None:
    victim.out(prepare)
    reply = victim.run(
        "sent = 0\nfor fd in map(int, os.listdir('/proc/self/fd')):\n    if fd > 2:\n"
        "        for frame in frames:\n"
        "            try:\n                os.set_blocking(fd, False); os.write(fd, frame); sent += 1\n"
        "            except OSError: pass\n"
        "'true'",
        timeout=40,
    )
    # The cell holds copies of its own streams too: what it writes there is its output.
    assert "FORGED" not in str(reply.get("result"))
    if reply["ok"]:
        assert reply["result"] == "true"
        after = victim.run("1 + 1", timeout=20)
        assert after.get("result") in (None, "2")
    goes_on_or_died_with_a_cause(victim, reply)
    with victim.daemon.session() as other:
        assert other.out("1 + 1") == "2\n"


def test_a_cell_can_be_interrupted_although_an_earlier_one_blocked_all_signals(
    victim: Session,
) -> None:
    victim.run("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))")
    cell = victim.detach("while True: pass")
    victim.wait_for_state("running")
    assert victim.interrupt(cell)["cells"][0]["outcome"] == "ended"
    assert victim.ended(cell)["status"] == "interrupted"
    assert victim.value("1 + 1") == "2"


@pytest.mark.parametrize("thread", [False, True], ids=["main_thread", "other_thread"])
def test_a_session_whose_process_becomes_another_program_is_dead_and_leaves_no_process(
    victim: Session, thread: bool
) -> None:
    code = "os.execv('/bin/sleep', ['sleep', '1000'])"
    if thread:
        code = f"import threading; threading.Thread(target=lambda: {code}).start(); time.sleep(60)"
    reply = victim.run(code, timeout=40)
    assert reply["error"]["code"] == "session_died", reply
    cause = victim.status()["death"]["cause"]
    assert cause == "its process became another program (`sleep`), and was ended"
    wait_until(lambda: not processes.is_alive(victim.pid), what="no process is left")
    assert victim.daemon.new(victim.name).out("1 + 1") == "2\n"


def test_a_session_that_makes_a_daemon_of_itself_is_dead_and_its_name_is_of_use(
    victim: Session,
) -> None:
    reply = victim.run(
        "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
        "open('daemon.pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)",
        timeout=40,
    )
    assert reply["error"]["code"] == "session_died", reply
    assert victim.status()["death"]["cause"] == "exited with status 0"
    again = victim.daemon.new(victim.name)
    assert again.pid != victim.pid
    assert again.out("1 + 1") == "2\n"
    # It left the session's group before that was ended, or it went with it.
    pid = again.value("open('daemon.pid').read() if os.path.exists('daemon.pid') else '0'")
    processes.end({int(pid or 0)} - {0})


def test_an_answer_forged_by_a_thread_between_cells_is_never_believed(victim: Session) -> None:
    victim.run(
        "import threading, json\nstop = threading.Event()\n"
        "junk = [json.dumps({'ok': True, 'result': 'FORGED'}).encode(), b'\\0' * 64, os.urandom(64)]\n"
        "def pester():\n    while not stop.wait(0.001):\n        for fd in range(3, 64):\n"
        "            for j in junk:\n                try: os.write(fd, j)\n                except OSError: pass\n"
        "    \nthreading.Thread(target=pester, daemon=True).start()"
    )
    for number in range(20):
        reply = victim.run(f"{number} * 2", timeout=20)
        if not reply["ok"]:
            assert reply["error"]["code"] == "session_died", reply
            assert victim.status()["death"]["cause"]
            break
        assert reply["result"] == str(number * 2)


def test_a_fork_child_that_returns_from_its_cell_does_not_answer_twice(victim: Session) -> None:
    reply = victim.run("parent = os.getpid()\nchild = os.fork()\nos.getpid() == parent")
    if reply["ok"]:
        assert reply["result"] == "True"
    assert goes_on_or_died_with_a_cause(victim, reply)
    assert victim.value("os.getpid() == parent") == "True"
    for number in range(10):
        assert victim.value(str(number)) == str(number)


def test_a_child_that_keeps_all_descriptors_does_not_keep_a_dead_session_alive(
    victim: Session,
) -> None:
    child = victim.value(
        "child = os.fork()\nif child == 0:\n    import signal\n    signal.pause()\n    os._exit(0)\n"
        "child"
    )
    try:
        reply = victim.run("os._exit(9)", timeout=20)
        assert reply["error"]["code"] == "session_died", reply
        assert "9" in victim.status()["death"]["cause"]
    finally:
        processes.end({int(child or 0)})


LIMITS = [(limit, kept) for limit in (0, 1, 2, 3, 5, 8) for kept in (True, False)]


@pytest.mark.parametrize(("limit", "kept"), LIMITS)
def test_a_session_whose_limit_of_open_files_is_lowered_is_of_use_and_stays_within_reach(
    make_daemon: Callable[..., TestDaemon], limit: int, kept: bool
) -> None:
    daemon = make_daemon().start()
    victim = daemon.new()
    hard = "resource.getrlimit(resource.RLIMIT_NOFILE)[1]" if kept else str(limit)
    victim.out(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {hard}))")
    goes_on(victim, victim.run("x = 41", timeout=20))
    assert victim.ended(victim.fire("print('beside')"))["stdout"] == "beside\n"
    assert "x" in [entry["name"] for entry in victim.ask("vars")["vars"]]
    cell = victim.detach("while True: pass")
    wait_until(lambda: victim.status()["state"] == "running")
    assert victim.interrupt(cell)["ok"]
    assert victim.ended(cell)["status"] == "interrupted"
    # The next daemon finds a session that is of use, or the cause of its death.
    victim.wire.close()
    daemon.crash()
    daemon.start()
    wait_until(lambda: victim.name in daemon.list(), what="the session is found")
    reply = daemon.json(f"run {victim.name} --json\nx + 1")
    if (reply["error"] or {}).get("code") == "session_died":
        assert not kept
        death = victim.status()["death"]
        assert "its limit of open files is too low" in death["last_stderr"], death
        assert daemon.new(victim.name).out("1 + 1") == "2\n"
    else:
        assert reply["result"] == "42", reply
        assert victim.ended(victim.fire("print('again')"))["stdout"] == "again\n"


def test_connections_of_its_own_cells_do_not_put_a_session_out_of_reach(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    victim = daemon.new()
    victim.out(
        "import glob, socket\nkept = []\n"
        f"for path in glob.glob({str(daemon.runtime)!r} + '/*/h-*.sock') * 30:\n"
        "    s = socket.socket(socket.AF_UNIX); s.setblocking(False)\n"
        "    try: s.connect(path); kept.append(s)\n"
        "    except BlockingIOError: time.sleep(0.001)\n"
        "x = 41"
    )
    victim.wire.close()
    daemon.crash()
    daemon.start()
    wait_until(lambda: victim.name in daemon.list(), what="the session is found")
    assert daemon.json(f"run {victim.name} --json\nx + 1")["result"] == "42"


QUEUE_FULL = """
import ctypes, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
send = ctypes.CDLL(None).sigqueue
count = 0
while send(os.getpid(), int(signal.SIGRTMAX), None) == 0: count += 1
print("full", flush=True)
threading.Event().wait()
"""


def everything_answers(session: Session) -> None:
    """Use what the main thread and the I/O thread have to tell each other for."""
    follower = session.daemon.popen(
        "pysh", "run", session.name, "print(1); _ = os.system('echo 2')"
    )
    assert follower.communicate(timeout=60)[0] == b"1\n2\n"
    cell = session.fire("os.system('echo beside')")
    assert session.ended(cell)["status"] == "done"
    cells = [session.detach(f"time.sleep(0.05); {number}") for number in range(3)]
    assert [session.ended(cell)["result"] for cell in cells] == ["0", "1", "2"]
    loop = session.detach("while True: pass")
    session.wait_for_state("running")
    session.interrupt(loop)
    assert session.ended(loop)["status"] == "interrupted"
    assert session.ask("stack")["ok"]


def test_signals_that_somebody_else_queues_hold_up_nobody(module_daemon: TestDaemon) -> None:
    """How many may be queued is counted per user, not per process."""
    with module_daemon.session() as hog, module_daemon.session() as other:
        cell = hog.detach(f"import threading{QUEUE_FULL}")
        hog.wait_for_output(cell, "full", 60)
        everything_answers(other)


def test_a_session_that_may_queue_no_signal_is_of_use(victim: Session) -> None:
    victim.out("import resource; resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))")
    everything_answers(victim)


def test_descriptors_that_a_cell_made_blocking_hold_up_nobody(victim: Session) -> None:
    victim.out(
        "for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    try: os.set_blocking(fd, True)\n    except OSError: pass"
    )
    everything_answers(victim)


def test_a_daemon_is_untouched_by_all_this(module_daemon: TestDaemon) -> None:
    pid = module_daemon.info()["pid"]
    assert pid == module_daemon.pid
    assert module_daemon.process is not None
    assert module_daemon.process.poll() is None
