"""Two daemons, of which one is the other's remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.daemon import Session, TestDaemon
from support.remotes import Remote, remote_of


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Remote]:
    """A remote that the test may hurt."""
    with remote_of(make_daemon) as remote:
        yield remote


@pytest.fixture
def session(remote: Remote) -> Session:
    """The session that the alias means."""
    return remote.new()
