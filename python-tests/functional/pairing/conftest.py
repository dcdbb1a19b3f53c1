"""Who meets when two machines are paired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.network import Machine
from support.remotes import listening


@pytest.fixture
def there(make_daemon: Callable[..., TestDaemon]) -> TestDaemon:
    """A daemon that listens by TLS and trusts nobody."""
    return listening(make_daemon())


@pytest.fixture
def address(there: TestDaemon) -> str:
    """Where it listens."""
    return there.info()["listen"][0]["address"]


@pytest.fixture
def client(binaries: Path, mark: str, tmp_path: Path) -> Machine:
    """Whose owner has the code."""
    return Machine(tmp_path / "client", binaries, mark)


@pytest.fixture
def mallory(binaries: Path, mark: str, tmp_path: Path) -> Machine:
    """Who is in between, or somewhere else, and has not."""
    return Machine(tmp_path / "mallory", binaries, mark)
