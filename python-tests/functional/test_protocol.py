"""The examples of PROTOCOL.md are what a daemon says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.daemon import TestDaemon
from support.network import Machine
from support.pairing import Offer, type_code

TEXT = (Path(__file__).parents[2] / "src/protocol/PROTOCOL.md").read_text()
BLOCKS = [block for block in re.findall(r"```text\n(.*?)```", TEXT, re.S) if "C: " in block]
# It takes two machines and is told of one that listens: it has a test of its own.
(PAIRING,) = [block for block in BLOCKS if block.startswith("C: pair ")]
EXAMPLES = [block for block in BLOCKS if block != PAIRING]
REST = "…"
CHANGING = {"time", "cursor"}


def turns(example: str) -> list[tuple[str, str]]:
    """Split an example into who speaks and what; indented lines go on."""
    messages: list[tuple[str, str]] = []
    for line in example.splitlines():
        if line.startswith(("C: ", "S: ", "B: ")):
            messages.append((line[0], line[3:]))
        else:
            who, text = messages[-1]
            messages[-1] = (who, f"{text}\n{line[3:]}")
    return messages


def parsed(text: str) -> Any:
    """Return the JSON of a message, its text if it is none."""
    if not text.startswith("{"):
        return text
    return json.loads(text.replace(f",{REST}", f',"{REST}":0'))


def is_said(example: Any, message: Any, ids: dict[str, str], key: str = "") -> bool:
    """Tell whether a message is that of the example; learns its cells' ids."""
    if isinstance(example, dict) and isinstance(message, dict):
        if REST not in example and example.keys() != message.keys():
            return False
        return all(
            name in message and is_said(value, message[name], ids, name)
            for name, value in example.items()
            if name != REST
        )
    if isinstance(example, list) and isinstance(message, list):
        return len(example) == len(message) and all(
            is_said(one, other, ids) for one, other in zip(example, message, strict=True)
        )
    if key == "cell_id":
        return ids.setdefault(example, message) == message
    if key in CHANGING:
        return re.sub("[0-9a-f]", "0", example)[:9] == re.sub("[0-9a-f]", "0", message)[:9]
    return example == message


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


def test_the_example_of_pairing_has_what_a_daemon_says(
    make_daemon: Callable[..., TestDaemon], binaries: Path, mark: str, tmp_path: Path
):
    there = make_daemon().listen("127.0.0.1:0", tls=True).start()
    client = Machine(tmp_path / "client", binaries, mark)
    address = there.info()["listen"][0]["address"]
    with Offer(there, "--for", "60") as offer:
        assert type_code(client, address, offer.wrong).returncode == 4
        assert type_code(client, address, offer.code).returncode == 0
        messages = [offer.shown, offer.next(), offer.next()]

    def is_like(example: Any, message: Any) -> bool:
        if isinstance(example, dict):
            return all(is_like(it, message[name]) for name, it in example.items() if name != REST)
        return type(example) is type(message)

    said = [parsed(text) for who, text in turns(PAIRING) if who == "S"]
    assert [it.get("event") for it in said] == [it.get("event") for it in messages]
    for example, message in zip(said, messages, strict=True):
        assert is_like(example, message), (example, message)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda it: it.split("\n")[0].strip("C: "))
def test_an_example_is_what_a_daemon_says(shared_daemon: TestDaemon, example: str):
    ids: dict[str, str] = {}
    with shared_daemon.session("work"), contextlib.ExitStack() as stack:
        wire = stack.enter_context(shared_daemon.connect())
        messages = turns(example)
        attached = False
        while messages:
            who, text = messages.pop(0)
            if who == "B":
                wire.send(text.encode())
                continue
            if who == "C":
                if attached and text.startswith("attach "):
                    wire = stack.enter_context(shared_daemon.connect())
                attached |= text.startswith("attach ")
                for known, real in ids.items():
                    text = text.replace(known, real)
                wire.send(text)
                continue
            # Answers with tags come as they are ready.
            said = [parsed(text)]
            while messages and messages[0][0] == "S":
                said.append(parsed(messages.pop(0)[1]))
            for _ in range(len(said)):
                message = parsed(wire.receive_text() if attached else wire.receive())
                found = [it for it in said if is_said(it, message, ids)]
                assert found, (message, said)
                said.remove(found[0])
