"""What a cell writes: which stream, which cell, which order, how much."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.pythons import version_parameters
from support.waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture(params=version_parameters())
def every(
    shared_daemon: TestDaemon, pythons: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Session]:
    """A fresh session of each supported version."""
    with shared_daemon.session(python=str(pythons[request.param])) as session:
        yield session


def streams(session: Session, code: str) -> tuple[str, str]:
    """Run a cell that must succeed and return its stdout and stderr."""
    reply = session.run(code)
    assert reply["ok"], reply
    return reply["stdout"], reply["stderr"]


def order(reply: dict) -> list[tuple[int, int]]:
    """Return a reply's order of arrival, neighbouring runs of a stream joined."""
    runs: list[tuple[int, int]] = []
    for stream, length in reply.get("order", []):
        if runs and runs[-1][0] == stream:
            runs[-1] = (stream, runs[-1][1] + length)
        else:
            runs.append((stream, length))
    return runs


# Two streams.


def test_stdout_and_stderr_are_told_apart(every: Session) -> None:
    assert streams(every, "print('o'); print('e', file=sys.stderr)") == ("o\n", "e\n")


def test_the_order_of_alternating_streams_is_exact(every: Session) -> None:
    reply = every.run(
        "for i in range(3):\n    print('out', i)\n    print('err', i, file=sys.stderr)\n'end'"
    )
    assert reply["stdout"] == "out 0\nout 1\nout 2\nend\n"
    assert reply["stderr"] == "err 0\nerr 1\nerr 2\n"
    assert order(reply) == [(1, 6), (2, 6), (1, 6), (2, 6), (1, 6), (2, 6), (1, 4)]


def test_the_order_counts_bytes_and_not_characters(session: Session) -> None:
    reply = session.run("print('é🐍'); print('e', file=sys.stderr); print('z')")
    assert order(reply) == [(1, 7), (2, 2), (1, 2)]


def test_the_order_is_left_out_where_only_one_stream_was_written(session: Session) -> None:
    assert not session.run("print(1); print(2)").get("order")


def test_the_order_of_many_small_writes_is_exact(session: Session) -> None:
    reply = session.run(
        "for i in range(2000):\n    sys.stdout.write('o'); sys.stderr.write('e')\nNone"
    )
    assert order(reply) == [(1, 1), (2, 1)] * 2000


def test_the_plain_wire_merges_both_streams_in_order(every: Session) -> None:
    code = "print('a'); print('b', file=sys.stderr); print('c'); 'd'"
    assert every.plain(code) == "a\nb\nc\nd"


def test_the_plain_wire_takes_only_newlines_off_the_end(session: Session) -> None:
    assert session.plain("print('\\n a \\t\\n\\n')") == "\n a \t"
    assert session.plain("x = 1") == ""
    assert session.plain("print()") == ""


def test_the_plain_wire_has_output_before_the_traceback(every: Session) -> None:
    text = every.plain("print('before'); sys.stderr.write('err\\n'); 1/0")
    assert text.startswith("ERR execution failed\nbefore\nerr\nTraceback (most recent call last):")
    assert text.endswith("ZeroDivisionError: division by zero")


def test_output_has_no_terminal_codes_of_ours(every: Session) -> None:
    assert "\x1b" not in every.plain("print('a'); 1/0")
    assert every.plain("print('\\x1b[31mred\\x1b[0m')") == "\x1b[31mred\x1b[0m"


# Which cell.


def test_output_of_threads_that_the_cell_joins_belongs_to_it(every: Session) -> None:
    code = (
        "import threading, _thread\n"
        "def inner(): print('inner')\n"
        "def work():\n    print('outer')\n    t = threading.Thread(target=inner); t.start(); t.join()\n"
        "t = threading.Thread(target=work); t.start(); t.join()\n"
        "lock = _thread.allocate_lock(); lock.acquire()\n"
        "def raw():\n    print('raw', file=sys.stderr)\n    lock.release()\n"
        "_thread.start_new_thread(raw, ()); _ = lock.acquire(timeout=10)"
    )
    assert streams(every, code) == ("outer\ninner\n", "raw\n")


