"""The plain wire, frame by frame, as its document says."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.daemon import Session, TestDaemon
from support.waiting import wait_until
from support.wire import Wire

MIB = 1024 * 1024


@pytest.fixture
def wire(shared_daemon: TestDaemon) -> Iterator[Wire]:
    """A connection to the shared daemon."""
    with shared_daemon.connect() as wire:
        yield wire


def closed_with(wire: Wire) -> int | None:
    """Wait for the server's close and return its code."""
    try:
        while True:
            wire.receive(20)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


# Frames.


def test_code_comes_inline_or_as_a_body(session: Session, wire: Wire) -> None:
    name = session.name
    assert wire.ask(f"run {name} 1 + 1") == "2"
    assert wire.ask(f"run {name}\n1 + 1") == "2"
    assert wire.ask(f"run {name}\nfor i in range(3):\n    print(i)\n") == "0\n1\n2"
    assert wire.ask(f"run {name}\n\n\n5") == "5"
    assert wire.ask(f"run {name} 'a  b'") == "a  b"
    assert wire.ask(f"run {name}   1   +   1  ") == "2"
    assert wire.ask(f"run {name} x =\n42") == ""
    assert wire.ask(f"run {name} x") == "42"
    assert wire.ask(f"run\t{name}\tx") == "42"


def test_code_is_never_unescaped(session: Session, wire: Wire) -> None:
    assert wire.ask(f"run {session.name}\nr'\\n' + \"'q'\" + '\\\\'") == "\\n'q'\\"
    assert wire.ask(f'run {session.name} "\\x41"') == "A"
    assert wire.ask(f"run {session.name}\n'{{\"a\": 1}}'") == '{"a": 1}'


def test_line_ends_of_other_systems_are_understood(session: Session, wire: Wire) -> None:
    assert wire.ask("ls\r\n").startswith("  ")
    assert wire.ask("ls\n").startswith("  ")
    assert wire.ask(f"run {session.name} 1 + 1\r\n") == "2"
    assert wire.ask(f"run {session.name}\r\n1 + 1\r\n") == "2"
    assert wire.ask(f"run {session.name}\r\nif 1:\r\n    print('y')\r\n") == "y"


def test_the_clients_own_names_before_the_verb_are_ignored(session: Session, wire: Wire) -> None:
    assert wire.ask(f"pysh run {session.name} 1 + 1") == "2"
    assert wire.ask("pyctl ls") == wire.ask("ls") == wire.ask("pysh ls")
    assert wire.ask(f"  pysh   status {session.name} ").startswith("{")


@pytest.mark.parametrize(
    "empty", ["", "\n", "\r\n", "   ", "\n\n", " \n", "pysh", "pyctl  ", "\nls"]
)
def test_empty_messages_are_ignored_and_not_answered(wire: Wire, empty: str) -> None:
    wire.send(empty)
    assert wire.ask("help").splitlines()


def test_many_requests_on_a_connection_are_answered_in_order(session: Session, wire: Wire) -> None:
    for number in range(50):
        wire.send(f"run {session.name} {number}")
        if number % 7 == 0:
            wire.send("")
        if number % 5 == 0:
            wire.send("nonsense")
    for number in range(50):
        assert wire.receive() == str(number)
        if number % 5 == 0:
            assert wire.receive().startswith("ERR unknown")


def test_help_names_the_verbs(wire: Wire) -> None:
    text = wire.ask("help")
    for verb in [
        "help",
        "new",
        "run",
        "fire",
        "poll",
        "wait",
        "out",
        "cells",
        "events",
        "ls",
        "status",
        "vars",
        "complete",
        "int",
        "stack",
        "kill",
        "stop",
    ]:
        assert verb in text
    assert not text.startswith("ERR")


def test_a_message_in_fragments_is_one_message(session: Session, wire: Wire) -> None:
    wire.socket.send([f"run {session.name}\n", "1 +", " 1"])
    assert wire.receive() == "2"


