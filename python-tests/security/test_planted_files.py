"""Links and FIFOs where the daemon keeps its files: never followed, never waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import processes
from support.daemon import TestDaemon
from support.waiting import wait_until

SECRET = "precious\n"


def plant(kind: str, path: Path, victim: Path) -> None:
    """Put something in the way."""
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim.with_name("not-there"))
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "directory":
        path.mkdir(mode=0o755)
    else:
        os.mkfifo(path, 0o644)


def serves(daemon: TestDaemon) -> bool:
    """Start the daemon; tell whether it serves, else it has said why not."""
    daemon.process = daemon.spawn()

    def decided() -> str | None:
        if daemon.process.poll() is not None:
            return "refuses"
        try:
            with daemon.connect() as wire:
                return "serves" if wire.ask("ls", 10) else None
        except OSError:
            return None

    if wait_until(decided, 20, what="it serves or refuses") == "serves":
        return True
    assert daemon.process.wait() > 0
    assert daemon.log_tail().startswith("error: "), daemon.log_tail()
    return False


KINDS = ["symlink", "dangling", "hard link", "fifo", "directory"]
NAMES = [
    "daemon.lock",
    "access.log",
    "access.log.1",
    "h-1-1.tombstone",
    "h-1-1.session",
    "h-1-1.sock",
    "h-1-1.journal",
    "h-1-1.parked",
    "z-1.sock",
    "z-1.log",
    ".h-1-1.tombstone.1.1",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_planted_among_the_files_of_a_daemon_harms_nothing_else(
    make_daemon: Callable[[], TestDaemon], kind: str, name: str
) -> None:
    daemon = make_daemon()
    victim = daemon.root / "victim"
    victim.write_text(SECRET)
    victim.chmod(0o640)
    state = daemon.runtime / "d.sock.d"
    state.mkdir(mode=0o700)
    plant(kind, state / name, victim)
    if serves(daemon):
        with daemon.session() as session:
            assert session.out("6 * 7") == "42\n"
            os.kill(session.pid, signal.SIGKILL)
            session.wait_for_state("dead")
        assert daemon.stop() == 0
    assert victim.read_text() == SECRET
    assert stat.S_IMODE(victim.stat().st_mode) == 0o640
    assert not victim.with_name("not-there").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_configuration_is_refused_by_name_or_read_as_a_file(
    make_daemon: Callable[[], TestDaemon], kind: str
) -> None:
    daemon = make_daemon()
    victim = daemon.root / "victim"
    victim.write_text("this is no configuration")
    place = daemon.home / ".config" / "pythond"
    place.mkdir(parents=True, mode=0o700)
    plant(kind, place / "config.toml", victim)
    if not serves(daemon):
        assert "config.toml" in daemon.log_tail()
    assert victim.read_text() == "this is no configuration"


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo"])
def test_what_a_session_plants_for_the_next_one_is_not_followed(
    daemon: TestDaemon, kind: str
) -> None:
    """Names of hosts' files can be guessed: the next one's are taken."""
    victim = daemon.root / "victim"
    victim.write_text(SECRET)
    state = Path(daemon.info()["runtime_dir"])
    with daemon.session() as first:
        [host] = [path for path in state.glob("h-*.sock")]
        stem, number = host.stem.rsplit("-", 1)
        planted = 0
        for ahead in range(int(number) + 1, int(number) + 40):
            for end in ("sock", "journal", "session", "tombstone"):
                # A host that is kept ready may have taken its names already.
                with contextlib.suppress(FileExistsError):
                    plant(kind, state / f"{stem}-{ahead}.{end}", victim)
                    planted += 1
        assert planted > 100
        for _ in range(6):
            made = daemon.json("new next --json")
            if made["ok"]:
                with daemon.connect() as wire:
                    assert wire.run("next", "6 * 7")["result"] == "42"
                daemon.ask("kill next")
            else:
                assert made["error"]["code"] == "spawn_failed", made
        assert first.out("6 * 7") == "42\n"
    assert victim.read_text() == SECRET
    assert processes.is_alive(daemon.pid)
    for path in state.glob("h-*"):
        if path.is_symlink() or not path.is_socket():
            subprocess.run(["rm", "-rf", str(path)], check=True)
