"""Who may reach the daemon, and whom the clients believe."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.waiting import wait_until

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root with setpriv can become another user",
)

HANDSHAKE = (
    "GET / HTTP/1.1\\r\\nHost: localhost\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
)
KNOCK = f"""
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(2)
try:
    s.connect(sys.argv[1])
    s.sendall(b"{HANDSHAKE}")
    print("answer", s.recv(4096))
except OSError as error:
    print("refused", type(error).__name__)
"""


def as_nobody(*command: str) -> list[str]:
    """Return a command that runs as another user."""
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]


def system_python() -> str:
    """An interpreter that another user can start."""
    for path in ("/usr/bin/python3", sys.executable):
        done = subprocess.run(as_nobody(path, "-c", "0"), capture_output=True, cwd="/")
        if done.returncode == 0:
            return path
    pytest.skip("no interpreter that another user can start")


def knock(socket_path: Path) -> str:
    """Try a handshake as another user and return what came of it."""
    done = subprocess.run(
        as_nobody(system_python(), "-c", KNOCK, str(socket_path)),
        capture_output=True, text=True, timeout=30, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def mode(path: Path) -> int:
    """Permission bits of a path."""
    return stat.S_IMODE(path.lstat().st_mode)


def test_sockets_and_directories_are_private(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        session.out("import os; previous = os.umask(0)")
        assert mode(shared_daemon.socket) == 0o600
        assert mode(shared_daemon.socket.parent) == 0o700
        info_dir = Path(shared_daemon.info()["runtime_dir"])
        assert mode(info_dir) == 0o700
        sockets = [path for path in shared_daemon.runtime.rglob("*") if path.is_socket()]
        assert len(sockets) >= 2
        for path in sockets:
            assert mode(path) == 0o600, path
            assert mode(path.parent) == 0o700, path
            assert len(str(path)) <= 107


def test_a_lax_umask_makes_nothing_public(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    old = os.umask(0)
    try:
        daemon.start()
    finally:
        os.umask(old)
    daemon.new("work").out("x = 1")
    for top in (daemon.runtime, daemon.home / ".pythond"):
        for path in [top, *top.rglob("*")]:
            assert mode(path) & 0o077 == 0, path


def test_no_abstract_socket_is_used(shared_daemon: TestDaemon) -> None:
    inodes = set()
    for pid in shared_daemon.processes():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[7].startswith("@"):
            assert f"socket:[{fields[6]}]" not in inodes, line


def test_no_tcp_port_is_open(shared_daemon: TestDaemon) -> None:
    inodes = set()
    for fd in os.listdir(f"/proc/{shared_daemon.pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{shared_daemon.pid}/fd/{fd}"))
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes, line


@needs_root
def test_another_user_cannot_connect(daemon: TestDaemon) -> None:
    assert knock(daemon.socket).startswith("refused")


@needs_root
def test_another_user_is_refused_even_on_an_open_socket(daemon: TestDaemon) -> None:
    daemon.new("work")
    daemon.root.chmod(0o755)
    daemon.runtime.chmod(0o755)
    daemon.socket.chmod(0o666)
    answer = knock(daemon.socket)
    assert "101" not in answer
    daemon.socket.chmod(0o600)
    daemon.runtime.chmod(0o700)
    assert daemon.ask("run work 1 + 1") == "2"


@needs_root
def test_another_user_cannot_reach_a_host_even_on_open_sockets(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    daemon.root.chmod(0o755)
    opened = [daemon.runtime, *daemon.runtime.rglob("*")]
    modes = {path: mode(path) for path in opened if not path.is_symlink()}
    for path in modes:
        path.chmod(0o777)
    for path in [path for path in modes if path.is_socket()]:
        assert "answer b'H" not in knock(path)
        assert "101" not in knock(path)
    for path, old in modes.items():
        if path.exists():
            path.chmod(old)
    assert session.out("1 + 1") == "2\n"


LISTENER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
import os
os.chmod(sys.argv[1], 0o666)
s.listen(8)
print("listening", flush=True)
while True:
    c, _ = s.accept()
    c.settimeout(2)
    try:
        data = c.recv(65536)
    except OSError:
        data = b""
    print("got", len(data), flush=True)
    c.close()
"""


