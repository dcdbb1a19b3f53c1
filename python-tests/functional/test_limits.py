"""What one session may use, and what is said when it wants more."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def limited(shared_daemon: TestDaemon) -> Iterator[Callable[..., Session]]:
    """Make sessions with limits; they are ended afterwards."""
    made: list[Session] = []

    def make(**limits: int) -> Session:
        made.append(shared_daemon.new(limits=limits))
        return made[-1]

    yield make
    for session in made:
        session.kill()


def test_memory_that_is_used_up_is_a_memory_error_with_the_limit(
    limited: Callable[..., Session],
) -> None:
    session = limited(memory_bytes=256 * MIB)
    session.out("kept = bytearray(50 << 20)")
    error = session.fails("bytearray(300 << 20)", "MemoryError")
    assert error["traceback"].endswith(
        "note: this session may use 256 MiB of memory (--memory)\n"
    ), error
    assert session.value("len(kept)") == str(50 * MIB)
    status = session.status()
    assert status["limits"] == {"memory_bytes": 256 * MIB, "enforced_by": "rlimit"}


def test_address_space_that_is_only_reserved_does_not_count(
    limited: Callable[..., Session],
) -> None:
    session = limited(memory_bytes=128 * MIB)
    code = "import mmap; m = mmap.mmap(-1, 8 << 30, prot=mmap.PROT_READ); len(m)"
    assert session.value(code) == str(8 << 30)


def test_a_session_filled_to_the_brim_goes_on(limited: Callable[..., Session]) -> None:
    """Nothing is left for the next cell, which has to be told and to let go."""
    session = limited(memory_bytes=128 * MIB)
    fill = "kept = []\nwhile True: kept.append(bytearray(SIZE))"
    for size in (5_000_000, 100_000, 1000, 40):
        session.fails(fill.replace("SIZE", str(size)), "MemoryError")
        for _ in range(3):
            session.fails("more = bytearray(8 << 20)", "MemoryError")
        session.out("kept.clear()")
        assert session.value("1 + 1") == "2"
        again = f"len([bytearray({size}) for _ in range({(20 << 20) // (size + 64)})])"
        assert session.value(again) == str((20 << 20) // (size + 64))


def test_a_fire_cell_that_fills_memory_ends_and_the_session_goes_on(
    limited: Callable[..., Session],
) -> None:
    session = limited(memory_bytes=128 * MIB)
    cell = session.fire("kept = []\nwhile True: kept.append(bytearray(1000))")
    end = session.ended(cell)
    assert end["error"]["type"] == "MemoryError", end
    session.out("kept.clear()")
    assert session.value("1 + 1") == "2"


def test_numpy_raises_a_memory_error(limited: Callable[..., Session], numpy_venv: Path) -> None:
    session = limited(memory_bytes=512 * MIB)
    python = str(numpy_venv / "bin" / "python")
    limits = {"memory_bytes": 512 * MIB}
    assert session.daemon.connect().new(session.name, python=python, limits=limits, replace=True)[
        "ok"
    ]
    session.out("import numpy")
    error = session.fails("numpy.ones(1 << 28)")
    assert "MemoryError" in error["type"], error
    assert "--memory" in error["traceback"]
    assert session.value("int(numpy.ones(1 << 20).sum())") == str(1 << 20)


def test_children_of_a_session_are_under_its_limits(limited: Callable[..., Session]) -> None:
    session = limited(memory_bytes=256 * MIB, nofile=100, cpu_s=1000)
    code = "import resource as r; [r.getrlimit(x)[0] for x in (r.RLIMIT_DATA, r.RLIMIT_NOFILE)]"
    assert session.value(code) == f"[{256 * MIB}, 100]"
    cell = session.submit("fork", "import resource as r\nd = r.getrlimit(r.RLIMIT_DATA)[0]")
    assert session.ended(cell["cell_id"])["status"] == "done"
    assert session.value("d") == str(256 * MIB)
    told = session.out(
        "print(subprocess.run([sys.executable, '-c', "
        "'bytearray(300 << 20)'], stderr=subprocess.PIPE, text=True).stderr)"
    )
    assert "MemoryError" in told
    cell = session.submit("fork", "bytearray(300 << 20)")
    assert session.ended(cell["cell_id"])["error"]["type"] == "MemoryError"
    assert session.value("1 + 1") == "2"


def test_a_session_that_exceeds_its_processor_time_is_killed_by_name(
    limited: Callable[..., Session],
) -> None:
    session = limited(cpu_s=1)
    reply = session.run("while True: pass")
    assert reply["error"]["code"] == "session_died", reply
    assert "killed: exceeded --cpu 1 while cell" in reply["error"]["message"]
    death = session.status()["death"]
    assert death["cause"] == "killed: exceeded --cpu 1"
    assert death["end"] == {"how": "signaled", "signal": 24, "out_of_memory": False}


def test_one_that_does_not_heed_the_signal_is_killed_by_name_too(
    limited: Callable[..., Session],
) -> None:
    session = limited(cpu_s=1)
    session.out("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)")
    reply = session.run("while True: pass")
    assert "killed: exceeded --cpu 1" in reply["error"]["message"], reply
    assert session.status()["death"]["end"]["signal"] == 9


def test_the_signal_alone_is_not_taken_for_the_limit(limited: Callable[..., Session]) -> None:
    session = limited(cpu_s=1000)
    reply = session.run("import signal; os.kill(os.getpid(), signal.SIGXCPU)")
    assert "SIGXCPU" in reply["error"]["message"], reply
    assert "--cpu" not in reply["error"]["message"]


def test_a_fork_cell_that_exceeds_its_processor_time_costs_itself_only(
    limited: Callable[..., Session],
) -> None:
    session = limited(cpu_s=2)
    cell = session.submit("fork", "while True: pass")["cell_id"]
    end = session.ended(cell)
    assert end["status"] == "killed"
    assert "exceeded --cpu 2" in end["error"]["message"], end
    assert session.value("1 + 1") == "2"


def test_a_death_by_memory_names_the_limit(limited: Callable[..., Session]) -> None:
    session = limited(memory_bytes=128 * MIB)
    reply = session.run(
        "sys.stderr.write('terminate called after throwing std::bad_alloc\\n'); os.abort()"
    )
    assert reply["error"]["message"].endswith(
        "killed by SIGABRT (abort), probably out of memory (limit 128 MiB) "
        f"while cell {reply['cell_id']} ran"
    ), reply


def test_files_that_are_used_up_are_an_error_with_the_limit(
    limited: Callable[..., Session],
) -> None:
    session = limited(nofile=64)
    error = session.fails("kept = []\nwhile True: kept.append(open('/dev/null'))", "OSError")
    assert "Too many open files" in error["message"]
    assert error["traceback"].endswith("note: this session may have 64 files open (--nofile)\n")
    # All our own work goes on beside it.
    assert session.value("len(kept) > 40") == "True"
    cell = session.fire("print('beside')")
    assert session.ended(cell)["stdout"] == "beside\n"
    assert session.status()["state"] == "idle"
    session.out("kept.clear()")
    cell = session.submit("fork", "forked = 1")["cell_id"]
    assert session.ended(cell)["status"] == "done"
    assert session.value("forked") == "1"
    assert session.out("print(subprocess.check_output(['echo', 'child']))") == "b'child\\n'\n"
    assert session.ask("stack")["ok"]


def test_a_session_with_few_files_is_taken_over_by_the_next_daemon(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    session = daemon.new("few", limits={"nofile": 64, "memory_bytes": 256 * MIB, "cpu_s": 5000})
    session.out("kept = 1")
    before = session.status()["limits"]
    for _ in range(3):
        daemon.crash()
        daemon.start()
        wait_until(
            lambda: daemon.json("status few --json").get("state") == "idle",
            what="the session is taken over",
        )
        assert daemon.json("run few --json\nkept")["result"] == "1"
        assert daemon.json("status few --json")["limits"] == before
    assert before == {
        "nofile": 64,
        "memory_bytes": 256 * MIB,
        "cpu_s": 5000,
        "enforced_by": "rlimit",
    }
    reply = daemon.json("run few --json\nimport resource; resource.getrlimit(7)[0]")
    assert reply["result"] == "64"


def test_a_death_while_no_daemon_ran_names_the_limit(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    session = daemon.new("hot", limits={"cpu_s": 1})
    session.fire("time.sleep(0.3)\nwhile True: pass")
    daemon.crash()
    wait_until(
        lambda: all(pid != session.pid for pid in daemon.processes()),
        what="the session has used up its time",
    )
    daemon.start()
    death = wait_until(
        lambda: daemon.json("status hot --json").get("death"), what="the death is told"
    )
    assert death["cause"] == "killed: exceeded --cpu 1"


def test_a_replacement_does_not_inherit_limits(limited: Callable[..., Session]) -> None:
    session = limited(nofile=100)
    assert session.status()["limits"]["nofile"] == 100
    assert session.daemon.json(f"new {session.name} --json --replace")["ok"]
    assert "limits" not in session.status()


def test_defaults_come_from_the_configuration_and_can_be_overridden(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    place = daemon.home / ".config" / "pythond"
    place.mkdir(parents=True)
    (place / "config.toml").write_text('[session]\nmemory = "1.5G"\nnofile = 300\n')
    daemon.start()
    assert daemon.pysh("new", "plain").returncode == 0
    assert daemon.json("status plain")["limits"] == {
        "memory_bytes": 3 << 29,
        "nofile": 300,
        "enforced_by": "rlimit",
    }
    assert daemon.pysh("new", "own", "--memory", "200M", "--nofile", "0").returncode == 0
    assert daemon.json("status own")["limits"] == {
        "memory_bytes": 200 * MIB,
        "enforced_by": "rlimit",
    }
    assert daemon.pysh("new", "free", "--memory=0", "--nofile=0").returncode == 0
    assert "limits" not in daemon.json("status free")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--memory", "2X"], "a size is a number of bytes"),
        (["--memory", "1M"], "`memory_bytes` is 1048576, and a session needs at least 67108864"),
        (["--nofile", "10"], "`nofile` is 10, and a session needs at least 64"),
        (["--nofile", "99999999999"], "`nofile` cannot be 99999999999: the daemon itself may"),
        (["--cpu", "-1"], "unexpected argument '-1'"),
        (["--procs", "5"], "`procs` cannot be limited without a control group: "),
        (["--cpu-weight", "5"], "`cpu_weight` cannot be limited without a control group: "),
        (["--cpu-weight", "10001"], "`cpu_weight` is 10001, which is too much"),
        (["--procs", "x"], "invalid value 'x' for '--procs <N>'"),
    ],
)
def test_limits_that_cannot_be_are_refused(
    shared_daemon: TestDaemon, words: list[str], told: str
) -> None:
    if words[0] == "--procs" and os.geteuid() != 0 and "control group" in told:
        pytest.skip("for others than root the kernel counts a user's processes")
    name = shared_daemon.unused_name()
    done = shared_daemon.pysh("new", name, *words)
    assert done.returncode in (2, 4), done
    assert told in done.stderr
    assert name not in shared_daemon.ask("ls")


def test_limits_in_the_body_are_checked(shared_daemon: TestDaemon) -> None:
    for body, told in [
        ('{"limits": {"memory": 1}}', "unknown field"),
        ('{"limits": {"nofile": -1}}', "invalid value"),
        ('{"limits": {"nofile": "many"}}', "invalid type"),
        ('{"limits": 5}', "invalid type"),
        ('{"limits": {"cpu_s": 18446744073709551615}}', "too much"),
    ]:
        reply = shared_daemon.json(f"new bad --json\n{body}")
        assert reply["error"]["code"] == "usage", reply
        assert told in reply["error"]["message"], reply


def test_memory_that_the_environment_takes_already_is_refused_and_costs_no_session(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    (daemon.work / "large.py").write_text("kept = bytearray(b'x') * (100 << 20)\n")
    path = {"PYTHONPATH": str(daemon.work)}
    old = daemon.new("work")
    reply = daemon.connect().new(
        "work", env=path, preload=["large"], replace=True, limits={"memory_bytes": 100 * MIB}
    )
    assert reply["error"]["code"] == "limit", reply
    assert "too little: this Python with its modules takes" in reply["error"]["message"]
    assert old.value("1") == "1"


STRANGER = 54_321
"""A user who has no processes."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a daemon as another user")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_without_a_control_group_all_processes_of_the_user_count(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    daemon.wrapper = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    tried = subprocess.run(
        [*daemon.wrapper, str(daemon.binaries / "pythond"), "version"], capture_output=True
    )
    if tried.returncode != 0:
        pytest.skip("another user may not run our programs")
    for path in (daemon.root, *daemon.root.rglob("*")):
        os.chown(path, STRANGER, STRANGER)
    daemon.environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    daemon.process = daemon.spawn()

    def pysh(*words: str) -> subprocess.CompletedProcess[str]:
        program = [*daemon.wrapper, str(daemon.binaries / "pysh"), *words]
        return subprocess.run(
            program,
            env=daemon.environment,
            cwd=daemon.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    wait_until(lambda: pysh("ls").returncode == 0, what="the daemon answers its user")
    made = pysh("new", "work", "--python", "/usr/bin/python3", "--procs", "80")
    if "libpython" in made.stderr or "No such file" in made.stderr:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made
    assert '"enforced_by":"rlimit"' in pysh("status", "work", "--json").stdout.replace(" ", "")
    done = pysh(
        "run",
        "work",
        "import threading; gate = threading.Event(); started = []\n"
        "while True:\n    t = threading.Thread(target=gate.wait)\n    t.start(); started.append(t)",
    )
    assert done.returncode == 1
    assert "RuntimeError: can't start new thread\n" in done.stderr
    assert "note: this session may have 80 processes and threads (--procs)\n" in done.stderr
    started = pysh("run", "work", "len(started)").stdout
    assert 20 < int(started) < 80
    pysh("run", "work", "gate.set(); [t.join() for t in started]; None")
    again = pysh("run", "work", "subprocess.check_output(['echo', 'again'])")
    assert again.stdout == "b'again\\n'\n", again
