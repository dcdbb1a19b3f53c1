"""What a cell means: like the Python prompt, in every supported version."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.pythons import VERSIONS, version_parameters
from support.waiting import wait_until
from support.wire import text_of


@pytest.fixture(params=version_parameters())
def session(
    shared_daemon: TestDaemon, pythons: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Session]:
    """A fresh session of each supported version."""
    with shared_daemon.session(python=str(pythons[request.param])) as session:
        yield session


@pytest.fixture
def newest(shared_daemon: TestDaemon, pythons: dict[str, Path]) -> Iterator[Session]:
    """A fresh session of the newest version."""
    supported = [version for version in VERSIONS if version in pythons]
    with shared_daemon.session(python=str(pythons[supported[-1]])) as session:
        yield session


def version(session: Session) -> tuple[int, ...]:
    """The session's Python version, as two numbers."""
    return tuple(int(part) for part in session.created["python"]["version"].split(".")[:2])


# What is shown.

SHOWN = [
    ("1 + 1", "2\n"),
    ("'text'", "text\n"),
    ("'a\\nb'", "a\nb\n"),
    ("''", "\n"),
    ("b'raw'", "b'raw'\n"),
    ("(42,)", "(42,)\n"),
    ("['a', \"b'\"]", "['a', \"b'\"]\n"),
    ("None", ""),
    ("print('x')", "x\n"),
    ("x = 1", ""),
    ("x = 1; x", "1\n"),
    ("5;", "5\n"),
    ("x = 42\nx + 1", "43\n"),
    ("1\n2\n3", "3\n"),
    ("[1,\n 2,\n]", "[1, 2]\n"),
    ("(\n1\n+\n1\n)", "2\n"),
    ("'''doc'''", "doc\n"),
    ("...", "Ellipsis\n"),
    ("(y := 5)", "5\n"),
    ("x: int = 3\nx", "3\n"),
    ("if True:\n    5", ""),
    ("for i in range(3):\n    i", ""),
    ("for i in range(3):\n    print(i)", "0\n1\n2\n"),
    ("for i in range(3):\n    print(i)\ni", "0\n1\n2\n2\n"),
    ("def f():\n    return 7", ""),
    ("def f():\n    return 7\nf()", "7\n"),
    ("def f():\n    return 7\n\n\nf()\n\n", "7\n"),
    ("class A:\n    x = 4\nA.x", "4\n"),
    ("with __import__('contextlib').nullcontext(3) as x:\n    x", ""),
    ("try:\n    1/0\nexcept ZeroDivisionError:\n    'caught'", ""),
    ("try:\n    1/0\nexcept ZeroDivisionError:\n    r = 'caught'\nr", "caught\n"),
    ("while False: pass\nelse: 3", ""),
    ("import functools\n@functools.lru_cache\ndef f(n):\n    return n + 1\nf(1)", "2\n"),
    ("match 3:\n    case 3: r = 'three'\nr", "three\n"),
    ("print('a'); 'b'", "a\nb\n"),
    ("x = 3  # why\nx  # shown", "3\n"),
    ("x = [i for i in range(3)]; x", "[0, 1, 2]\n"),
    ("# only a comment", ""),
    ("", ""),
    ("\n\n", ""),
    ("   \n# c\n  \n", ""),
    ("\n\n1 + 1\n\n", "2\n"),
    ("pass", ""),
    ("f\"{'q'}{1 + 1}\"", "q2\n"),
    ("r'\\n'", "\\n\n"),
    ("'SELECT \"a\" FROM t WHERE b = ''x'''", 'SELECT "a" FROM t WHERE b = x\n'),
    ("x = '''a\n  b\n'''\nx", "a\n  b\n\n"),
    ("x = \\\n  4\nx", "4\n"),
    ("lambda_ = (lambda n: n * 2)(4); lambda_", "8\n"),
    ("{1: 2}", "{1: 2}\n"),
    ("float('nan')", "nan\n"),
]


@pytest.mark.parametrize(("code", "stdout"), SHOWN)
def test_the_last_expression_is_shown_and_nothing_else(
    session: Session, code: str, stdout: str
) -> None:
    reply = session.run(code)
    assert reply["ok"], reply
    assert reply["status"] == "done"
    assert (reply["stdout"], reply["stderr"]) == (stdout, "")


def test_a_str_subclass_is_shown_raw_and_other_values_by_repr(session: Session) -> None:
    session.out("class S(str): pass")
    assert session.out("S('raw')") == "raw\n"
    session.out("class R:\n    def __repr__(self): return '<R>'\n    def __str__(self): return 's'")
    assert session.out("R()") == "<R>\n"


def test_a_value_whose_repr_prints_keeps_the_order(session: Session) -> None:
    session.out(
        "class R:\n    def __repr__(self):\n        print('first')\n        return 'second'"
    )
    assert session.out("R()") == "first\nsecond\n"


