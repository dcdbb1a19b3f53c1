"""Sessions in control groups of their own, where one is delegated to the daemon."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Session, TestDaemon
from support.waiting import wait_until

MakeDaemon = Callable[..., TestDaemon]


def hierarchy() -> Path | None:
    """Return where cgroup v2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, kind = line.split(" - ", 1)
        if kind.startswith("cgroup2 "):
            return Path(mount.split()[4])
    return None


class Group:
    """A control group that is delegated to a daemon."""

    def __init__(self, root: Path, controllers: list[str]) -> None:
        self.path = root / f"pythond-test-{uuid.uuid4().hex[:8]}"
        enabled = (root / "cgroup.subtree_control").read_text().split()
        self.added = [name for name in controllers if name not in enabled]
        self.root = root
        for name in self.added:
            (root / "cgroup.subtree_control").write_text(f"+{name}")
        self.path.mkdir()
        # As systemd marks what it delegates.
        with contextlib.suppress(OSError):
            os.setxattr(self.path, "user.delegate", b"1")

    def start(self, daemon: TestDaemon) -> TestDaemon:
        """Start a daemon in it, as a service manager does."""
        leaf = self.path / "daemon"
        if Path("/run/systemd/system").exists():
            # As its `DelegateSubgroup=` does.
            leaf.mkdir(exist_ok=True)
        place = leaf if leaf.exists() else self.path
        daemon.wrapper = [
            "sh",
            "-c",
            f'echo $$ >{place}/cgroup.procs && exec "$@"',
            "sh",
        ]
        return daemon.start()

    def sessions(self) -> list[Path]:
        """Return the groups of sessions."""
        return sorted(self.path.glob("session-*"))

    def remove(self) -> None:
        """Remove what is left, which must be empty."""
        for path in [*self.path.iterdir(), self.path]:
            if path.is_dir():
                wait_until(lambda path=path: removed(path), what=f"{path} is empty")
        for name in self.added:
            (self.root / "cgroup.subtree_control").write_text(f"-{name}")


def removed(path: Path) -> bool:
    """Remove a group if it has no processes."""
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