def test_output_of_timers_pools_and_subclassed_threads_belongs_to_the_cell(every: Session) -> None:
    code = (
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "class T(threading.Thread):\n    def run(self): print('sub')\n"
        "t = T(); t.start(); t.join()\n"
        "t = threading.Timer(0, print, ['timer']); t.start(); t.join()\n"
        "with ThreadPoolExecutor(1) as e: e.submit(print, 'pool').result()"
    )
    assert streams(every, code) == ("sub\ntimer\npool\n", "")


def test_output_of_a_thread_does_not_bleed_into_a_later_cell(every: Session) -> None:
    every.out(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def work():\n    go.wait()\n    print('from the first cell')\n"
        "    print('also', file=sys.stderr)\n    done.set()\n"
        "threading.Thread(target=work).start()"
    )
    assert streams(every, "go.set(); ok = done.wait(10); print('second', ok)") == (
        "second True\n",
        "",
    )
    assert streams(every, "print('third')") == ("third\n", "")


def test_output_of_a_thread_that_a_thread_starts_later_does_not_bleed(every: Session) -> None:
    every.out(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def inner():\n    print('inner of the first cell')\n    done.set()\n"
        "def work():\n    go.wait()\n    threading.Thread(target=inner).start()\n"
        "threading.Thread(target=work).start()"
    )
    assert every.out("go.set(); done.wait(10)") == "True\n"


def test_output_of_many_threads_at_once_is_whole(session: Session) -> None:
    code = (
        "import threading\ndef work(n):\n    for i in range(200): sys.stdout.write(f'{n}:{i}\\n')\n"
        "ts = [threading.Thread(target=work, args=(n,)) for n in range(20)]\n"
        "for t in ts: t.start()\nfor t in ts: t.join()"
    )
    lines = session.out(code).splitlines()
    assert sorted(lines) == sorted(f"{n}:{i}" for n in range(20) for i in range(200))


def test_output_of_awaited_tasks_belongs_to_the_cell(every: Session) -> None:
    code = (
        "import asyncio\nasync def say(x):\n    await asyncio.sleep(0)\n    print(x)\n"
        "await asyncio.gather(say('a'), say('b'))\nawait asyncio.to_thread(print, 'thread')"
    )
    assert every.out(code) == "a\nb\nthread\n"


def test_output_of_a_task_does_not_bleed_into_a_later_cell(every: Session) -> None:
    every.out(
        "import asyncio\ngo = asyncio.Event(); done = asyncio.Event()\n"
        "async def work():\n    await go.wait()\n    print('from the first cell')\n    done.set()\n"
        "task = asyncio.create_task(work())\nawait asyncio.sleep(0)"
    )
    assert every.out("go.set()\nawait done.wait()\nprint('second')") == "second\n"
    assert every.out("await task\nprint('third')") == "third\n"


def test_output_of_callbacks_belongs_to_the_cell_that_scheduled_them(every: Session) -> None:
    code = (
        "import asyncio\nloop = asyncio.get_running_loop()\n"
        "loop.call_soon(print, 'soon')\nawait asyncio.sleep(0.01)"
    )
    assert every.out(code) == "soon\n"


def test_destructors_print_into_the_cell_that_caused_them(session: Session) -> None:
    session.out("class D:\n    def __del__(self): print('deleted')\nd = D()")
    assert session.out("del d") == "deleted\n"


# Below Python.


def test_output_of_child_processes_belongs_to_the_cell(every: Session) -> None:
    assert streams(every, "os.system('echo out; echo err >&2'); None") == ("out\n", "err\n")
    assert streams(every, "subprocess.run(['sh', '-c', 'echo o; echo e >&2']); None") == (
        "o\n",
        "e\n",
    )
    assert streams(every, "subprocess.run(['echo', 'x'], stdout=sys.stdout); None") == ("x\n", "")
    assert streams(every, "subprocess.run(['echo', 'y'], stdout=sys.stderr); None") == ("", "y\n")
    assert every.out("subprocess.check_output(['echo', 'z'])") == "b'z\\n'\n"
    assert every.out("os.popen('echo p').read()") == "p\n\n"


