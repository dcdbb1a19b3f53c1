"""Published clients on another machine, unchanged, against a daemon that listens."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import processes
from support.daemon import TestDaemon, clean_environment
from support.network import Server
from support.pythons import base_python
from support.venvs import venv_with
from support.waiting import wait_until

pytestmark = pytest.mark.packages

Make = Callable[..., TestDaemon]


class EarlierMachine:
    """Another machine's home, where 0.4 is installed."""

    def __init__(self, home: Path, mark: str) -> None:
        home.mkdir(mode=0o700)
        run = home / "run"
        run.mkdir(mode=0o700)
        self.tls = home / ".pythond" / "tls"
        self.bin = venv_with(base_python(), "pythond==0.4.0") / "bin"
        self.socket = run / "old.sock"
        self.environment = clean_environment(mark) | {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(run),
            "PYTHOND_SOCK": str(self.socket),
        }
        self.remote: dict[str, str] = {}

    def uses(self, server: Server) -> EarlierMachine:
        """Let its commands go to a daemon elsewhere."""
        self.remote = {
            "PYTHOND_HOST": f"127.0.0.1:{server.port}",
            "PYTHOND_TOKEN": server.token,
            "PYTHOND_TLS": "1" if server.tls else "",
        }
        return self

    def run(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a published program to its end."""
        return subprocess.run(
            [str(self.bin / program), *map(str, words)],
            env=self.environment | self.remote,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, program: str, *words: str | Path) -> str:
        """Run a published program, which must succeed."""
        done = self.run(program, *words)
        assert done.returncode == 0, done
        return done.stdout


@pytest.fixture
def other(tmp_path: Path, mark: str) -> EarlierMachine:
    """Another machine."""
    return EarlierMachine(tmp_path / "other", mark)


@pytest.fixture
def server(make_daemon: Make) -> Server:
    """A daemon that listens encrypted."""
    return Server(make_daemon().listen(tls=True).start())


def all_commands_work(other: EarlierMachine, server: Server) -> None:
    """Use a session from there, by all that is not a terminal."""
    assert other.ok("pysh", "new", "work").startswith("OK work pid=")
    assert "  work: alive pid=" in other.ok("pysh", "ls")
    assert other.ok("pysh", "run", "work", "x = 41") == ""
    assert other.ok("pysh", "run", "work", "x + 1") == "42\n"
    assert other.ok("pysh", "run", "work", "print('é🐍' * 1000)") == "é🐍" * 1000 + "\n"
    failed = other.run("pysh", "run", "work", "1/0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    fired = json.loads(other.ok("pysh", "fire", "work", "print('fired')"))["cell_id"]

    def done() -> bool:
        polled = json.loads(other.ok("pysh", "poll", "work", fired))
        return polled["status"] == "done" and "fired" in polled["output"]

    wait_until(done, what="the cell has ended")
    assert "x" in json.loads(other.ok("pysh", "vars", "work"))["vars"]
    assert json.loads(other.ok("pysh", "status", "work"))["state"] == "idle"
    assert server.daemon.ask("run work\nx") == "41"
    assert other.ok("pysh", "kill", "work") == "OK killed work\n"


def test_its_commands_go_to_an_encrypted_listener_whose_certificate_it_pinned(
    server: Server, other: EarlierMachine
) -> None:
    other.uses(server)
    # What was not pinned is not talked to.
    assert other.run("pysh", "ls").returncode != 0
    other.ok("pyctl", "pin", server.machine.tls / "cert.pem")
    all_commands_work(other, server)
    other.remote["PYTHOND_TOKEN"] = "0" * 64
    refused = other.run("pysh", "ls")
    assert refused.returncode != 0
    assert "alive" not in refused.stdout


def test_it_shows_its_certificate_where_one_is_demanded(
    server: Server, other: EarlierMachine
) -> None:
    other.uses(server)
    other.ok("pyctl", "pin", server.machine.tls / "cert.pem")
    other.ok("pyctl", "cert")
    stranger = server.machine.pyctl("trust", server.machine.tls / "cert.pem")
    assert stranger["trusted"]
    wait_until(lambda: server.daemon.info()["network"]["client_certificates"])
    assert other.run("pysh", "ls").returncode != 0
    server.machine.pyctl("trust", other.tls / "cert.pem")
    wait_until(lambda: other.run("pysh", "ls").returncode == 0, what="it is known")
    all_commands_work(other, server)


def test_its_commands_go_to_a_listener_on_loopback(
    make_daemon: Make, other: EarlierMachine
) -> None:
    server = Server(make_daemon().listen().start())
    all_commands_work(other.uses(server), server)


@pytest.fixture
def its_daemon(other: EarlierMachine) -> Iterator[EarlierMachine]:
    """A published daemon, on the other machine."""
    process = subprocess.Popen(
        [other.bin / "pythond", "daemon"],
        env=other.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: other.run("pysh", "ls").returncode == 0, what="its daemon answers")
        yield other
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            processes.end(processes.children(process.pid) | {process.pid})
            process.wait(15)


def test_its_daemon_reaches_sessions_of_ours(server: Server, its_daemon: EarlierMachine) -> None:
    its_daemon.ok("pyctl", "pin", server.machine.tls / "cert.pem")
    address = f"127.0.0.1:{server.port}"
    wrong = its_daemon.run("pyctl", "connect", "work", address, "0" * 64, "--tls")
    assert wrong.returncode != 0
    with server.daemon.session("work") as session:
        its_daemon.ok("pyctl", "connect", "work", address, server.token, "--tls")
        assert its_daemon.ok("pysh", "run", "work", "x = 41; x + 1") == "42\n"
        assert its_daemon.ok("pysh", "run", "work", "import os; os.getpid()") == f"{session.pid}\n"
        assert session.out("x") == "41\n"
        # A restart in between: its daemon comes again by itself.
        assert server.daemon.pyctl("restart").returncode == 0
        assert its_daemon.ok("pysh", "run", "work", "x") == "41\n"
        with server.daemon.session("far") as far:
            assert its_daemon.ok("pysh", "run", "work", "far", "os.getpid()") == f"{far.pid}\n"
        its_daemon.ok("pyctl", "disconnect", "work")
