"""The published clients of earlier versions, unchanged, against this daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import processes
from support.daemon import TestDaemon
from support.pythons import base_python
from support.terminal import Terminal
from support.venvs import venv_with
from support.waiting import wait_until

pytestmark = pytest.mark.packages


class EarlierClient:
    """`pysh` and `pyctl` of a published version."""

    def __init__(self, version: str, daemon: TestDaemon) -> None:
        self.version = version
        self.daemon = daemon
        self.bin = venv_with(base_python(), f"pythond=={version}") / "bin"

    def run(self, *words: str, program: str = "pysh") -> subprocess.CompletedProcess[str]:
        """Run a client to its end."""
        return subprocess.run(
            [str(self.bin / program), *words],
            env=self.daemon.environment,
            cwd=self.daemon.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, *words: str) -> str:
        """Run `pysh`, which must succeed, and return what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, done
        assert done.stderr == ""
        return done.stdout


@pytest.fixture(params=["0.4.0", "0.3.0"])
def client(shared_daemon: TestDaemon, request: pytest.FixtureRequest) -> EarlierClient:
    """Each published version that is promised to work."""
    return EarlierClient(request.param, shared_daemon)


@pytest.fixture
def name(client: EarlierClient) -> Iterator[str]:
    """A session that the earlier client has made."""
    name = client.daemon.unused_name("old")
    assert re.fullmatch(rf"OK {name} pid=\d+\n", client.ok("new", name))
    yield name
    client.daemon.ask(f"kill {name}")


def test_it_is_the_published_client(client: EarlierClient) -> None:
    assert client.version in client.ok("--version")


def test_it_runs_code_and_prints_the_result(client: EarlierClient, name: str) -> None:
    assert client.ok("run", name, "x = 42") == ""
    assert client.ok("run", name, "x + 1") == "43\n"
    assert client.ok("run", name, "print('a')\nprint('b')") == "a\nb\n"
    assert client.ok("run", name, "(42,)") == "(42,)\n"
    assert client.ok("run", name, "import sys; sys.stderr.write('err\\n'); None") == "err\n"
    assert client.ok("run", name, "'é🐍'") == "é🐍\n"


def test_it_may_give_the_code_in_many_words(client: EarlierClient, name: str) -> None:
    assert client.ok("run", name, "x", "=", "42") == ""
    assert client.ok("run", name, "x", "+", "1") == "43\n"
    assert client.ok("run", name, "[i", "for i in", "range(3)]") == "[0, 1, 2]\n"


def test_it_sees_errors_as_before(client: EarlierClient, name: str) -> None:
    done = client.run("run", name, "print('out'); 1/0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ERR execution failed\nout\nTraceback (most recent call last):")
    assert "ZeroDivisionError: division by zero" in done.stderr
    done = client.run("run", name, "exit(3)")
    assert (done.returncode, done.stderr) == (1, "ERR execution failed\nexit(3)\n")
    assert client.ok("run", name, "1 + 1") == "2\n"


def test_it_lists_sessions(client: EarlierClient, name: str) -> None:
    line = rf"  {name}: alive pid=\d+ \(pty\)"
    assert re.search(line, client.ok("ls"))


def test_it_reads_status_vars_and_completions(client: EarlierClient, name: str) -> None:
    client.ok("run", name, "some_name = 1")
    status = json.loads(client.ok("status", name))
    assert status["state"] == "idle"
    assert status["running"] == []
    assert isinstance(status["vars"], int)
    assert isinstance(status["cells"], int)
    assert "some_name" in json.loads(client.ok("vars", name))["vars"]
    assert "some_name" in json.loads(client.ok("complete", name, "some_n"))["matches"]


def test_it_interrupts(client: EarlierClient, name: str) -> None:
    assert client.ok("int", name) == f"OK no running cells in {name}\n"
    with client.daemon.connect() as wire:
        wire.send(f"run {name}\nwhile True: pass")
        wait_until(lambda: client.daemon.list()[name]["state"] == "running")
        assert client.ok("int", name).startswith(f"OK int {name}: 1 ")
        assert "KeyboardInterrupt" in wire.receive()


def test_it_fires_and_polls(client: EarlierClient, name: str) -> None:
    assert json.loads(client.ok("poll", name)) == {"status": "idle"}
    client.ok("run", name, "import threading; go = threading.Event()")
    fired = json.loads(client.ok("fire", name, "model = go.wait(60); print('trained')"))
    cell = fired["cell_id"]
    assert fired == {"cell_id": cell, "status": "fired"}
    running = {"cell_id": cell, "status": "running", "output": ""}
    assert json.loads(client.ok("poll", name, cell)) == running
    assert json.loads(client.ok("poll", name)) == running
    assert json.loads(client.ok("status", name))["running"] == [cell]
    client.ok("run", name, "go.set()")
    done = {"cell_id": cell, "status": "done", "output": "trained"}
    wait_until(lambda: json.loads(client.ok("poll", name, cell)) == done, what="it is done")
    assert json.loads(client.ok("poll", name)) == done
    assert client.ok("run", name, "model") == "True\n"


def test_it_sees_how_a_fired_cell_failed(client: EarlierClient, name: str) -> None:
    cell = json.loads(client.ok("fire", name, "print('before'); 1/0"))["cell_id"]
    answer = wait_until(
        lambda: (a := json.loads(client.ok("poll", name, cell)))["status"] == "done" and a
    )
    assert answer["error"] is True
    assert answer["output"].startswith("before\nTraceback (most recent call last):")
    assert answer["output"].endswith("ZeroDivisionError: division by zero")
    unknown = {"cell_id": "nosuch", "status": "error", "output": "unknown cell"}
    assert json.loads(client.ok("poll", name, "nosuch")) == unknown


