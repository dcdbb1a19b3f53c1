"""First contact by a short code: who types it is trusted, and nobody else."""

from __future__ import annotations

import json
import re
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from support import raw
from support.daemon import TestDaemon
from support.network import Machine, Server, made_by_openssl
from support.pairing import Offer, assert_nobody_is_known, type_code
from support.pairing_wire import SUBPROTOCOL, Pair, applicant, pair_of, tls
from support.terminal import Terminal
from support.waiting import DEADLINE, wait_until


@pytest.fixture
def here(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon of another machine, which knows nobody."""
    return make_daemon().start()


@pytest.fixture
def stranger(binaries: Path, mark: str, tmp_path: Path) -> Machine:
    """A machine without a daemon."""
    return Machine(tmp_path / "stranger", binaries, mark)


@pytest.fixture
def known(binaries: Path, mark: str, tmp_path: Path) -> Machine:
    """Another one."""
    return Machine(tmp_path / "known", binaries, mark)


def ask(address: str, shows: Pair, *lines: str, alpn: bool = True) -> bytes:
    """Ask for the upgrade with these lines; the answer, or an error that names the alert."""
    with tls(address, shows, alpn=alpn) as stream:
        return raw.shake(stream, raw.request_with(*lines))


def test_a_code_is_all_that_has_to_be_carried_from_one_machine_to_the_other(
    there: TestDaemon, here: TestDaemon, address: str, tmp_path: Path
) -> None:
    client = Machine.of(here)
    token_file = tmp_path / "token"
    with Offer(there) as offer:
        assert offer.shown["event"] == "code"
        assert offer.shown["listen"] == [address]
        assert not offer.shown["client_certificates"]
        done = type_code(client, address, offer.code, "--token-file", token_file)
        assert done.returncode == 0, done
        code, reply = offer.end()
    assert code == 0, reply
    # Both say the same of each other.
    server = Machine.of(there)
    assert reply["client"]["fingerprint"] == client.pyctl("cert")["fingerprint"]
    assert reply["client"]["subject"] == "CN=pythond"
    assert reply["client"]["trusted"]
    assert server.pyctl("cert")["fingerprint"] in done.stdout
    (trusted,) = server.pyctl("trust")["clients"]
    assert trusted["fingerprint"] == reply["client"]["fingerprint"]
    (pin,) = client.pyctl("pin")["pins"]
    assert pin["address"] == address
    assert pin["public_key"] == server.pyctl("cert")["public_key"]
    # The token is where it was asked for, and nowhere else.
    token = Server(there).token
    assert token_file.read_text().strip() == token
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert token not in done.stdout + done.stderr
    connected = here.pyctl("connect", "far", address, "--tls", "--token-file", token_file)
    assert connected.returncode == 0, connected
    assert here.json("new far/work --json")["ok"]
    assert here.pysh("run", "far/work", "6 * 7").stdout == "42\n"


def test_a_remote_is_connected_in_the_same_step(
    there: TestDaemon, here: TestDaemon, address: str, stranger: Machine
) -> None:
    Machine.of(there).trust(stranger)
    wait_until(lambda: there.info()["network"]["client_certificates"], what="it is known")
    with Offer(there, "--for", "10m") as offer:
        assert offer.shown["client_certificates"]
        assert offer.shown["lapses_in_s"] == 600
        done = type_code(Machine.of(here), address, offer.code, "--connect", "far")
        assert done.returncode == 0, done
        assert offer.end()[0] == 0
    assert f"OK connected far -> {address} tls" in done.stdout
    assert here.json("new far --json")["ok"]
    assert here.pysh("run", "far", "6 * 7").stdout == "42\n"
    # The one that was trusted before is so still.
    assert Server(there).ask("ls", stranger)


def test_what_people_see_at_both_terminals(
    there: TestDaemon, address: str, stranger: Machine
) -> None:
    pyctl = there.binaries / "pyctl"
    command = [pyctl, "pair"]
    with Terminal(command, env=there.environment, cols=120) as server:
        screen = server.wait_for("on the other machine: pyctl pair")
        text = "".join(screen)
        assert f"pyctl pair {address}" in text
        assert "every client from a network needs a certificate" in "".join(text.split("\n"))
        (line,) = [line for line in screen if line.startswith("code: ")]
        code = line.removeprefix("code: ").strip()
        with Terminal([*command, address], env=stranger.environment, cols=120) as client:
            client.wait_for("code that `pyctl pair` shows on 127.0.0.1:")
            client.type(f"{code.replace('-', ' ')}\r")
            client.wait_for("OK paired with")
            client.wait_for(f"next: pyctl connect NAME {address} --tls --token-stdin")
            assert client.wait_exit() == 0
            assert client.modes() == client.modes_before
        server.wait_for("OK paired with 127.0.0.1:")
        server.wait_for("subject: CN=pythond")
        assert server.wait_exit() == 0


def test_what_a_certificate_says_of_itself_cannot_steer_a_terminal(
    there: TestDaemon, address: str, stranger: Machine, tmp_path: Path
) -> None:
    made_by_openssl(tmp_path / "made", subject="/CN=a\x1b[2Jb\u202ec")
    stranger.tls.mkdir(mode=0o700, parents=True)
    stranger.tls.parent.chmod(0o700)
    for name in ("cert.pem", "key.pem"):
        shutil.copyfile(tmp_path / "made" / name, stranger.tls / name)
        (stranger.tls / name).chmod(0o600)
    with Offer(there) as offer:
        done = type_code(stranger, address, offer.code)
        assert done.returncode == 0, done
        _, reply = offer.end()
    assert reply["client"]["subject"] == "CN=a\\x1b[2Jb\\u202ec"


def test_who_thinks_better_of_it_leaves_no_file(address: str, stranger: Machine) -> None:
    file = stranger.home / "token"
    command = [stranger.binaries / "pyctl", "pair", address, "--token-file", file]
    with Terminal(command, env=stranger.environment, cols=120) as client:
        client.wait_for("code that")
        client.press("ctrl-c")
        assert client.wait_exit() == -signal.SIGINT
    assert not file.exists()


def test_three_wrong_codes_end_it(there: TestDaemon, address: str, stranger: Machine) -> None:
    with Offer(there) as offer:
        for left in ("2 tries are left", "1 try is left", "of no use any more"):
            done = type_code(stranger, address, offer.wrong)
            assert done.returncode == 4, done
            assert left in done.stderr
        for left in (2, 1, 0):
            event = offer.next()
            assert (event["event"], event["tries_left"]) == ("wrong_code", left)
            assert event["address"].startswith("127.0.0.1:")
        code, last = offer.end()
        assert (code, last["error"]["code"]) == (4, "pairing_failed"), last
        # The right one is too late.
        done = type_code(stranger, address, offer.code, "--json")
        assert done.returncode == 4, done
        assert json.loads(done.stdout)["error"]["code"] == "no_code", done
    assert_nobody_is_known(there, stranger)


def test_a_wrong_code_and_then_the_right_one(
    there: TestDaemon, address: str, stranger: Machine
) -> None:
    with Offer(there) as offer:
        assert type_code(stranger, address, offer.wrong).returncode == 4
        for no_code in ("1234567", "12345678x", ""):
            done = type_code(stranger, address, no_code)
            assert done.returncode == 2, done
            assert "a code has eight digits" in done.stderr
        assert type_code(stranger, address, offer.code).returncode == 0
        # What is no code at all was never tried.
        assert offer.next()["tries_left"] == 2
        assert offer.end()[0] == 0


def test_a_code_lapses(there: TestDaemon, address: str, stranger: Machine) -> None:
    with Offer(there, "--for", "0.5") as offer:
        code, last = offer.end()
        assert (code, last["error"]["code"]) == (124, "lapsed"), last
        done = type_code(stranger, address, offer.code)
        assert done.returncode == 4, done
        assert "has no code open" in done.stderr
    assert_nobody_is_known(there, stranger)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_code_goes_with_whoever_made_it(
    there: TestDaemon, address: str, stranger: Machine, number: int
) -> None:
    with Offer(there) as offer:
        refused = there.pyctl("--json", "pair")
        assert refused.returncode == 4, refused
        assert json.loads(refused.stdout)["error"]["code"] == "busy"
        offer.process.send_signal(number)
        assert offer.process.wait(DEADLINE) == -number

    def is_closed() -> bool:
        done = type_code(stranger, address, offer.wrong)
        assert done.returncode == 4, done
        return "has no code open" in done.stderr

    # Without a daemon that sees the end of it at once, it would be open for minutes.
    wait_until(is_closed, what="the code is of no use")
    with Offer(there) as another:
        assert another.shown["event"] == "code"
        assert type_code(stranger, address, another.code).returncode == 0


def test_without_a_code_nobody_pairs(there: TestDaemon, address: str, stranger: Machine) -> None:
    shows = pair_of(stranger)
    answers = [ask(address, shows, SUBPROTOCOL) for _ in range(10)]
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 401 Unauthorized"}
    server = Server(there)

    def is_denied() -> bool:
        try:
            server.asks("Authorization: Bearer wrong")
        except OSError as error:
            return re.search("access.denied", str(error), re.I) is not None
        return False

    # They count as wrong tokens: the next one is not even looked at, but for those
    # that the time has paid for meanwhile.
    wait_until(is_denied, what="nobody is heard from there")
    # Nor does a code help from there.
    with Offer(there) as offer:
        wait_until(is_denied, what="nobody is heard from there still")
        done = type_code(stranger, address, offer.code)
        assert done.returncode != 0, done
        assert_nobody_is_known(there, stranger)


def test_who_is_trusted_nowhere_only_pairs(
    there: TestDaemon, address: str, stranger: Machine, known: Machine
) -> None:
    server = Server(there)
    server.machine.trust(known)
    wait_until(lambda: there.info()["network"]["client_certificates"], what="it is known")
    shows = pair_of(stranger)
    # Without a code it is refused by TLS.
    with pytest.raises(OSError, match="alert"):
        ask(address, shows, SUBPROTOCOL, server.bearer)
    with Offer(there) as offer:
        # With one too, if it does not ask to pair.
        with pytest.raises(OSError, match="alert"):
            ask(address, shows, SUBPROTOCOL, server.bearer, alpn=False)
        assert server.ask("ls", known)
        # Who asks to pair does nothing else, whatever it knows.
        assert ask(address, shows, server.bearer).startswith(b"HTTP/1.1 401 ")
        for verb in ("ls", "info", "stop", "pair"):
            with applicant(address, shows) as channel:
                channel.say(verb)
                assert channel.hear()["error"]["code"] == "usage"
                assert channel.closed() == 1008
        assert type_code(stranger, address, offer.code).returncode == 0
        assert offer.end()[0] == 0
    assert server.ask("ls", stranger)


def test_an_address_of_another_key_is_refused_before_the_code_is_used(
    there: TestDaemon, here: TestDaemon, address: str, stranger: Machine
) -> None:
    other = Machine.of(here).certificate()
    stranger.pyctl("pin", other, address)
    with Offer(there) as offer:
        done = type_code(stranger, address, offer.code, "--json")
        assert done.returncode == 4, done
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "server_key_changed"
        assert f"pyctl unpin {address}" in error["hint"]
        stranger.pyctl("unpin", address)
        assert type_code(stranger, address, offer.code).returncode == 0
        assert offer.end()[0] == 0


def test_an_address_of_ipv6(make_daemon: Callable[..., TestDaemon], stranger: Machine) -> None:
    there = make_daemon().listen("[::1]:0", tls=True).start()
    (listen,) = there.info()["listen"]
    assert listen["address"].startswith("[::1]:")
    with Offer(there) as offer:
        assert type_code(stranger, listen["address"], offer.code).returncode == 0
        _, reply = offer.end()
    assert reply["client"]["address"].startswith("[::1]:")
    (pin,) = stranger.pyctl("pin")["pins"]
    assert pin["address"] == listen["address"]


def test_a_code_needs_a_daemon_that_listens_by_tls(
    here: TestDaemon, make_daemon: Callable[..., TestDaemon]
) -> None:
    plain = make_daemon().listen("127.0.0.1:0").start()
    for daemon in (here, plain):
        done = daemon.pyctl("--json", "pair")
        assert done.returncode == 4, done
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "not_listening"
        assert "pyctl start -d --listen" in error["hint"]


def test_a_code_is_made_on_the_machine_of_the_daemon_only(
    there: TestDaemon, here: TestDaemon, address: str, tmp_path: Path
) -> None:
    server = Server(there)
    error = json.loads(server.ask("pair"))["error"]
    assert error["code"] == "local_only"
    with Offer(there) as offer:
        done = type_code(Machine.of(here), address, offer.code, "--connect", "far")
        assert done.returncode == 0, done
    # Names of remotes lead nowhere either.
    for words in ("pair far", "pair far/work"):
        assert json.loads(here.ask(words))["error"]["code"] == "usage"


def test_what_is_wrong_here_is_found_before_the_code_is_used(
    there: TestDaemon, here: TestDaemon, address: str, stranger: Machine, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with Offer(there) as offer, here.session() as session:
        done = type_code(stranger, address, offer.code, "--token-file", taken)
        assert done.returncode == 2, done
        assert taken.read_text() == "mine"
        client = Machine.of(here)
        done = type_code(client, address, offer.code, "--connect", session.name)
        assert done.returncode == 4, done
        assert "is in use here" in done.stderr
        nowhere = {"PYTHOND_SOCK": str(tmp_path / "none.sock")}
        done = type_code(client, address, offer.code, "--connect", "far", **nowhere)
        assert done.returncode == 3, done
        # A file that was made for nothing goes.
        file = tmp_path / "token"
        assert type_code(stranger, address, offer.wrong, "--token-file", file).returncode == 4
        assert not file.exists()
        assert type_code(stranger, address, offer.code, "--token-file", file).returncode == 0
        assert offer.end()[0] == 0


def test_neither_code_nor_token_is_in_a_log(
    there: TestDaemon, address: str, stranger: Machine
) -> None:
    with Offer(there) as offer:
        assert type_code(stranger, address, offer.wrong).returncode == 4
        done = type_code(stranger, address, offer.code)
        assert done.returncode == 0, done
        assert offer.end()[0] == 0
    token = Server(there).token

    def told() -> str:
        lines = [line for line in there.access_log().read_text().splitlines() if "pair" in line]
        ends = [line for line in lines if "event=pairing" in line]
        return "\n".join(lines) if len(ends) == 2 else ""

    log = wait_until(told, what="both ends are in the log")
    assert "status=rejected detail=wrong-code" in log
    assert "status=ok" in log
    for text in (log, there.log_tail(), done.stdout, done.stderr):
        for secret in (token, offer.code, offer.code.replace("-", "")):
            assert secret not in text


def test_who_gives_no_code_gets_no_certificate(make_daemon: Callable[..., TestDaemon]) -> None:
    machine = make_daemon()
    done = machine.pyctl("pair", "127.0.0.1:9")
    assert done.returncode == 2, done
    assert "certificate" not in done.stderr, done
    assert not (machine.home / ".pythond" / "tls" / "cert.pem").exists()
