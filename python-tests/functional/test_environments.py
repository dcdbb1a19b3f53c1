"""Which Python a session gets, why, and what works in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.pythons import VERSIONS, base_python, version_parameters
from support.venvs import venv_with
from support.waiting import wait_until


@pytest.fixture(scope="session")
def empty_venv() -> Path:
    """A venv without packages."""
    return venv_with(base_python())


def make_venv(directory: Path, python: Path | None = None) -> Path:
    """Make a venv without pip, which is quick."""
    subprocess.run(
        [str(python or base_python()), "-m", "venv", "--without-pip", str(directory)], check=True
    )
    return directory


def created(daemon: TestDaemon, *words: str | Path, **options: object) -> dict:
    """Create a session with pysh, which must work, and return its answer."""
    done = daemon.pysh("new", *words, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def name(shared_daemon: TestDaemon) -> Iterator[str]:
    """A session name whose session is ended afterwards."""
    name = shared_daemon.unused_name("env")
    yield name
    shared_daemon.ask(f"kill {name}", 30)


# The choice.


def test_the_default_is_python3_on_the_daemons_path(shared_daemon: TestDaemon, name: str) -> None:
    reply = created(shared_daemon, name)
    assert Path(reply["python"]["executable"]).resolve() == base_python().resolve()
    assert "PATH" in reply["python"]["reason"]
    assert shared_daemon.json(f"status {name}")["python"] == reply["python"]
    assert "PATH" in shared_daemon.pysh("status", name).stdout


def test_the_clients_path_does_not_matter(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    reply = created(shared_daemon, name, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert Path(reply["python"]["executable"]).resolve() == base_python().resolve()


def test_the_active_venv_comes_first(
    shared_daemon: TestDaemon, name: str, empty_venv: Path, tmp_path: Path
) -> None:
    make_venv(tmp_path / ".venv")
    reply = created(shared_daemon, name, env={"VIRTUAL_ENV": str(empty_venv)}, cwd=tmp_path)
    assert reply["python"]["executable"].startswith(str(empty_venv / "bin"))
    assert "VIRTUAL_ENV" in reply["python"]["reason"]
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(empty_venv)


def test_a_dot_venv_in_the_directory_or_above_comes_second(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / ".venv")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    reply = created(shared_daemon, name, cwd=deep)
    assert reply["python"]["executable"].startswith(str(venv / "bin"))
    assert ".venv" in reply["python"]["reason"]
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(venv)


def test_a_dot_venv_of_somebody_else_is_not_used(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory of another user")
    venv = make_venv(tmp_path / ".venv")
    os.chown(venv, 65534, 65534)
    reply = created(shared_daemon, name, cwd=tmp_path)
    assert not reply["python"]["executable"].startswith(str(venv))


def test_an_explicit_python_or_venv_beats_the_active_one(
    shared_daemon: TestDaemon, name: str, empty_venv: Path, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "mine")
    env = {"VIRTUAL_ENV": str(empty_venv)}
    reply = created(shared_daemon, name, "--venv", venv, env=env)
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(venv)
    assert "--venv" in reply["python"]["reason"]
    shared_daemon.ask(f"kill {name}")
    reply = created(shared_daemon, name, "--python", base_python(), env=env)
    assert shared_daemon.ask(f"run {name} sys.prefix") == sys.base_prefix
    assert "--python" in reply["python"]["reason"]


def test_python_and_venv_together_are_a_usage_error(shared_daemon: TestDaemon, name: str) -> None:
    done = shared_daemon.pysh("new", name, "--python", base_python(), "--venv", "/x")
    assert done.returncode == 2


def test_relative_paths_are_the_clients(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    make_venv(tmp_path / "v")
    created(shared_daemon, name, "--venv", "v", cwd=tmp_path)
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(tmp_path / "v")
    shared_daemon.ask(f"kill {name}")
    created(shared_daemon, name, "--python", "./v/bin/python", cwd=tmp_path)
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(tmp_path / "v")


def test_a_path_with_blanks_and_odd_characters_works(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "my venv é")
    created(shared_daemon, name, "--venv", venv)
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(venv)


def test_an_active_venv_that_is_gone_gets_a_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    done = shared_daemon.pysh("new", name, env={"VIRTUAL_ENV": str(tmp_path / "gone")})
    assert done.returncode == 4
    assert "gone" in done.stderr


# Versions.


@pytest.mark.parametrize("version", version_parameters())
def test_every_supported_version_runs(
    shared_daemon: TestDaemon, pythons: dict[str, Path], name: str, version: str
) -> None:
    python = pythons[version]
    reply = created(shared_daemon, name, "--python", python)
    assert reply["python"]["version"].startswith(version + ".")
    session = Session(shared_daemon, name, reply)
    assert session.value("'%d.%d' % sys.version_info[:2]") == version
    facts = json.loads(
        subprocess.run(
            [python, "-c", "import sys, json; print(json.dumps([sys.executable, sys.prefix,"
             " sys.base_prefix, sys.exec_prefix, sys.path[1:]]))"],
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            capture_output=True, check=True,
        ).stdout
    )  # fmt: skip
    ours = json.loads(
        session.value(
            "json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.path[1:]])"
        )
        or ""
    )
    assert ours == facts
    assert session.out("import ssl, ctypes, decimal, zlib, sqlite3, lzma, bz2; 'ok'") == "ok\n"


def test_all_versions_run_at_once(shared_daemon: TestDaemon, pythons: dict[str, Path]) -> None:
    there = [version for version in VERSIONS if version in pythons]
    sessions = [shared_daemon.new(python=str(pythons[version])) for version in there]
    try:
        for _ in range(3):
            seen = [session.value("'%d.%d' % sys.version_info[:2]") for session in sessions]
            assert seen == there
        zygotes = {
            zygote["version"].rpartition(".")[0] for zygote in shared_daemon.info()["zygotes"]
        }
        assert set(there) <= zygotes
    finally:
        for session in sessions:
            session.kill()


def test_a_version_that_is_too_old_gets_one_clear_line(
    shared_daemon: TestDaemon, pythons: dict[str, Path], name: str
) -> None:
    if "3.9" not in pythons:
        pytest.skip("CPython 3.9 is not on this machine")
    one_clear_line(shared_daemon, name, pythons["3.9"], "3.9", "3.10")


# Kinds of environments.


@pytest.mark.parametrize("version", version_parameters())
def test_a_venv_is_what_it_is_outside(
    shared_daemon: TestDaemon, pythons: dict[str, Path], name: str, version: str, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "v", pythons[version])
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "only_here.py").write_text("value = 5\n")
    created(shared_daemon, name, "--venv", venv)
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.value("sys.prefix") == str(venv)
    assert session.out("sys.prefix != sys.base_prefix") == "True\n"
    assert Path(session.value("sys.executable") or "").parent == venv / "bin"
    assert session.out(f"{str(packages)!r} in sys.path") == "True\n"
    assert session.out("import only_here; only_here.value") == "5\n"
    inner = "import sys; print(sys.prefix)"
    assert session.out(f"subprocess.run([sys.executable, '-c', {inner!r}]); None") == f"{venv}\n"
    assert session.out("import site; site.ENABLE_USER_SITE is not None") == "True\n"


def test_a_venv_with_system_packages_sees_them(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    subprocess.run(
        [base_python(), "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / "v"],
        check=True,
    )
    created(shared_daemon, name, "--venv", tmp_path / "v")
    assert shared_daemon.ask(f"run {name} import pip; pip.__name__") == "pip"


def test_a_venv_given_through_a_symlink_stays_that_venv(
    shared_daemon: TestDaemon, name: str, empty_venv: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(empty_venv)
    created(shared_daemon, name, "--venv", tmp_path / "link")
    assert shared_daemon.ask(f"run {name} sys.prefix") == str(tmp_path / "link")


def test_a_pyenv_shim_works(shared_daemon: TestDaemon, name: str) -> None:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    shim = root / "shims" / "python3"
    if not shim.exists():
        pytest.skip("no pyenv shims on this machine")
    expected = subprocess.run(
        [shim, "-c", "import sys; print(sys.executable)"],
        capture_output=True, text=True, check=True, env=shared_daemon.environment,
        cwd=shared_daemon.work,
    )  # fmt: skip
    created(shared_daemon, name, "--python", shim)
    executable = shared_daemon.ask(f"run {name} sys.executable")
    assert Path(executable).resolve() == Path(expected.stdout.strip()).resolve()


def test_a_shim_on_the_daemons_path_works(make_daemon: Callable[..., TestDaemon]) -> None:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    if not (root / "shims" / "python3").exists():
        pytest.skip("no pyenv shims on this machine")
    daemon = make_daemon()
    daemon.environment["PATH"] = f"{root}/shims:{root}/bin:/usr/bin:/bin"
    daemon.start()
    with daemon.session() as session:
        assert session.out("1 + 1") == "2\n"
        assert "shims" not in (session.value("sys.executable") or "")


def test_the_distributions_python_works(shared_daemon: TestDaemon, name: str) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no /usr/bin/python3 on this machine")
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, version.split()[1].split(".")[:2])) < (3, 10):
        pytest.skip(f"/usr/bin/python3 is {version.strip()}, which is too old")
    created(shared_daemon, name, "--python", python)
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.value("sys.prefix") == "/usr"
    assert session.value("sys.executable") == "/usr/bin/python3"
    assert session.out("any('dist-packages' in p for p in sys.path)") == "True\n"
    assert session.out("import ctypes, ssl; 1 + 1") == "2\n"


def test_a_python_without_a_shared_library_works(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    """Distributions link their `python3` statically; a copy with the library out of reach is one."""
    source = Path("/usr/bin/python3").resolve()
    if not source.exists() or b"libpython" in _needed(source):
        pytest.skip("no statically linked CPython on this machine")
    created(shared_daemon, name, "--python", source)
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.out("import ctypes, sqlite3; 1 + 1") == "2\n"
    start = shared_daemon.json(f"status {name}")["start"]
    assert start in ("spare", "fork", "cold")


def _needed(program: Path) -> bytes:
    tool = shutil.which("readelf")
    if not tool:
        return b"libpython"
    return subprocess.run([tool, "-d", program], capture_output=True, check=True).stdout


# Packages.


def test_numpy_and_pandas_import_and_compute(
    shared_daemon: TestDaemon, name: str, numpy_venv: Path
) -> None:
    created(shared_daemon, name, "--venv", numpy_venv)
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.value("import numpy as np\nnp.arange(6).reshape(2, 3).sum(axis=0).tolist()") == (
        "[3, 5, 7]"
    )
    assert (
        session.value(
            "a = np.random.rand(300, 300)\nbool(np.isfinite(np.linalg.inv(a @ a.T + np.eye(300))).all())"
        )
        == "True"
    )
    assert session.value("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\ndf.a.sum()") in (
        "3",
        "np.int64(3)",
    )
    assert "a" in session.out("df")
    found = {v["name"]: v for v in shared_daemon.json(f"vars {name} --json")["vars"]}
    assert found["a"]["length"] == 300
    assert found["a"]["type"] == "numpy.ndarray"
    assert found["df"]["length"] == 2


def test_preloaded_packages_are_imported_before_the_session_starts(
    shared_daemon: TestDaemon, name: str, numpy_venv: Path
) -> None:
    created(shared_daemon, name, "--venv", numpy_venv, "--preload", "numpy,pandas")
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.out("'numpy' in sys.modules and 'pandas' in sys.modules") == "True\n"
    assert session.out("'numpy' in globals()") == "False\n"
    assert session.value(
        "import numpy as np\nint(np.ones((500, 500)).dot(np.ones(500)).sum())"
    ) == ("250000")
    zygotes = [
        z for z in shared_daemon.info()["zygotes"] if sorted(z["preload"]) == ["numpy", "pandas"]
    ]
    assert len(zygotes) == 1
    assert zygotes[0]["sessions"] == 1


def test_threads_of_numerical_libraries_are_restored(
    shared_daemon: TestDaemon, name: str, numpy_venv: Path
) -> None:
    created(shared_daemon, name, "--venv", numpy_venv, "--preload", "numpy")
    session = Session(shared_daemon, name, {"pid": 0})
    count = (
        "import numpy, ctypes, glob\n"
        "path = next(iter(glob.glob(numpy.__path__[0] + '.libs/*openblas*')), None)\n"
        "lib = ctypes.CDLL(path) if path else None\n"
        "f = next((getattr(lib, n) for n in ('scipy_openblas_get_num_threads64_', 'openblas_get_num_threads64_',"
        " 'openblas_get_num_threads', 'scipy_openblas_get_num_threads') if lib and hasattr(lib, n)), None)\n"
        "f() if f else 'none'"
    )
    expected = subprocess.run(
        [numpy_venv / "bin" / "python", "-c", count.replace("f() if f else 'none'", "print(f() if f else 'none')")],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert session.value(count) == expected
    assert session.out("[k for k in os.environ if k.endswith('_NUM_THREADS')]") == "[]\n"
    code = "a = numpy.random.rand(400, 400)\nbool(numpy.isfinite(a @ a).all())"
    assert session.value(code) == "True"


def test_a_thread_limit_of_the_user_is_kept(
    shared_daemon: TestDaemon, name: str, numpy_venv: Path
) -> None:
    created(
        shared_daemon,
        name,
        "--venv",
        numpy_venv,
        "--preload",
        "numpy",
        "--env",
        "OMP_NUM_THREADS=1",
    )
    assert shared_daemon.ask(f"run {name} os.environ['OMP_NUM_THREADS']") == "1"


def test_a_module_that_cannot_be_preloaded_is_named(shared_daemon: TestDaemon, name: str) -> None:
    done = shared_daemon.pysh("new", name, "--preload", "no_such_module_at_all")
    assert done.returncode == 4
    assert "no_such_module_at_all" in done.stderr
    assert name not in shared_daemon.list()


def test_a_preloaded_module_that_starts_a_thread_works_with_a_word_about_why(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    (tmp_path / "threaded_module.py").write_text(
        "import threading\nstop = threading.Event()\n"
        "threading.Thread(target=stop.wait, daemon=True).start()\n"
    )
    reply = created(
        shared_daemon, name, "--preload", "threaded_module", "--env", f"PYTHONPATH={tmp_path}"
    )
    assert reply["start"] == "cold"
    assert "thread" in reply["cold_reason"]
    assert shared_daemon.ask(f"run {name} 'threaded_module' in sys.modules") == "True"


def test_a_preloaded_module_that_prints_or_exits_hurts_nobody(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    (tmp_path / "loud_module.py").write_text(
        "print('LOUD')\nimport sys; sys.stderr.write('LOUD')\n"
    )
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(3)\n")
    env = f"PYTHONPATH={tmp_path}"
    created(shared_daemon, name, "--preload", "loud_module", "--env", env)
    assert shared_daemon.ask(f"run {name} 1 + 1") == "2"
    shared_daemon.ask(f"kill {name}")
    done = shared_daemon.pysh("new", name, "--preload", "leaving_module", "--env", env)
    assert done.returncode in (0, 4)
    with shared_daemon.session() as other:
        assert other.out("1 + 1") == "2\n"


def test_sessions_draw_different_random_numbers(
    shared_daemon: TestDaemon, numpy_venv: Path
) -> None:
    fields = {"python": str(numpy_venv / "bin" / "python"), "preload": ["numpy", "uuid", "random"]}
    draws = []
    for _ in range(4):
        with shared_daemon.session(**fields) as session:
            draws.append(
                session.value(
                    "import random, numpy, uuid, secrets, tempfile\n"
                    "[random.random(), float(numpy.random.rand()), str(uuid.uuid4()),"
                    " str(uuid.uuid1()), secrets.token_hex(), next(tempfile._get_candidate_names())]"
                )
            )
    columns = list(zip(*[json.loads((d or "").replace("'", '"')) for d in draws], strict=True))
    for column in columns:
        assert len(set(column)) == 4, column


def test_a_package_installed_later_is_there_in_a_new_session(
    shared_daemon: TestDaemon, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "v")
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    fields = {"python": str(venv / "bin" / "python")}
    with shared_daemon.session(**fields) as session:
        session.fails("import brand_new", "ModuleNotFoundError")
        (packages / "brand_new").mkdir()
        (packages / "brand_new" / "__init__.py").write_text("value = 1\n")
        with shared_daemon.session(**fields) as later:
            assert later.value("import brand_new; brand_new.value") == "1"


def test_a_changed_preloaded_package_is_not_served_from_an_old_process(
    shared_daemon: TestDaemon, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "v")
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    fields = {"python": str(venv / "bin" / "python"), "preload": ["versioned"]}
    (packages / "versioned.py").write_text("value = 1\n")
    with shared_daemon.session(**fields) as session:
        assert session.value("import versioned; versioned.value") == "1"
    (packages / "versioned.py").unlink()
    (packages / "versioned.py").write_text("value = 22\n")
    os.utime(packages)
    with shared_daemon.session(**fields) as session:
        assert session.value("import versioned; versioned.value") == "22"


# Broken ones.


def one_clear_line(daemon: TestDaemon, name: str, python: Path, *words: str) -> None:
    """Check the refusal of an interpreter: quick, one line, exit code 4, nothing left."""
    started = time.monotonic()
    done = daemon.pysh("new", name, "--python", python, timeout=60)
    assert time.monotonic() - started < 45
    assert done.returncode == 4, done
    assert done.stdout == ""
    first = done.stderr.strip().split("\n\n")[0]
    assert len(first.splitlines()) == 1, done.stderr
    assert first.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in (python.name, *words):
        assert word in done.stderr, done.stderr
    reply = daemon.json(f"new {name} --json\n{json.dumps({'python': str(python)})}")
    assert reply["error"]["code"] in ("environment", "spawn_failed"), reply
    assert "\n" not in reply["error"]["message"]
    assert "\n" not in daemon.ask(f"new {name}\n{json.dumps({'python': str(python)})}")
    assert name not in daemon.list()
    with daemon.session() as other:
        assert other.out("1 + 1") == "2\n"


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    """Write an executable file."""
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_interpreter_that_is_missing_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    one_clear_line(shared_daemon, name, tmp_path / "no-python-here")


def test_an_interpreter_that_is_not_executable_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    one_clear_line(shared_daemon, name, script(tmp_path / "plain-file", "text", 0o644))


def test_a_directory_instead_of_an_interpreter_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    (tmp_path / "a-directory").mkdir()
    one_clear_line(shared_daemon, name, tmp_path / "a-directory")


def test_a_program_that_is_not_python_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str
) -> None:
    one_clear_line(shared_daemon, name, Path("/bin/true"))
    one_clear_line(shared_daemon, name, Path("/bin/cat"))


def test_a_script_that_fails_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    text = "#!/bin/sh\necho 'cannot start: broken' >&2\nexit 1\n"
    one_clear_line(shared_daemon, name, script(tmp_path / "failing-python", text))


def test_a_script_that_prints_nonsense_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    text = "#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' '{'\n"
    one_clear_line(shared_daemon, name, script(tmp_path / "babbling-python", text))


def test_a_file_that_is_no_program_gets_one_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "corrupt-python"
    path.write_bytes(b"\x7fELF" + bytes(200))
    path.chmod(0o755)
    one_clear_line(shared_daemon, name, path)


def test_an_interpreter_that_hangs_is_bounded(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    text = "#!/bin/sh\nexec sleep 300\n"
    python = script(tmp_path / "hanging-python", text)
    started = time.monotonic()
    done = shared_daemon.pysh("new", name, "--python", python, timeout=100)
    assert time.monotonic() - started < 60
    assert done.returncode == 4
    assert "hanging-python" in done.stderr
    wait_until(
        lambda: not [c for c in shared_daemon.processes().values() if "sleep 300" in c],
        what="the hanging program is gone",
    )


def test_a_hanging_interpreter_delays_nobody_else(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    python = script(tmp_path / "hanging-python", "#!/bin/sh\nexec sleep 300\n")
    with shared_daemon.connect() as wire:
        wire.send(f"new {name} --json\n{json.dumps({'python': str(python)})}")
        started = time.monotonic()
        with shared_daemon.session() as other:
            assert other.out("1 + 1") == "2\n"
        assert time.monotonic() - started < 5
        assert json.loads(wire.receive(100))["ok"] is False


def test_an_environment_without_its_standard_library_gets_a_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    done = shared_daemon.pysh(
        "new", name, "--python", base_python(), "--env", f"PYTHONHOME={tmp_path}"
    )
    assert done.returncode == 4
    assert "encodings" in done.stderr or str(base_python()) in done.stderr
    with shared_daemon.session() as other:
        assert other.out("1 + 1") == "2\n"


def test_a_venv_whose_base_is_gone_gets_a_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "v")
    for link in (venv / "bin").glob("python*"):
        link.unlink()
    (venv / "bin" / "python3").symlink_to(tmp_path / "gone")
    (venv / "bin" / "python").symlink_to("python3")
    done = shared_daemon.pysh("new", name, "--venv", venv)
    assert done.returncode == 4
    assert str(venv) in done.stderr


def test_a_directory_that_is_no_venv_gets_a_clear_line(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    done = shared_daemon.pysh("new", name, "--venv", tmp_path)
    assert done.returncode in (2, 4)
    assert str(tmp_path) in done.stderr


def test_a_daemon_without_any_python_starts_and_says_so(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    daemon.environment["PATH"] = str(tmp_path)
    daemon.start()
    done = daemon.pysh("new", "a", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 4
    assert "python3" in done.stderr
    done = daemon.pysh("new", "a", "--python", base_python())
    assert done.returncode == 0, done.stderr


def test_a_sitecustomize_that_fails_or_prints_does_not_break_sessions(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "v")
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "sitecustomize.py").write_text("print('site prints')\nraise RuntimeError('site')\n")
    (packages / "odd.pth").write_text("import sys; sys.stderr.write('pth')\n")
    created(shared_daemon, name, "--venv", venv)
    assert shared_daemon.ask(f"run {name} 1 + 1") == "2"


# Variables of the environment.


def test_time_zone_and_language_can_be_set(shared_daemon: TestDaemon, name: str) -> None:
    created(shared_daemon, name, "--env", "TZ=Asia/Tokyo", "--env", "LANG=C.UTF-8")
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.value("time.tzname[0], time.timezone") == "('JST', -32400)"
    assert session.value("time.localtime(0).tm_hour") == "9"
    with shared_daemon.session(env={"TZ": "UTC"}) as other:
        assert other.value("time.localtime(0).tm_hour") == "0"


def test_interpreter_variables_take_effect(
    shared_daemon: TestDaemon, name: str, tmp_path: Path
) -> None:
    (tmp_path / "by_path.py").write_text("value = 3\n")
    created(
        shared_daemon, name,
        "--env", f"PYTHONPATH={tmp_path}", "--env", "PYTHONHASHSEED=0",
        "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "PYTHONUTF8=1",
    )  # fmt: skip
    session = Session(shared_daemon, name, {"pid": 0})
    assert session.value("import by_path; by_path.value") == "3"
    assert session.value("sys.flags.hash_randomization, sys.dont_write_bytecode") == "(0, True)"
    assert session.value("sys.flags.utf8_mode") == "1"


def test_variables_of_one_session_do_not_reach_another(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session(env={"ONLY_ONE": "1"}) as one, shared_daemon.session() as two:
        assert one.value("os.environ.get('ONLY_ONE')") == "1"
        assert two.value("'ONLY_ONE' in os.environ") == "False"
        one.out("os.environ['LATER'] = '1'; sys.path.append('/later')")
        with shared_daemon.session() as three:
            assert three.value("'LATER' in os.environ or '/later' in sys.path") == "False"


def test_the_environment_in_c_is_that_of_python(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session(env={"FOR_C": "yes"}) as session:
        code = (
            "import ctypes; f = ctypes.CDLL(None).getenv; f.restype = ctypes.c_char_p; f(b'FOR_C')"
        )
        assert session.value(code) == "b'yes'"


def test_info_names_the_environments_that_are_ready(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        zygotes = shared_daemon.info()["zygotes"]
        mine = [z for z in zygotes if z["python"] == session.created["python"]["executable"]]
        assert mine
        assert any(zygote["sessions"] >= 1 for zygote in mine)
        for zygote in zygotes:
            assert zygote["pid"] > 0
            assert zygote["version"].startswith("3.")
            assert Path(f"/proc/{zygote['pid']}").exists()


def test_a_second_session_of_an_environment_comes_from_its_zygote(daemon: TestDaemon) -> None:
    daemon.new()
    second = daemon.new()
    assert second.created["start"] in ("spare", "fork")
    assert "cold_reason" not in second.created


def test_a_zygote_that_is_killed_is_replaced(daemon: TestDaemon) -> None:
    first = daemon.new()
    first.out("x = 1")
    (zygote,) = daemon.info()["zygotes"]
    os.kill(zygote["pid"], 9)
    wait_until(
        lambda: zygote["pid"] not in [z["pid"] for z in daemon.info()["zygotes"]],
        what="the daemon knows that the zygote is gone",
    )
    with daemon.connect() as wire:
        assert wire.json("new second --json", 20)["ok"], "a new session does not hang"
        assert wire.run("second", "1 + 1")["stdout"] == "2\n"
    assert first.out("x") == "1\n", "a session outlives its zygote"