def test_it_fires_several_words_as_one_cell(client: EarlierClient, name: str) -> None:
    cell = json.loads(client.ok("fire", name, "x", "=", "6", "*", "7"))["cell_id"]
    wait_until(lambda: json.loads(client.ok("poll", name, cell))["status"] == "done")
    assert client.ok("run", name, "x") == "42\n"


def test_it_interrupts_a_fired_cell(client: EarlierClient, name: str) -> None:
    cell = json.loads(client.ok("fire", name, "while True: time.sleep(0.1)"))["cell_id"]
    wait_until(lambda: json.loads(client.ok("status", name))["running"] == [cell])
    assert client.ok("int", name).startswith(f"OK int {name}: 1 ")
    answer = wait_until(
        lambda: (a := json.loads(client.ok("poll", name, cell)))["status"] == "done" and a
    )
    assert answer["error"] is True
    assert "KeyboardInterrupt" in answer["output"]
    assert client.ok("run", name, "1 + 1") == "2\n"


def test_it_attaches_a_terminal(client: EarlierClient, name: str) -> None:
    client.ok("run", name, "x = 41")
    command = [client.bin / "pysh", "attach", name]
    with Terminal(command, env=client.daemon.environment, rows=30, cols=100) as person:
        person.wait_for(">>> ")
        person.type("x + 1; import os; os.get_terminal_size()\r")
        person.wait_for("columns=100, lines=30")
        client.ok("run", name, "print('from the agent')")
        person.wait_for("[ai] run: print('from the agent')")
        person.press("ctrl-]")
        assert person.wait_exit() == 0
        assert person.modes() == person.modes_before
    assert client.ok("run", name, "x") == "41\n"


def test_it_forks_and_merges(client: EarlierClient, name: str) -> None:
    forked = json.loads(client.ok("fork", name, "print('hi'); brought = [1, 2]"))
    assert forked["status"] == "forked"

    def ended() -> dict | None:
        polled = json.loads(client.ok("poll", name, forked["cell_id"]))
        return polled if polled["status"] == "done" else None

    polled = wait_until(ended, what="the fork has ended")
    assert polled["output"].startswith("hi")
    assert polled["merged"] == ["brought"]
    assert client.ok("run", name, "brought") == "[1, 2]\n"
    forked = json.loads(client.ok("fork", name, "import time; time.sleep(300)"))
    client.ok("int", name)
    wait_until(
        lambda: json.loads(client.ok("poll", name, forked["cell_id"]))["status"] != "running",
        what="the fork was killed",
    )


def test_it_kills(client: EarlierClient, name: str) -> None:
    pid = client.daemon.list()[name]["pid"]
    assert client.ok("kill", name) == f"OK killed {name}\n"
    wait_until(lambda: not processes.is_alive(pid))
    done = client.run("kill", name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERR no session '{name}'")


def test_it_reads_the_known_refusals(client: EarlierClient, name: str) -> None:
    for words, text in {
        ("run", "nosuch", "1"): "ERR no session 'nosuch' -- create it first with: new nosuch",
        ("status", "nosuch"): "ERR no session 'nosuch' -- create it first with: new nosuch",
        ("new", "UPPER"): "ERR invalid session name",
        ("new", name): "ERR ",
        ("run", name): "ERR ",
    }.items():
        done = client.run(*words)
        assert done.returncode == 1, words
        assert done.stderr.startswith(text), words
        assert done.stdout == ""


def test_its_pyctl_sees_the_daemon(client: EarlierClient) -> None:
    done = client.run("status", program="pyctl")
    assert done.returncode == 0, done
    assert done.stdout == f"socket: {client.daemon.socket}\nalive: True\n"


def test_its_pyctl_stops_the_daemon(daemon: TestDaemon) -> None:
    client = EarlierClient("0.4.0", daemon)
    daemon.new("a")
    done = client.run("stop", program="pyctl")
    assert (done.returncode, done.stdout) == (0, "OK stopping daemon\n")
    assert daemon.process is not None
    assert daemon.process.wait(15) == 0
    assert not daemon.socket.exists()
    assert client.run("status", program="pyctl").returncode == 1


def test_forty_of_its_connections_race_one_session(client: EarlierClient, name: str) -> None:
    script = (
        "import sys, threading\nimport pythond\nname = sys.argv[1]\nwrong = []\n"
        "def ask(n):\n"
        "    got = pythond._send('run', [name, f'print({n}); {n} * 10'])\n"
        "    if got != f'{n}\\n{n * 10}': wrong.append((n, got))\n"
        "ts = [threading.Thread(target=ask, args=(n,)) for n in range(40)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\nprint(wrong)\n"
    )
    done = subprocess.run(
        [client.bin / "python", "-c", script, name],
        env=client.daemon.environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_its_environment_variables_keep_their_meaning(client: EarlierClient, name: str) -> None:
    assert os.environ.get("PYTHOND_SOCK") != str(client.daemon.socket)
    assert client.daemon.environment["PYTHOND_SOCK"] == str(client.daemon.socket)
    assert name in client.ok("ls")
    assert Path(client.daemon.socket).is_socket()
