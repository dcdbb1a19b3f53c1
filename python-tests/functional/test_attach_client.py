"""`pysh attach` between a terminal and a daemon that does what the test says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_daemon import GONE, FakeDaemon, Peer
from support.terminal import PASTE_BEGIN, PASTE_END, Terminal

SCREEN = b"\x1b[H\x1b[2J\x1b[m>>> "


class Attached:
    """A client in its terminal, and the daemon's end of its connection."""

    def __init__(self, terminal: Terminal, daemon: FakeDaemon, peer: Peer, request: str) -> None:
        self.terminal = terminal
        self.daemon = daemon
        self.peer = peer
        self.request = request.split()

    def ends(self, code: int, *words: str) -> None:
        """Wait for the client's end; the terminal must be as it was."""
        assert self.terminal.wait_exit() == code, self.terminal.text()
        assert self.terminal.modes() == self.terminal.modes_before
        assert self.terminal.cursor_is_visible
        assert self.terminal.private_modes() == {7, 25}
        for word in words:
            assert word in self.terminal.text()

    def detach(self) -> None:
        """Press Ctrl-] and let the client go."""
        self.terminal.press("ctrl-]")
        self.goodbye()
        self.ends(0, "detached from work")

    def goodbye(self) -> None:
        """Answer the client that leaves."""
        while (frame := self.peer.next()) != "detach":
            assert frame is not GONE
        self.peer.send("OK detached")
        self.peer.close()


def reply(**fields: Any) -> dict[str, Any]:
    """Return the answer to `attach`."""
    return {
        "ok": True,
        "session": "work",
        "session_id": "00000000000000ab",
        "gen": 1,
        "rows": 24,
        "cols": 80,
        "read_only": False,
        "held": False,
        "attached": 1,
        "host": "h",
        **fields,
    }


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    """A daemon that does what the test says."""
    with FakeDaemon() as daemon:
        yield daemon


@pytest.fixture
def attach(binaries: Path, fake: FakeDaemon, mark: str) -> Iterator[Callable[..., Attached]]:
    """Attach clients, and end them."""
    with contextlib.ExitStack() as stack:

        def attach(
            *words: str,
            answer: dict[str, Any] | None = None,
            env: dict[str, str] | None = None,
            after: Callable[[], None] | None = None,
            **terminal: int,
        ) -> Attached:
            # A daemon of a few lines does not come back.
            more = {"PYTHOND_RECONNECT": "0"} | (env or {})
            environment = fake.environment(TEST_RUN_MARK=mark, **more)
            command = [binaries / "pysh", "attach", *(words or ("work",))]
            it = stack.enter_context(Terminal(command, env=environment, **terminal))
            if after:
                after()
            peer = fake.peer()
            request = peer.next()
            assert isinstance(request, str)
            peer.send(answer or reply())
            peer.send(SCREEN)
            it.wait_for_raw(b">>> ")
            it.wait_for_raw_mode()
            return Attached(it, fake, peer, request)

        yield attach


# Beginning.


def test_the_terminal_tells_what_it_is(attach: Callable[..., Attached]) -> None:
    it = attach(rows=30, cols=100, env={"COLORTERM": "truecolor"})
    assert it.request[:2] == ["attach", "work"]
    keys = [word for word in it.request if word.startswith("--input-key=")]
    assert len(keys) == 1
    assert set(it.request[2:]) == {
        *keys,
        "30",
        "100",
        "--json",
        "--term=xterm-256color",
        "--colorterm=truecolor",
    }
    assert it.request.index("30") < it.request.index("100")
    it.detach()


def test_a_terminal_that_does_not_know_its_size_works(attach: Callable[..., Attached]) -> None:
    it = attach(rows=0, cols=0)
    assert it.request[-2:] == ["24", "80"]
    it.terminal.resize(10, 20)
    assert it.peer.next() == "resize work --json --tag=resize 10 20"
    it.detach()


def test_the_default_session_is_called_default(binaries: Path, fake: FakeDaemon, mark: str) -> None:
    with Terminal([binaries / "pysh", "attach"], env=fake.environment(TEST_RUN_MARK=mark)):
        request = fake.peer().next()
        assert isinstance(request, str)
        assert request.startswith("attach default ")


def test_the_banner_says_how_to_leave_and_how_to_hold(attach: Callable[..., Attached]) -> None:
    it = attach(answer=reply(attached=3))
    before = it.terminal.raw.split(SCREEN)[0].decode()
    assert "attached to work" in before
    assert "Ctrl-] detaches" in before
    assert "Ctrl-\\ holds agents" in before
    assert "2 other terminals" in before
    it.detach()


