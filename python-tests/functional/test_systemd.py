"""A service manager starts the daemon: its units, its socket, what it is told."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.waiting import DEADLINE

UNITS = Path(__file__).parents[2] / "src" / "systemd"


class Manager:
    """Listens on the daemon's socket and for what it tells, as systemd does."""

    def __init__(self, daemon: TestDaemon) -> None:
        self.daemon = daemon
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(daemon.socket))
        daemon.socket.chmod(0o600)
        self.listening.listen(64)
        path = daemon.root / "notify"
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(path))
        self.told.settimeout(DEADLINE)
        self.environment = daemon.environment | {"NOTIFY_SOCKET": str(path), "LISTEN_FDS": "1"}

    def start(self) -> None:
        """Start the daemon with the socket as descriptor 3."""
        number = self.listening.fileno()
        program = str(self.daemon.binaries / "pythond")
        script = (
            f"import os; os.dup2({number}, 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
            f"os.execv({program!r}, ['pythond', 'daemon'])"
        )
        self.daemon.process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=self.environment,
            cwd=self.daemon.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
        )

    def next_word(self) -> list[str]:
        """Return what it is told next."""
        return self.told.recv(4096).decode().split()

    def close(self) -> None:
        """Listen no more."""
        self.listening.close()
        self.told.close()


@pytest.fixture
def manager(make_daemon: Callable[..., TestDaemon]) -> Iterator[Manager]:
    """A service manager that has not started the daemon yet."""
    manager = Manager(make_daemon())
    yield manager
    manager.close()


def test_the_units_are_sound(binaries: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("@BINDIR@", str(binaries))
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "run").mkdir(mode=0o700)
    units = sorted(tmp_path.glob("pythond.*"))
    assert [unit.name for unit in units] == ["pythond.service", "pythond.socket"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *units],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    # An older systemd goes on without it.
    newer = "Unknown key 'DelegateSubgroup' in section [Service], ignoring."
    ours = [
        line
        for line in done.stderr.splitlines()
        if re.search(r"pythond\.(service|socket)", line) and not line.endswith(newer)
    ]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_a_client_that_came_first_is_served(manager: Manager) -> None:
    """Socket activation: the client connects, then the daemon is started."""
    daemon = manager.daemon
    client = daemon.popen("pysh", "ls")
    manager.start()
    assert client.communicate(timeout=60)[0] == b"(no sessions)\n"
    assert client.returncode == 0
    assert manager.next_word() == ["READY=1"]
    with daemon.session() as session:
        assert session.out("print('NOTIFY_SOCKET' in os.environ, 'LISTEN_FDS' in os.environ)") == (
            "False False\n"
        )


def test_the_manager_is_told_of_ready_restart_and_stop(manager: Manager) -> None:
    daemon = manager.daemon
    manager.start()
    assert manager.next_word() == ["READY=1"]
    with daemon.session() as session:
        session.out("kept = 7")
        pid = daemon.process.pid
        assert daemon.pyctl("restart").returncode == 0
        assert manager.next_word()[0] == "RELOADING=1"
        assert manager.next_word() == ["READY=1"]
        assert daemon.json("info --json")["pid"] == pid
        assert session.value("kept") == "7"
    assert daemon.pyctl("stop").returncode == 0
    assert manager.next_word() == ["STOPPING=1"]
    assert daemon.process.wait(20) == 0
    # The socket is the manager's: the next client starts the daemon again.
    assert daemon.socket.exists()
    client = daemon.popen("pysh", "ls")
    manager.start()
    assert client.communicate(timeout=60)[0] == b"(no sessions)\n"


def test_another_socket_is_refused(manager: Manager, tmp_path: Path) -> None:
    manager.environment["PYTHOND_SOCK"] = str(tmp_path / "elsewhere.sock")
    manager.start()
    assert manager.daemon.process.wait(20) == 4