def test_output_that_starts_like_an_error_is_output(session: Session, wire: Wire) -> None:
    assert wire.ask(f"run {session.name} 'ERR made up'") == "ERR made up"
    reply = wire.run(session.name, "'ERR made up'")
    assert reply["ok"] is True


# Refusals.

REFUSALS = [
    ("new", "ERR usage: new <name>"),
    ("new a python", "ERR new takes a name only"),
    ("new UP", "ERR invalid session name"),
    ("run", "ERR need session name"),
    ("status", "ERR need session name"),
    ("vars", "ERR need session name"),
    ("complete", "ERR need session name"),
    ("kill", "ERR usage: kill <name>"),
    ("kill a b", "ERR usage: kill <name>"),
    ("int", "ERR usage: int <name>"),
    ("ls x", "ERR usage: ls"),
    ("help x", "ERR usage: help"),
    ("stop x", "ERR usage: pyctl stop"),
    ("bogus", "ERR unknown: bogus"),
    ("RUN a 1", "ERR unknown: RUN"),
    ("status nosuch", "ERR no session 'nosuch' -- create it first with: new nosuch"),
    ("run nosuch 1", "ERR no session 'nosuch' -- create it first with: new nosuch"),
    ("run nosuch\n1", "ERR no session 'nosuch' -- create it first with: new nosuch"),
    ("kill nosuch", "ERR no session 'nosuch'"),
    ("status NoSuch", "ERR no session 'NoSuch'"),
    ("ls --nonsense", "ERR unknown option `--nonsense`"),
    ("new a --nonsense", "ERR unknown option `--nonsense`"),
    ("run a --nonsense\n1", "ERR unknown option `--nonsense`"),
    ("fire", "ERR need session name"),
    ("fire nosuch 1", "ERR no session 'nosuch' -- create it first with: new nosuch"),
    ("poll nosuch", "ERR no session 'nosuch'"),
    ("wait nosuch", "ERR no session 'nosuch'"),
    ("cells nosuch", "ERR no session 'nosuch'"),
    ("stack nosuch", "ERR no session 'nosuch'"),
    ("int nosuch", "ERR no session 'nosuch'"),
    ("out nosuch 0123456789ab", "ERR no session 'nosuch'"),
    ("out", "ERR usage: out <name> <cell_id>"),
    ("poll", "ERR usage: poll <name>"),
    ("wait", "ERR usage: wait <name>"),
    ("cells a b", "ERR usage: cells <name>"),
    ("attach a", "ERR"),
    ("resize a 1 1", "ERR"),
    ("connect a b:1 c", "ERR"),
    ("disconnect a", "ERR"),
]


@pytest.mark.parametrize(("frame", "answer"), REFUSALS)
def test_a_refusal_is_one_line_with_the_known_text(wire: Wire, frame: str, answer: str) -> None:
    text = wire.ask(frame)
    assert text.startswith(answer), text
    assert "\n" not in text


def test_a_run_without_code_is_refused(session: Session, wire: Wire) -> None:
    assert wire.ask(f"run {session.name}") == "ERR run requires code"
    assert wire.run(session.name, "")["ok"] is True


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("ls --json x", "no_session"),
        ("bogus --json", "unknown_verb"),
        ("connect a --json", "usage"),
        ("connect a host:1 token --json", "usage"),
        ("disconnect nosuch --json", "no_session"),
        ("fire nosuch --json\n1", "no_session"),
        ("poll nosuch --json", "no_session"),
        ("out nosuch --json 0123456789ab", "no_session"),
        ("wait nosuch --json", "no_session"),
        ("cells nosuch --json", "no_session"),
        ("stack nosuch --json", "no_session"),
        ("wait a --json --timeout=x", "usage"),
        ("cells --json", "usage"),
        ("new UP --json", "bad_name"),
        ("status nosuch --json", "no_session"),
        ("vars nosuch --json", "no_session"),
        ("complete nosuch --json x", "no_session"),
        ("int nosuch --json", "no_session"),
        ("kill nosuch --json", "no_session"),
        ("run nosuch --json\n1", "no_session"),
        ("run nosuch --json --nonsense\n1", "usage"),
        ("ls --json --nonsense", "usage"),
        ("status --json", "usage"),
    ],
)
def test_a_structured_refusal_has_code_message_and_form(wire: Wire, frame: str, code: str) -> None:
    reply = wire.json(frame)
    assert reply["ok"] is False
    assert reply["error"]["code"] == code
    assert reply["error"]["message"]