def test_a_refusal_is_told_and_the_terminal_never_touched(
    binaries: Path, fake: FakeDaemon, mark: str
) -> None:
    command = [binaries / "pysh", "attach", "work"]
    with Terminal(command, env=fake.environment(TEST_RUN_MARK=mark)) as terminal:
        peer = fake.peer()
        peer.next()
        error = {"code": "no_session", "message": "no session named `work`", "hint": "make it"}
        peer.send({"ok": False, "error": error})
        assert terminal.wait_exit() == 4
        assert "no session named `work`" in terminal.text()
        assert terminal.modes() == terminal.modes_before
        assert b"\x1b[?" not in terminal.raw


@pytest.mark.parametrize("redirection", ["</dev/null", ">/dev/null", "| cat"])
def test_without_a_terminal_it_says_what_to_do(
    binaries: Path, fake: FakeDaemon, mark: str, redirection: str
) -> None:
    line = f"{binaries}/pysh attach work {redirection}; exit ${{PIPESTATUS[0]}}"
    command = ["bash", "-c", line]
    with Terminal(command, env=fake.environment(TEST_RUN_MARK=mark)) as terminal:
        assert terminal.wait_exit() == 2
        assert "needs a terminal" in terminal.text()
        assert "pysh run work" in terminal.text()


# Keys.


def test_keys_reach_the_session_as_they_are(attach: Callable[..., Attached]) -> None:
    it = attach()
    keys = "x = 1\r\x03\x1a\x04\x1b[A\té🐍\x1b"
    it.terminal.type(keys)
    assert it.peer.typed(len(keys.encode())) == keys.encode()
    it.peer.send(b"x = 1\r\n")
    it.terminal.wait_for("x = 1")
    it.detach()