def test_output_of_c_code_belongs_to_the_cell(every: Session) -> None:
    every.out("import ctypes\nlibc = ctypes.CDLL(None)")
    assert every.out("libc.printf(b'from %s\\n', b'C'); None") == "from C\n"
    assert every.out("libc.puts(b'puts'); None") == "puts\n"
    assert streams(every, "libc.perror(b'no'); None")[1].startswith("no: ")


def test_output_written_to_descriptors_belongs_to_the_cell(every: Session) -> None:
    assert streams(every, "os.write(1, b'one\\n'); os.write(2, b'two\\n'); None") == (
        "one\n",
        "two\n",
    )
    assert every.out("with open('/dev/stdout', 'w') as f: f.write('dev\\n')") == "dev\n"
    assert every.out("with os.fdopen(os.dup(1), 'w') as f: print('dup', file=f)") == "dup\n"


def test_descriptor_output_comes_before_a_python_write_that_follows(every: Session) -> None:
    code = (
        "for i in range(50):\n    os.write(1, b'd'); sys.stdout.write('p')\n"
        "os.system('echo child')\nprint('after')"
    )
    assert every.out(code) == "dp" * 50 + "child\nafter\n"
    reply = every.run("os.write(2, b'e'); print('o'); os.write(2, b'e'); print('o', end='')")
    assert order(reply)[:2] == [(2, 1), (1, 2)]


def test_every_print_stands_between_what_descriptors_got_before_and_after(every: Session) -> None:
    code = (
        "import ctypes; libc = ctypes.CDLL(None)\n"
        "for n in range(200):\n"
        "    print('print', n)\n"
        "    os.write(1, b'descriptor\\n')\n"
        "    n = sys.stdout.write('write\\n')\n"
        "    n = libc.printf(b'C\\n')\n"
        "    print('same', end=' '); os.write(1, b'line'); print()\n"
        "    print('e', file=sys.stderr); os.write(2, b'd\\n'); print('f', file=sys.stderr)\n"
        "print('a'); status = os.system('echo b'); print('c'); None"
    )
    stdout, stderr = streams(every, code)
    turns = [f"print {n}\ndescriptor\nwrite\nC\nsame line\n" for n in range(200)]
    assert stdout == "".join(turns) + "a\nb\nc\n"
    assert stderr == "e\nd\nf\n" * 200


def test_what_another_process_wrote_comes_before_the_print_that_answers_it(
    session: Session,
) -> None:
    code = (
        "other = subprocess.Popen([sys.executable, '-c', 'import sys, os\\nfor line in sys.stdin:\\n'\n"
        '    \'    os.write(1, b"pong" + line.encode()); os.write(2, b".")\'],\n'
        "    stdin=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "for n in range(300):\n"
        "    print('ping', n)\n"
        "    other.stdin.write(b'%d\\n' % n); other.stdin.flush(); dot = other.stderr.read(1)\n"
        "other.stdin.close(); other.wait()"
    )
    assert session.run(code)["stdout"] == (
        "".join(f"ping {n}\npong{n}\n" for n in range(300)) + "0\n"
    )


def test_output_keeps_its_order_after_a_cell_closed_our_descriptors(session: Session) -> None:
    session.out("os.closerange(3, 2000)")
    code = "for n in range(20):\n    print(n); os.write(1, b'd\\n')\ntime.sleep(0.1); print('e')"
    assert sorted(session.out(code).split()) == sorted([*map(str, range(20)), *"d" * 20, "e"])


def test_a_python_write_without_newline_comes_before_a_child(every: Session) -> None:
    assert every.out("print('a', end=''); os.system('echo b'); None") == "ab\n"
    assert every.out("sys.stdout.write('a'); subprocess.run(['echo', 'b']); None") == "ab\n"


def test_output_of_a_child_that_lives_on_does_not_break_later_cells(session: Session) -> None:
    session.out("p = subprocess.Popen(['sh', '-c', 'echo first; read x; echo late'], stdin=-1)")
    session.out("p.stdin.close(); p.wait()")
    assert session.out("print('next')") == "next\n"


