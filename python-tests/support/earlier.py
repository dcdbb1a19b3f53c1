"""The published pythond 0.4: its programs and its daemon, on a machine of its own."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from pathlib import Path

from . import processes
from .daemon import clean_environment
from .pythons import base_python
from .venvs import venv_with
from .waiting import wait_until


def free_port() -> int:
    """A port where nobody listens: 0.4 does not choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class EarlierDaemon:
    """`pythond daemon` of 0.4; use it as a context.

    Attributes:
        port: Where it listens; None for its socket alone, which it has only then.
        token: What it asks for there.
    """

    def __init__(self, home: Path, mark: str, *, listen: bool = False, tls: bool = False) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        run = home / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        self.home = home
        self.bin = venv_with(base_python(), "pythond==0.4.0") / "bin"
        self.socket = run / "old.sock"
        self.environment = clean_environment(mark) | {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(run),
            "PYTHOND_SOCK": str(self.socket),
        }
        self.port = free_port() if listen else None
        self.tls = tls
        self.token = ""
        self.log = home / "log"
        self.process: subprocess.Popen | None = None

    def pyctl(self, *words: str | Path) -> str:
        """Run its `pyctl`, which must succeed."""
        done = subprocess.run(
            [str(self.bin / "pyctl"), *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done
        return done.stdout

    @property
    def certificate(self) -> Path:
        """Its certificate, made if there is none."""
        return Path(re.search(r"^cert: (.*)$", self.pyctl("cert"), re.M)[1])

    @property
    def way(self) -> dict[str, str]:
        """Variables that lead a client of this version there."""
        if self.port is None:
            return {"PYTHOND_SOCK": str(self.socket)}
        return {
            "PYTHOND_HOST": f"127.0.0.1:{self.port}",
            "PYTHOND_TOKEN": self.token,
            "PYTHOND_TLS": "1" if self.tls else "",
        }

    def start(self) -> EarlierDaemon:
        """Start it and wait until it listens."""
        words = ["daemon"]
        if self.port is not None:
            words += ["--show-token", "--listen", f"127.0.0.1:{self.port}"]
            words += ["--tls"] if self.tls else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self.bin / "pythond", *words],
                env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._listens, what="a daemon of 0.4 listens")
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if self.port is None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return True
            return False
        found = re.search(r"^token=(\w+)$", self.log.read_text(), re.M)
        if not found:
            return False
        self.token = found[1]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
            return True
        return False

    def kill(self) -> None:
        """End it and its sessions as a machine does that goes down."""
        if self.process is None:
            return
        processes.end(processes.children(self.process.pid) | {self.process.pid})
        self.process.wait(15)
        self.process = None

    def __enter__(self) -> EarlierDaemon:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