def test_options_on_run_count_only_before_a_body(session: Session, wire: Wire) -> None:
    assert wire.ask(f"run {session.name} --json").startswith("ERR execution failed")
    assert wire.ask(f"run {session.name}\n--json").startswith("ERR execution failed")
    assert wire.json(f"run {session.name} --json\n1")["result"] == "1"
    assert wire.json(f"run {session.name} --json\n")["ok"] is True
    assert wire.json(f"run {session.name}   --json  \n1")["result"] == "1"


def test_unknown_verbs_are_shown_without_control_characters(wire: Wire) -> None:
    text = wire.ask("bo\x1b[31mgus\x07 x")
    assert text.startswith("ERR unknown: bo")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(wire.ask("v" * 100_000)) < 1000


@pytest.mark.parametrize(
    "frame",
    ["ls --json", "info", "info --json", "help --json", "int {0} --json", "vars {0} --json",
     "status {0} --json", "complete {0} --json o", "cells {0} --json", "wait {0} --json",
     "stack {0} --json", "fire {0} --json\n1"],
)  # fmt: skip
def test_every_verb_has_a_structured_answer(session: Session, wire: Wire, frame: str) -> None:
    reply = wire.json(frame.format(session.name))
    assert reply["ok"] is True


def test_kill_has_a_structured_answer(shared_daemon: TestDaemon, wire: Wire) -> None:
    with shared_daemon.session() as session:
        reply = wire.json(f"kill {session.name} --json")
        assert reply == {"ok": True, "killed": [session.name], "failed": []}


def test_info_says_what_the_daemon_is(shared_daemon: TestDaemon, wire: Wire) -> None:
    reply = wire.json("info")
    assert reply["ok"] is True
    assert reply["pid"] == shared_daemon.pid
    assert str(shared_daemon.socket) in reply["endpoint"]
    assert reply["version"].count(".") == 2
    assert reply["uptime_s"] >= 0
    assert reply["sessions"] >= 0
    assert reply["max_sessions"] == 1024


# Closing.


def test_a_binary_message_is_refused_and_ends_the_connection(wire: Wire) -> None:
    wire.send(b"ls")
    assert wire.receive() == "ERR binary frame not allowed in command mode"
    assert closed_with(wire) == 1008


def send_what_is_too_big(wire: Wire, text: str) -> None:
    """Send a message that the server may refuse before all of it has come."""
    with contextlib.suppress(ConnectionClosed):
        wire.send(text)


def test_a_message_that_is_too_big_is_refused_and_ends_the_connection(session: Session) -> None:
    with session.daemon.connect() as wire:
        send_what_is_too_big(wire, f"run {session.name}\n#" + "x" * (16 * MIB + 70_000))
        assert wire.receive().startswith("ERR message too big")
        assert closed_with(wire) == 1009
    assert session.out("1 + 1") == "2\n"