@pytest.fixture
def foreign_socket(make_daemon: Callable[..., TestDaemon]) -> Iterator[tuple[TestDaemon, Path]]:
    """A socket of another user, and what it received."""
    daemon = make_daemon()
    daemon.root.chmod(0o755)
    place = daemon.root / "foreign"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    path = place / "pythond.sock"
    log = daemon.root / "received"
    with log.open("w") as out:
        process = subprocess.Popen(
            as_nobody(system_python(), "-c", LISTENER, str(path)), stdout=out, cwd="/"
        )
    try:
        wait_until(lambda: "listening" in log.read_text(), what="the other user listens")
        daemon.environment["PYTHOND_SOCK"] = str(path)
        yield daemon, log
    finally:
        process.kill()
        process.wait(10)


@needs_root
def test_clients_say_nothing_to_a_socket_of_another_user(
    foreign_socket: tuple[TestDaemon, Path],
) -> None:
    daemon, log = foreign_socket
    for program, words in (("pysh", ["run", "work", "SECRET"]), ("pysh", ["ls"]), ("pyctl", ["stop"]),
                           ("pyctl", ["status"])):  # fmt: skip
        done = daemon.client(program, *words)
        assert done.returncode in (3, 4), done
        assert done.returncode == 3 or "error: " in done.stderr
    received = [line for line in log.read_text().splitlines() if line.startswith("got")]
    assert all(line == "got 0" for line in received), received


@needs_root
def test_a_daemon_does_not_take_a_directory_of_another_user(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    os.chown(daemon.runtime, NOBODY, NOBODY)
    process = daemon.spawn()
    assert process.wait(20) == 4
    assert str(daemon.runtime) in daemon.log_tail()
    assert daemon.runtime.stat().st_uid == NOBODY


def test_the_mode_of_a_directory_that_is_not_ours_is_never_changed(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    daemon.runtime.chmod(0o755)
    process = daemon.process = daemon.spawn()

    def settled() -> bool:
        return process.poll() is not None or daemon.socket.exists()

    wait_until(settled)
    assert mode(daemon.runtime) == 0o755
    if process.poll() is None:
        assert mode(daemon.socket) == 0o600


def test_a_records_directory_that_others_may_write_is_not_used_silently(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    top = daemon.home / ".pythond"
    top.mkdir()
    top.chmod(0o777)
    process = daemon.process = daemon.spawn()
    wait_until(lambda: process.poll() is not None or daemon.socket.exists())
    if process.poll() is None:
        reply = daemon.json("new work --json")
        if reply["ok"]:
            assert daemon.json("run work --json\n1")["ok"]
            wait_until(
                lambda: daemon.json("status work").get("not_recorded"),
                what="the client is told that nothing is recorded",
            )
    assert mode(top) == 0o777


def test_a_request_from_a_web_page_is_refused(shared_daemon: TestDaemon) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(shared_daemon.socket))
        request = HANDSHAKE.encode().decode("unicode_escape").encode()
        sock.sendall(request.replace(b"Host:", b"Origin: http://evil.example\r\nHost:", 1))
        assert sock.recv(4096).startswith(b"HTTP/1.1 403")


def test_a_session_inherits_no_descriptor_of_the_daemon(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as one, shared_daemon.session() as two:
        listing = (
            "sorted({os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
            " if os.path.lexists(f'/proc/self/fd/{n}')})"
        )
        first, second = one.value(listing) or "", two.value(listing) or ""
        assert "access.log" not in first
        mine = {word for word in first.strip("[]").split(", ") if word.startswith("'socket:")}
        other = {word for word in second.strip("[]").split(", ") if word.startswith("'socket:")}
        assert not mine & other, "two sessions share a socket"


def test_a_child_of_a_cell_inherits_nothing_but_its_streams(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        out = session.out("os.system('ls -l /proc/self/fd | wc -l; ls /proc/self/fd')")
        numbers = [int(word) for word in out.split()[1:] if word.isdigit()]
        assert {n for n in numbers if n > 2} <= {3}, out


def test_a_session_has_no_secret_of_the_daemon_in_its_environment(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon(PYTHOND_TOKEN="SECRET_TOKEN").start()
    session = daemon.new("work")
    assert "SECRET" not in (session.value("dict(os.environ)") or "")
    assert "SECRET" not in (session.value("open('/proc/self/environ').read()") or "")
    pids = [pid for pid in daemon.processes() if pid != daemon.pid]
    for pid in pids:
        with contextlib.suppress(OSError):
            assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()
