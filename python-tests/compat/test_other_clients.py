"""General WebSocket clients against this daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import websockets

from support.daemon import Session, TestDaemon
from support.pythons import base_python
from support.venvs import Kept, run_checked, venv_with

pytestmark = pytest.mark.packages


@pytest.fixture(scope="session")
def wscat() -> Path:
    """The `wscat` command line client, installed into a directory of its own."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not on this machine")
    with Kept("npm", "wscat@6") as kept:
        if kept.fresh:
            run_checked(npm, "install", "--no-audit", "--no-fund", "--prefix", kept.path, "wscat@6")
        return kept.path / "node_modules" / ".bin" / "wscat"


def run_wscat(wscat: Path, daemon: TestDaemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Run wscat to its end; it leaves at once when its standard input ends."""
    read, write = os.pipe()
    try:
        return subprocess.run(
            [wscat, "--no-color", "-c", f"ws+unix:{daemon.socket}:/", "-w", "5", *words],
            stdin=read,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(read)
        os.close(write)


def talk(wscat: Path, daemon: TestDaemon, *frames: str) -> list[str]:
    """Send frames with wscat and return the lines of all answers."""
    words = [word for frame in frames for word in ("-x", frame)]
    done = run_wscat(wscat, daemon, *words)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_wscat_talks_to_the_daemon(wscat: Path, session: Session) -> None:
    name = session.name
    lines = talk(
        wscat, session.daemon, f"run {name} x = 42", f"run {name}\nprint('a')\nx + 1", "bogus", "", f"run {name} 'end'"
    )  # fmt: skip
    assert lines == ["", "a", "43", "ERR unknown: bogus", "end"]


def test_wscat_may_name_the_subprotocol(wscat: Path, session: Session) -> None:
    frame = f"run {session.name} 1 + 1"
    done = run_wscat(wscat, session.daemon, "-s", "pythond.0.4", "-x", frame)
    assert done.stdout == "2\n", done


def test_wscat_with_an_origin_is_turned_away(wscat: Path, shared_daemon: TestDaemon) -> None:
    done = run_wscat(wscat, shared_daemon, "-o", "http://evil.example", "-x", "ls")
    assert "403" in done.stderr
    assert done.stdout == ""


def test_the_asynchronous_client_of_websockets_works(session: Session) -> None:
    async def talk() -> list[str | bytes]:
        async with websockets.unix_connect(str(session.daemon.socket), "ws://localhost/") as ws:
            answers = []
            for frame in (f"run {session.name} 6 * 7", "pysh ls", f"run {session.name}\nprint(1)"):
                await ws.send(frame)
                answers.append(await ws.recv())
            return answers

    answers = asyncio.run(talk())
    assert answers[0] == "42"
    assert session.name in str(answers[1])
    assert answers[2] == "1"


@pytest.mark.parametrize("version", ["12.0", "14.2", "15.0.1"])
def test_older_releases_of_websockets_work(session: Session, version: str) -> None:
    python = venv_with(base_python(), f"websockets=={version}") / "bin" / "python"
    script = (
        "import sys\nfrom websockets.sync.client import unix_connect\n"
        "with unix_connect(sys.argv[1], 'ws://localhost/') as ws:\n"
        "    ws.send(f'run {sys.argv[2]}\\nprint(6 * 7)'); print(ws.recv())\n"
        "    ws.send('x' * 100); print(ws.recv()[:11])\n"
    )
    done = subprocess.run(
        [python, "-c", script, session.daemon.socket, session.name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("42\nERR unknown\n", "")


def test_a_client_made_of_the_standard_library_works(session: Session) -> None:
    script = Path(__file__).with_name("tiny_client.py")
    done = subprocess.run(
        [base_python(), script, session.daemon.socket, f"run {session.name}\n6 * 7"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("42\n", "")