def test_the_greatest_message_can_be_chosen(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon(PYTHOND_MAX_WS_PAYLOAD="1000000").start()
    with daemon.session() as session, daemon.connect() as wire:
        assert wire.ask(f"run {session.name}\n'" + "x" * 999_000 + "'") == "x" * 999_000
        send_what_is_too_big(wire, f"run {session.name}\n#" + "x" * 1_100_000)
        assert wire.receive().startswith("ERR message too big")
        assert closed_with(wire) == 1009


def test_a_close_is_answered(wire: Wire) -> None:
    wire.socket.close(1000, "bye")
    assert wire.socket.close_code == 1000


def test_a_ping_is_answered_also_while_a_cell_runs(session: Session) -> None:
    with session.daemon.connect() as wire:
        assert wire.socket.ping().wait(10)
        wire.send(f"run {session.name}\ntime.sleep(30)")
        session.wait_for_state("running")
        assert wire.socket.ping().wait(10)
        session.daemon.ask(f"int {session.name}")
        wire.receive()


# Handshake.


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        (["pythond.1"], "pythond.1"),
        (["pythond.0.4"], "pythond.0.4"),
        (["pythond.0.3"], "pythond.0.3"),
        (["pythond.0.4", "pythond.1"], ("pythond.0.4", "pythond.1")),
        (["other", "pythond.0.4"], "pythond.0.4"),
    ],
)
def test_known_subprotocols_and_none_are_accepted(
    shared_daemon: TestDaemon, offered: list[str] | None, chosen: object
) -> None:
    with shared_daemon.connect(subprotocols=offered) as wire:
        got = wire.socket.subprotocol
        assert got in chosen if isinstance(chosen, tuple) else got == chosen
        assert not wire.ask("ls").startswith("ERR")


def test_a_request_with_an_origin_is_refused(shared_daemon: TestDaemon) -> None:
    for origin in ("http://evil.example", "null", "http://localhost"):
        with pytest.raises(InvalidStatus) as caught:
            shared_daemon.connect(origin=origin)
        assert caught.value.response.status_code == 403


