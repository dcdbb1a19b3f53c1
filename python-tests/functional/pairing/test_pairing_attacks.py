"""Who listens, guesses, repeats or is in between gains nothing, and the daemon does not mind."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import raw, spake2
from support.daemon import TestDaemon
from support.network import Machine, Server, made_by_openssl
from support.pairing import Offer, assert_nobody_is_known, type_code
from support.pairing_wire import (
    Between,
    Channel,
    Message,
    applicant,
    element,
    pair_of,
    proof,
    relay,
)
from support.waiting import DEADLINE

Make = Callable[..., TestDaemon]


def test_who_is_in_between_is_found_out_by_both(
    there: TestDaemon, address: str, client: Machine, mallory: Machine
) -> None:
    heard: list[Message] = []
    shows = pair_of(mallory)

    def meet(channel: Channel) -> None:
        with applicant(address, shows) as server:
            relay(channel, server, heard)

    with Offer(there) as offer, Between(shows, meet) as between:
        done = type_code(client, between.address, offer.code, "--json")
        assert done.returncode == 4, done
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "wrong_code"
        assert "in between" in error["message"]
        event = offer.next()
        assert (event["event"], event["tries_left"]) == ("wrong_code", 2)
        # It heard both first words and one proof, and neither the server's nor the token.
        assert [*map(list, heard)] == [["element"], ["element"], ["proof"], ["error"]]
        assert_nobody_is_known(there, client)
        # The code is good all the same.
        assert type_code(client, address, offer.code).returncode == 0
        assert offer.end()[0] == 0


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([element("B"), proof()], "server_not_proven"),
        ([element("B"), {"token": 64 * "a"}], "no_pythond"),
        ([{"token": 64 * "a"}], "no_pythond"),
        ([element("A")], "no_pythond"),
        ([{"element": "AAAA"}], "no_pythond"),
        ([{"error": {"code": "of_tomorrow", "message": "\x1b[2J"}}], "pairing_failed"),
        ([{"error": {"code": "x", "message": 5000 * "x"}}], "connection"),
        ([], "connection"),
    ],
)
def test_who_only_answers_is_not_believed(
    client: Machine, mallory: Machine, answers: list[Message], code: str
) -> None:
    def meet(channel: Channel) -> None:
        for answer in answers:
            channel.hear()
            channel.say(answer)
        if answers:
            channel.closed()

    with Between(pair_of(mallory), meet) as between:
        done = type_code(client, between.address, "1234-5678", "--json")
    assert done.returncode in (3, 4), done
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert "\x1b" not in done.stdout
    assert not client.pyctl("pin")["pins"]


def test_an_exchange_that_was_recorded_is_of_no_use_again(
    there: TestDaemon, address: str, client: Machine
) -> None:
    # Nobody can read along who has not both keys; this one has.
    servers, clients = pair_of(Machine.of(there)), pair_of(client)
    heard: list[Message] = []

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            heard.append(channel.hear())
            server.say(heard[0])
            channel.say(server.hear())
            # The proof is right, and never comes to the server.
            heard.append(channel.hear())

    with Offer(there) as offer:
        with Between(servers, meet) as between:
            done = type_code(client, between.address, offer.code)
            assert done.returncode == 3, done
        for tries_left in (2, 1):
            with applicant(address, clients) as server:
                server.say(heard[0])
                server.hear()
                server.say(heard[1])
                assert server.hear()["error"]["code"] == "wrong_code"
            assert offer.next()["tries_left"] == tries_left
        # A proof of the whole exchange is one of the client's alone.
        assert_nobody_is_known(there, client)


def test_a_code_that_is_withdrawn_while_it_is_used_lets_nobody_in(
    there: TestDaemon, address: str, client: Machine
) -> None:
    servers, clients = pair_of(Machine.of(there)), pair_of(client)
    last: list[Message] = []

    with Offer(there) as offer:

        def meet(channel: Channel) -> None:
            with applicant(address, clients) as server:
                for _ in range(2):
                    server.say(channel.hear())
                    channel.say(server.hear())
                pinned = channel.hear()
                offer.process.kill()
                offer.process.wait(DEADLINE)
                # The daemon has seen the end of it once another code can be had.
                with Offer(there):
                    server.say(pinned)
                    last.append(server.hear())
                channel.say(last[0])

        with Between(servers, meet) as between:
            done = type_code(client, between.address, offer.code)
            assert done.returncode == 4, done
    assert last[0]["error"]["code"] == "no_code"
    assert not Machine.of(there).pyctl("trust")["clients"]


def test_a_client_that_goes_in_the_last_step_is_told_of(
    there: TestDaemon, address: str, client: Machine
) -> None:
    servers, clients = pair_of(Machine.of(there)), pair_of(client)

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            for _ in range(2):
                server.say(channel.hear())
                channel.say(server.hear())
            channel.hear()

    with Offer(there) as offer, Between(servers, meet) as between:
        assert type_code(client, between.address, offer.code).returncode == 3
        code, last = offer.end()
        assert (code, last["error"]["code"]) == (4, "pairing_failed"), last
        assert "the client went" in last["error"]["message"]
    assert not Machine.of(there).pyctl("trust")["clients"]


def test_many_guesses_at_once_have_three_tries(
    there: TestDaemon, address: str, mallory: Machine
) -> None:
    shows = pair_of(mallory)
    answers: list[str] = []

    def guess(channel: Channel) -> None:
        begin.wait(DEADLINE)
        channel.say(proof())
        answers.append(channel.hear()["error"]["code"])

    with Offer(there) as offer, contextlib.ExitStack() as stack:
        # Each from another address, so that none is slowed down as a source.
        channels = [
            stack.enter_context(applicant(address, shows, source=f"127.0.1.{number}"))
            for number in range(1, 9)
        ]
        for channel in channels:
            channel.say(element())
            assert list(channel.hear()) == ["element"]
        begin = threading.Barrier(len(channels))
        threads = [threading.Thread(target=guess, args=(channel,)) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(answers) == ["no_code"] * 5 + ["wrong_code"] * 3
        code, last = offer.end()
        assert (code, last["error"]["code"]) == (4, "pairing_failed"), last


def test_who_guesses_is_slowed_down_over_all_codes(
    there: TestDaemon, address: str, mallory: Machine, client: Machine
) -> None:
    shows = pair_of(mallory)
    looked_at = 0
    began = time.monotonic()
    for _ in range(6):
        with Offer(there):
            for _ in range(3):
                with contextlib.suppress(OSError), applicant(address, shows) as channel:
                    channel.say(element())
                    channel.hear()
                    channel.say(proof())
                    looked_at += channel.hear()["error"]["code"] == "wrong_code"
    # Ten at once, then one in five seconds.
    assert 10 <= looked_at <= 10 + (time.monotonic() - began) // 5 + 1
    # Others are not.
    with Offer(there), applicant(address, shows, source="127.0.0.2") as channel:
        channel.say(element())
        assert list(channel.hear()) == ["element"]


NONSENSE = [
    "",
    "x",
    "{}",
    "[]",
    "null",
    '{"element":',
    '{"element":1}',
    '{"element":"not base64"}',
    '{"element":""}',
    json.dumps(element("B")),
    json.dumps(element("S")),
    json.dumps(proof()),
    '{"pinned":true}',
    '{"token":"x"}',
    1000 * "[",
]


def test_nonsense_does_not_disturb_anybody(
    there: TestDaemon, address: str, client: Machine, mallory: Machine
) -> None:
    shows = pair_of(mallory)
    seed = int.from_bytes(os.urandom(4), "big")
    some = random.Random(seed)
    frames = [raw.frame(text.encode()) for text in NONSENSE]
    frames += [raw.frame(some.randbytes(some.randrange(200))) for _ in range(10)]
    frames += [raw.frame(b"x", first) for first in (0x82, 0x83, 0xF1, 0x80, 0x88)]
    frames += [raw.frame(5000 * b"x"), b"\x81\xff" + 8 * b"\xff", some.randbytes(300)]
    with Offer(there) as offer, there.session() as session:
        for number, frame in enumerate(frames):
            # From several addresses, as what breaks the protocol counts against them.
            source = f"127.0.2.{1 + number // 5}"
            with applicant(address, shows, source=source) as channel:
                # One that was refused may be closed before all is sent.
                with contextlib.suppress(OSError):
                    channel.stream.sendall(frame)
                    channel.stream.unwrap() if number % 2 else channel.hear()
        # In the second place, too.
        for number, message in enumerate((element(), {"pinned": True}, {"proof": "x"})):
            with applicant(address, shows, source=f"127.0.3.{1 + number}") as channel:
                channel.say(element())
                channel.hear()
                channel.say(message)
                assert channel.hear()["error"]["code"] == "usage", seed
        assert session.out("6 * 7") == "42\n"
        # None of it was a try.
        assert type_code(client, address, offer.code).returncode == 0, seed
        assert offer.end()[0] == 0
    assert "panic" not in there.log_tail()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"authority": True}, "it is a certificate authority's: it can sign others"),
        ({"until": "20210101000000Z"}, "it has expired"),
        ({"since": "20900101000000Z"}, "it is not valid yet"),
    ],
)
def test_a_client_whose_certificate_may_not_be_trusted_is_refused(
    there: TestDaemon, address: str, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    made_by_openssl(tmp_path / "made", **options)
    shows = (tmp_path / "made" / "cert.pem", tmp_path / "made" / "key.pem")
    with Offer(there) as offer:
        with applicant(address, shows) as channel:
            error = channel.hear()["error"]
            assert error["code"] == "certificate_refused"
            assert words in error["message"]
            assert channel.closed() == 1008
        assert offer.process.poll() is None
    assert not Machine.of(there).pyctl("trust")["clients"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"authority": True}, "certificate_refused"),
        ({"until": "20210101000000Z"}, "certificate_expired"),
        ({"since": "20900101000000Z"}, "certificate_not_yet_valid"),
    ],
)
def test_a_server_whose_certificate_may_not_be_pinned_is_refused(
    client: Machine, tmp_path: Path, options: dict[str, str], code: str
) -> None:
    made_by_openssl(tmp_path / "made", **options)
    shows = (tmp_path / "made" / "cert.pem", tmp_path / "made" / "key.pem")
    with Between(shows, lambda channel: None) as between:
        done = type_code(client, between.address, "1234-5678", "--json")
        assert done.returncode == 4, done
        assert json.loads(done.stdout)["error"]["code"] == code
    # It heard no word.
    assert between.met == 0


def test_a_daemon_that_does_not_pair_is_told_as_such(make_daemon: Make, client: Machine) -> None:
    plain = make_daemon().listen("127.0.0.1:0").start()
    (listen,) = plain.info()["listen"]
    done = type_code(client, listen["address"], "1234-5678", "--json")
    assert done.returncode == 3, done
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "no_tls"
    assert "pairing needs TLS" in error["hint"]
    assert Server(plain).ask("ls")


def by_the_book(channel: Channel, code: str, claims: Path) -> tuple[Message, bytes]:
    """Say what PROTOCOL.md says, with a certificate; the server's answer and what it should be."""
    digits = code.replace("-", "").encode()
    side = spake2.Client(digits, b"pythond.pair.1 client", b"pythond.pair.1 server")
    channel.say({"element": base64.b64encode(side.message).decode()})
    answer = base64.b64decode(channel.hear()["element"])
    shown = channel.stream.getpeercert(binary_form=True)
    claimed = ssl.PEM_cert_to_DER_cert(claims.read_text())
    seen = b"".join(hashlib.sha256(it).digest() for it in (claimed, shown))

    def prove(role: bytes) -> bytes:
        said = b"pythond.pair.1 " + role + b"\0" + seen + side.message + answer
        return hmac.digest(side.key(answer), said, "sha256")

    channel.say({"proof": base64.b64encode(prove(b"client")).decode()})
    return channel.hear(), prove(b"server")


def test_a_client_that_was_written_by_the_protocol_pairs(
    there: TestDaemon, address: str, client: Machine, mallory: Machine
) -> None:
    clients, others = pair_of(client), pair_of(mallory)
    with Offer(there) as offer:
        # The code alone is not enough: both saw another certificate.
        with applicant(address, clients) as channel:
            answer, _ = by_the_book(channel, offer.code, others[0])
            assert answer["error"]["code"] == "wrong_code"
        with applicant(address, clients) as channel:
            answer, expected = by_the_book(channel, offer.code, clients[0])
            assert base64.b64decode(answer["proof"]) == expected
            assert not Machine.of(there).pyctl("trust")["clients"]
            channel.say({"pinned": True})
            assert channel.hear() == {"token": Server(there).token}
            assert channel.closed() == 1000
        code, reply = offer.end()
    assert code == 0, reply
    assert reply["client"]["fingerprint"] == client.pyctl("cert")["fingerprint"]
    assert Server(there).ask("ls", client)
