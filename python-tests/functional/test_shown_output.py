"""What cells write, as `pysh` shows it on a terminal and passes it to a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.daemon import Session
from support.terminal import Terminal

ATTACKS = "\x1b]52;c;eA==\x07\x1b[2J\x1b[6n\x05\x9b6n\u202e"
VISIBLE = "\\x1b]52;c;eA==\\x07\\x1b[2J\\x1b[6n\\x05\\x9b6n\\u202e"


def terminal(session: Session, *words: str | Path) -> Terminal:
    """Start `pysh` on a terminal that is wide enough for a line."""
    command = [session.daemon.binaries / "pysh", *words]
    return Terminal(command, env=session.daemon.environment, cols=200)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_on_a_terminal_all_but_colours_is_made_visible(session: Session, stream: str) -> None:
    code = f"sys.{stream}.write({'a' + ATTACKS + chr(10)!r} + '\\x1b[31mred\\tt\\x1b[0m é\\r\\n')"
    with terminal(session, "run", session.name, "--no-echo", f"_ = {code}") as it:
        assert it.wait_exit() == 0
        assert it.screen()[0] == f"a{VISIBLE}"
        assert b"\x1b[31mred\tt\x1b[0m \xc3\xa9\r" in it.raw
        assert b"\x1b]" not in it.raw
        assert b"\x1b[2J" not in it.raw


def test_what_is_torn_between_pieces_is_whole_on_the_terminal(session: Session) -> None:
    code = (
        "for byte in 'é\\x1b[31m🐍\\x1b[2J'.encode():\n"
        "    os.write(1, bytes([byte])); time.sleep(0.001)"
    )
    with terminal(session, "run", session.name, code) as it:
        assert it.wait_exit() == 0
        assert it.raw == "é\x1b[31m🐍\\x1b[2J\x1b[m".encode()


def test_what_is_read_later_is_visible_too(session: Session) -> None:
    cell = session.detach(f"print({ATTACKS!r})")
    session.ended(cell)
    for words in [("out", session.name, cell), ("out", session.name, cell, "--follow")]:
        with terminal(session, *words) as it:
            assert it.wait_exit() == 0
            assert it.text() == VISIBLE
    for words in [("poll", session.name, cell), ("out", session.name, cell, "--json")]:
        with terminal(session, *words) as it:
            assert it.wait_exit() == 0
            assert not set(it.raw) & set(b"\x1b\x05\x07")
            assert "\x9b".encode() not in it.raw


def test_a_traceback_cannot_drive_the_terminal(session: Session) -> None:
    with terminal(session, "run", session.name, f"raise ValueError({ATTACKS!r})") as it:
        assert it.wait_exit() == 1
        assert f"ValueError: {VISIBLE}" in it.text()
        assert b"\x1b]" not in it.raw


def test_a_pipe_gets_the_bytes_as_they_are(session: Session) -> None:
    raw = ATTACKS.encode() + b"\xff\x00"
    for words in [("run", session.name, f"os.write(1, {raw!r}); None")]:
        assert session.daemon.pysh(*words, bytes=True).stdout == raw
