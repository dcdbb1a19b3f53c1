"""A daemon with a home and a socket of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.exceptions import InvalidMessage

from . import processes
from .pythons import base_python
from .waiting import wait_until
from .wire import Wire, text_of

EXECUTABLES = ["pythond", "pythond-host", "pysh", "pyctl"]


def clean_environment(mark: str) -> dict[str, str]:
    """Return the environment every process of a test starts from.

    The interpreter that runs the tests is the first `python3` on its PATH.
    """
    dropped = ("PYTHON", "VIRTUAL_ENV", "XDG_", "LC_", "LANG", "NO_COLOR", "TZ", "PIP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    environment["PATH"] = f"{base_python().parent}:{environment.get('PATH', '/usr/bin:/bin')}"
    environment["LANG"] = "C.UTF-8"
    environment[processes.MARK] = mark
    return environment


class Session:
    """One session of a daemon."""

    def __init__(self, daemon: TestDaemon, name: str, reply: dict[str, Any]) -> None:
        self.daemon = daemon
        self.name = name
        self.created = reply
        self.pid: int = reply["pid"]
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        """A connection of its own, so that a reply that comes late hurts no other test."""
        if self._wire is None or self._wire.closed:
            self._wire = self.daemon.connect()
        return self._wire

    def run(self, code: str, timeout: float = 60) -> dict[str, Any]:
        """Run a cell and return its structured reply."""
        return self.wire.run(self.name, code, timeout)

    def out(self, code: str, timeout: float = 60) -> str:
        """Run a cell that must succeed and return its stdout."""
        reply = self.run(code, timeout)
        assert reply["ok"], reply
        return reply["stdout"]

    def value(self, code: str, timeout: float = 60) -> str | None:
        """Run a cell that must succeed and return the shown value."""
        reply = self.run(code, timeout)
        assert reply["ok"], reply
        return reply["result"]

    def fails(self, code: str, kind: str | None = None, timeout: float = 60) -> dict[str, Any]:
        """Run a cell that must raise and return the reply's `error`."""
        reply = self.run(code, timeout)
        assert not reply["ok"], reply
        assert reply["status"] in ("failed", "interrupted"), reply
        if kind:
            assert reply["error"]["type"] == kind, reply["error"]
        return reply["error"]

    def plain(self, code: str) -> str:
        """Run a cell over the plain wire and return the text."""
        return self.wire.ask(f"run {self.name}\n{code}")

    def pysh_run(self, code: str, **options: Any) -> subprocess.CompletedProcess:
        """Run a cell with the command line client."""
        return self.daemon.pysh("run", self.name, "-", input=code, **options)

    # Cells that nobody waits for.

    def ask(self, verb: str, rest: str = "", timeout: float = 60) -> dict[str, Any]:
        """Ask a verb about this session, structured, on a connection of its own."""
        return self.daemon.json(f"{verb} {self.name} --json {rest}".rstrip(" "), timeout)

    def submit(self, verb: str, code: str, options: str = "") -> dict[str, Any]:
        """Submit a cell on a connection of its own and return the structured answer."""
        return self.daemon.json(f"{verb} {self.name} --json {options}".rstrip() + f"\n{code}")

    def fire(self, code: str, options: str = "") -> str:
        """Fire a cell, which must be accepted, and return its id."""
        reply = self.submit("fire", code, options)
        assert reply["ok"], reply
        return reply["cell_id"]

    def detach(self, code: str, options: str = "") -> str:
        """Submit a `run` cell that nobody waits for and return its id."""
        reply = self.submit("run", code, f"--detach {options}")
        assert reply["cell_id"], reply
        return reply["cell_id"]

    def poll(self, cell: str = "") -> dict[str, Any]:
        """Return a cell as it is now."""
        return self.ask("poll", cell)

    def ended(self, cell: str, timeout: float = 30) -> dict[str, Any]:
        """Wait until a cell has ended and return it."""
        reply = self.ask("wait", f"--timeout={timeout} {cell}", timeout + 10)
        assert not reply.get("timed_out", True), f"{cell} has not ended: {reply}"
        return self.poll(cell)

    def interrupt(self, *cells: str, kill: bool = False) -> dict[str, Any]:
        """Interrupt cells, or all that run, and return the structured answer."""
        return self.ask("int", " ".join([*cells, *(["--kill"] if kill else [])]))

    def cells(self) -> dict[str, dict[str, Any]]:
        """Return the listed cells by id, oldest first."""
        return {cell["cell_id"]: cell for cell in self.ask("cells")["cells"]}

    def wait_for_output(self, cell: str, text: str, timeout: float = 20) -> str:
        """Wait until a cell has written this text and return its stdout so far."""

        def look() -> str | None:
            got = text_of(self.ask("out", cell)["stdout"])
            return got if text in got else None

        return wait_until(look, timeout, what=f"{text!r} from {cell}")

    def status(self) -> dict[str, Any]:
        """Return the session's health, asked on a connection of its own."""
        return self.daemon.json(f"status {self.name} --json")

    def wait_for_state(self, state: str) -> dict[str, Any]:
        """Wait until the session is in this state and return its health."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            return status if status["state"] == state else None

        return wait_until(look, what=f"session {self.name} is {state}")

    def kill(self) -> None:
        """End the session; one that is gone already is fine."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self.daemon.ask(f"kill {self.name}")