def test_a_megabyte_from_a_child_is_whole(session: Session) -> None:
    reply = session.run("os.system('head -c 1000000 /dev/zero | tr \"\\\\0\" x'); None")
    assert reply["ok"], reply
    assert reply["stdout"] == "x" * 1_000_000
    assert reply["truncated"] == 0


def test_a_child_that_fills_its_pipe_while_python_waits_does_not_hang(session: Session) -> None:
    reply = session.run(
        "subprocess.run([sys.executable, '-c', 'import os\\nfor _ in range(64): os.write(1, b\"y\" * 65536)'])\nNone"
    )
    assert len(reply["stdout"]) == 64 * 65536


def test_c_code_that_writes_much_while_it_holds_the_interpreter_does_not_hang(
    session: Session,
) -> None:
    session.out("import ctypes\nlibc = ctypes.PyDLL(None)")
    code = "b = b'z' * 1_000_000\nn = libc.write(1, b, len(b))\nn"
    reply = session.run(code)
    assert reply["ok"], reply
    assert reply["stdout"].count("z") == int(reply["result"])


# The stream objects.


def test_the_streams_look_like_ordinary_text_streams(every: Session) -> None:
    every.out("import io")
    for name, number in (("stdout", 1), ("stderr", 2)):
        assert every.out(f"isinstance(sys.{name}, io.TextIOBase)") == "True\n"
        assert every.out(f"sys.{name}.isatty()") == "False\n"
        assert every.out(f"sys.{name}.writable(), sys.{name}.readable()") == "(True, False)\n"
        assert every.out(f"sys.{name}.fileno()") == f"{number}\n"
        assert every.out(f"sys.{name}.encoding.lower().replace('-', '')") == "utf8\n"
        assert every.out(f"sys.{name}.closed") == "False\n"
        assert every.out(f"sys.{name}.name") == f"<{name}>\n"
        assert every.out(f"type(sys.{name}.errors).__name__") == "str\n"
        assert every.out(f"sys.{name}.newlines, sys.{name}.line_buffering in (True, False)") == (
            "(None, True)\n"
        )
        every.fails(f"sys.{name}.write(b'bytes')", "TypeError")
        every.fails(f"sys.{name}.read()")
        assert every.out(f"sys.__{name}__ is not None") == "True\n"


def test_print_write_writelines_and_flush_work(every: Session) -> None:
    assert every.out("print('a', 'b', sep='-', end='!', flush=True)") == "a-b!"
    assert every.out("n = sys.stdout.write('four'); print(n)") == "four4\n"
    assert every.out("sys.stdout.writelines(['x', 'y'])") == "xy"
    assert every.out("sys.stdout.flush()") == ""
    assert every.out("print('dunder', file=sys.__stdout__)") == "dunder\n"


def test_the_binary_buffer_works_and_keeps_the_order(every: Session) -> None:
    code = "print('a'); sys.stdout.buffer.write(b'b\\n'); sys.stdout.buffer.flush(); print('c')"
    assert every.out(code) == "a\nb\nc\n"
    assert every.out("n = sys.stdout.buffer.write(b'no flush')") == "no flush"


def test_bytes_that_are_no_utf8_arrive_as_base64_beside_a_text(every: Session) -> None:
    reply = every.run(
        "n = sys.stdout.buffer.write(b'ok \\xff\\xfe\\n'); os.write(2, b'\\x80'); None"
    )
    assert base64.b64decode(reply["stdout"]["data_b64"]) == b"ok \xff\xfe\n"
    assert reply["stdout"]["text"] == "ok \ufffd\ufffd\n"
    assert base64.b64decode(reply["stderr"]["data_b64"]) == b"\x80"
    assert every.plain("n = sys.stdout.buffer.write(b'ok \\xff.')") == "ok \ufffd."


def test_a_character_written_in_two_halves_is_one_character(session: Session) -> None:
    assert session.out("os.write(1, b'\\xc3'); os.write(1, b'\\xa9\\n'); None") == "é\n"


