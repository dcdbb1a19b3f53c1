"""The daemon's own life: start, stop, crash, adoption, access log."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support import processes
from support.daemon import TestDaemon
from support.waiting import wait_until

# Start.


def test_a_second_start_refuses_and_names_the_first(daemon: TestDaemon) -> None:
    daemon.new("work").out("x = 1")
    for program, words in (
        ("pythond", ["daemon"]),
        ("pyctl", ["start"]),
        ("pyctl", ["start", "-d"]),
    ):
        done = daemon.client(program, *words)
        assert done.returncode == 4, done
        assert str(daemon.pid) in done.stderr
        assert len(done.stderr.strip().split("\n\n")[0].splitlines()) == 1
    assert daemon.ask("run work x") == "1"
    assert daemon.info()["pid"] == daemon.pid


def test_twenty_starts_at_once_have_one_winner(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    started = [daemon.spawn() for _ in range(20)]
    wait_until(lambda: [p.poll() for p in started].count(None) == 1, what="one is left")
    daemon.process = next(process for process in started if process.poll() is None)
    daemon.wait_until_it_answers()
    assert daemon.info()["pid"] == daemon.pid
    assert {process.poll() for process in started} == {None, 4}


def test_a_stale_socket_is_taken_over(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(daemon.socket))
    daemon.start()
    assert daemon.ask("ls") == "(no sessions)"


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_another_file_at_the_path_is_not_touched(
    make_daemon: Callable[..., TestDaemon], kind: str
) -> None:
    daemon = make_daemon()
    if kind == "file":
        daemon.socket.write_text("precious")
    elif kind == "directory":
        daemon.socket.mkdir()
    elif kind == "symlink":
        (daemon.root / "precious").write_text("precious")
        daemon.socket.symlink_to(daemon.root / "precious")
    else:
        os.mkfifo(daemon.socket)
    before = daemon.socket.lstat()
    process = daemon.spawn()
    assert process.wait(20) == 4
    assert str(daemon.socket) in daemon.log_tail()
    after = daemon.socket.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime,
    )


def test_a_detached_start_tells_of_the_daemon_as_json(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    words = ["start", "-d", "--listen=127.0.0.1:0", "--tls", "--show-token", "--json"]
    done = daemon.pyctl(*words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["pid"] == daemon.info()["pid"]
    assert told["token"] == daemon.pyctl("token", "show").stdout.strip()
    assert told["fingerprint"] == told["network"]["certificate"]
    again = daemon.pyctl("start", "-d", "--json")
    assert again.returncode == 4
    error = json.loads(again.stdout)["error"]
    assert str(told["pid"]) in error["message"]
    assert not error["message"].startswith("error: ")
    assert daemon.pyctl("stop").returncode == 0
    in_front = daemon.pyctl("start", "--json")
    assert in_front.returncode == 2
    assert "--detach" in json.loads(in_front.stdout)["error"]["message"]


def test_detached_start_returns_when_the_socket_answers(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    for program, words in (("pyctl", ["start", "-d"]), ("pythond", ["daemon", "-d"])):
        daemon = make_daemon()
        done = daemon.client(program, *words, timeout=30)
        assert done.returncode == 0, done
        assert daemon.ask("ls") == "(no sessions)"
        pid = daemon.info()["pid"]
        assert str(pid) in done.stdout
        assert os.getsid(pid) != os.getsid(0)
        assert os.stat(f"/proc/{pid}/fd/0").st_rdev == os.stat("/dev/null").st_rdev
        assert daemon.new("a").out("1 + 1") == "2\n"
        assert daemon.pyctl("stop").returncode == 0
        wait_until(lambda pid=pid: not processes.is_alive(pid), what="the daemon is gone")


@pytest.mark.parametrize(("program", "words"), [("pyctl", "start -d"), ("pythond", "daemon -d")])
def test_a_detached_daemon_does_not_keep_what_its_caller_has_open(
    make_daemon: Callable[..., TestDaemon], program: str, words: str
) -> None:
    daemon = make_daemon()
    reader, writer = os.pipe()
    high = fcntl.fcntl(writer, fcntl.F_DUPFD, 700)
    done = daemon.client(program, *words.split(), timeout=30, pass_fds=(writer, high))
    assert done.returncode == 0, done
    os.close(writer)
    os.close(high)
    # Whoever waits for the end of the pipe gets it.
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""
    os.close(reader)
    held = processes.open_files(daemon.info()["pid"])
    assert not any(target.startswith("pipe:") for target in held), held
    assert daemon.pyctl("stop").returncode == 0


def test_a_detached_start_that_fails_says_why(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    daemon.socket.write_text("precious")
    done = daemon.pyctl("start", "-d", timeout=30)
    assert done.returncode == 4
    assert str(daemon.socket) in done.stderr


def test_variables_with_nonsense_are_refused(make_daemon: Callable[..., TestDaemon]) -> None:
    for name, value in (("PYTHOND_MAX_SESSIONS", "many"), ("PYTHOND_MAX_SESSIONS", "0"),
                        ("PYTHOND_MAX_WS_PAYLOAD", "-1")):  # fmt: skip
        daemon = make_daemon(**{name: value})
        assert daemon.spawn().wait(20) == 2
        assert name in daemon.log_tail()


def test_the_default_place_is_the_private_runtime_directory(
    make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    xdg = daemon.root / "xdg"
    xdg.mkdir(mode=0o700)
    del daemon.environment["PYTHOND_SOCK"]
    daemon.environment["XDG_RUNTIME_DIR"] = str(xdg)
    daemon.socket = xdg / "pythond.sock"
    daemon.start()
    assert daemon.pysh("new", "a").returncode == 0
    assert daemon.pysh("run", "a", "1 + 1").stdout == "2\n"


def test_an_unsafe_runtime_directory_is_not_used(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    xdg, temporary = daemon.root / "xdg", daemon.root / "tmp"
    xdg.mkdir()
    xdg.chmod(0o755)
    temporary.mkdir()
    del daemon.environment["PYTHOND_SOCK"]
    daemon.environment.update(XDG_RUNTIME_DIR=str(xdg), TMPDIR=str(temporary))
    place = temporary / f"pythond-{os.getuid()}"
    daemon.socket = place / "pythond.sock"
    daemon.start()
    assert list(xdg.iterdir()) == []
    assert stat.S_IMODE(xdg.stat().st_mode) == 0o755
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert daemon.pysh("ls").returncode == 0


def test_a_socket_path_that_is_too_long_works_or_is_refused_clearly(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    deep = daemon.root / ("d" * 100)
    deep.mkdir(mode=0o700)
    daemon.environment["PYTHOND_SOCK"] = str(deep / "pythond.sock")
    process = daemon.process = daemon.spawn()

    def settled() -> bool:
        return process.poll() is not None or daemon.pysh("ls").returncode == 0

    wait_until(settled)
    if process.poll() is None:
        assert daemon.pysh("new", "work").returncode == 0
        assert daemon.pysh("run", "work", "1 + 1").stdout == "2\n"
    else:
        assert process.returncode in (2, 4)
        assert "107" in daemon.log_tail() or "long" in daemon.log_tail()
        assert daemon.pysh("ls").returncode in (2, 3, 4)
    assert "panicked" not in daemon.log_tail()


# Stop.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_in_order(
    make_daemon: Callable[..., TestDaemon], number: signal.Signals
) -> None:
    daemon = make_daemon().start()
    pid = daemon.new("a").pid
    assert daemon.process is not None
    daemon.process.send_signal(number)
    assert daemon.process.wait(10) == 0
    assert not daemon.socket.exists()
    assert not processes.is_alive(pid)


def test_a_stop_with_thirty_sessions_takes_less_than_two_seconds(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    sessions = [daemon.new(f"s{number}") for number in range(30)]
    for session in sessions[:3]:
        session.out("import signal; signal.signal(15, signal.SIG_IGN)")
    for session, code in zip(sessions[3:6], ["time.sleep(300)", "while True: pass",
                                             "subprocess.run(['sleep', '300'])"], strict=True):  # fmt: skip
        session.wire.send(f"run {session.name}\n{code}")
        session.wait_for_state("running")
    everything = daemon.processes()
    started = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - started < 2.0
    wait_until(
        lambda: not [pid for pid in everything if processes.is_alive(pid)],
        deadline=3,
        what="all sessions and their children are gone",
    )
    assert not daemon.socket.exists()


def test_exit_handlers_of_sessions_run_at_a_stop(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    file = daemon.root / "bye"
    daemon.new("a").out(f"import atexit; atexit.register(lambda: open({str(file)!r}, 'w').close())")
    assert daemon.stop() == 0
    assert file.exists()


def test_stop_over_the_wire_closes_with_going_away(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    daemon.new("a")
    with daemon.connect() as idle, daemon.connect() as wire:
        assert not idle.ask("ls").startswith("ERR")
        assert wire.ask("stop") == "OK stopping daemon"
        for each in (wire, idle):
            with pytest.raises(ConnectionClosed) as caught:
                each.receive(10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
    assert daemon.process is not None
    assert daemon.process.wait(10) == 0


def test_pyctl_stop_returns_when_the_daemon_is_gone(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    daemon.new("a")
    done = daemon.pyctl("stop")
    assert (done.returncode, done.stdout) == (0, "OK stopping daemon; 1 session ended\n")
    assert not daemon.socket.exists()
    assert daemon.pyctl("status").returncode == 3
    daemon.start()
    assert daemon.ask("ls") == "(no sessions)"


def test_clients_that_wait_are_told_of_a_stop(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    session = daemon.new("a")
    client = daemon.popen("pysh", "run", "a", "time.sleep(300)", text=True)
    session.wait_for_state("running")
    assert daemon.stop() == 0
    _, err = client.communicate(timeout=10)
    assert client.returncode in (3, 4, 5, 130)
    assert "error: " in err or "KeyboardInterrupt" in err


# Status.


def test_pyctl_status_keeps_its_old_lines(daemon: TestDaemon) -> None:
    daemon.new("a")
    done = daemon.pyctl("status")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"socket: {daemon.socket}"
    assert lines[1] == "alive: True"
    assert f"pid: {daemon.pid}" in lines
    text = done.stdout
    for word in ("version", "uptime", "sessions", "zygote"):
        assert word in text
    reply = json.loads(daemon.pyctl("status", "--json").stdout)
    assert reply["pid"] == daemon.pid
    assert reply["sessions"] == 1
    assert reply["alive"] is True
    assert str(daemon.socket) in reply["endpoint"]
    assert reply["zygotes"][0]["python"].startswith("/")


def test_pyctl_status_without_a_daemon(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    done = daemon.pyctl("status")
    assert done.returncode == 3
    assert done.stdout == f"socket: {daemon.socket}\nalive: False\n"
    done = daemon.pyctl("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["alive"] is False


# Crash and adoption.


def test_a_new_daemon_adopts_sessions_with_all_they_remember(daemon: TestDaemon) -> None:
    daemon.new("one").out("x = 42\nimport sqlite3\ndb = sqlite3.connect(':memory:')\n")
    daemon.new("two").out("y = 'second'")
    before = daemon.list()
    zygotes = {zygote["pid"] for zygote in daemon.info()["zygotes"]}
    daemon.crash()
    daemon.start()
    wait_until(lambda: set(daemon.list()) == {"one", "two"}, what="both sessions are adopted")
    after = daemon.list()
    for name in ("one", "two"):
        for field in ("session_id", "gen", "pid", "python"):
            assert after[name][field] == before[name][field]
    assert daemon.ask("run one x + 1") == "43"
    assert daemon.ask("run one db.execute('select 5').fetchone()") == "(5,)"
    assert daemon.ask("run two y") == "second"
    assert zygotes == {zygote["pid"] for zygote in daemon.info()["zygotes"]}
    reply = daemon.json("new one --json")
    assert reply["error"]["code"] == "session_exists"
    assert daemon.ask("new three").startswith("OK")


def test_a_cell_that_runs_while_the_daemon_dies_goes_on(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    go = daemon.root / "go"
    client = daemon.popen(
        "pysh", "run", "work",
        f"print('begun')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nfinished = 'yes'",
        text=True,
    )  # fmt: skip
    session.wait_for_state("running")
    running = wait_until(lambda: session.status()["running"], what="the cell has an id")
    daemon.crash()
    _, err = client.communicate(timeout=20)
    assert client.returncode in (3, 4)
    assert "error: " in err
    assert processes.is_alive(session.pid)
    daemon.start()
    wait_until(lambda: "work" in daemon.list(), what="the session is adopted")
    status = daemon.json("status work")
    assert status["state"] == "running"
    assert status["running"] == running
    go.touch()
    assert daemon.ask("run work finished") == "yes"
    assert daemon.json("status work")["cells"] == 2


def test_a_running_cell_can_be_interrupted_after_adoption(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    session.wire.send("run work\nwhile True: pass")
    session.wait_for_state("running")
    daemon.crash()
    daemon.start()
    wait_until(lambda: daemon.list().get("work", {}).get("state") == "running")
    assert daemon.ask("int work") == "OK int work: 1 cell"
    wait_until(lambda: daemon.list()["work"]["state"] == "idle", what="the cell ended")
    assert daemon.ask("run work 1 + 1") == "2"


def test_a_cell_that_ended_without_a_daemon_is_recorded(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    go = daemon.root / "go"
    session.wire.send(
        f"run work\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nended_alone = 1"
    )
    session.wait_for_state("running")
    daemon.crash()
    go.touch()
    history = daemon.session_directory("work") / "history.py"
    wait_until(
        lambda: history.exists() and "ended_alone" in history.read_text(),
        what="the host records the cell",
    )
    daemon.start()
    assert daemon.ask("run work ended_alone") == "1"


def test_a_session_that_died_without_a_daemon_is_not_shown_alive(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    daemon.new("other").out("x = 1")
    daemon.crash()
    os.kill(session.pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(session.pid))
    daemon.start()
    wait_until(lambda: "other" in daemon.list())
    assert daemon.list().get("work", {}).get("state", "dead") == "dead"
    assert daemon.json("new work --json")["ok"]
    assert daemon.ask("run work 1 + 1") == "2"


def test_sessions_survive_many_crashes(daemon: TestDaemon) -> None:
    daemon.new("work").out("count = 0")
    pid = daemon.list()["work"]["pid"]
    for round_ in range(1, 11):
        daemon.crash()
        daemon.start()
        wait_until(lambda: "work" in daemon.list(), what="the session is adopted")
        assert daemon.ask("run work\ncount += 1\ncount") == str(round_)
    assert daemon.list()["work"]["pid"] == pid


def test_a_stop_after_an_adoption_ends_everything(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon().start()
    for name in "abc":
        daemon.new(name)
    daemon.crash()
    daemon.start()
    wait_until(lambda: len(daemon.list()) == 3)
    everything = daemon.processes()
    assert daemon.stop() == 0
    wait_until(lambda: not [pid for pid in everything if processes.is_alive(pid)], deadline=3)


def test_a_session_can_be_killed_after_an_adoption(daemon: TestDaemon) -> None:
    session = daemon.new("work")
    daemon.crash()
    daemon.start()
    wait_until(lambda: "work" in daemon.list())
    assert daemon.ask("kill work") == "OK killed work"
    wait_until(lambda: not processes.is_alive(session.pid))


def test_a_death_after_an_adoption_is_told_with_its_cause(daemon: TestDaemon) -> None:
    daemon.new("work")
    daemon.crash()
    daemon.start()
    wait_until(lambda: "work" in daemon.list())
    reply = daemon.json("run work --json\nos.abort()")
    assert reply["error"]["code"] == "session_died"
    assert "SIGABRT" in reply["error"]["message"]


def test_foreign_sockets_in_the_runtime_directory_are_not_adopted(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    daemon.new("work")
    places = {path.parent for path in daemon.runtime.rglob("*") if path.is_socket()}
    daemon.crash()
    listening = []
    for place in places:
        fake = socket.socket(socket.AF_UNIX)
        fake.bind(str(place / "00000000.sock"))
        fake.listen(8)
        listening.append(fake)
        (place / "junk").write_bytes(os.urandom(100))
    daemon.start()
    wait_until(lambda: "work" in daemon.list())
    assert set(daemon.list()) == {"work"}
    for fake in listening:
        fake.close()


@pytest.mark.timeout(150)
def test_zygotes_without_daemon_and_sessions_end_by_themselves(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    daemon.new("a")
    daemon.ask("kill a")
    assert daemon.processes()
    daemon.crash()
    wait_until(lambda: not daemon.processes(), deadline=80, what="the zygote ended", every=0.5)


# Two daemons.


def test_a_second_daemon_with_the_same_home_cannot_take_a_name_in_use(
    daemon: TestDaemon, make_daemon: Callable[..., TestDaemon]
) -> None:
    daemon.new("work").out("x = 'first'")
    second = make_daemon(home=daemon.home).start()
    reply = second.json("new work --json")
    assert reply["ok"] is False
    assert reply["error"]["code"] == "name_in_use"
    assert second.ask("new work").startswith("ERR ")
    assert second.pysh("new", "work").returncode == 4
    assert second.ask("new other").startswith("OK")
    assert daemon.ask("run work x") == "first"
    daemon.ask("kill work")
    assert second.ask("new work").startswith("OK")


# Access log.


def entries(path: Path) -> list[dict[str, str]]:
    """Parse the access log into its fields."""
    found = []
    for line in path.read_text().splitlines():
        word, *fields = line.split(" ")
        assert word == "ACCESS", line
        found.append(dict(field.split("=", 1) for field in fields))
    return found


def test_the_access_log_has_the_promised_fields(daemon: TestDaemon) -> None:
    daemon.new("work")
    with daemon.connect() as wire:
        wire.ask("run work\nsecret_code = 'é'")
        wire.ask("ls")
        wire.ask("bogus")
        wire.ask("run nosuch\n1")
    path = daemon.access_log()
    last = re.compile(
        r"conn_id=(\d+) .*session=nosuch status=error\n(.*\n)*.*disconnect conn_id=\1 "
    )
    wait_until(lambda: last.search(path.read_text()), what="it is written")
    log = entries(path)
    for entry in log:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["ts"]), entry
        assert entry["event"] in (
            "connect",
            "auth",
            "command",
            "result",
            "attach",
            "detach",
            "disconnect",
        )
        assert int(entry["conn_id"]) > 0
        assert entry["peer"]
    command = next(e for e in log if e["event"] == "command" and e.get("cmd") == "run")
    assert command["session"] == "work"
    assert command["body_bytes"] == str(len("secret_code = 'é'".encode()))
    same = [e for e in log if e["conn_id"] == command["conn_id"]]
    assert [e["event"] for e in same] == [
        "connect", "command", "result", "command", "result", "command", "result", "command", "result",
        "disconnect",
    ]  # fmt: skip
    results = [e for e in same if e["event"] == "result"]
    assert [e["status"] for e in results] == ["ok", "ok", "error", "error"]
    assert [e["cmd"] for e in results] == ["run", "ls", "bogus", "run"]


def test_the_access_log_never_has_code(daemon: TestDaemon) -> None:
    daemon.new("work")
    daemon.ask("run work\nSECRET_BODY = 1")
    daemon.ask("run work SECRET_INLINE = 1")
    daemon.ask("run work SECRET_HALF =\n1")
    daemon.ask("complete work SECRET_TEXT")
    daemon.ask('new other\n{"env": {"KEY": "SECRET_VALUE"}}')
    path = daemon.access_log()
    wait_until(lambda: "session=other" in path.read_text())
    assert "SECRET" not in path.read_text()
    assert "SECRET" not in daemon.log_tail()


def test_the_access_log_is_mirrored_to_stderr(daemon: TestDaemon) -> None:
    daemon.new("mirrored")
    wait_until(
        lambda: any(
            line.startswith("ACCESS ") and "session=mirrored" in line
            for line in daemon.log.read_text().splitlines()
        ),
        what="the line is on stderr",
    )


def test_the_access_log_escapes_what_clients_send(daemon: TestDaemon) -> None:
    daemon.ask("bo\x1bgus\x07\u202e\x9b x")
    daemon.ask("status a\x1bb")
    daemon.ask("x" * 100_000)
    daemon.ask("evil\tts=now")
    path = daemon.access_log()
    wait_until(lambda: "evil" in path.read_text())
    text = path.read_text()
    for character in "\x1b\x07\x9b\u202e\t":
        assert character not in text
    assert max(map(len, path.read_bytes().splitlines())) <= 4096
    for entry in entries(path):
        assert entry["ts"] != "now"
    stderr = daemon.log.read_text()
    for character in "\x1b\x07\x9b\u202e":
        assert character not in stderr


def test_the_access_log_is_private_and_follows_no_link(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon().start()
    daemon.ask("ls")
    path = daemon.access_log()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    daemon.stop()
    target = daemon.root / "target"
    target.write_text("precious")
    path.unlink(missing_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.symlink_to(target)
    process = daemon.process = daemon.spawn()

    def settled() -> bool:
        if process.poll() is not None:
            return True
        try:
            return not daemon.ask("ls").startswith("ERR")
        except OSError:
            return False

    wait_until(settled)
    assert target.read_text() == "precious"


def test_a_connection_that_closes_early_is_logged(daemon: TestDaemon) -> None:
    daemon.new("work")
    with daemon.connect() as wire:
        wire.send("run work\ntime.sleep(0.1)")
    path = daemon.access_log()
    wait_until(lambda: path.read_text().count("event=disconnect") >= 1)


# Load.


def test_many_connections_at_once_are_served(daemon: TestDaemon) -> None:
    daemon.new("work")

    def ask(number: int) -> str:
        with daemon.connect() as wire:
            return wire.ask(f"run work {number}")

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(300))) == [str(number) for number in range(300)]


def test_descriptors_are_given_back(daemon: TestDaemon) -> None:
    daemon.new("work")
    daemon.ask("ls")

    def count() -> int:
        return len(os.listdir(f"/proc/{daemon.pid}/fd"))

    before = count()
    for number in range(100):
        daemon.ask(f"run work {number}")
    for number in range(10):
        daemon.new(f"s{number}").kill()
    wait_until(lambda: count() <= before + 4, what="descriptors are closed")


def test_an_idle_daemon_and_its_sessions_use_no_processor_time(daemon: TestDaemon) -> None:
    for number in range(5):
        daemon.new(f"s{number}").out("1 + 1")

    def ticks() -> int:
        total = 0
        for pid in daemon.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total

    def quiet() -> bool:
        before, start = ticks(), time.monotonic()
        wait_until(lambda: time.monotonic() - start > 2, every=0.5)
        return ticks() - before <= 2

    wait_until(quiet, deadline=30, what="nothing runs while nothing is asked")


def test_a_stop_right_after_a_start_leaves_nothing_behind(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    for _ in range(5):
        daemon = make_daemon().start()
        assert daemon.stop() == 0
        wait_until(lambda d=daemon: not d.processes(), deadline=5, what="everything is gone")


def test_a_start_right_after_a_stop_finds_the_place_free(
    make_daemon: Callable[..., TestDaemon],
) -> None:
    daemon = make_daemon()
    for _ in range(10):
        assert daemon.pyctl("start", "-d").returncode == 0
        assert daemon.pyctl("stop").returncode == 0
