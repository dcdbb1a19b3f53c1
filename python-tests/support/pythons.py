"""Which interpreters this machine has."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VERSIONS = ["3.10", "3.11", "3.12", "3.13"]

_PROBE = (
    "import json, sys, sysconfig; print(json.dumps({'version': '%d.%d' % sys.version_info[:2],"
    " 'implementation': sys.implementation.name, 'executable': sys.executable,"
    " 'shared': bool(sysconfig.get_config_var('Py_ENABLE_SHARED'))}))"
)


def probe(path: str | Path) -> dict | None:
    """Ask an interpreter what it is; None if it does not answer."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(path), "-I", "-c", _PROBE],
            capture_output=True,
            timeout=30,
            env=environment,
            check=True,
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _candidates() -> list[Path]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    paths = sorted((root / "versions").glob("3.*/bin/python3"), reverse=True)
    for version in ["3.9", *VERSIONS]:
        found = shutil.which(f"python{version}")
        if found and "/shims/" not in found:
            paths.append(Path(found))
    paths += [Path(sys.executable), Path("/usr/bin/python3")]
    return [path for path in paths if path.exists()]


@functools.cache
def discover() -> dict[str, Path]:
    """Map versions such as `3.12` to a CPython of that version, `3.9` included."""
    found: dict[str, Path] = {}
    for path in _candidates():
        facts = probe(path)
        if facts and facts["implementation"] == "cpython":
            found.setdefault(facts["version"], path)
    return found


@functools.cache
def base_python() -> Path:
    """The interpreter that the daemon finds first on its PATH in these tests."""
    return Path(sys.base_prefix) / "bin" / "python3"


def version_parameters() -> list:
    """One test parameter for each supported version; absent ones skip visibly."""
    found = discover()
    return [
        pytest.param(
            version,
            id=f"py{version}",
            marks=()
            if version in found
            else pytest.mark.skip(reason=f"CPython {version} is not on this machine"),
        )
        for version in VERSIONS
    ]