@pytest.mark.parametrize(
    "damage",
    [
        "sys.stdout = None",
        "sys.stderr = None",
        "sys.stdout = sys.stderr = None",
        "sys.stdout = 5",
        "import io; sys.stdout = io.StringIO()",
        "del sys.stdout",
        "del sys.stdout, sys.stderr, sys.stdin",
        "sys.stdout.close()",
        "sys.stderr.close()",
        "sys.__stdout__.close()",
        "sys.stdout.detach()",
        "sys.stdout.buffer.close()",
        "sys.stdout = open('/dev/null', 'w')",
        "sys.stdout = open('/dev/full', 'w', buffering=1)",
        "sys.stdout.write = lambda s: 1/0",
        "class W:\n    def write(self, s): raise RuntimeError\nsys.stdout = sys.stderr = W()",
        "class W:\n    def __getattr__(self, n): raise SystemExit\nsys.stdout = W()",
        "sys.displayhook = None",
        "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "os.close(1)",
        "os.close(2)",
    ],
)
def test_a_cell_that_damages_its_streams_does_not_hurt_the_next_one(
    every: Session, damage: str
) -> None:
    every.run(damage)
    assert every.out("1 + 1") == "2\n"
    assert streams(every, "print('o'); print('e', file=sys.stderr)") == ("o\n", "e\n")
    assert every.fails("1/0", "ZeroDivisionError")


def test_a_value_after_a_replaced_stdout_is_not_lost(every: Session) -> None:
    reply = every.run("sys.stdout = None\n40 + 2")
    assert reply["ok"], reply
    assert reply["result"] == "42"


def test_a_cell_may_redirect_its_own_output(every: Session) -> None:
    code = (
        "import contextlib, io\nb = io.StringIO()\n"
        "with contextlib.redirect_stdout(b), contextlib.redirect_stderr(b):\n"
        "    print('hidden'); print('too', file=sys.stderr)\nprint('seen')\nb.getvalue()"
    )
    assert streams(every, code) == ("seen\nhidden\ntoo\n\n", "")


def test_output_still_in_a_wrapper_of_the_user_is_no_concern_of_the_next_cell(
    session: Session,
) -> None:
    session.run(
        "import io\nw = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); w.write('x')"
    )
    session.run("del w; import gc; gc.collect()")
    assert session.out("print('fine')") == "fine\n"


def test_reconfigure_works(every: Session) -> None:
    every.out("sys.stdout.reconfigure(line_buffering=True, errors='replace')")
    assert every.out("print('x')") == "x\n"


# Modules that write.


def test_reconfigured_streams_encode_and_end_lines_as_they_were_told(session: Session) -> None:
    session.out("sys.stdout.reconfigure(newline='\\r\\n')")
    assert session.out("print('a', 'b')\nn = sys.stdout.write('c\\n')") == "a b\r\nc\r\n"
    session.out("sys.stdout.reconfigure(encoding='latin-1', errors='replace', newline='\\n')")
    reply = session.run("print('é€')")
    assert base64.b64decode(reply["stdout"]["data_b64"]) == b"\xe9?\n"
    session.fails("sys.stdout.reconfigure(encoding='nonsense')", "LookupError")
    session.fails("sys.stdout.reconfigure('utf-8')", "TypeError")
    session.out("sys.stdout.reconfigure(encoding='utf-8')")
    assert session.out("print('é')") == "é\n"


def test_a_detached_stream_says_so_and_the_next_cell_has_a_new_one(every: Session) -> None:
    every.fails("write = sys.stdout.write; raw = sys.stdout.detach(); print(1)", "ValueError")
    assert every.out("n = raw.write(b'raw'); print('new')") == "rawnew\n"
    every.fails("write('old')", "ValueError")
    assert every.out("print('still')") == "still\n"


def test_a_patched_write_sees_every_part_and_only_in_its_cell(every: Session) -> None:
    code = (
        "parts = []; write = sys.stdout.write; sys.stdout.write = parts.append\n"
        "print('a', 1)\nwrite(repr(parts)); None"
    )
    assert every.out(code) == "['a', ' ', '1', '\\n']"
    assert every.out("print('b', parts[0])") == "b a\n"
    assert every.out("n = write('kept\\n'); n") == "kept\n5\n"