class TestDaemon:
    """`pythond daemon`, its directories and its clients."""

    __test__ = False

    def __init__(self, binaries: Path, mark: str, *, home: Path | None = None, **env: str) -> None:
        self.binaries = binaries
        # Short, because the path of a socket has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="pd-", dir="/tmp"))
        self.home = home or self.root / "home"
        self.home.mkdir(exist_ok=True)
        self.runtime = self.root / "run"
        self.runtime.mkdir(mode=0o700)
        self.socket = self.runtime / "d.sock"
        self.work = self.root / "work"
        self.work.mkdir()
        self.mark = f"{mark}.{self.root.name}"
        self.environment = clean_environment(self.mark)
        self.environment.update(HOME=str(self.home), PYTHOND_SOCK=str(self.socket), **env)
        # Words before the daemon's own, of a program that executes the rest.
        self.wrapper: list[str] = []
        # The daemon's own.
        self.arguments: list[str] = []
        self.process: subprocess.Popen | None = None
        self.log = self.root / "daemon.log"
        self._names = 0

    # Life.

    def limit(self, option: str, value: int) -> TestDaemon:
        """Let the daemon start under a resource limit of the shell's `ulimit`."""
        self.wrapper = ["sh", "-c", f'ulimit {option} {value} && exec "$@"', "sh"]
        return self

    def listen(self, *addresses: str, tls: bool = False) -> TestDaemon:
        """Let the daemon listen for other machines, on a port of loopback if nothing is said."""
        self.arguments = [f"--listen={address}" for address in addresses or ["127.0.0.1:0"]]
        self.arguments += ["--tls"] if tls else []
        return self

    def spawn(self, *arguments: str, **env: str) -> subprocess.Popen:
        """Start `pythond daemon` and do not wait."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    *self.wrapper,
                    str(self.binaries / "pythond"),
                    "daemon",
                    *self.arguments,
                    *arguments,
                ],
                env={**self.environment, **env},
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self, **env: str) -> TestDaemon:
        """Start the daemon and wait until it answers."""
        self.process = self.spawn(**env)
        self.wait_until_it_answers()
        return self

    def wait_until_it_answers(self) -> None:
        """Wait until the socket takes a command."""

        def answers() -> bool:
            ended = self.process.poll() if self.process else None
            assert ended is None, f"the daemon exited {ended}:\n{self.log_tail()}"
            try:
                with self.connect() as wire:
                    return not wire.ask("ls").startswith("ERR")
            # A daemon that was killed while it started a process still listens in
            # that process until it executes, and then closes without a word.
            except (OSError, InvalidMessage):
                return False

        wait_until(answers, what=f"the daemon answers:\n{self.log_tail()}")

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self.process is not None
        return self.process.pid

    def log_tail(self) -> str:
        """Return the end of what the daemon wrote."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def stop(self, deadline: float = 15) -> int:
        """Ask for an orderly stop by SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline)

    def crash(self) -> None:
        """End the daemon with SIGKILL; its sessions stay."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def processes(self) -> dict[int, str]:
        """Return all living processes that this daemon caused."""
        return processes.marked(self.mark, str(self.runtime))

    def destroy(self) -> dict[int, str]:
        """Stop the daemon and remove its directories.

        Returns:
            The processes that were still there 15 s after the daemon's end;
            they are killed.
        """
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        left: dict[int, str] = {}
        try:
            wait_until(lambda: not self.processes(), deadline=15)
        except AssertionError:
            left = self.processes()
            processes.end(left)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        shutil.rmtree(self.root, ignore_errors=True)
        return left

    # Clients.

    def connect(self, **options: Any) -> Wire:
        """Open a connection."""
        return Wire(self.socket, **options)

    def ask(self, text: str, timeout: float = 60) -> str:
        """Ask one frame on a connection of its own."""
        with self.connect() as wire:
            return wire.ask(text, timeout)

    def json(self, text: str, timeout: float = 60) -> dict[str, Any]:
        """Ask one frame on a connection of its own; the answer is a JSON object."""
        with self.connect() as wire:
            return wire.json(text, timeout)

    def client(
        self, program: str, *words: str | Path, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a client to its end, with pipes for its streams."""
        env = {**self.environment, **options.pop("env", {})}
        options.setdefault("timeout", 60)
        options.setdefault("cwd", self.work)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        if options.pop("bytes", False) is False:
            options.update(text=True, encoding="utf-8", errors="surrogateescape")
        return subprocess.run(
            [str(self.binaries / program), *(str(word) for word in words)],
            env={key: value for key, value in env.items() if value is not None},
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            **options,
        )

    def pysh(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `pysh` to its end."""
        return self.client("pysh", *words, **options)

    def pyctl(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `pyctl` to its end."""
        return self.client("pyctl", *words, **options)

    def popen(self, program: str, *words: str | Path, **options: Any) -> subprocess.Popen:
        """Start a client and do not wait."""
        options.setdefault("env", self.environment)
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("cwd", self.work)
        return subprocess.Popen(
            [str(self.binaries / program), *(str(word) for word in words)], **options
        )

    # Sessions.

    def unused_name(self, stem: str = "s") -> str:
        """Return a session name that this daemon has not seen."""
        self._names += 1
        return f"{stem}{self._names}"

    def new(self, name: str | None = None, **fields: Any) -> Session:
        """Create a session that must come to life."""
        name = name or self.unused_name()
        with self.connect() as wire:
            reply = wire.new(name, **fields)
        assert reply["ok"], reply
        return Session(self, name, reply)

    @contextlib.contextmanager
    def session(self, name: str | None = None, **fields: Any) -> Iterator[Session]:
        """Create a session for the length of a block."""
        session = self.new(name, **fields)
        try:
            yield session
        finally:
            with contextlib.suppress(Exception):
                session.kill()

    def info(self) -> dict[str, Any]:
        """Return what the daemon says about itself."""
        return self.json("info")

    def list(self) -> dict[str, dict[str, Any]]:
        """Return the sessions by name."""
        return {entry["session"]: entry for entry in self.json("ls --json")["sessions"]}

    def session_directory(self, name: str) -> Path:
        """Where a session's records are."""
        return self.home / ".pythond" / "sessions" / name

    def access_log(self) -> Path:
        """Where the daemon's access log is."""
        return Path(self.info()["runtime_dir"]) / "access.log"


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parse one JSON object per line."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]
