"""What both ends of `pyctl pair` are told when it fails after the code was right."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Machine
from support.pairing import Offer, assert_nobody_is_known, type_code
from support.pairing_wire import Between, Channel, applicant, element, pair_of, proof
from support.waiting import wait_until

Make = Callable[..., TestDaemon]


def take_turns(one: Channel, other: Channel, times: int) -> None:
    """Pass on what a client says, and what it is answered."""
    for _ in range(times):
        other.say(one.hear())
        one.say(other.hear())


def error_of(there: TestDaemon, client: Machine, code: str, meet: Callable[..., None]) -> dict:
    """What `pyctl pair` fails with where this is in between, with the server's own key."""
    with Between(pair_of(Machine.of(there)), meet) as between:
        done = type_code(client, between.address, code, "--json")
    assert done.returncode in (3, 4), done
    return json.loads(done.stdout)["error"]


def test_a_client_that_falls_silent_in_the_last_step_is_told_of(
    there: TestDaemon, address: str, client: Machine
) -> None:
    clients = pair_of(client)

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            take_turns(channel, server, 2)
            # Until the daemon has had enough.
            with contextlib.suppress(ConnectionError):
                server.hear()

    with Offer(there) as offer:
        error_of(there, client, offer.code, meet)
        code, last = offer.end()
    assert (code, last["error"]["code"]) == (4, "pairing_failed"), last
    assert "ended before it was done" in last["error"]["message"]
    assert not Machine.of(there).pyctl("trust")["clients"]
    # Another code can be had.
    with Offer(there) as offer:
        assert type_code(client, address, offer.code).returncode == 0


def test_a_paired_client_that_does_not_leave_is_paired_in_the_log(
    there: TestDaemon, address: str, client: Machine
) -> None:
    clients = pair_of(client)

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            take_turns(channel, server, 3)
            assert server.closed() == 1000
            # It gives no answer to the close.
            with contextlib.suppress(OSError):
                while server.stream.recv(1000):
                    pass

    with Offer(there) as offer, Between(pair_of(Machine.of(there)), meet) as between:
        done = type_code(client, between.address, offer.code)
        assert done.returncode == 0, done
        assert offer.end()[0] == 0

        def logged() -> list[str]:
            lines = there.access_log().read_text().splitlines()
            return [line for line in lines if "event=pairing" in line]

        (line,) = wait_until(logged, what="the end is in the log")
    assert "status=ok" in line, line


@pytest.mark.parametrize("pinned", [False, True])
def test_a_certificate_that_is_replaced_meanwhile_is_told_to_both(
    there: TestDaemon, address: str, client: Machine, pinned: bool
) -> None:
    server_machine, clients = Machine.of(there), pair_of(client)
    steps = 2 if pinned else 1

    def replace() -> None:
        before = there.info()["network"]["certificate"]
        server_machine.pyctl("cert", "rotate", "--now")
        wait_until(lambda: there.info()["network"]["certificate"] != before, what="it is in use")

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            take_turns(channel, server, steps)
            message = channel.hear()
            replace()
            server.say(message)
            channel.say(server.hear())

    with Offer(there) as offer:
        error = error_of(there, client, offer.code, meet)
        assert error["code"] == "pairing_failed", error
        assert "certificate was replaced meanwhile" in error["message"]
        assert ("pinned here all the same" in error["message"]) == pinned, error
        code, last = offer.end()
        assert (code, last["error"]["code"]) == (4, "pairing_failed"), last
        assert "certificate was replaced meanwhile" in last["error"]["message"]
    assert not server_machine.pyctl("trust")["clients"]
    assert bool(client.pyctl("pin")["pins"]) == pinned


def test_a_connection_that_breaks_after_the_pin_says_what_is_left(
    there: TestDaemon, address: str, client: Machine
) -> None:
    clients = pair_of(client)

    def meet(channel: Channel) -> None:
        with applicant(address, clients) as server:
            take_turns(channel, server, 2)
            server.say(channel.hear())
            assert "token" in server.hear()
            # The client never has it.
            channel.stream.close()

    with Offer(there) as offer:
        error = error_of(there, client, offer.code, meet)
        assert offer.end()[0] == 0
    assert error["code"] == "connection"
    assert "pinned here all the same" in error["message"]
    assert "pyctl token show" in error["hint"]
    assert client.pyctl("pin")["pins"]


def test_a_server_that_does_not_know_the_code_gives_no_pin_its_address(
    client: Machine, mallory: Machine
) -> None:
    client.pyctl("pin", mallory.certificate())

    def meet(channel: Channel) -> None:
        for answer in (element("B"), proof()):
            channel.hear()
            channel.say(answer)

    with Between(pair_of(mallory), meet) as between:
        done = type_code(client, between.address, "1234-5678", "--json")
        assert json.loads(done.stdout)["error"]["code"] == "server_not_proven", done
    (pin,) = client.pyctl("pin")["pins"]
    assert pin["address"] is None, pin


def test_a_server_that_says_nothing_without_end_is_given_up(
    client: Machine, mallory: Machine
) -> None:
    pings = 4096 * raw.frame(b"", 0x89, masked=False)

    def meet(channel: Channel) -> None:
        channel.hear()
        while True:
            channel.stream.sendall(pings)

    with Between(pair_of(mallory), meet) as between:
        done = type_code(client, between.address, "1234-5678", "--json")
    assert done.returncode == 3, done
    assert json.loads(done.stdout)["error"]["code"] == "no_answer"
    assert not client.pyctl("pin")["pins"]


def test_who_cannot_write_down_a_pin_leaves_no_trust_behind(
    there: TestDaemon, address: str, client: Machine
) -> None:
    client.pyctl("cert")
    pins = client.tls / "pins"
    # What cannot be replaced: a directory stands where the file should be.
    pins.mkdir()
    with Offer(there) as offer:
        done = type_code(client, address, offer.code, "--json")
        assert done.returncode == 4, done
    pins.rmdir()
    assert_nobody_is_known(there, client)