def test_print_does_what_that_of_python_does(every: Session) -> None:
    every.out(
        """
import io
class Loud(str):
    def __str__(self):
        print('asked', end=';')
        return 'loud'
class Bad:
    def __str__(self):
        raise OSError('no words')
calls = [
    ((), {}), (('a',), {}), (('a', 1, 2.5, True, None, 10**30, -0.0, float('nan'), 1j), {}),
    (('é🐍', '', 'x' * 70_000, 7), {}), (('lone \\ud800',), {}), ((b'b', [1, 'c'], ...), {}),
    ((Loud(), 'after', Loud()), {}), (('before', Bad(), 'never'), {}),
    (('a', 'b'), {'sep': ''}), (('a', 'b'), {'sep': None, 'end': None}),
    (('a',), {'end': ''}), (('a',), {'flush': True}), (('a',), {'file': None}),
    (('a', 'b'), {'sep': 1}), (('a',), {'end': b''}), (('a',), {'nonsense': 1}),
    (('before', 10**5000), {}),
]
def told():
    answers = []
    for arguments, options in calls:
        try:
            answer = print(*arguments, **options)
        except Exception as error:
            answer = f'{type(error).__name__}: {error}'
        answers.append(answer)
    return answers
"""
    )
    ours = every.out("answers = told(); print(answers)")
    real = "io.TextIOWrapper(raw, 'utf-8', 'backslashreplace', newline='\\n', write_through=True)"
    expected = every.out(
        f"raw = io.BytesIO(); text = {real}; was = sys.stdout; sys.stdout = text\n"
        "try:\n    answers = told()\nfinally:\n    sys.stdout = was\n"
        "n = sys.stdout.buffer.write(raw.getvalue()); print(answers)"
    )
    assert ours == expected
    assert "lone \\ud800\n" in ours
    assert "asked;loud after asked;loud\n" in ours


def test_print_looks_like_that_of_python(every: Session) -> None:
    assert every.out("repr(print), type(print).__name__, print.__module__, print.__name__") == (
        "('<built-in function print>', 'builtin_function_or_method', 'builtins', 'print')\n"
    )
    assert every.out("import pickle, inspect; pickle.loads(pickle.dumps(print)) is print") == (
        "True\n"
    )
    assert every.out("str(inspect.signature(print))") == (
        "(*args, sep=' ', end='\\n', file=None, flush=False)\n"
    )
    assert "sys.stdout by default" in every.out("help(print)")
    assert every.out("repr(sys.stdout.write)").startswith(
        "<built-in method write of _io.TextIOWrapper object at 0x"
    )
    assert every.out("type(sys.stdout) is __import__('io').TextIOWrapper") == "True\n"


def test_print_goes_where_sys_stdout_points(every: Session) -> None:
    code = (
        "import io, contextlib; text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text):\n    print('in')\n"
        "with contextlib.redirect_stdout(sys.stderr):\n    print('err')\n"
        "print('out'); sys.stdout = None; print('nowhere'); sys.stdout = text; print('in again')"
    )
    assert streams(every, code) == ("out\n", "err\n")
    assert every.out("text.getvalue()") == "in\nin again\n\n"
    every.fails("del sys.stdout; print(1)", "RuntimeError")


def test_lines_of_threads_are_never_mixed(session: Session) -> None:
    code = (
        "def chat(n):\n    for _ in range(500): print(n, n, n)\n"
        "threads = [threading.Thread(target=chat, args=(n,)) for n in range(8)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()"
    )
    session.out("import threading")
    assert set(session.out(code).splitlines()) == {f"{n} {n} {n}" for n in range(8)}


def test_logging_writes_to_the_cell_that_logs(every: Session) -> None:
    every.out("import logging\nlogging.basicConfig(format='%(levelname)s %(message)s')")
    assert streams(every, "logging.warning('one')") == ("", "WARNING one\n")
    assert streams(every, "logging.getLogger('x').error('two')") == ("", "ERROR two\n")


