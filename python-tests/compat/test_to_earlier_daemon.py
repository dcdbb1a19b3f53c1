"""Our clients and daemons, against the published daemon of 0.4."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.attached import Attached
from support.cutting import CuttingProxy
from support.daemon import TestDaemon
from support.earlier import EarlierDaemon
from support.network import Machine
from support.terminal import Terminal
from support.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.packages

Make = Callable[..., TestDaemon]


class Client:
    """Our commands on a machine, for the daemon of 0.4 somewhere."""

    def __init__(self, machine: Machine, there: EarlierDaemon, **way: str) -> None:
        self.machine = machine
        self.there = there
        self.way = there.way | way

    def run(self, *words: str, program: str = "pysh", **env: str) -> subprocess.CompletedProcess:
        """Run a command to its end."""
        return self.machine.run(program, *words, **(self.way | env))

    def ok(self, *words: str, **options: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*words, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def json(self, *words: str, **options: str) -> dict[str, Any]:
        """The object that a command prints, whatever it says."""
        return json.loads(self.run("--json", *words, **options).stdout)

    def fire(self, *words: str) -> str:
        """Start a cell and return its id."""
        return json.loads(self.ok(*words))["cell_id"]

    def start(self, *words: str) -> subprocess.Popen:
        """Start a command."""
        return subprocess.Popen(
            [self.machine.binaries / "pysh", *words],
            env=self.machine.environment | self.way,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path, binaries: Path, mark: str) -> Machine:
    """A machine with our clients."""
    return Machine(tmp_path / "ours", binaries, mark)


@pytest.fixture
def local(machine: Machine, tmp_path: Path, mark: str) -> Iterator[Client]:
    """Our clients at the socket of 0.4."""
    with EarlierDaemon(tmp_path / "old", mark) as there:
        yield Client(machine, there)


@pytest.fixture(params=["socket", "loopback", "tls", "mtls"])
def client(
    request: pytest.FixtureRequest, machine: Machine, tmp_path: Path, mark: str
) -> Iterator[Client]:
    """Our clients on every way to 0.4."""
    way = request.param
    there = EarlierDaemon(
        tmp_path / "old", mark, listen=way != "socket", tls=way in ("tls", "mtls")
    )
    if there.tls:
        machine.pyctl("pin", there.certificate, f"127.0.0.1:{there.port}")
    if way == "mtls":
        there.pyctl("trust", machine.certificate())
    with there:
        yield Client(machine, there)


def all_commands_work(
    client: Client, session: str, name: str | None = None, shown: str | None = None
) -> None:
    """Use a session by all that 0.4 can do.

    Args:
        client: Who asks.
        session: What is typed.
        name: What the daemon there calls it, if that is another name.
        shown: What a refusal calls it, if that is another name.
    """
    name = name or session
    made = client.ok("new", session)
    assert made.startswith(f"OK {name} pid="), made
    assert client.ok("run", session, "x = 41") == ""
    assert client.ok("run", session, "x + 1") == "42\n"
    assert client.ok("run", session, "print('é🐍' * 1000)") == "é🐍" * 1000 + "\n"
    assert client.ok("run", session, "def f():\n    return 'ü'\n\nprint('a')\nf()") == "a\nü\n"
    assert client.ok("run", session, "print('ERR x')") == "ERR x\n"
    failed = client.run("run", session, "print('before'); 1/0")
    assert (failed.returncode, failed.stdout) == (1, "before\n"), failed
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n"), failed
    assert "pythond.py" not in failed.stderr
    left = client.run("run", session, "raise SystemExit(3)")
    assert (left.returncode, left.stderr) == (1, "exit(3)\n"), left
    cell = client.fire("fire", session, "import time; time.sleep(0.3); y = 7; print('fired é')")
    assert cell in client.ok("wait", session, cell)
    polled = {"cell_id": cell, "status": "done", "output": "fired é"}
    assert json.loads(client.ok("poll", session, cell)) == polled
    assert json.loads(client.ok("poll", session)) == polled
    assert client.ok("out", session, cell) == "fired é\n"
    assert client.ok("out", session, cell, "--follow") == "fired é\n"
    assert client.ok("run", session, "y") == "7\n"
    cell = client.fire("fork", session, "z = 8")
    waited = client.run("wait", session, cell)
    assert (waited.returncode, waited.stderr) == (0, "note: set in the session: z\n"), waited
    assert client.ok("run", session, "z") == "8\n"
    assert {"x", "y", "z"} <= set(json.loads(client.ok("vars", session))["vars"])
    assert client.ok("complete", session, "x.bit_len").startswith('{"matches": ["x.bit_length(')
    assert json.loads(client.ok("status", session))["state"] == "idle"
    cell = client.fire("fork", session, "import time; time.sleep(600)")
    interrupted = client.run("int", session)
    assert interrupted.stdout == f"OK int {name}: 1 cell\n", interrupted
    waited = client.json("wait", session, cell)
    assert waited["cells"][0]["status"] == "killed", waited
    assert client.ok("int", session) == f"OK no running cells in {name}\n"
    assert client.ok("kill", session) == f"OK killed {session}\n"
    gone = client.run("run", session, "1")
    assert (gone.returncode, gone.stdout) == (4, ""), gone
    assert f"no session named `{shown or session}`" in gone.stderr


def test_all_that_it_can_do_works(client: Client) -> None:
    assert client.ok("ls") == "(no sessions)\n"
    all_commands_work(client, "work")
    client.ok("new", "other")
    assert client.ok("ls").startswith("  other: alive pid=")
    status = client.ok("status", program="pyctl")
    assert "alive: True\nversion: 0.4.0\nsessions: 1\n" in status
    assert client.ok("stop", program="pyctl") == "OK stopping daemon\n"
    assert client.there.process.wait(DEADLINE) == 0
    assert client.run("ls").returncode == 3


def test_a_wrong_token_and_a_certificate_that_is_not_pinned_are_told(
    machine: Machine, tmp_path: Path, mark: str
) -> None:
    with EarlierDaemon(tmp_path / "old", mark, listen=True, tls=True) as there:
        client = Client(machine, there)
        unpinned = client.run("ls", "--json")
        assert json.loads(unpinned.stdout)["error"]["code"] == "server_unpinned"
        machine.pyctl("pin", there.certificate, f"127.0.0.1:{there.port}")
        assert client.ok("ls") == "(no sessions)\n"
        wrong = client.run("ls", "--json", PYTHOND_TOKEN="0" * 32)
        assert wrong.returncode == 4
        assert json.loads(wrong.stdout)["error"]["code"] == "unauthorized"
        status = client.run("status", program="pyctl", PYTHOND_TOKEN="0" * 32)
        assert "alive: True" in status.stdout, status


LACKS = {
    "run --id": ["run", "work", "--id", "k", "ran = 1"],
    "run --timeout": ["run", "work", "--timeout", "9", "ran = 1"],
    "run --detach": ["run", "work", "--detach", "ran = 1"],
    "run --wait": ["run", "work", "--wait", "9", "ran = 1"],
    "run --busy=fail": ["run", "work", "--busy=fail", "ran = 1"],
    "fire --queue": ["fire", "work", "--queue", "ran = 1"],
    "wait": ["wait", "work"],
    "cells": ["cells", "work"],
    "stack": ["stack", "work"],
    "events": ["events"],
    "hold": ["hold", "work"],
    "int ID": ["int", "work", "5f2c00000003"],
    "int --kill": ["int", "work", "--kill"],
    "kill --all": ["kill", "--all"],
    "new --cwd": ["new", "other", "--cwd", "/"],
    "new --env": ["new", "other", "--env", "A=b"],
    "new --nofile": ["new", "other", "--nofile", "100"],
    "restart": ["restart"],
    "stop --keep-sessions": ["stop", "--keep-sessions"],
}


def test_what_it_cannot_do_is_refused_and_nothing_done(local: Client) -> None:
    local.ok("new", "work")
    for what, words in LACKS.items():
        program = "pyctl" if words[0] in ("restart", "stop") else "pysh"
        refused = local.run(*words, program=program)
        assert refused.returncode == 4, (what, refused)
        assert "pythond 0.4" in refused.stderr, (what, refused)
        told = local.json(*words, program=program)
        assert told["error"]["code"] == "not_available", (what, told)
    assert "ran" not in json.loads(local.ok("vars", "work"))["vars"]
    assert len(local.json("ls")["sessions"]) == 1


def test_a_live_session_is_kept_where_0_4_would_end_it(local: Client) -> None:
    local.ok("new", "work")
    local.ok("run", "work", "x = 1")
    refused = local.run("new", "work")
    assert refused.returncode == 4
    assert "is alive already" in refused.stderr
    assert local.ok("run", "work", "x") == "1\n"
    local.ok("new", "work", "--replace")
    assert local.run("run", "work", "x").returncode == 1


def test_a_running_cell_costs_no_session(local: Client, tmp_path: Path) -> None:
    local.ok("new", "work")
    go = tmp_path / "go"
    cell = local.fire("fire", "work", f"import os\nwhile not os.path.exists({str(go)!r}): pass")
    # 0.4 would wait for the cell, and give the session up after 30 s.
    assert local.json("status", "work")["running"] == [cell]
    busy = local.run("vars", "work")
    assert busy.returncode == 4
    assert f"cell {cell} runs" in busy.stderr
    timed_out = local.run("wait", "work", cell, "--timeout", "0.2")
    assert timed_out.returncode == 124, timed_out
    go.touch()
    local.ok("wait", "work", cell)
    assert local.ok("run", "work", "1") == "1\n"


def test_structured_answers_have_the_same_fields(local: Client, shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        name = session.name
        local.ok("new", name)

        def ours(*words: str) -> dict[str, Any]:
            return json.loads(shared_daemon.pysh("--json", *words).stdout)

        fired = ours("fire", name, "1")["cell_id"], local.json("fire", name, "1")["cell_id"]
        shared_daemon.pysh("wait", name, fired[0])
        local.ok("wait", name, fired[1])
        for words in (
            ["run", name, "1"],
            ["run", name, "1/0"],
            ["vars", name],
            ["complete", name, "os.pa"],
            ["int", name],
        ):
            missing = ours(*words).keys() - local.json(*words).keys()
            assert not missing, (words, missing)
        for words in (["poll", name], ["wait", name], ["out", name]):
            answers = ours(*words, fired[0]), local.json(*words, fired[1])
            missing = answers[0].keys() - answers[1].keys()
            assert not missing, (words, missing)
            assert answers[1]["protocol"] == "pythond.0.4"
        # What our sessions have beyond these depends on how they were made.
        status = {"state", "running", "vars", "cells", "session", "pid", "queued", "python"}
        assert status <= local.json("status", name).keys()


def wait_in(folder: Path) -> tuple[str, Path, Path]:
    """Code that says that it runs and waits until it may go on; the two files."""
    ran, go = folder / "ran", folder / "go"
    code = (
        f"import os, time\nopen({str(ran)!r}, 'a').write('x')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    return code, ran, go


def test_a_cell_whose_connection_breaks_may_have_run_and_is_not_sent_again(
    machine: Machine, tmp_path: Path, mark: str
) -> None:
    code, ran, go = wait_in(tmp_path)
    with (
        EarlierDaemon(tmp_path / "old", mark, listen=True) as there,
        CuttingProxy(there.port) as proxy,
    ):
        client = Client(machine, there, PYTHOND_HOST=proxy.address)
        client.ok("new", "work")
        running = client.start("run", "--json", "work", code)
        wait_until(lambda: ran.exists() and ran.read_text(), what="the cell runs")
        proxy.cut("rst")
        stdout, _ = running.communicate(timeout=DEADLINE)
        assert running.returncode == 5
        told = json.loads(stdout)["error"]
        assert told["code"] == "lost"
        assert "it may have run; the daemon there is pythond 0.4 and cannot say" in told["message"]
        go.touch()
        assert client.ok("run", "work", "'on'") == "on\n"
        assert ran.read_text() == "x"


def test_ctrl_c_leaves_the_cell_and_hits_no_other(local: Client, tmp_path: Path) -> None:
    code, ran, go = wait_in(tmp_path)
    local.ok("new", "work")
    running = local.start("run", "work", code)
    try:
        wait_until(lambda: ran.exists() and ran.read_text(), what="the cell runs")
        running.send_signal(signal.SIGINT)
        told = running.stderr.readline()
        assert "could not be interrupted" in told
        assert "pythond 0.4" in told
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=DEADLINE)
        assert running.returncode == 130
    finally:
        running.kill()
        running.wait()
        go.touch()
    assert local.ok("run", "work", "'on'") == "on\n"


def test_a_person_attaches(local: Client) -> None:
    local.ok("new", "work")
    local.ok("run", "work", "x = 20")
    pysh = local.machine.binaries / "pysh"
    environment = local.machine.environment | local.way
    with Terminal([pysh, "attach", "work"], env=environment) as person:
        person.wait_for(">>>")
        person.type("y = x + 3; print('sum', y)\r")
        person.wait_for("sum 23")
        busy = local.run("attach", "work")
        assert busy.returncode == 2, "it is no terminal"
        with Terminal([pysh, "attach", "work"], env=environment) as second:
            second.wait_for("somebody is attached to `work`")
            assert second.wait_exit() == 4
        person.press("ctrl-]")
        assert person.wait_exit() == 0
    assert local.ok("run", "work", "y") == "23\n"
    with Terminal([pysh, "attach", "work", "--read-only"], env=environment) as person:
        person.wait_for("pythond 0.4")
        assert person.wait_exit() == 4


class FarClient(Client):
    """Our commands at our daemon, which is connected to one of 0.4."""

    def __init__(self, here: TestDaemon, there: EarlierDaemon, port: int) -> None:
        super().__init__(Machine.of(here), there)
        self.here = here
        self.way = {}
        self.port = port
        self.token = here.root / "token"

    def connect(self) -> str:
        """Give the daemon of 0.4 a name."""
        self.token.touch(mode=0o600)
        self.token.write_text(self.there.token)
        address = f"127.0.0.1:{self.port}"
        if self.there.tls:
            self.machine.pyctl("pin", self.there.certificate, address)
        tls = ["--tls"] if self.there.tls else []
        return self.ok(
            "connect", "far", address, *tls, "--token-file", str(self.token), program="pyctl"
        )

    def remote(self) -> dict[str, Any]:
        """What is told of the remote."""
        (remote,) = self.json("ls")["remotes"]
        return remote


@pytest.fixture
def far(make_daemon: Make, tmp_path: Path, mark: str) -> Iterator[FarClient]:
    """A daemon of ours with a remote of 0.4, by TLS."""
    here = make_daemon().start()
    with EarlierDaemon(tmp_path / "old", mark, listen=True, tls=True) as there:
        client = FarClient(here, there, there.port)
        assert client.connect().startswith(f"OK connected far -> 127.0.0.1:{there.port}")
        yield client


def test_a_remote_of_0_4_works_by_its_name_and_by_path(far: FarClient) -> None:
    all_commands_work(far, "far", shown="far/far")
    all_commands_work(far, "far/work", "work")
    assert far.remote()["protocol"] == "pythond.0.4"
    assert f"far: -> 127.0.0.1:{far.port} tls (remote) pythond 0.4" in far.ok("ls")
    wait_until(lambda: far.remote().get("rtt_ms"), what="it answers the heartbeat")
    far.ok("new", "far", "other")
    assert "other: alive" in far.here.ask("ls far")
    assert far.here.ask("run far/other 6 * 7") == "42"
    assert far.here.ask("run far/nobody 1").startswith("ERR no session 'nobody'")


def test_what_a_remote_of_0_4_cannot_do_is_refused(far: FarClient) -> None:
    far.ok("new", "far/work")
    for what, words in LACKS.items():
        if len(words) < 2 or words[1] not in ("work", "other"):
            continue
        refused = far.run("--json", words[0], f"far/{words[1]}", *words[2:])
        assert refused.returncode == 4, (what, refused)
        told = json.loads(refused.stdout)["error"]
        assert (told["code"], "pythond 0.4" in told["message"]) == ("not_available", True), what
    assert "ran" not in json.loads(far.ok("vars", "far/work"))["vars"]


def test_a_wrong_token_of_a_remote_of_0_4_is_told(
    make_daemon: Make, tmp_path: Path, mark: str
) -> None:
    here = make_daemon().start()
    with EarlierDaemon(tmp_path / "old", mark, listen=True) as there:
        client = FarClient(here, there, there.port)
        there.token, token = "0" * 32, there.token
        refused = client.machine.run(
            "pyctl", "connect", "far", f"127.0.0.1:{there.port}", PYTHOND_TOKEN=there.token
        )
        assert refused.returncode == 4
        assert "refuses our token" in refused.stderr
        there.token = token
        client.connect()
        assert client.here.ask("ls far") == "(no sessions)"


def test_a_cell_on_a_remote_whose_way_breaks_is_not_sent_again(
    make_daemon: Make, tmp_path: Path, mark: str
) -> None:
    code, ran, go = wait_in(tmp_path)
    here = make_daemon().start()
    with (
        EarlierDaemon(tmp_path / "old", mark, listen=True, tls=True) as there,
        CuttingProxy(there.port) as proxy,
    ):
        client = FarClient(here, there, proxy.port)
        client.connect()
        client.ok("new", "far/work")
        running = client.start("run", "--json", "far/work", code)
        wait_until(lambda: ran.exists() and ran.read_text(), what="the cell runs")
        proxy.cut("rst")
        stdout, _ = running.communicate(timeout=DEADLINE)
        assert running.returncode == 5
        told = json.loads(stdout)["error"]
        assert (told["code"], "may have run" in told["message"]) == ("lost", True), told
        go.touch()
        # What only asks is asked again by itself.
        assert json.loads(client.ok("status", "far/work"))["state"] == "idle"
        assert client.ok("run", "far/work", "'on'") == "on\n"
        assert ran.read_text() == "x"


def test_a_person_attaches_to_a_remote_of_0_4(far: FarClient) -> None:
    far.ok("new", "far/work")
    with Attached(str(far.here.socket), "far/work") as person:
        assert person.reply["ok"], person.reply
        assert person.reply["session"] == "work"
        person.wait_for(lambda: ">>>" in person.text())
        person._connection.send("resize far/work 30 100")
        person.type("x = 20 + 3; print('sum', x)\r")
        person.wait_for(lambda: "sum 23" in person.text())
        person._connection.send("hold far/work")
        person._connection.send("detach")
        person.wait_closed()
        assert person.close_code == 1000
        assert "OK detached" in person.texts
    assert far.ok("run", "far/work", "x") == "23\n"


def test_a_remote_that_is_upgraded_is_found_on_the_next_connection(
    far: FarClient, make_daemon: Make
) -> None:
    far.ok("new", "far/work")
    far.there.kill()
    upgraded = make_daemon(home=far.there.home)
    upgraded.listen(f"127.0.0.1:{far.port}", tls=True).start()
    kept = json.loads((far.there.home / ".pythond" / "daemon.json").read_text())
    far.token.write_text(kept["token"])
    far.ok("new", "far/work")
    assert far.ok("run", "far/work", "--id", "k", "6 * 7") == "42\n"
    assert far.remote()["protocol"] == "pythond.1"
    assert "pythond 0.4" not in far.ok("ls")
