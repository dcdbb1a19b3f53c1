"""A daemon that others can reach, and one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.network import Machine, Server


@pytest.fixture
def server(make_daemon: Callable[..., TestDaemon]) -> Server:
    """A daemon that listens encrypted."""
    return Server(make_daemon().listen(tls=True).start())


@pytest.fixture
def owner(tmp_path: Path, binaries: Path, mark: str) -> Machine:
    """The machine of a client."""
    return Machine(tmp_path / "owner", binaries, mark)