def test_warnings_go_to_stderr(every: Session) -> None:
    out, err = streams(every, "import warnings\nwarnings.warn('careful')")
    assert out == ""
    assert "UserWarning: careful" in err
    assert "pythond" not in err
    _, err = streams(every, "eval('1 is 1')")
    assert "SyntaxWarning" in err


def test_faulthandler_writes_to_stderr(every: Session) -> None:
    reply = every.run("import faulthandler\nfaulthandler.dump_traceback()")
    assert reply["ok"], reply
    assert "most recent call first" in reply["stderr"]


def test_an_exception_in_a_thread_is_told_on_stderr(every: Session) -> None:
    code = "import threading\nt = threading.Thread(target=lambda: 1/0); t.start(); t.join()"
    _, err = streams(every, code)
    assert "ZeroDivisionError" in err
    assert "pythond" not in err


def test_an_exception_in_a_destructor_is_told_on_stderr(every: Session) -> None:
    _, err = streams(every, "class D:\n    def __del__(self): 1/0\nD() and None")
    assert "ZeroDivisionError" in err


def test_help_pprint_and_traceback_print_work(every: Session) -> None:
    assert "len(obj, /)" in every.out("help(len)")
    assert every.out("import pprint; pprint.pprint({'b': 1, 'a': 2})") == "{'a': 2, 'b': 1}\n"
    _, err = streams(every, "import traceback\ntry: 1/0\nexcept Exception: traceback.print_exc()")
    assert err.endswith("ZeroDivisionError: division by zero\n")


