"""Virtual environments with packages, made once and kept with the build."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path


def cache_directory() -> Path:
    """Where what was installed is kept between test runs."""
    chosen = os.environ.get("PYTHOND_TEST_CACHE")
    path = Path(chosen) if chosen else Path(__file__).parents[2] / "target" / "python-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_checked(*command: str | Path, **options: object) -> subprocess.CompletedProcess:
    """Run a command and fail with its output if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        **options,
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout[-4000:]}"
    return done


class Kept:
    """A directory that is filled once, also with several test processes.

    Used as a context manager; `fresh` says whether the body must fill `path`.
    """

    def __init__(self, *key: str) -> None:
        name = "-".join(key)[:40].replace("/", "_").replace("=", "") + "-"
        name += hashlib.sha256("\0".join(key).encode()).hexdigest()[:10]
        self.path = cache_directory() / name
        self._lock_path = cache_directory() / f"{name}.lock"

    def __enter__(self) -> Kept:
        self._lock = self._lock_path.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.fresh = not (self.path / ".complete").exists()
        if self.fresh:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.fresh and kind is None:
            (self.path / ".complete").touch()
        self._lock.close()


def venv_with(python: str | Path, *requirements: str) -> Path:
    """Return a venv of this interpreter with these packages installed."""
    with Kept("venv", str(python), *requirements) as kept:
        target = kept.path / "v"
        if kept.fresh:
            run_checked(python, "-m", "venv", target)
            if requirements:
                run_checked(target / "bin" / "python", "-m", "pip", "install", "-q", *requirements)
        return target
