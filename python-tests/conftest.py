"""Fixtures: the built programs, daemons, sessions, interpreters."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import processes
from support.attached import Attached, attach
from support.daemon import EXECUTABLES, Session, TestDaemon
from support.pythons import base_python, discover
from support.venvs import venv_with

REPOSITORY = Path(__file__).parents[1]

# A shell that starts this in the background has interrupts ignored, which all that
# is started here would inherit: tests send interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Directory of the built programs: PYTHOND_BIN_DIR, target/debug, target/release."""
    chosen = os.environ.get("PYTHOND_BIN_DIR")
    places = (
        [Path(chosen).resolve()]
        if chosen
        else [REPOSITORY / "target" / kind for kind in ("debug", "release")]
    )
    for place in places:
        if all((place / name).exists() for name in EXECUTABLES):
            return place
    pytest.fail(
        f"none of {', '.join(map(str, places))} has all of {', '.join(EXECUTABLES)}: "
        "run `cargo build --workspace` first, or name the directory in PYTHOND_BIN_DIR",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def mark() -> str:
    """Text that the environment of every process of this run carries."""
    return f"run-{uuid.uuid4().hex}"


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind(mark: str) -> Iterator[None]:
    """Fail if a process that a test caused outlives all tests."""
    yield
    left = processes.marked(mark)
    processes.end(left)
    assert not left, f"processes were left behind: {left}"


def _life(binaries: Path, mark: str, **env: str) -> Iterator[TestDaemon]:
    daemon = TestDaemon(binaries, mark, **env)
    try:
        yield daemon.start()
    finally:
        log = daemon.log_tail()
        left = daemon.destroy()
    print(log)
    assert not left, f"processes outlived their daemon: {left}"


@pytest.fixture
def daemon(binaries: Path, mark: str) -> Iterator[TestDaemon]:
    """A daemon for one test."""
    yield from _life(binaries, mark)


@pytest.fixture(scope="module")
def module_daemon(binaries: Path, mark: str) -> Iterator[TestDaemon]:
    """A daemon for one file, where tests may hurt it."""
    yield from _life(binaries, mark)


@pytest.fixture(scope="session")
def shared_daemon(binaries: Path, mark: str) -> Iterator[TestDaemon]:
    """A daemon for all tests that only use sessions of their own."""
    yield from _life(binaries, mark)


@pytest.fixture
def make_daemon(binaries: Path, mark: str) -> Iterator[Callable[..., TestDaemon]]:
    """Make daemons that are not started, and remove them at the end."""
    made: list[TestDaemon] = []

    def make(**options: str) -> TestDaemon:
        made.append(TestDaemon(binaries, mark, **options))
        return made[-1]

    yield make
    left = [entry for daemon in made for entry in daemon.destroy().items()]
    assert not left, f"processes outlived their daemon: {left}"


@pytest.fixture
def session(shared_daemon: TestDaemon) -> Iterator[Session]:
    """A fresh session of the shared daemon."""
    with shared_daemon.session() as session:
        yield session


@pytest.fixture(scope="session")
def numpy_venv() -> Path:
    """A venv with numpy and pandas."""
    return venv_with(base_python(), "numpy", "pandas")


@pytest.fixture(scope="session")
def pythons() -> dict[str, Path]:
    """CPython by version, `3.9` included where it is there."""
    return discover()


@pytest.fixture
def person(session: Session) -> Iterator[Attached]:
    """A person who is attached to the session."""
    with attach(session) as terminal:
        yield terminal