# Amounts.


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, MIB, 20 * MIB])
def test_large_output_is_whole_in_the_structured_reply(session: Session, size: int) -> None:
    reply = session.run(f"sys.stdout.write('0123456789' * {size // 10 + 1}); None", timeout=110)
    assert reply["ok"], reply
    assert len(reply["stdout"]) == (size // 10 + 1) * 10
    assert reply["stdout"] == "0123456789" * (size // 10 + 1)
    assert reply["output_bytes"] == len(reply["stdout"])
    assert reply["truncated"] == 0
    assert session.out("1 + 1") == "2\n"


def test_large_output_in_many_small_writes_is_whole(session: Session) -> None:
    reply = session.run("for i in range(200_000): print(i)\n", timeout=110)
    assert reply["stdout"].splitlines() == [str(i) for i in range(200_000)]


def test_a_large_value_is_shown_whole(session: Session) -> None:
    reply = session.run("'v' * 5_000_000")
    assert len(reply["stdout"]) == 5_000_001
    assert reply["result"] == "v" * 5_000_000


def test_plain_replies_over_sixteen_mebibytes_have_head_mark_and_tail(session: Session) -> None:
    size = 20 * MIB
    text = session.plain(f"sys.stdout.write('H' * 100 + 'x' * {size - 200} + 'T' * 100); None")
    assert len(text) <= 16 * MIB
    assert text.startswith("H" * 100 + "x")
    assert text.endswith("x" + "T" * 100)
    mark = next(line for line in text.splitlines() if "x" * 100 not in line and line.strip())
    kept = text.count("x") - mark.count("x") + 200
    digits = "".join(c if c.isdigit() else " " for c in mark.replace(",", "")).split()
    assert str(size - kept) in digits, mark


def test_plain_replies_of_just_under_sixteen_mebibytes_are_whole(session: Session) -> None:
    size = 16 * MIB - 1000
    assert session.plain(f"sys.stdout.write('x' * {size}); None") == "x" * size


def test_large_output_through_pysh_is_whole(session: Session) -> None:
    done = session.pysh_run(
        f"sys.stdout.write('y' * {3 * MIB}); sys.stderr.write('e' * 100_000)\nNone"
    )
    assert done.returncode == 0
    assert done.stdout == "y" * 3 * MIB
    assert done.stderr.count("e") >= 100_000


# Facts about the cell.


def test_the_reply_names_the_cell_and_the_session(session: Session) -> None:
    first, second = session.run("1"), session.run("2")
    for reply in (first, second):
        assert reply["session"] == session.name
        assert reply["session_id"] == session.created["session_id"]
        assert reply["gen"] == 1
        assert reply["kind"] == "run"
        assert len(reply["cell_id"]) == 12
        assert int(reply["cell_id"], 16) >= 0
        assert reply["host"]
        assert reply["duration_ms"] >= 0
        assert reply["started_at"].endswith("Z")
        assert reply["truncated"] == 0
        assert "not_recorded" not in reply
    assert first["cell_id"] != second["cell_id"]


def test_the_duration_is_that_of_the_cell(session: Session) -> None:
    assert 200 <= session.run("time.sleep(0.2)")["duration_ms"] < 5000


def test_the_result_is_the_shown_value_without_its_newline(session: Session) -> None:
    assert session.run("1 + 1")["result"] == "2"
    assert session.run("'text'")["result"] == "text"
    assert session.run("'ends\\n'")["result"] == "ends\n"
    assert session.run("None")["result"] is None
    assert session.run("x = 1")["result"] is None
    assert session.run("print('p')")["result"] is None
    assert session.run("print('p'); 5")["result"] == "5"


def test_changed_names_what_is_new_rebound_or_gone(session: Session) -> None:
    assert set(session.run("a = 1; b = []; def_ = 2")["changed"]) == {"a", "b", "def_"}
    assert session.run("b.append(1)")["changed"] == []
    assert session.run("a")["changed"] == []
    assert set(session.run("a = 'other'; del def_")["changed"]) == {"a", "def_"}
    assert session.run("import decimal")["changed"] == ["decimal"]
    assert session.run("def f(): pass")["changed"] == ["f"]
    assert set(session.run("c = 1\n1/0")["changed"]) == {"c"}


def test_output_bytes_counts_both_streams(session: Session) -> None:
    assert session.run("print('é'); print('e', file=sys.stderr)")["output_bytes"] == 5
    assert session.run("x = 1")["output_bytes"] == 0


# Standard input.


def test_input_raises_at_once_and_says_what_to_do(every: Session) -> None:
    error = every.fails("input('name? ')", "EOFError", timeout=10)
    assert len(error["message"]) > 20, error
    assert "pythond" not in error["traceback"].replace(error["message"], "")
    assert every.fails("input()", "EOFError", timeout=10)["message"]
    assert every.out("1 + 1") == "2\n"


def test_getpass_and_breakpoint_do_not_hang(every: Session) -> None:
    every.run("import getpass, warnings\nwarnings.simplefilter('ignore')\ngetpass.getpass()", 20)
    every.run("breakpoint()", 20)
    assert every.out("1 + 1") == "2\n"


def test_reading_standard_input_gives_its_end_at_once(every: Session) -> None:
    assert every.out("sys.stdin.read()", 10) == "\n"
    assert every.out("sys.stdin.readline()", 10) == "\n"
    assert every.out("list(sys.stdin)", 10) == "[]\n"
    assert every.out("os.read(0, 10)", 10) == "b''\n"
    assert every.out("sys.stdin.isatty()") == "False\n"


def test_children_have_an_empty_standard_input(every: Session) -> None:
    assert every.out("subprocess.run(['cat']).returncode", 10) == "0\n"
    assert every.out("os.system('cat; echo end')", 10) == "end\n0\n"


# Concurrency with other sessions.


def test_output_of_sessions_that_print_at_once_is_not_mixed(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as one, shared_daemon.session() as two:
        a, b = one.wire, two.wire
        a.send(f"run {one.name} --json\nfor i in range(20000): print('one', i)")
        b.send(f"run {two.name} --json\nfor i in range(20000): print('two', i)")
        for wire, word in ((a, "one"), (b, "two")):
            reply = json.loads(wire.receive())
            assert reply["stdout"] == "".join(f"{word} {i}\n" for i in range(20000))


def test_a_client_that_leaves_does_not_stop_its_cell(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "go"
    with session.daemon.connect() as wire:
        wire.send(
            f"run {session.name}\nwhile not os.path.exists({str(file)!r}): time.sleep(0.01)\ndone = 7"
        )
        session.wait_for_state("running")
    file.touch()
    wait_until(lambda: session.status()["state"] == "idle", what="the cell finished")
    assert session.out("done") == "7\n"