def raw_http(daemon: TestDaemon, request: bytes) -> bytes:
    """Send bytes to the socket and return everything that comes until the end."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(daemon.socket))
        sock.sendall(request)
        answer = b""
        try:
            while chunk := sock.recv(65536):
                answer += chunk
                if b"101 Switching" in answer and b"\r\n\r\n" in answer:
                    break
        except ConnectionResetError:
            pass
        return answer


def handshake(path: str = "/", **headers: str) -> bytes:
    """Return a WebSocket handshake."""
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
    } | {key.replace("_", "-"): value for key, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("path", ["/", "/any/path", "/?q=1", "/" + "p" * 500])
def test_any_path_is_accepted(shared_daemon: TestDaemon, path: str) -> None:
    assert raw_http(shared_daemon, handshake(path)).startswith(b"HTTP/1.1 101")


def test_a_client_that_offers_compression_is_served_without_it(shared_daemon: TestDaemon) -> None:
    with shared_daemon.connect(compression="deflate") as wire:
        assert not wire.ask("ls").startswith("ERR")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nls",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        bytes(1000) + b"\r\n\r\n",
        handshake(Sec_WebSocket_Version="8"),
        handshake(Sec_WebSocket_Key="short"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_no_handshake_is_turned_away(shared_daemon: TestDaemon, request_: bytes) -> None:
    try:
        answer = raw_http(shared_daemon, request_)
    except BrokenPipeError:
        answer = b""
    assert b"101 Switching" not in answer
    assert not shared_daemon.ask("ls").startswith("ERR")


def test_a_frame_that_is_not_masked_ends_only_its_connection(shared_daemon: TestDaemon) -> None:
    for junk in (b"\x81\x02ls", b"\xff" * 50, b"\x81\xff" + b"\xff" * 12, b"\x83\x80aaaa"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(shared_daemon.socket))
            sock.sendall(handshake())
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(4096)
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    assert not shared_daemon.ask("ls").startswith("ERR")


def test_text_that_is_no_utf8_ends_only_its_connection(shared_daemon: TestDaemon) -> None:
    with shared_daemon.connect() as wire:
        wire.socket.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed):
            wire.receive(20)
    assert not shared_daemon.ask("ls").startswith("ERR")


def test_a_client_that_never_finishes_its_handshake_disturbs_nobody(
    shared_daemon: TestDaemon,
) -> None:
    idle = []
    for _ in range(50):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(shared_daemon.socket))
        sock.sendall(b"GET / HT")
        idle.append(sock)
    try:
        assert not shared_daemon.ask("ls", 5).startswith("ERR")
    finally:
        for sock in idle:
            sock.close()


# Fairness.


def test_forty_clients_racing_one_session_each_get_their_own_answer(session: Session) -> None:
    def ask(number: int) -> tuple[str, str]:
        with session.daemon.connect() as wire:
            plain = wire.ask(f"run {session.name}\nprint('mine', {number})\n{number} * 10")
            reply = wire.run(session.name, f"print('json', {number}); {number}")
            return plain, reply["stdout"]

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert answers == [(f"mine {n}\n{n * 10}", f"json {n}\n{n}\n") for n in range(40)]


def test_cells_of_one_session_run_in_the_order_of_arrival(session: Session) -> None:
    session.out("order = []")
    session.wire.send(f"run {session.name} --json\ntime.sleep(30)")
    session.wait_for_state("running")
    wires = []
    for number in range(40):
        wire = session.daemon.connect()
        wire.send(f"run {session.name} --json\norder.append({number})\n{number}")
        wires.append(wire)
        # The next one is sent only when this one is known to wait.
        wait_until(lambda n=number: len(session.status()["queued"]) > n, what="the cell is queued")
    session.daemon.ask(f"int {session.name}")
    for number, wire in enumerate(wires):
        assert json.loads(wire.receive())["result"] == str(number)
        wire.close()
    session.wire.receive()
    assert session.value("order == list(range(40))") == "True"


def test_two_requests_of_one_connection_do_not_overtake_each_other(session: Session) -> None:
    session.out("order = []")
    with session.daemon.connect() as wire:
        for number in range(30):
            wire.send(f"run {session.name}\norder.append({number})")
        for _ in range(30):
            wire.receive()
    assert session.value("order == list(range(30))") == "True"


def test_sessions_run_beside_each_other(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as busy, shared_daemon.session() as free:
        busy.wire.send(f"run {busy.name}\ntime.sleep(30)")
        busy.wait_for_state("running")
        assert free.out("1 + 1", timeout=5) == "2\n"
        shared_daemon.ask(f"int {busy.name}")
        busy.wire.receive()


# Frames that break RFC 6455, as (first byte, masked, payload).
BROKEN = {
    "unknown_opcode": (0x83, True, b"x", 1002),
    "reserved_bit": (0xC1, True, b"ls", 1002),
    "unmasked": (0x81, False, b"ls", 1002),
    "continuation_of_nothing": (0x80, True, b"x", 1002),
    "text_that_is_no_utf8": (0x81, True, b"\xff\xfe", 1007),
}


@pytest.mark.parametrize(("first", "masked", "payload", "code"), BROKEN.values(), ids=BROKEN)
def test_a_frame_that_breaks_the_protocol_is_answered_by_its_close_code(
    shared_daemon: TestDaemon, first: int, masked: bool, payload: bytes, code: int
) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.settimeout(20)
        raw.connect(str(shared_daemon.socket))
        raw.sendall(handshake())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.recv(1)
        length = len(payload) | (0x80 if masked else 0)
        raw.sendall(bytes([first, length]) + (bytes(4) if masked else b"") + payload)
        answer = raw.recv(200)
        assert answer[0] == 0x88
        assert int.from_bytes(answer[2:4], "big") == code
    assert shared_daemon.ask("ls")


# Random frames.

words = st.sampled_from(
    ["ls", "run", "new", "kill", "status", "vars", "complete", "int", "info", "help", "--json",
     "--replace", "--all", "x", "nosuch", "pysh", "pyctl", "\n", "\r\n", " ", "1+1", "{}", "--"]
)  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.text(max_size=80), st.lists(words, max_size=6).map(" ".join)))
def test_no_text_brings_the_daemon_into_trouble(wire: Wire, text: str) -> None:
    if text.split()[:1] == ["kill"] and "--all" in text:
        text = text.replace("--all", "")
    if "stop" in text or text.startswith("new "):
        return
    wire.send(text.encode("utf-8", "replace").decode())
    wire.send("status end-of-example")
    answers = [wire.receive()]
    while "end-of-example" not in answers[-1]:
        answers.append(wire.receive())
    assert len(answers) <= 2
    assert "internal error" not in answers[0]
