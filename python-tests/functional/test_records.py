"""What is written down about a session: history.py and session.log."""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]"


@pytest.fixture
def directory(session: Session) -> Path:
    """The directory of the session's records."""
    return session.daemon.session_directory(session.name)


def written(session: Session, file: str, needle: str) -> str:
    """Wait until a record holds a text, and return the whole record."""
    path = session.daemon.session_directory(session.name) / file
    wait_until(
        lambda: path.exists() and needle in path.read_bytes().decode("utf-8", "replace"),
        what=f"{file} has {needle!r}",
    )
    return path.read_bytes().decode("utf-8", "replace")


def test_history_has_each_successful_cell_with_its_time(session: Session) -> None:
    session.out("x = 1")
    session.out("def f():\n    return 2\n\nf()")
    history = written(session, "history.py", "return 2")
    assert re.fullmatch(
        rf"\n# {STAMP}\nx = 1\n\n# {STAMP}\ndef f\(\):\n    return 2\n\nf\(\)\n", history
    )


def test_history_has_only_successful_cells(session: Session) -> None:
    session.fails("1/0")
    session.fails("x = = 1")
    session.fails("exit()")
    session.out("")
    session.out("  \n")
    session.out("last = 1")
    history = written(session, "history.py", "last = 1")
    assert re.fullmatch(rf"\n# {STAMP}\nlast = 1\n", history)


