"""`PYTHOND_HOST=ssh://…`: the system's ssh as the way to a daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import processes
from support.daemon import TestDaemon
from support.waiting import wait_until

SSH = """#!/bin/sh
# Stands for ssh: notes what it is asked, and runs the command there.
echo "$@" >> "$NOTES"
while [ "$1" != -- ]; do shift; done
case "$2" in
    me@nowhere) echo "ssh: no such host" >&2; exit 255 ;;
    me@greets) echo "Welcome, me!"; echo "a word of warning" >&2 ;;
    me@bare) exec env PATH=/nonexistent /bin/sh -c "$3" ;;
esac
cd "$FAR_HOME"
exec env HOME="$FAR_HOME" PYTHOND_SOCK="$FAR_SOCK" PYTHOND_HOST= PATH="$FAR_PATH" /bin/sh -c "$3"
"""


class Way:
    """A machine that ssh leads to, and the clients here."""

    def __init__(self, far: TestDaemon, folder: Path) -> None:
        self.far = far
        self.notes = folder / "notes"
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(SSH)
        ssh.chmod(0o755)
        self.environment = {
            **far.environment,
            "PATH": f"{ssh.parent}:{os.environ['PATH']}",
            "NOTES": str(self.notes),
            "FAR_HOME": str(far.home),
            "FAR_SOCK": str(far.socket),
            "FAR_PATH": f"{far.binaries}:/usr/bin:/bin:{os.environ['PATH']}",
            "PYTHOND_HOST": "ssh://me@far",
        }
        del self.environment["PYTHOND_SOCK"]

    def pysh(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `pysh` here."""
        return self.far.pysh(*words, env={**self.environment, **env})

    def pyctl(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `pyctl` here."""
        return self.far.pyctl(*words, env={**self.environment, **env})


@pytest.fixture
def far(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that is not started."""
    return make_daemon()


@pytest.fixture
def way(far: TestDaemon, tmp_path: Path) -> Iterator[Way]:
    """The way there; a daemon that was started by it is ended."""
    way = Way(far, tmp_path)
    yield way
    way.pyctl("stop")


def out(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed that went well."""
    assert done.returncode == 0, done
    return done.stdout


def test_a_daemon_is_started_there_and_used(way: Way) -> None:
    assert out(way.pyctl("--version"))
    done = way.pyctl("status")
    assert done.returncode == 3, done
    assert not way.far.socket.exists()
    assert "OK work " in out(way.pysh("new", "work"))
    assert out(way.pysh("run", "work", "x = 6 * 7; x")) == "42\n"
    assert "endpoint: ssh://me@far\nalive: True\n" in out(way.pyctl("status"))
    big = out(way.pysh("run", "work", "print('y' * 3_000_000)"))
    assert len(big) == 3_000_001
    assert "-- me@far pythond bridge --stdio\n" in way.notes.read_text()
    stopped = way.pyctl("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert stopped.stdout == "OK stopping daemon; 1 session ended\n"
    wait_until(lambda: not way.far.socket.exists(), what="the socket is gone")


def test_a_session_there_begins_where_that_daemon_does(way: Way) -> None:
    out(way.pysh("new", "work"))
    assert out(way.pysh("run", "work", "import os; os.getcwd()")) == f"{way.far.home}\n"


def test_a_run_outlasts_the_daemon_there(way: Way) -> None:
    out(way.pysh("new", "work"))
    gate = way.far.home / "gate"
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n7"
    running = way.far.popen("pysh", "run", "work", code, env=way.environment)
    wait_until(lambda: '"running":["' in out(way.pysh("status", "work")), what="the cell runs")
    first = int(out(way.pyctl("status")).split("pid: ")[1].split()[0])
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(first), what="the daemon is gone")
    gate.touch()
    stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (0, b"7\n"), stderr


def test_ctrl_c_interrupts_the_cell_and_not_the_way(way: Way) -> None:
    out(way.pysh("new", "work"))
    code = "import time\nprint('begun', flush=True)\ntime.sleep(600)"
    running = way.far.popen(
        "pysh", "run", "work", code, env=way.environment, start_new_session=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"begun\n"
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert b"KeyboardInterrupt" in stderr


def test_what_is_wrong_with_the_way_is_told(way: Way, tmp_path: Path) -> None:
    done = way.pysh("ls", PYTHOND_HOST="ssh://me@nowhere")
    assert done.returncode == 3, done
    assert "ssh: no such host" in done.stderr
    assert "ssh did not get to `me@nowhere` (exit code 255)" in done.stderr
    done = way.pysh("ls", PYTHOND_HOST="ssh://me@bare")
    assert done.returncode == 3, done
    assert "`ssh://me@bare` has no `pythond` on its PATH" in done.stderr
    done = way.pysh("ls", PYTHOND_HOST="ssh://me@greets")
    assert done.returncode == 3, done
    assert (
        "something else than the daemon's answer came through ssh from `me@greets`" in done.stderr
    )
    assert "`ssh me@greets true` shows what it prints" in done.stderr
    done = way.pysh("ls", PYTHOND_HOST="ssh://-oProxyCommand=touch")
    assert done.returncode == 2, done
    done = way.pysh("ls", PATH=str(tmp_path))
    assert done.returncode == 3, done
    assert "`ssh` cannot be run" in done.stderr
    done = way.pyctl("start")
    assert done.returncode != 0
    assert "ssh://me@far" in done.stderr


def test_a_remote_is_reached_by_ssh_and_needs_no_token(
    way: Way, make_daemon: Callable[..., TestDaemon]
) -> None:
    ours = ("PATH", "NOTES", "FAR_HOME", "FAR_SOCK", "FAR_PATH")
    here = make_daemon(**{name: way.environment[name] for name in ours}).start()
    done = here.pyctl("connect", "bad", "ssh://me@nowhere")
    assert done.returncode == 4, done
    assert "ssh: no such host" in done.stderr
    done = here.pyctl("connect", "bad", "ssh://me@greets")
    assert done.returncode == 4, done
    assert "something else than the daemon's answer came through ssh" in done.stderr
    assert "`ssh me@greets true` shows what it prints" in done.stderr
    connected = here.pyctl("connect", "far", "ssh://me@far")
    assert out(connected) == "OK connected far -> ssh://me@far\n"
    out(here.pysh("new", "far", "work"))
    assert out(here.pysh("run", "far", "work", "6 * 7")) == "42\n"
    first = int(out(way.pyctl("status")).split("pid: ")[1].split()[0])
    os.kill(first, signal.SIGKILL)
    # The next one is started by the same way, and finds the session.
    assert out(here.pysh("run", "far/work", "6 * 7")) == "42\n"
    out(here.pyctl("disconnect", "far"))
    here.stop()


def test_a_remote_at_an_ipv6_address_is_known_to_the_next_daemon(
    way: Way, make_daemon: Callable[..., TestDaemon]
) -> None:
    ours = ("PATH", "NOTES", "FAR_HOME", "FAR_SOCK", "FAR_PATH")
    here = make_daemon(**{name: way.environment[name] for name in ours}).start()
    address = "ssh://me@[::1]:2222"
    connected = here.pyctl("connect", "far", address)
    assert out(connected) == f"OK connected far -> {address}\n"
    out(here.pyctl("restart"))
    (remote,) = here.json("ls --json")["remotes"]
    assert remote["endpoints"] == [address]
    out(here.pysh("new", "far", "work"))
    assert out(here.pysh("run", "far/work", "6 * 7")) == "42\n"
    assert "-p 2222 -- me@::1 pythond bridge" in way.notes.read_text()
    here.stop()


def test_a_file_of_a_remote_that_is_not_understood_is_left(
    way: Way, make_daemon: Callable[..., TestDaemon]
) -> None:
    ours = ("PATH", "NOTES", "FAR_HOME", "FAR_SOCK", "FAR_PATH")
    here = make_daemon(**{name: way.environment[name] for name in ours}).start()
    out(here.pyctl("connect", "far", "ssh://me@far"))
    (file,) = here.root.rglob("r-far.remote")
    newer = file.read_text().replace("ssh://", "newer://")
    here.crash()
    file.write_text(newer)
    here.start()
    assert here.json("ls --json").get("remotes", []) == []
    assert file.read_text() == newer
    assert "WARN: r-far.remote tells of no remote: " in here.log.read_text()
    out(here.pyctl("connect", "far", "ssh://me@far"))
    here.crash()
    here.start()
    (remote,) = here.json("ls --json")["remotes"]
    assert remote["endpoints"] == ["ssh://me@far"]
    file.write_text(newer)
    # What may hold a token does not outlast `stop`.
    here.crash()
    here.start()
    out(here.pyctl("stop"))
    assert here.process is not None
    here.process.wait(20)
    assert not file.exists()