def test_a_value_whose_repr_raises_fails_the_cell_with_its_lines(session: Session) -> None:
    session.out("class R:\n    def __repr__(self):\n        raise ValueError('no repr')")
    error = session.fails("R()", "ValueError")
    assert "raise ValueError('no repr')" in error["traceback"]
    assert "pythond" not in error["traceback"]
    assert session.out("1 + 1") == "2\n"


def test_a_value_whose_repr_is_no_string_fails_the_cell(session: Session) -> None:
    session.out("class R:\n    def __repr__(self): return 5")
    session.fails("R()", "TypeError")


def test_names_of_the_user_are_not_overwritten_by_shown_values(session: Session) -> None:
    session.out("_ = 'mine'\n1 + 1")
    session.out("2 + 2")
    assert session.out("_") == "mine\n"


def test_variables_survive_between_cells_and_del_removes_them(session: Session) -> None:
    session.out("x = 42")
    assert session.out("x + 1") == "43\n"
    session.out("del x")
    session.fails("x", "NameError")


def test_globals_is_the_namespace_and_it_is_the_main_module(session: Session) -> None:
    session.out("globals()['made'] = 3")
    assert session.out("made") == "3\n"
    assert session.out("__name__") == "__main__\n"
    assert session.out("import sys; sys.modules['__main__'].__dict__ is globals()") == "True\n"
    session.out("import __main__; __main__.other = 4")
    assert session.out("other") == "4\n"
    assert session.out("globals() is locals()") == "True\n"
    assert session.out("if __name__ == '__main__':\n    print('main')") == "main\n"