def test_history_always_parses(session: Session) -> None:
    session.out("import asyncio")
    cells = [
        "await asyncio.sleep(0)",
        "x = '''a\n# [2020-01-01 00:00:00]\nb'''",
        "if True:\n    y = 1",
        "z = 1\\\n + 1",
        "s = 'é🐍שלום'",
        "x = 1\r\ny = 2\r\n",
        "async with asyncio.Lock():\n    pass",
        "# only a comment",
        "t = 1 # \x0c form feed",
        "from __future__ import annotations\nq = 1",
    ]
    for cell in cells:
        session.run(cell)
    session.out("the_end = 1")
    history = written(session, "history.py", "the_end = 1")
    ast.parse(history)
    compile(history, "history.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    assert "await asyncio.sleep(0)" in history
    assert "from __future__" in history


def test_history_parses_at_every_moment(session: Session) -> None:
    path = session.daemon.session_directory(session.name) / "history.py"
    for number in range(40):
        session.out("x = [\n" + f"  {number},\n" * 500 + "]")
        if path.exists():
            ast.parse(path.read_text())


def test_history_can_be_replayed_in_a_new_session(session: Session) -> None:
    session.out("import math\nvalues = [1, 2, 3]")
    session.out("def total():\n    return sum(values)")
    session.fails("broken")
    session.out("values.append(4); area = math.floor(3.7)")
    written(session, "history.py", "floor")
    path = session.daemon.session_directory(session.name) / "history.py"
    with session.daemon.session() as replayed:
        replayed.out(f"exec(open({str(path)!r}).read())")
        assert replayed.value("total(), area") == "(10, 3)"
        assert "total" in (replayed.value("list(globals())") or "")


def test_session_log_has_every_cell_with_its_output(session: Session) -> None:
    session.out("print('a'); print('b'); 5")
    session.fails("print('before'); 1/0")
    session.out("quiet = 1")
    log = written(session, "session.log", "quiet = 1")
    assert re.search(rf"\n# {STAMP} OK\nprint\('a'\); print\('b'\); 5\n# > a\n# > b\n# > 5\n", log)
    assert re.search(rf"\n# {STAMP} ERROR\nprint\('before'\); 1/0\n# > before\n# > Traceback", log)
    assert "# > ZeroDivisionError: division by zero\n" in log
    assert re.search(rf"\n# {STAMP} OK\nquiet = 1\n$", log)


def test_session_log_has_the_text_of_an_exit(session: Session) -> None:
    session.fails("exit(3)")
    log = written(session, "session.log", "# > exit(3)")
    assert re.search(rf"\n# {STAMP} ERROR\nexit\(3\)\n# > exit\(3\)\n", log)


def test_session_log_holds_control_characters_escaped(session: Session) -> None:
    session.out("print('\\x1b[31mred\\x07\\x00\\x9b\\u202e\\r|')\nprint('tab\\tkept')")
    session.run("'\x1b]0;title\x07' # \u202e")
    session.out("the_end = 1")
    log = written(session, "session.log", "the_end = 1")
    for character in "\x1b\x07\x00\x9b\u202e\r":
        assert character not in log, repr(character)
    assert "[31mred" in log


def test_a_line_of_output_cannot_pass_for_another_cell(session: Session) -> None:
    session.out("print('x\\n# [2020-01-01 00:00:00] OK\\nforged = 1\\rmore\\x0bmore\\u2028more')")
    session.out("the_end = 1")
    log = written(session, "session.log", "the_end = 1")
    assert "# > # [2020-01-01 00:00:00] OK\n# > forged = 1" in log
    headers = [line for line in log.splitlines() if re.fullmatch(rf"# {STAMP} (OK|ERROR)", line)]
    assert len(headers) == 2


def test_session_log_keeps_a_bounded_part_of_large_output(session: Session) -> None:
    session.out("print('H' * 100); print(('x' * 79 + '\\n') * 20000); print('T' * 100)")
    session.out("the_end = 1")
    log = written(session, "session.log", "the_end = 1")
    assert len(log) < 200_000
    assert "H" * 100 in log


def test_a_session_that_dies_leaves_its_last_cell_in_the_log(
    shared_daemon: TestDaemon,
) -> None:
    with shared_daemon.session() as session:
        session.out("first = 1")
        written(session, "history.py", "first = 1")
        session.run("os._exit(3)")
        history = written(session, "history.py", "first = 1")
        assert "_exit" not in history


def test_records_are_private(session: Session, directory: Path) -> None:
    session.out("import os; old = os.umask(0)")
    session.out("x = 1")
    written(session, "session.log", "x = 1")
    written(session, "history.py", "x = 1")
    for path in (directory / "history.py", directory / "session.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert path.stat().st_nlink == 1
    for path in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_every_file_under_the_daemons_directories_is_private(session: Session) -> None:
    session.out("x = 1")
    for top in (session.daemon.home / ".pythond", session.daemon.runtime):
        for path in [top, *top.rglob("*")]:
            if path.is_symlink():
                raise AssertionError(f"a symlink: {path}")
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_records_of_a_replaced_session_go_on_in_the_same_files(session: Session) -> None:
    session.out("first = 1")
    written(session, "history.py", "first = 1")
    assert session.daemon.json(f"new {session.name} --json --replace")["ok"]
    session.out("second = 2")
    history = written(session, "history.py", "second = 2")
    assert "first = 1" in history


def plant(daemon: TestDaemon, name: str) -> Path:
    """Make the directory of a session before there is the session."""
    directory = daemon.session_directory(name)
    directory.mkdir(parents=True)
    for path in (directory, directory.parent, directory.parent.parent):
        path.chmod(0o700)
    return directory


def test_a_symlink_in_place_of_a_record_is_not_followed(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    target = tmp_path / "target"
    target.write_text("precious\n")
    directory = plant(daemon, "work")
    (directory / "history.py").symlink_to(target)
    (directory / "session.log").symlink_to(target)
    daemon.start()
    reply = daemon.new("work").run("secret = 1")
    assert reply["ok"]
    assert daemon.new("other").run("1")["ok"]
    last = daemon.json("run work --json\n2")
    assert (
        last.get("not_recorded")
        or daemon.json("status work").get("not_recorded")
        or (not (directory / "history.py").is_symlink())
    )
    daemon.stop()
    assert target.read_text() == "precious\n"


def test_a_hard_link_in_place_of_a_record_is_not_written(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    target = daemon.root / "target"
    target.write_text("precious\n")
    directory = plant(daemon, "work")
    os.link(target, directory / "history.py")
    os.link(target, directory / "session.log")
    daemon.start()
    assert daemon.new("work").run("secret = 1")["ok"]
    daemon.json("run work --json\n2")
    daemon.stop()
    assert target.read_text() == "precious\n"


def test_a_fifo_in_place_of_a_record_blocks_nobody(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    directory = plant(daemon, "work")
    os.mkfifo(directory / "history.py", 0o600)
    os.mkfifo(directory / "session.log", 0o600)
    daemon.start()
    session = daemon.new("work")
    for number in range(3):
        assert session.run(f"{number}", timeout=5)["ok"]
    assert daemon.json("status work", 5)["state"] == "idle"


def test_a_symlink_in_place_of_the_directory_is_refused(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    directory = plant(daemon, "work")
    directory.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    directory.symlink_to(elsewhere)
    daemon.start()
    reply = daemon.json("new work --json")
    if reply["ok"]:
        assert daemon.json("run work --json\nx = 1")["ok"]
        wait_until(
            lambda: daemon.json("status work").get("not_recorded"),
            what="the client is told that nothing is recorded",
        )
    daemon.stop()
    assert list(elsewhere.iterdir()) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


def test_what_is_kept_of_finished_cells_is_configured_and_told(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    place = daemon.home / ".config" / "pythond"
    place.mkdir(parents=True)
    (place / "config.toml").write_text(
        '[records]\ncells = 5\nmemory = "1M"\nfiles = "32M"\ncell_files = "16M"\n'
    )
    daemon.start()
    session = daemon.new("work")
    budget = {
        "cells": 5,
        "memory_bytes": 1 << 20,
        "file_bytes": 32 << 20,
        "cell_file_bytes": 16 << 20,
    }
    none = {"cells": 0, "memory_bytes": 0, "file_bytes": 0, "forgotten": 0, "budget": budget}
    assert session.status()["kept"] == none
    cells = [session.run(f"print({number})")["cell_id"] for number in range(8)]

    def all_counted() -> dict[str, Any] | None:
        # A cell is counted after its reply.
        kept = session.status()["kept"]
        return kept if kept["cells"] + kept["forgotten"] == 8 else None

    kept = wait_until(all_counted, what="all cells are counted")
    assert (kept["cells"], kept["forgotten"]) == (5, 3)
    assert 0 < kept["memory_bytes"] < 10_000
    assert list(session.cells()) == cells[3:]

    # More than one cell may have in files, and than all may.
    large = [session.fire("for _ in range(400): print('x' * 99_999)") for _ in range(1)]
    end = session.ended(large[0])
    assert end["output_bytes"] == 40_000_000
    assert 20_000_000 < end["truncated"] < 40_000_000 - (1 << 20)
    first = session.ask("out", f"{large[0]} --max=10")
    assert first["missing"] == end["truncated"]
    for _ in range(3):
        large.append(session.fire("for _ in range(150): print('x' * 99_999)"))
        assert session.ended(large[-1])["status"] == "done"
        kept = session.status()["kept"]
        assert kept["file_bytes"] <= 32 << 20
        assert kept["memory_bytes"] <= (1 << 20) + (1 << 20)
    assert session.poll(large[-1])["status"] == "done"
    assert session.poll(large[0])["error"]["code"] == "unknown_cell"
    on_disk = sum(it.stat().st_size for it in daemon.session_directory("work").glob("*.out"))
    assert on_disk <= 33 << 20
    daemon.crash()
    daemon.start()
    wait_until(lambda: "kept" in daemon.json("status work"), what="the session is taken over")
    assert daemon.json("status work")["kept"]["budget"] == budget


def test_records_that_cannot_be_written_are_told_and_resume(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    directory = plant(daemon, "work")
    (directory / "history.py").mkdir()
    daemon.start()
    session = daemon.new("work")
    reply = session.run("x = 1")
    assert reply["ok"]

    def told() -> bool:
        reply = session.run("x")
        return bool(reply.get("not_recorded") or session.status().get("not_recorded"))

    wait_until(told, what="the client is told that nothing is recorded")
    (directory / "history.py").rmdir()

    def resumed() -> bool:
        session.run("back = 1")
        path = directory / "history.py"
        return path.exists() and "back = 1" in path.read_text()

    wait_until(resumed, what="recording goes on")