@pytest.fixture
def group() -> Iterator[Group]:
    """A group that can limit processes."""
    root = hierarchy()
    if root is None:
        pytest.skip("cgroup v2 is not mounted")
    if os.geteuid() != 0:
        pytest.skip("only root may make a control group to delegate")
    there = (root / "cgroup.controllers").read_text().split()
    if "pids" not in there:
        pytest.skip("the controller `pids` is not in the cgroup v2 hierarchy")
    # What the root hands out is one for all workers.
    with (Path(tempfile.gettempdir()) / "pythond-test-groups.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            made = Group(root, [name for name in ("pids", "cpu") if name in there])
        except OSError as error:
            pytest.skip(f"no control group can be made: {error}")
        yield made
        made.remove()


@pytest.fixture
def daemon(make_daemon: MakeDaemon, group: Group) -> Iterator[TestDaemon]:
    """A daemon to which the group is delegated."""
    daemon = make_daemon()
    yield group.start(daemon)
    daemon.destroy()


def refused_thread(session: Session) -> None:
    """Start threads until no more are allowed, and let them end."""
    session.out("import threading; gate = threading.Event(); started = []")
    error = session.fails(
        "while True:\n    t = threading.Thread(target=gate.wait)\n    t.start(); started.append(t)",
        "RuntimeError",
    )
    assert "note: this session may have 20 processes and threads (--procs)\n" in error["traceback"]
    assert 15 < int(session.value("len(started)")) < 30
    error = session.fails("subprocess.run(['true'])", "BlockingIOError")
    assert "(--procs)" in error["traceback"]
    session.out("gate.set(); [t.join() for t in started]")


def test_more_processes_than_a_session_may_have_are_refused_with_the_limit(
    daemon: TestDaemon, group: Group
) -> None:
    session, other = daemon.new(limits={"procs": 20}), daemon.new()
    assert session.status()["limits"] == {"procs": 20, "enforced_by": "cgroup"}
    assert [path.name for path in group.sessions()] == [f"session-{session.pid}"]
    refused_thread(session)
    assert other.out("print(subprocess.check_output(['echo', 'other']))") == "b'other\\n'\n"
    assert session.out("print(subprocess.check_output(['echo', 'again']))") == "b'again\\n'\n"
    cell = session.submit("fork", "made = 7")["cell_id"]
    assert session.ended(cell)["status"] == "done"
    assert session.value("made") == "7"
    session.kill()
    wait_until(lambda: not group.sessions(), what="its group is removed")


def test_a_death_after_a_refusal_names_the_limit(daemon: TestDaemon, group: Group) -> None:
    session = daemon.new(limits={"procs": 20})
    refused_thread(session)
    reply = session.run("os.abort()")
    assert "SIGABRT" in reply["error"]["message"], reply
    assert "exceeded --procs 20" in reply["error"]["message"], reply
    assert "exceeded --procs 20" in session.status()["death"]["cause"]
    wait_until(lambda: not group.sessions(), what="its group is removed")


def test_the_next_daemon_goes_on_with_groups(daemon: TestDaemon, group: Group) -> None:
    session, idle = daemon.new("work", limits={"procs": 20}), daemon.new(limits={"procs": 20})
    daemon.crash()
    os.kill(idle.pid, 9)
    wait_until(lambda: len(group.sessions()) == 1, what="that of the dead session is removed")
    group.start(daemon)
    session = Session(daemon, "work", session.created)
    assert session.status()["limits"]["enforced_by"] == "cgroup"
    refused_thread(session)
    another = daemon.new(limits={"procs": 20})
    assert len(group.sessions()) == 2
    assert daemon.pyctl("restart").returncode == 0
    third = daemon.new(limits={"procs": 20})
    assert len(group.sessions()) == 3
    for name in ("work", another.name, third.name):
        assert daemon.json(f"kill {name} --json")["ok"]
    wait_until(lambda: not group.sessions(), what="all groups are removed")


def test_what_a_session_leaves_running_keeps_its_group_until_it_ends(
    daemon: TestDaemon, group: Group
) -> None:
    session = daemon.new(limits={"procs": 20})
    pid = int(session.value("subprocess.Popen(['sleep', '600'], start_new_session=True).pid"))
    session.kill()
    assert group.sessions(), "something runs in it"
    os.kill(pid, 9)
    wait_until(lambda: not group.sessions(), what="its group is removed")


def test_groups_that_nobody_removed_are_removed_by_the_next_daemon(
    daemon: TestDaemon, group: Group
) -> None:
    session = daemon.new(limits={"procs": 20})
    [zygote] = [entry["pid"] for entry in daemon.info()["zygotes"] if entry["sessions"]]
    daemon.crash()
    os.kill(zygote, 9)
    os.kill(session.pid, 9)
    assert group.sessions()
    group.start(daemon)
    wait_until(lambda: not group.sessions(), what="its group is removed")


def test_a_share_of_the_processors_is_set_where_there_is_the_controller(
    daemon: TestDaemon, group: Group
) -> None:
    reply = daemon.connect().new("work", limits={"cpu_weight": 300})
    if "cpu" in (group.path / "cgroup.subtree_control").read_text().split():
        assert reply["ok"], reply
        [path] = group.sessions()
        assert (path / "cpu.weight").read_text() == "300\n"
    else:
        assert reply["error"]["code"] == "limit"
        assert reply["error"]["message"] == (
            "`cpu_weight` cannot be limited without a control group: "
            "the daemon's group has no controller `cpu`"
        )
    assert (
        "`cpu_weight`"
        in daemon.connect().new("x", limits={"cpu_weight": 10_001})["error"]["message"]
    )


def test_a_session_without_such_limits_has_no_group(daemon: TestDaemon, group: Group) -> None:
    session = daemon.new(limits={"nofile": 100})
    assert session.status()["limits"]["enforced_by"] == "rlimit"
    assert not group.sessions()


def test_a_daemon_that_is_not_alone_in_its_group_leaves_it_alone(
    make_daemon: MakeDaemon, group: Group
) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("where systemd runs, only a daemon that it started in a subgroup has one")
    daemon = make_daemon()
    # The shell stays there, as that of a person does.
    daemon.wrapper = ["sh", "-c", f'echo $$ >{group.path}/cgroup.procs; "$@"; true', "sh"]
    daemon.start()
    reply = daemon.connect().new("work", limits={"procs": 20})
    assert reply["error"]["message"] == (
        "`procs` cannot be limited without a control group: the daemon is not alone in its group"
    )
    assert not (group.path / "daemon").exists()
    assert daemon.pyctl("stop").returncode == 0
    daemon.process.wait(20)
    daemon.destroy()