def test_code_from_a_file_runs_in_the_namespace(session: Session, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text('answer = f"it\'s {6 * 7}"\nq = \'SELECT "x"\'\n')
    session.out(f"exec(open({str(script)!r}).read())")
    assert session.out("answer") == "it's 42\n"
    assert session.out("q") == 'SELECT "x"\n'


def test_the_promised_modules_are_there_from_the_start(session: Session) -> None:
    names = [
        "os",
        "sys",
        "json",
        "subprocess",
        "shutil",
        "hashlib",
        "time",
        "re",
        "glob",
        "sqlite3",
        "socket",
    ]
    code = f"[n for n in {names!r} if type(globals().get(n)).__name__ != 'module']"
    assert session.out(code) == "[]\n"


def test_an_sqlite_connection_works_a_hundred_turns_later(session: Session) -> None:
    session.out("db = sqlite3.connect(':memory:'); db.execute('create table t(x)'); None")
    for turn in range(100):
        session.out(f"db.execute('insert into t values (?)', ({turn},)); None")
    assert session.out("db.execute('select count(*), sum(x) from t').fetchone()") == "(100, 4950)\n"


def test_a_thread_lives_on_between_cells(session: Session) -> None:
    session.out(
        "import threading\ncount = 0\nstop = threading.Event()\n"
        "def work():\n    global count\n    while not stop.wait(0.002):\n        count += 1\n"
        "t = threading.Thread(target=work); t.start()"
    )
    first = int(session.value("count") or 0)
    wait_until(lambda: int(session.value("count") or 0) > first, what="the thread counts on")
    session.out("stop.set(); t.join()")


def test_a_generator_keeps_its_place_between_cells(session: Session) -> None:
    session.out("def g():\n    yield from 'abc'\nit = g()")
    assert [session.out("next(it)") for _ in range(3)] == ["a\n", "b\n", "c\n"]
    session.fails("next(it)", "StopIteration")


def test_names_that_a_cell_set_before_it_failed_stay(session: Session) -> None:
    session.fails("kept = 1\n1/0\nnever = 2", "ZeroDivisionError")
    assert session.out("kept") == "1\n"
    session.fails("never", "NameError")


def test_the_asserted_optimisation_level_is_pythons_own(session: Session) -> None:
    session.fails("assert False, 'told'", "AssertionError")
    assert session.out("__debug__") == "True\n"


# Asynchronous code.


def test_top_level_await_works(session: Session) -> None:
    session.out("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x")
    assert session.out("await f(5)") == "5\n"
    assert session.out("x = await f(6)\nx + await f(1)") == "7\n"
    assert session.out("await asyncio.sleep(0)") == ""
    assert session.out("[await f(i) for i in range(3)]") == "[0, 1, 2]\n"
    assert session.out("async def g():\n    for i in range(3): yield i") == ""
    assert session.out("[i async for i in g()]") == "[0, 1, 2]\n"
    assert session.out("async for i in g():\n    print(i)") == "0\n1\n2\n"
    code = "import contextlib\nasync with contextlib.AsyncExitStack() as s:\n    print('in')"
    assert session.out(code) == "in\n"
    assert (
        session.out("def inner():\n    async def h(): await f(1)\n    return 3\ninner()") == "3\n"
    )


def test_names_bound_in_an_awaiting_cell_stay(session: Session) -> None:
    session.out("import asyncio\ny = 1\nawait asyncio.sleep(0)\ny += 1\ndef f(): return y")
    assert session.out("y, f()") == "(2, 2)\n"


def test_tasks_go_on_while_no_cell_runs(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "ticks"
    session.out(
        "import asyncio\nasync def tick():\n    for _ in range(200):\n"
        f"        open({str(file)!r}, 'a').write('x')\n"
        "        await asyncio.sleep(0.005)\n"
        "task = asyncio.create_task(tick())\nawait asyncio.sleep(0)"
    )
    wait_until(lambda: file.exists() and file.stat().st_size >= 20, what="the task goes on")
    assert session.out("task.done()") in ("False\n", "True\n")
    session.out("task.cancel()")
    assert session.out("await asyncio.gather(task, return_exceptions=True)\ntask.done()") == (
        "True\n"
    )


def test_the_event_loop_is_one_for_all_cells(session: Session) -> None:
    session.out("import asyncio\na = asyncio.get_running_loop()\nawait asyncio.sleep(0)")
    assert session.out("await asyncio.sleep(0)\na is asyncio.get_running_loop()") == "True\n"


def test_a_queue_and_a_server_live_across_awaiting_cells(session: Session) -> None:
    session.out(
        "import asyncio\nasync def echo(r, w):\n    w.write(await r.readline()); w.close()\n"
        "server = await asyncio.start_server(echo, '127.0.0.1', 0)\n"
        "port = server.sockets[0].getsockname()[1]"
    )
    # A blocking client in the same thread needs the server to be served by its loop.
    assert (
        session.out(
            "r, w = await asyncio.open_connection('127.0.0.1', port)\nw.write(b'hi\\n')\n"
            "await r.readline()"
        )
        == "b'hi\\n'\n"
    )
    session.out("server.close()\nawait asyncio.sleep(0)")


def test_asyncio_run_works_in_a_cell_before_and_after_top_level_await(session: Session) -> None:
    session.out("import asyncio\nasync def f(): return 8")
    assert session.out("asyncio.run(f())") == "8\n"
    assert session.out("await f()") == "8\n"
    assert session.out("asyncio.run(f())") == "8\n"
    assert session.out("await f()") == "8\n"


def test_an_exception_after_an_await_shows_only_the_users_lines(session: Session) -> None:
    session.out(
        "import asyncio\nasync def boom():\n    await asyncio.sleep(0)\n    raise KeyError('k')"
    )
    error = session.fails("await asyncio.sleep(0)\nawait boom()", "KeyError")
    assert "await boom()" in error["traceback"]
    assert "raise KeyError('k')" in error["traceback"]
    assert "pythond" not in error["traceback"]
    assert error["traceback"].count('File "') == 2


def test_system_exit_in_an_awaiting_cell_ends_the_cell_only(session: Session) -> None:
    session.out("import asyncio")
    assert session.fails("await asyncio.sleep(0)\nexit(4)", "SystemExit")["message"] == "exit(4)"
    assert session.out("await asyncio.sleep(0, 'alive')") == "alive\n"


def test_a_task_that_fails_does_not_hurt_later_cells(session: Session) -> None:
    session.out(
        "import asyncio\nasync def boom(): raise ValueError('in task')\n"
        "t = asyncio.create_task(boom())\nawait asyncio.sleep(0.01)"
    )
    assert session.out("repr(t.exception())") == "ValueError('in task')\n"
    assert session.out("1 + 1") == "2\n"


def test_a_task_that_exits_does_not_end_the_session(session: Session) -> None:
    session.run(
        "import asyncio\nasync def leave(): raise SystemExit(3)\n"
        "t = asyncio.create_task(leave())\nawait asyncio.sleep(0.01)"
    )
    assert session.out("1 + 1") == "2\n"
    assert session.out("await asyncio.sleep(0, 'loop lives')") == "loop lives\n"


def test_context_variables_set_by_an_awaiting_cell_do_not_break_later_ones(
    session: Session,
) -> None:
    session.out("import asyncio, contextvars\nv = contextvars.ContextVar('v', default=0)")
    session.out("v.set(5)\nawait asyncio.sleep(0)")
    session.out("v.get()")


# Tracebacks.


def test_a_traceback_has_the_users_lines_and_no_frame_of_ours(session: Session) -> None:
    code = "def divide(n):\n    return n / 0\n\ndivide(3)"
    error = session.fails(code, "ZeroDivisionError")
    traceback = error["traceback"]
    assert error["message"] == "division by zero"
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert traceback.rstrip("\n").endswith("ZeroDivisionError: division by zero")
    assert "    return n / 0\n" in traceback
    assert "    divide(3)\n" in traceback
    assert "line 2, in divide" in traceback
    assert "line 4, in <module>" in traceback
    assert "pythond" not in traceback
    assert traceback.count('File "') == 2


def test_a_failing_cell_keeps_its_output_apart_from_its_traceback(session: Session) -> None:
    reply = session.run("print('before')\n1/0")
    assert reply["status"] == "failed"
    assert reply["stdout"] == "before\n"
    assert "Traceback" not in text_of(reply["stderr"])
    assert reply["result"] is None


def test_functions_of_earlier_cells_show_their_own_source(session: Session) -> None:
    session.out("def f():\n    raise RuntimeError('first')  # of the first cell")
    for i in range(5):
        session.out(f"z{i} = {i}")
    session.out("def g():\n    f()  # of a later cell")
    traceback = session.fails("g()", "RuntimeError")["traceback"]
    assert "raise RuntimeError('first')  # of the first cell" in traceback
    assert "f()  # of a later cell" in traceback
    session.out("old = f\ndef f():\n    pass")
    assert "of the first cell" in session.fails("old()")["traceback"]


def test_a_syntax_error_shows_its_line_with_a_caret(session: Session) -> None:
    error = session.fails("x = 1\ny = = 2\n", "SyntaxError")
    lines = error["traceback"].splitlines()
    place = next(i for i, line in enumerate(lines) if "y = = 2" in line)
    assert "^" in lines[place + 1]
    assert "line 2" in error["traceback"]
    assert "pythond" not in error["traceback"]
    assert session.out("'x' in globals()") == "False\n"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def f(:", "SyntaxError"),
        ("if True:\nx = 1", "IndentationError"),
        ("if 1:\n\tx = 1\n        y = 2", "TabError"),
        ("'unclosed", "SyntaxError"),
        ("(1,", "SyntaxError"),
        ("return 5", "SyntaxError"),
        ("yield 5", "SyntaxError"),
        ("break", "SyntaxError"),
        ("nonlocal x", "SyntaxError"),
        ("  1 + 1", "IndentationError"),
        ("0777", "SyntaxError"),
        ("f() = 1", "SyntaxError"),
        ("from __future__ import nonsense", "SyntaxError"),
        ("async def f():\n    yield 1\n    return 2", "SyntaxError"),
    ],
)
def test_what_does_not_compile_raises_and_runs_nothing(
    session: Session, code: str, kind: str
) -> None:
    error = session.fails(code, kind)
    assert "pythond" not in error["traceback"]
    assert 'File "' in error["traceback"]
    assert session.out("1 + 1") == "2\n"


def test_chained_exceptions_show_both_causes(session: Session) -> None:
    error = session.fails(
        "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('v') from e", "ValueError"
    )
    assert "KeyError: 'k'" in error["traceback"]
    assert (
        "The above exception was the direct cause of the following exception"
        in (error["traceback"])
    )
    error = session.fails("try:\n    {}['k']\nexcept KeyError:\n    1/0", "ZeroDivisionError")
    assert (
        "During handling of the above exception, another exception occurred" in (error["traceback"])
    )
    error = session.fails("try:\n    {}['k']\nexcept KeyError:\n    raise ValueError from None")
    assert "KeyError" not in error["traceback"]
    assert "pythond" not in error["traceback"]


def test_exceptions_with_a_circular_cause_are_told(session: Session) -> None:
    error = session.fails("e = ValueError('loop')\ne.__cause__ = e\nraise e", "ValueError")
    assert "ValueError: loop" in error["traceback"]


def test_exception_groups_are_shown_as_python_shows_them(session: Session) -> None:
    if version(session) < (3, 11):
        session.fails("ExceptionGroup", "NameError")
        return
    error = session.fails(
        "raise ExceptionGroup('many', [ValueError('one'), KeyError('two')])", "ExceptionGroup"
    )
    assert "ValueError: one" in error["traceback"]
    assert "KeyError: 'two'" in error["traceback"]
    assert "| " in error["traceback"]
    assert "pythond" not in error["traceback"]


def test_notes_on_exceptions_are_shown(session: Session) -> None:
    if version(session) < (3, 11):
        session.fails("ValueError().add_note('n')", "AttributeError")
        return
    error = session.fails("e = ValueError('v'); e.add_note('look here'); raise e")
    assert "look here" in error["traceback"]


HOSTILE_EXCEPTIONS = {
    "str_raises": "class E(Exception):\n    def __str__(self): raise RuntimeError('str')",
    "repr_raises": "class E(Exception):\n    def __repr__(self): raise RuntimeError('repr')",
    "str_is_no_string": "class E(Exception):\n    def __str__(self): return 5",
    "str_exits": "class E(Exception):\n    def __str__(self): raise SystemExit(3)",
    "str_recurses": "class E(Exception):\n    def __str__(self): return str(self)",
    "getattribute_raises": (
        "class E(Exception):\n    def __getattribute__(self, n): raise RuntimeError(n)"
    ),
    "class_lies": "class E(Exception):\n    __class__ = property(lambda self: 1/0)",
    "metaclass_repr_raises": (
        "class M(type):\n    def __repr__(cls): raise RuntimeError\n"
        "class E(Exception, metaclass=M): pass"
    ),
    "module_is_no_string": "class E(Exception): pass\nE.__module__ = 5",
    "name_has_odd_characters": "class E(Exception): pass\nE.__qualname__ = 'a\\nb\\x1b\\ud800'",
    "base_exception": "class E(BaseException): pass",
    "traceback_attribute_raises": (
        "class E(Exception):\n    __traceback__ = property(lambda self: 1/0)"
    ),
    "notes_are_hostile": "class E(Exception):\n    __notes__ = property(lambda self: 1/0)",
    "cause_raises": "class E(Exception):\n    __cause__ = property(lambda self: 1/0)",
    "message_is_surrogate": "class E(Exception):\n    def __str__(self): return '\\ud800'",
    "message_is_huge": "class E(Exception):\n    def __str__(self): return 'x' * 5_000_000",
}


@pytest.mark.parametrize("definition", HOSTILE_EXCEPTIONS.values(), ids=HOSTILE_EXCEPTIONS)
def test_an_exception_that_defends_itself_is_still_told(session: Session, definition: str) -> None:
    session.out(definition)
    error = session.fails("raise E('m')")
    assert error["type"]
    assert error["traceback"]
    assert "pythond" not in error["traceback"]
    assert session.out("1 + 1") == "2\n"


def test_an_exception_whose_str_raises_shows_its_type_as_python_does(session: Session) -> None:
    session.out(HOSTILE_EXCEPTIONS["str_raises"])
    error = session.fails("raise E('m')")
    assert error["type"].endswith("E")
    assert "str() failed>" in error["traceback"] or "<unprintable E object>" in error["traceback"]


def test_the_type_of_an_exception_is_named_as_a_traceback_names_it(session: Session) -> None:
    session.out("class Mine(Exception): pass")
    traceback = session.fails("raise Mine('m')")["traceback"]
    assert "Mine: m" in traceback
    assert session.fails("json.loads('{')")["type"] == "json.decoder.JSONDecodeError"


def test_frames_of_libraries_are_shown(session: Session) -> None:
    traceback = session.fails("json.loads('{')")["traceback"]
    assert "json/decoder.py" in traceback
    assert "json.loads('{')" in traceback


def test_deep_recursion_raises_and_the_session_goes_on(session: Session) -> None:
    error = session.fails("def f(n): return f(n + 1)\nf(0)", "RecursionError")
    assert "Previous line repeated" in error["traceback"]
    assert len(error["traceback"]) < 20_000
    assert "pythond" not in error["traceback"]
    assert session.out("1 + 1") == "2\n"


def test_a_cell_has_as_much_stack_depth_as_a_script(session: Session) -> None:
    code = "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(960)"
    assert session.out(code) == "960\n"


def test_deeply_nested_source_is_refused_by_python_and_not_by_a_crash(session: Session) -> None:
    error = session.fails("(" * 5000 + ")" * 5000)
    assert error["type"] in ("SyntaxError", "MemoryError", "RecursionError", "SystemError")
    assert session.out("1 + 1") == "2\n"


def test_a_user_written_except_hook_is_not_needed_to_see_the_error(session: Session) -> None:
    session.out("sys.excepthook = lambda *a: print('hooked')")
    assert session.fails("1/0", "ZeroDivisionError")["traceback"]


def test_traceback_functions_in_a_cell_show_the_users_lines(session: Session) -> None:
    session.out("import traceback")
    code = "try:\n    int('no number')\nexcept ValueError:\n    print(traceback.format_exc())"
    out = session.out(code)
    assert "int('no number')" in out
    assert "pythond" not in out
    stack = session.out("''.join(traceback.format_stack())  # here")
    assert "format_stack())  # here" in stack


def test_sys_last_exception_is_set_for_post_mortem_tools(session: Session) -> None:
    session.fails("unlikely = 77\n1/0")
    assert session.out("sys.last_type.__name__") == "ZeroDivisionError\n"


# Source of what cells defined.


def test_inspect_finds_the_source_of_everything_a_cell_defined(session: Session) -> None:
    session.out("import inspect, dataclasses, functools")
    function = "def f(a,\n      b=1):\n    '''doc'''\n    return a + b  # sum\n"
    session.out(function)
    cls = "class C:\n    x = 1\n\n    def method(self):\n        return self.x\n"
    session.out("# a comment before\n" + cls)
    session.out("double = lambda n: n * 2")
    data = "@dataclasses.dataclass\nclass Point:\n    x: int = 0\n    y: int = 0\n"
    session.out(data)
    decorated = "@functools.lru_cache(maxsize=None)\ndef cached(n):\n    return n\n"
    session.out("before = 1\n" + decorated + "after = 2\n")
    session.out("import asyncio\nasync def co():\n    await asyncio.sleep(0)\n")
    for i in range(20):
        session.out(f"later{i} = {i}")
    session.out("import linecache; linecache.checkcache()")
    assert session.value("inspect.getsource(f)") == function
    assert session.value("inspect.getsource(C)") == cls
    assert session.value("inspect.getsource(C.method)") == (
        "    def method(self):\n        return self.x\n"
    )
    assert (session.value("inspect.getsource(double)") or "").strip() == "double = lambda n: n * 2"
    assert session.value("inspect.getsource(Point)") == data
    assert session.value("inspect.getsource(cached)") == decorated
    assert "await asyncio.sleep(0)" in (session.value("inspect.getsource(co)") or "")


def test_inspect_tells_apart_functions_of_one_name(session: Session) -> None:
    session.out("import inspect\ndef f():\n    return 'one'\nfirst = f")
    session.out("def f():\n    return 'two'")
    assert "'one'" in (session.value("inspect.getsource(first)") or "")
    assert "'two'" in (session.value("inspect.getsource(f)") or "")


# Ends of cells.

EXITS = [
    ("exit()", "exit(0)"),
    ("exit(3)", "exit(3)"),
    ("quit(2)", "exit(2)"),
    ("import sys; sys.exit()", "exit(0)"),
    ("sys.exit(None)", "exit(0)"),
    ("sys.exit(0)", "exit(0)"),
    ("sys.exit('bye')", "exit(bye)"),
    ("raise SystemExit", "exit(0)"),
    ("raise SystemExit(5)", "exit(5)"),
    ("raise SystemExit((1, 2))", "exit((1, 2))"),
    ("class S(SystemExit): pass\nraise S(9)", "exit(9)"),
]


@pytest.mark.parametrize(("code", "text"), EXITS)
def test_system_exit_ends_the_cell_and_not_the_session(
    session: Session, code: str, text: str
) -> None:
    session.out("kept = 1")
    error = session.fails(code)
    assert error["message"] == text
    assert error["traceback"] == ""
    assert session.out("kept") == "1\n"
    assert session.status()["pid"] == session.pid


def test_system_exit_reads_as_in_earlier_versions_on_the_plain_wire(session: Session) -> None:
    assert session.plain("print('x')\nexit(3)") == "ERR execution failed\nx\nexit(3)"


def test_exit_leaves_the_streams_usable(session: Session) -> None:
    session.fails("exit()")
    assert session.out("print('still')") == "still\n"


def test_a_raised_keyboard_interrupt_ends_the_cell(session: Session) -> None:
    assert session.fails("raise KeyboardInterrupt")["type"] == "KeyboardInterrupt"
    assert session.out("1 + 1") == "2\n"


def test_a_raised_generator_exit_ends_the_cell(session: Session) -> None:
    session.fails("raise GeneratorExit", "GeneratorExit")
    assert session.out("1 + 1") == "2\n"


def test_memory_errors_end_the_cell(session: Session) -> None:
    session.fails("bytearray(1 << 62)", "MemoryError")
    assert session.out("1 + 1") == "2\n"


# Odd source.


@pytest.mark.parametrize(
    "text", ["héllo", "🐍🎉", "שלום עולם", "日本語", "e\u0301", "a\u202eb", "\u200b", "𝔘𝔫𝔦", "\x7f"]
)
def test_unicode_goes_in_and_out_unchanged(session: Session, text: str) -> None:
    assert session.out(f"s = '{text}'\ns") == text + "\n"
    assert session.out("len(s)") == f"{len(text)}\n"
    assert session.out("print(s, end='')") == text


def test_unicode_identifiers_work(session: Session) -> None:
    assert session.out("größe = 3\nгод = größe + 1\nгод") == "4\n"
    assert "größe" in session.run("größe = 4")["changed"]


def test_columns_of_a_syntax_error_are_right_after_wide_characters(session: Session) -> None:
    traceback = session.fails("'🐍🐍' + = 1")["traceback"]
    assert "'🐍🐍' + = 1" in traceback


def test_nul_in_source_gets_a_clear_error(session: Session) -> None:
    error = session.fails("x = 'a\0b'")
    assert error["type"] in ("ValueError", "SyntaxError")
    assert "null byte" in error["message"]
    assert session.out("1 + 1") == "2\n"


def test_nul_in_values_and_output_survives(session: Session) -> None:
    assert session.out("'a\\0b'") == "a\0b\n"
    assert session.out("print('\\0')") == "\0\n"
    assert session.plain("'a\\0b'") == "a\0b"


def test_lone_surrogates_in_values_survive_or_get_a_clear_error(session: Session) -> None:
    session.out("s = 'a\\ud800b'")
    assert session.out("len(s), ascii(s)") == "(3, \"'a\\\\ud800b'\")\n"
    for code in ("s", "print(s)", "[s]", "sys.stderr.write(s)", "raise ValueError(s)"):
        reply = session.run(code)
        assert reply["status"] in ("done", "failed"), (code, reply)
        assert (reply["error"] or {}).get("code") != "internal", (code, reply)
        if reply["status"] == "done":
            shown = text_of(reply["stdout"]) + text_of(reply["stderr"])
            assert "a" in shown, (code, reply)
            assert "b" in shown, (code, reply)
    assert session.out("1 + 1") == "2\n"
    assert "internal" not in session.plain("print(s)")


def test_lone_surrogates_as_names_do_not_break_vars_or_changed(session: Session) -> None:
    reply = session.run("globals()['\\ud800'] = 1\nglobals()[5] = 2\nok = 3")
    assert reply["ok"], reply
    assert "ok" in reply["changed"]
    names = [v["name"] for v in session.daemon.json(f"vars {session.name} --json")["vars"]]
    assert "ok" in names


def test_crlf_source_means_the_same_as_lf(session: Session) -> None:
    assert session.out("x = 1\r\nif x:\r\n    print('yes')\r\nx + 1\r\n") == "yes\n2\n"
    assert session.out("'''a\r\nb'''") == "a\nb\n"


def test_old_mac_line_ends_mean_the_same(session: Session) -> None:
    assert session.out("x = 1\rx + 1\r") == "2\n"


def test_tabs_and_form_feeds_are_white_space(session: Session) -> None:
    assert session.out("if True:\n\tx = 5\n\x0c\nx\x0c") == "5\n"


def test_a_byte_order_mark_is_python_s_business(session: Session) -> None:
    reply = session.run("\ufeff1 + 1")
    assert reply["stdout"] == "2\n" or reply["error"]["type"] == "SyntaxError"


def test_an_encoding_line_changes_nothing(session: Session) -> None:
    assert session.out("# -*- coding: latin-1 -*-\n'é'") == "é\n"


def test_lines_that_look_like_options_or_verbs_are_code(session: Session) -> None:
    session.fails("--json", "TypeError")
    session.out("json_ = 1")
    assert session.out("--json_") == "1\n"
    session.fails("run work 1", "SyntaxError")


def test_sixteen_megabytes_in_one_literal(newest: Session) -> None:
    size = 16 * 1024 * 1024 - 100
    assert newest.out(f"s = '{'x' * size}'\nlen(s)") == f"{size}\n"
    assert newest.out("1 + 1") == "2\n"


def test_sixteen_megabytes_in_many_lines(newest: Session) -> None:
    line = "# " + "comment " * 12 + "\n"
    code = line * (16_000_000 // len(line)) + "x = 1\n" * 20_000 + "x + 1"
    assert newest.out(code, timeout=110) == "2\n"
    traceback = newest.fails(code + "\n1/0", timeout=110)["traceback"]
    assert "1/0" in traceback


def test_a_very_long_line_works(newest: Session) -> None:
    assert newest.out("sum([" + "1," * 200_000 + "])") == "200000\n"


# Surroundings.


def test_the_empty_string_is_on_the_search_path(session: Session) -> None:
    assert session.out("'' in sys.path") == "True\n"


def test_a_cell_inherits_no_future_of_ours(session: Session) -> None:
    session.fails("def f(x: undefined_name): pass", "NameError")
    assert session.out("import __future__\ndef f(x: int): pass\nf.__annotations__") == (
        "{'x': <class 'int'>}\n"
    )
    if version(session) >= (3, 14):
        return
    assert session.out("f.__code__.co_flags & __future__.annotations.compiler_flag") == "0\n"


def test_a_future_import_of_the_user_works_in_its_cell(session: Session) -> None:
    code = "from __future__ import annotations\ndef f(x: undefined_name): pass\nf.__annotations__"
    assert session.out(code) == "{'x': 'undefined_name'}\n"
    assert session.out("'doc'\nfrom __future__ import annotations\n1 + 1") == "2\n"


MODULES_THAT_SHADOW = [
    "json os_ traceback linecache ast asyncio codeop types inspect rlcompleter threading",
    "pickle cloudpickle base64 struct random signal selectors builtins_ io_ keyword token",
]


def test_modules_in_the_working_directory_shadow_nothing_of_ours(
    shared_daemon: TestDaemon, pythons: dict[str, Path], tmp_path: Path
) -> None:
    for name in " ".join(MODULES_THAT_SHADOW).split():
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} is shadowed')\n")
    (tmp_path / "mine.py").write_text("value = 9\n")
    for python in [pythons[version] for version in VERSIONS if version in pythons]:
        with shared_daemon.session(python=str(python), cwd=str(tmp_path)) as session:
            assert session.out("import mine; mine.value") == "9\n"
            assert "1/0" in session.fails("1/0", "ZeroDivisionError")["traceback"]
            session.fails("x = = 1", "SyntaxError")
            reply = shared_daemon.json(f"complete {session.name} --json min")
            assert "mine" in reply["matches"]
            assert shared_daemon.json(f"vars {session.name} --json")["ok"]
            assert session.out("json.dumps([1])") == "[1]\n"
            reply = session.run("import asyncio\nawait asyncio.sleep(0)\n3")
            assert reply["ok"] or "shadowed" in reply["error"]["message"]
            assert session.out("1 + 1") == "2\n"


def test_classes_and_functions_of_cells_can_be_pickled(session: Session) -> None:
    session.out("import pickle\nclass C:\n    def __init__(self, x): self.x = x\ndef f(): return 5")
    assert session.out("pickle.loads(pickle.dumps(C(3))).x") == "3\n"
    assert session.out("pickle.loads(pickle.dumps(f))()") == "5\n"
    assert session.out("C.__module__, f.__module__") == "('__main__', '__main__')\n"


def test_dataclasses_and_type_hints_of_cells_resolve(session: Session) -> None:
    session.out(
        "import dataclasses, typing\n@dataclasses.dataclass\nclass P:\n    x: int\n    n: 'P | None' = None"
    )
    assert session.out("P(1)") == "P(x=1, n=None)\n"
    assert session.out("typing.get_type_hints(P)['x']") == "<class 'int'>\n"
    session.out("import enum\nclass Colour(enum.Enum):\n    RED = 1")
    assert session.out("Colour.RED") == "<Colour.RED: 1>\n"


def test_multiprocessing_works_with_fork_and_spawn(session: Session) -> None:
    session.out("import multiprocessing as mp, warnings; warnings.simplefilter('ignore')")
    session.out("def square(n): return n * n")
    code = "with mp.get_context('{}').Pool(2) as p: r = p.map({}, [-1, 2])\nr"
    assert session.out(code.format("fork", "square")) == "[1, 4]\n"
    assert session.out(code.format("spawn", "abs")) == "[1, 2]\n"


def test_concurrent_futures_work(session: Session) -> None:
    session.out("from concurrent.futures import ThreadPoolExecutor as T, ProcessPoolExecutor as P")
    assert session.out("with T(4) as e: r = list(e.map(abs, [-1, -2]))\nr") == "[1, 2]\n"
    assert session.out("with P(2) as e: r = list(e.map(abs, [-1, -2]))\nr") == "[1, 2]\n"


def test_a_subprocess_of_the_sessions_interpreter_is_that_interpreter(session: Session) -> None:
    code = (
        "subprocess.run([sys.executable, '-c', 'import sys; print(sys.version_info[:2])'],"
        " capture_output=True, text=True).stdout.strip()"
    )
    assert session.value(code) == session.value("sys.version_info[:2]")


def test_the_interpreter_looks_like_an_ordinary_one(session: Session) -> None:
    assert session.out("sys.argv") in ("['']\n", "[]\n", "['-c']\n")
    assert session.out("sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode in (0, 1)") == (
        "(0, 0, True)\n"
    )
    assert session.out("import site; 'site-packages' in str(sys.path)") == "True\n"
    assert session.out("callable(exit) and callable(help) and bool(copyright)") == "True\n"
    assert session.out(
        "import threading; threading.current_thread() is threading.main_thread()"
    ) == ("True\n")
    assert session.out("threading.active_count()") == "1\n"
    assert session.out("import signal; callable(signal.getsignal(signal.SIGINT))") == "True\n"
    assert session.out("sys.getrecursionlimit()") == "1000\n"
    assert session.out("sys.gettrace(), sys.getprofile()") == "(None, None)\n"


def test_signal_handlers_of_a_cell_work(session: Session) -> None:
    session.out(
        "import signal\nhits = []\nsignal.signal(signal.SIGUSR1, lambda s, f: hits.append(s))"
    )
    session.out("os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0)")
    assert session.out("hits == [signal.SIGUSR1]") == "True\n"
    session.fails(
        "def stop(*a): raise TimeoutError('alarm')\nsignal.signal(signal.SIGALRM, stop)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(10)",
        "TimeoutError",
    )


def test_tracing_and_profiling_work(session: Session) -> None:
    session.out(
        "seen = set()\ndef tracer(frame, event, arg):\n    seen.add(frame.f_code.co_filename)\n"
        "def f(): return 1\nsys.settrace(tracer)"
    )
    session.out("f()")
    session.out("sys.settrace(None)")
    assert session.out("f.__code__.co_filename in seen") == "True\n"
    session.out("import cProfile, pstats\np = cProfile.Profile(); p.runcall(f); None")


def test_module_level_code_sees_no_names_of_ours(session: Session) -> None:
    listed = session.value("sorted(n for n in globals() if not n.startswith('__'))") or ""
    promised = set(
        [
            "os",
            "sys",
            "json",
            "subprocess",
            "shutil",
            "hashlib",
            "time",
            "re",
            "glob",
            "sqlite3",
            "socket",
        ]
    )
    assert set(ast.literal_eval(listed)) == promised


def test_imports_of_the_host_do_not_hide_a_missing_import(session: Session) -> None:
    assert session.fails("textwrap", "NameError")


def test_the_host_pins_no_old_values(session: Session) -> None:
    session.out("import weakref, gc\nclass C: pass\nc = C()\nr = weakref.ref(c)\nc")
    session.out("del c")
    session.out("gc.collect()")
    assert session.out("r() is None") == "True\n"


def test_an_exception_pins_its_frames_only_until_the_next_one(session: Session) -> None:
    session.out("import weakref, gc\nclass C: pass\nrefs = []")
    session.fails("def f():\n    c = C()\n    refs.append(weakref.ref(c))\n    1/0\nf()")
    session.fails("raise ValueError")
    session.out("gc.collect()")
    assert session.out("refs[0]() is None") == "True\n"


def test_exit_handlers_run_when_a_session_is_killed(
    shared_daemon: TestDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "bye"
    with shared_daemon.session() as session:
        session.out(f"import atexit; atexit.register(lambda: open({str(file)!r}, 'w').write('b'))")
    wait_until(file.exists, what="the exit handler ran")