def test_what_was_typed_before_ctrl_bracket_is_not_lost(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.terminal.type("last words\r\x1dafter")
    assert it.peer.typed(11) == b"last words\r"
    it.goodbye()
    it.ends(0, "detached from work")


def test_a_key_of_ours_inside_a_paste_is_text(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.peer.send(b"\x1b[?2004h")
    it.terminal.wait_for_raw(b"\x1b[?2004h")
    pasted = f"{PASTE_BEGIN}a\x1db\x1cc{PASTE_END}"
    it.terminal.type(pasted)
    assert it.peer.typed(len(pasted)) == pasted.encode()
    it.detach()


def test_a_large_paste_arrives_whole(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.peer.reading.clear()
    text = "".join(f"{n:07}\n" for n in range(100_000))
    writer = threading.Thread(target=it.terminal.paste, args=(text,))
    writer.start()
    it.peer.reading.set()
    whole = f"{PASTE_BEGIN}{text}{PASTE_END}".encode()
    assert it.peer.typed(len(whole)) == whole
    writer.join()
    it.detach()


def test_one_key_holds_agents_and_releases_them(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.terminal.press("ctrl-\\")
    assert it.peer.next() == "hold work --json --tag=hold"
    it.peer.send({"tag": "hold", "ok": True, "session": "work", "held": True, "waiting": 0})
    it.peer.send({"event": "held", "held": True, "author": "me"})
    it.terminal.press("ctrl-\\")
    assert it.peer.next() == "release work --json --tag=hold"
    it.peer.send({"event": "held", "held": False, "author": "me"})
    # Somebody else does it.
    it.peer.send({"event": "held", "held": True, "author": "ann"})
    it.peer.send(b"held")
    it.terminal.wait_for("held")
    it.terminal.press("ctrl-\\")
    assert it.peer.next() == "release work --json --tag=hold"
    # It is refused: the bell rings, and they are still held.
    it.peer.send({"tag": "hold", "ok": False, "error": {"code": "busy", "message": "m"}})
    it.terminal.wait_for_raw(b"\x07")
    it.terminal.press("ctrl-]")
    it.goodbye()
    it.ends(0, "detached from work", "`pysh release work`")


def test_an_observer_types_nothing_and_can_leave(attach: Callable[..., Attached]) -> None:
    it = attach("work", "--read-only", answer=reply(read_only=True))
    assert "--read-only" in it.request
    assert b"nothing is typed" in it.terminal.raw
    it.terminal.type("rm -rf\r\x03\x1c")
    it.terminal.press("ctrl-]")
    assert it.peer.next() == "detach"
    it.peer.close()
    it.ends(0, "detached from work")


# The window.


def test_every_size_is_told(attach: Callable[..., Attached]) -> None:
    it = attach()
    for rows, cols in [(30, 100), (1, 1), (200, 500)]:
        it.terminal.resize(rows, cols)
        assert it.peer.next() == f"resize work --json --tag=resize {rows} {cols}"
        it.peer.send({"tag": "resize", "ok": True, "session": "work", "rows": rows, "cols": cols})
        it.peer.send({"event": "terminal_resized", "rows": rows, "cols": cols})
    it.detach()


def test_after_a_stop_the_terminal_is_taken_again_and_redrawn(
    attach: Callable[..., Attached],
) -> None:
    it = attach()
    it.peer.send(b"\x1b[?1049h\x1b[?2004h")
    it.terminal.wait_for_raw(b"\x1b[?2004h")
    it.terminal.signal(signal.SIGTSTP)
    assert it.terminal.wait_stopped() == signal.SIGSTOP
    assert it.terminal.modes() == it.terminal.modes_before
    it.terminal.wait_for(lambda terminal: terminal.private_modes() == {7, 25})
    it.terminal.signal(signal.SIGCONT)
    it.peer = again = it.daemon.peer()
    assert str(again.next()).startswith("attach work")
    again.send(reply())
    again.send(b"\x1b[H\x1b[2Jredrawn")
    it.terminal.wait_for("redrawn")
    it.terminal.wait_for_raw_mode()
    it.terminal.type("x")
    assert again.typed(1) == b"x"
    it.detach()


def test_after_a_hard_stop_too(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.terminal.signal(signal.SIGSTOP)
    assert it.terminal.wait_stopped() == signal.SIGSTOP
    it.terminal.signal(signal.SIGCONT)
    it.peer = again = it.daemon.peer()
    assert str(again.next()).startswith("attach work")
    again.send(reply())
    again.send(b"\x1b[H\x1b[2Jredrawn")
    it.terminal.wait_for("redrawn")
    it.terminal.wait_for_raw_mode()
    it.detach()


# Ends.

EVERYTHING = (
    b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?25l\x1b[?7l\x1b[?2004h\x1b[?1002;1006h\x1b[?1004h"
    b"\x1b[5;10r\x1b[4h\x1b[4 q\x1b(0\x0e\x1b[7m\x1b]8;;http://h\x07full screen"
)
UNDONE = [
    b"\x1b[?1049l",
    b"\x1b[?1l",
    b"\x1b>",
    b"\x1b[?25h",
    b"\x1b[?7h",
    b"\x1b[?2004l",
    b"\x1b[?1002l",
    b"\x1b[?1006l",
    b"\x1b[?1004l",
    b"\x1b[0r",
    b"\x1b[4l",
    b"\x1b[0 q",
    b"\x1b(B",
    b"\x0f",
    b"\x1b[0m",
    b"\x1b]8;;\x1b\\",
]


def lose(it: Attached) -> None:
    """End the connection without a word."""
    it.peer.cut()


def tell_of_death(it: Attached) -> None:
    """Say that the session died."""
    it.peer.send({"event": "terminal_closed", "reason": "died", "message": "killed by SIGKILL"})
    it.peer.close()


ENDS = {
    "ctrl-]": (lambda it: it.terminal.press("ctrl-]"), 0),
    "sigterm": (lambda it: it.terminal.signal(signal.SIGTERM), -signal.SIGTERM),
    "sighup": (lambda it: it.terminal.signal(signal.SIGHUP), -signal.SIGHUP),
    "sigint": (lambda it: it.terminal.signal(signal.SIGINT), -signal.SIGINT),
    "daemon killed": (lose, 3),
    "session died": (tell_of_death, 5),
}


@pytest.mark.parametrize("way", ENDS)
def test_whatever_ends_it_the_terminal_is_as_it_was(
    attach: Callable[..., Attached], way: str
) -> None:
    end, code = ENDS[way]
    it = attach()
    it.peer.send(EVERYTHING)
    at = it.terminal.wait_for_raw(b"full screen")
    end(it)
    it.ends(code)
    last = it.terminal.raw[at:]
    for undone in UNDONE:
        assert last.count(undone) >= 1, (undone, last)
    assert last.index(b"\x1b[0r") < last.index(b"\x1b[?1049l")


def test_a_prompt_costs_the_terminal_nothing(attach: Callable[..., Attached]) -> None:
    it = attach()
    at = len(it.terminal.raw)
    it.detach()
    assert it.terminal.raw[at:] == b"\x1b[0m\x1b[?25h\r\n\x1b[Jdetached from work\r\n"


CLOSED = [
    ("exited", 1000, 0, "session work ended: the person at the prompt ended it"),
    ("died", 1000, 5, "session work ended: killed by SIGSEGV"),
    ("killed", 1000, 5, "session work ended: it was killed"),
    ("of_tomorrow", 1000, 5, "session work ended: nobody knows"),
    ("cut_off", 1013, 4, "cut off from session work: the terminal did not read"),
]


@pytest.mark.parametrize(("reason", "close", "code", "text"), CLOSED)
def test_the_end_of_the_session_is_told(
    attach: Callable[..., Attached], reason: str, close: int, code: int, text: str
) -> None:
    it = attach()
    it.peer.send(b"last words")
    message = text.split(": ")[1]
    it.peer.send({"event": "terminal_closed", "reason": reason, "message": message})
    it.peer.close(close)
    it.ends(code, text, "last words")


def test_a_message_of_the_session_cannot_drive_the_terminal(
    attach: Callable[..., Attached],
) -> None:
    it = attach()
    at = len(it.terminal.raw)
    it.peer.send({"event": "terminal_closed", "reason": "exited", "message": "a\x1b]52;c;eA==\x07"})
    it.peer.close()
    it.ends(0, "session work ended: a\\x1b]52;c;eA==\\x07")
    assert b"\x1b]" not in it.terminal.raw[at:]


def test_a_daemon_that_is_killed_is_named(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.peer.cut()
    it.ends(3, "the daemon has gone", "pysh attach work")


def test_a_close_without_a_word_is_the_loss_of_the_daemon(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.peer.close(1001)
    it.ends(3, "the daemon has gone")


def test_a_terminal_that_goes_away_ends_it(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.terminal.hang_up()
    assert it.terminal.wait_exit() in (0, -signal.SIGHUP)
    while (frame := it.peer.next()) != "detach":
        assert frame is not GONE


# Floods.


def flood(it: Attached) -> threading.Thread:
    """Send without an end, until the client is gone."""

    def send() -> None:
        with contextlib.suppress(Exception):
            while True:
                it.peer.send(b"0123456789abcdef\r\n" * 1000)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def leaves(it: Attached) -> None:
    """Type something, then Ctrl-], and wait for the client's end."""
    it.terminal.type("typed\r")
    assert it.peer.typed(6) == b"typed\r"
    it.terminal.press("ctrl-]")
    while (frame := it.peer.next()) != "detach":
        assert frame is not GONE
    assert it.terminal.wait_exit() == 0
    assert it.terminal.modes() == it.terminal.modes_before


def test_keys_work_while_output_floods(attach: Callable[..., Attached]) -> None:
    it = attach()
    thread = flood(it)
    leaves(it)
    it.peer.cut()
    thread.join(10)


def test_keys_work_while_the_terminal_does_not_read(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.terminal.pause()
    # More than the terminal takes, less than what keeps a daemon from reading.
    for _ in range(8):
        it.peer.send(b"0123456789abcdef\r\n" * 1000)
    leaves(it)


def test_a_daemon_that_does_not_read_keeps_nobody(attach: Callable[..., Attached]) -> None:
    it = attach()
    it.peer.reading.clear()
    it.terminal.type("x" * 1_000_000)
    it.terminal.press("ctrl-]")
    it.ends(0, "detached from work")


COUNTED = {"taken": 0, "resumed": False}


def test_without_room_the_keyboard_is_read_only_to_leave(attach: Callable[..., Attached]) -> None:
    it = attach(answer=reply(**COUNTED))
    it.peer.reading.clear()
    # More than what is kept for a session that takes nothing.
    for _ in range(10):
        it.terminal.type("x" * 1_000_000)
    it.terminal.press("ctrl-]")
    it.ends(0, "detached from work", "10000000 bytes that were typed may not have reached")


def test_what_was_not_acknowledged_is_sent_again(attach: Callable[..., Attached]) -> None:
    it = attach(answer=reply(**COUNTED), env={"PYTHOND_RECONNECT": "60"})
    it.terminal.type("abcdef")
    assert it.peer.typed(6) == b"abcdef"
    it.peer.send({"event": "input_taken", "taken": 2})
    it.peer.cut()
    key = next(word for word in it.request if word.startswith("--input-key="))
    for taken, rest in [(3, b"def"), (5, b"f")]:
        it.peer = it.daemon.peer()
        words = it.peer.next()
        assert isinstance(words, str)
        assert {key, "--resume"} <= set(words.split())
        it.peer.send(reply(taken=taken, resumed=True))
        it.peer.send(SCREEN)
        assert it.peer.typed(len(rest)) == rest
        it.peer.cut()
    it.peer = it.daemon.peer()
    assert isinstance(it.peer.next(), str)
    it.peer.send(reply(taken=6, resumed=True))
    it.peer.send(SCREEN + b"again")
    it.terminal.wait_for("again")
    it.detach()
    assert "may not" not in it.terminal.text()


def test_a_daemon_of_an_older_version_is_asked_without_a_key(
    attach: Callable[..., Attached], fake: FakeDaemon
) -> None:
    def refuse() -> None:
        peer = fake.peer()
        request = peer.next()
        assert isinstance(request, str)
        assert "--input-key=" in request
        message = "unknown option `--input-key`"
        peer.send({"ok": False, "error": {"code": "usage", "message": message}})

    thread = threading.Thread(target=refuse)
    thread.start()
    # The first connection is refused before the fixture has the second one.
    it = attach(after=thread.join)
    assert not [word for word in it.request if word.startswith("--input-key")]
    it.terminal.type("abc")
    assert it.peer.typed(3) == b"abc"
    it.detach()


# What a session may write.

ATTACKS = (
    b"\x1b]52;c;cm0gLXJmIC8=\x07\x1b]52;c;?\x07\x1b]0;title\x07\x1b]2;title\x1b\\\x1b]10;?\x07"
    b"\x1b[c\x1b[>c\x1b[5n\x1b[6n\x1b[21t\x1bP$qm\x1b\\\x1bP+q544e\x1b\\\x05\x1bZ"
    b"\x1b[>4;2m\x1b[>1u\xc2\x9b6n"
)


def test_attacks_on_the_terminal_are_filtered(attach: Callable[..., Attached]) -> None:
    it = attach()
    at = len(it.terminal.raw)
    for byte in b"before" + ATTACKS + b"\x1b[31mred\x1b[0m after":
        it.peer.send(bytes([byte]))
    it.terminal.wait_for("after")
    got = it.terminal.raw[at:]
    assert got == b"before6n\x1b[31mred\x1b[0m after"
    it.detach()
    # Nothing was asked, so nothing was answered: no byte came but ours.


def test_an_option_lets_everything_through(attach: Callable[..., Attached]) -> None:
    it = attach("work", "--unfiltered")
    at = len(it.terminal.raw)
    it.peer.send(b"\x1b]52;c;eA==\x07\x1b]0;title\x07\x1b[?2004hx")
    it.terminal.wait_for_raw(b"\x1b[?2004hx")
    assert it.terminal.raw[at:] == b"\x1b]52;c;eA==\x07\x1b]0;title\x07\x1b[?2004hx"
    it.detach()
    assert b"\x1b[?2004l" in it.terminal.raw


def test_characters_are_whole_however_they_arrive(attach: Callable[..., Attached]) -> None:
    it = attach()
    for byte in "é€🐍 done".encode():
        it.peer.send(bytes([byte]))
    it.terminal.wait_for("é€🐍")
    it.detach()


# Hold and release as commands.


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_hold_and_release_are_commands_too(
    binaries: Path, fake: FakeDaemon, mark: str, verb: str
) -> None:
    for words, expected in [((), f"OK {verb} work (2 cells wait)"), (("--json",), '"waiting"')]:
        client = subprocess.Popen(
            [binaries / "pysh", verb, "work", "--author", "ann", *words],
            env=fake.environment(TEST_RUN_MARK=mark),
            stdout=subprocess.PIPE,
            text=True,
        )
        peer = fake.peer()
        assert peer.next() == f"{verb} work --json --author=ann"
        held = verb == "hold"
        peer.send({"ok": True, "session": "work", "held": held, "waiting": 2})
        out, _ = client.communicate(timeout=20)
        assert expected in out
        assert client.returncode == 0


def test_the_answers_of_the_fake_are_those_of_the_schema() -> None:
    from jsonschema import Draft202012Validator

    path = Path(__file__).parents[2] / "src/protocol/schema.json"
    schema = json.loads(path.read_text())
    definition = schema["$defs"]["answers"]["properties"]["attach"]
    Draft202012Validator({"$defs": schema["$defs"], **definition}).validate(reply())
    assert os.path.exists(path)
