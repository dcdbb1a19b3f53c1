"""The command lines: exit codes, streams, help, and what a terminal sees."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import processes
from support.daemon import Session, TestDaemon
from support.waiting import DEADLINE, wait_until

PROGRAMS = ["pythond", "pysh", "pyctl"]


# Exit codes.


def test_exit_code_zero_is_success(session: Session) -> None:
    daemon = session.daemon
    for words in (["run", session.name, "1"], ["ls"], ["status", session.name],
                  ["vars", session.name], ["complete", session.name, "x"],
                  ["int", session.name]):  # fmt: skip
        done = daemon.pysh(*words)
        assert (done.returncode, done.stderr) == (0, ""), words


@pytest.mark.parametrize("code", ["1/0", "exit(0)", "exit(3)", "raise SystemExit", "x = = 1"])
def test_exit_code_one_is_a_cell_that_raised(session: Session, code: str) -> None:
    assert session.daemon.pysh("run", session.name, code).returncode == 1
    assert session.daemon.pysh("run", session.name, "--json", code).returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["bogus"], ["run"], ["run", "a"], ["new"], ["new", "A"], ["new", "a", "b", "c"], ["kill"],
        ["status"], ["vars"], ["complete", "a"], ["int"], ["ls", "x", "y"], ["--nonsense"],
        ["new", "a", "--env", "x"], ["run", "UPPER", "1"], ["run", "a", "@/no/such/file.py"],
    ],
)  # fmt: skip
def test_exit_code_two_is_a_wrong_command_line(shared_daemon: TestDaemon, words: list[str]) -> None:
    done = shared_daemon.pysh(*words)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_exit_code_three_is_no_daemon(make_daemon: Callable[..., TestDaemon]) -> None:
    daemon = make_daemon()
    for words in (["run", "a", "1"], ["ls"], ["new", "a"], ["kill", "--all"], ["status", "a"]):
        done = daemon.pysh(*words)
        assert done.returncode == 3, words
        assert done.stdout == ""
        assert "pythond daemon" in done.stderr or "pyctl start" in done.stderr
    assert daemon.pyctl("status").returncode == 3
    assert daemon.pyctl("stop").returncode == 3
    done = daemon.pysh("ls", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["ok"] is False


def test_exit_code_four_is_a_refusal(session: Session) -> None:
    for words in (["run", "nosuch", "1"], ["new", session.name], ["kill", "nosuch"]):
        done = session.daemon.pysh(*words)
        assert done.returncode == 4, words
        assert done.stderr.startswith("error: ")
        assert "\nhint: " in done.stderr


def test_exit_code_five_is_a_session_that_died(shared_daemon: TestDaemon) -> None:
    with shared_daemon.session() as session:
        assert shared_daemon.pysh("run", session.name, "os._exit(0)").returncode == 5
        assert shared_daemon.pysh("run", session.name, "1").returncode == 5


def test_exit_code_130_is_an_interrupted_cell(session: Session) -> None:
    client = session.daemon.popen("pysh", "run", session.name, "while True: pass", text=True)
    session.wait_for_state("running")
    assert session.daemon.ask(f"int {session.name}") == f"OK int {session.name}: 1 cell"
    out, err = client.communicate(timeout=20)
    assert client.returncode == 130, (out, err)
    assert "KeyboardInterrupt" in err


def test_the_help_of_every_program_has_the_table_of_exit_codes(shared_daemon: TestDaemon) -> None:
    for program in ("pysh", "pyctl"):
        text = shared_daemon.client(program, "--help").stdout
        for code in ("0", "1", "2", "3", "4", "5", "124", "130"):
            assert re.search(rf"^\s*{code}\b", text, re.MULTILINE), (program, code)


# Interrupting the client.


def test_ctrl_c_interrupts_the_cell_and_is_told(session: Session) -> None:
    session.out("x = 1")
    client = session.daemon.popen(
        "pysh", "run", session.name, "print('begun', flush=True)\nwhile True: pass", text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=20)
    assert (client.returncode, out) == (130, "")
    assert "KeyboardInterrupt" in err
    assert session.out("x") == "1\n"


def test_a_second_ctrl_c_leaves_a_cell_that_does_not_stop(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    client = session.daemon.popen(
        "pysh", "run", session.name, "-", stdin=subprocess.PIPE, text=True
    )
    assert client.stdin is not None
    client.stdin.write(
        "caught = 0\ntry:\n    print('in', flush=True)\n    time.sleep(300)\n"
        f"except KeyboardInterrupt: caught += 1\nwhile not os.path.exists({str(go)!r}): "
        "time.sleep(0.01)"
    )
    client.stdin.close()
    assert client.stdout is not None
    assert client.stdout.readline() == "in\n"
    client.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(1)
    client.send_signal(signal.SIGINT)
    assert client.wait(20) == 130
    assert session.status()["state"] == "running"
    go.touch()
    assert session.value("caught") == "1"


def test_a_client_that_is_killed_leaves_the_cell_running(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nleft = 5"
    client = session.daemon.popen("pysh", "run", session.name, code)
    session.wait_for_state("running")
    client.kill()
    client.wait(10)
    assert session.status()["state"] == "running"
    go.touch()
    assert session.value("left") == "5"


# Where code comes from.


def test_code_comes_from_stdin_files_and_words(session: Session, tmp_path: Path) -> None:
    name, daemon = session.name, session.daemon
    assert daemon.pysh("run", name, "-", input="x = 5\nx * 2\n").stdout == "10\n"
    script = tmp_path / "script.py"
    script.write_text("def f():\n    return 'from a file'\n\nf()\n")
    assert daemon.pysh("run", name, f"@{script}").stdout == "from a file\n"
    assert daemon.pysh("run", name, "@script.py", cwd=tmp_path).stdout == "from a file\n"
    script.write_bytes(b"\xef\xbb\xbf'with a mark'\n")
    assert daemon.pysh("run", name, f"@{script}").stdout == "with a mark\n"
    assert daemon.pysh("run", name, "1", "+", "1").stdout == "2\n"
    assert daemon.pysh("run", name, "-1").stdout == "-1\n"
    assert daemon.pysh("run", name, "").returncode == 0
    assert daemon.pysh("run", name, "-", input="").returncode == 0
    assert daemon.pysh("run", name, "import functools").returncode == 0
    decorated = "@functools.cache\ndef g():\n    return 8\ng()"
    assert daemon.pysh("run", name, decorated).stdout == "8\n"
    assert daemon.pysh("run", name, "--", "-(3)").stdout == "-3\n"


def test_code_beyond_the_limits_of_a_command_line_works(session: Session, tmp_path: Path) -> None:
    code = "s = '" + "x" * 5_000_000 + "'\nlen(s)"
    assert session.daemon.pysh("run", session.name, "-", input=code).stdout == "5000000\n"
    script = tmp_path / "long.py"
    script.write_text(code)
    assert session.daemon.pysh("run", session.name, f"@{script}").stdout == "5000000\n"


def test_code_that_is_no_text_is_refused_with_its_place(session: Session, tmp_path: Path) -> None:
    script = tmp_path / "binary.py"
    script.write_bytes(b"x = 1\n\xff\xfe")
    done = session.daemon.pysh("run", session.name, f"@{script}")
    assert done.returncode == 2
    assert "binary.py" in done.stderr
    assert "UTF-8" in done.stderr
    done = session.daemon.pysh("run", session.name, "-", input=b"\xff", bytes=True)
    assert done.returncode == 2


def test_code_too_big_for_the_daemon_gets_a_clear_refusal(session: Session) -> None:
    done = session.daemon.pysh("run", session.name, "-", input="#" + "x" * (17 << 20))
    assert done.returncode in (2, 4), done
    assert str(16 << 20) in done.stderr
    assert session.out("1 + 1") == "2\n"


# Streams.


def test_streams_of_a_cell_go_where_they_belong(session: Session) -> None:
    done = session.pysh_run("print('out'); print('err', file=sys.stderr); 'value'")
    assert (done.stdout, done.stderr) == ("out\nvalue\n", "err\n")


def test_a_failing_cell_keeps_its_output_on_stdout(session: Session) -> None:
    done = session.pysh_run("print('out'); print('err', file=sys.stderr); 1/0")
    assert done.returncode == 1
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\nTraceback (most recent call last):\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    "code", ["print('ERR x')", "'ERR x'", "sys.stdout.write('ERR x\\n'); None"]
)
def test_printing_what_looks_like_an_error_exits_zero(session: Session, code: str) -> None:
    done = session.daemon.pysh("run", session.name, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ERR x\n", "")


def test_an_exit_is_told_on_stderr(session: Session) -> None:
    done = session.pysh_run("print('out'); exit(3)")
    assert done.stdout == "out\n"
    assert "exit(3)" in done.stderr


def test_bytes_pass_through_unchanged(session: Session) -> None:
    done = session.daemon.pysh(
        "run",
        session.name,
        "-",
        input=b"n = sys.stdout.buffer.write(bytes(range(256)))\n",
        bytes=True,
    )
    assert done.stdout == bytes(range(256))
    done = session.daemon.pysh("run", session.name, "print('no newline', end='')")
    assert done.stdout == "no newline"


def test_a_broken_pipe_is_success(session: Session) -> None:
    client = session.daemon.popen("pysh", "run", session.name, "for i in range(200_000): print(i)")
    assert client.stdout is not None
    assert client.stderr is not None
    assert client.stdout.read(2) == b"0\n"
    client.stdout.close()
    assert client.stderr.read() == b""
    assert client.wait(20) == 0
    for program, words in (("pysh", ["ls"]), ("pysh", ["--help"]), ("pyctl", ["status"]),
                           ("pythond", ["--help"]), ("pysh", ["completions", "bash"])):  # fmt: skip
        read, write = os.pipe()
        os.close(read)
        done = session.daemon.client(program, *words, stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, ""), (program, words)


def test_a_full_disk_on_stdout_is_told(session: Session) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this machine")
    with open("/dev/full", "w") as full:
        done = session.daemon.pysh("run", session.name, "1", stdout=full)
    assert done.returncode != 0
    assert "stdout" in done.stderr


def test_a_reply_with_json_is_one_line_on_stdout(session: Session) -> None:
    daemon, name = session.daemon, session.name
    for program, words in (
        ("pysh", ["run", name, "--json", "print('a\\nb'); 5"]),
        ("pysh", ["run", "--json", name, "1/0"]),
        ("pysh", ["ls", "--json"]),
        ("pysh", ["status", name, "--json"]),
        ("pysh", ["vars", name, "--json"]),
        ("pysh", ["complete", name, "x", "--json"]),
        ("pysh", ["int", name, "--json"]),
        ("pysh", ["run", "nosuch", "--json", "1"]),
        ("pysh", ["new", name, "--json"]),
        ("pysh", ["kill", "nosuch", "--json"]),
        ("pysh", ["version", "--json"]),
        ("pyctl", ["status", "--json"]),
        ("pyctl", ["version", "--json"]),
    ):
        done = daemon.client(program, *words)
        assert done.stderr == "", words
        assert done.stdout.count("\n") == 1, words
        assert isinstance(json.loads(done.stdout), dict), words


def test_json_of_run_is_the_daemons_reply(session: Session) -> None:
    done = session.daemon.pysh(
        "run", session.name, "--json", "print('o'); print('e', file=sys.stderr); 7"
    )
    reply = json.loads(done.stdout)
    assert reply["session"] == session.name
    assert (reply["stdout"], reply["stderr"], reply["result"]) == ("o\n7\n", "e\n", "7")
    done = session.daemon.pysh("run", session.name, "--json", "1/0")
    assert json.loads(done.stdout)["error"]["type"] == "ZeroDivisionError"
    assert done.returncode == 1


def test_new_says_which_python_and_why(shared_daemon: TestDaemon) -> None:
    name = shared_daemon.unused_name()
    done = shared_daemon.pysh("new", name)
    assert done.returncode == 0
    assert done.stdout.startswith(f"OK {name} pid=")
    said = done.stdout + done.stderr
    assert "python" in said.lower()
    assert "PATH" in said
    shared_daemon.ask(f"kill {name}")


# A terminal.


def with_terminal(
    daemon: TestDaemon,
    *words: str,
    stdout_too: bool = False,
    program: str = "pysh",
    **env: str,
) -> tuple[int, bytes, bytes]:
    """Run a client whose stderr is a terminal; returns exit code, stdout, terminal."""
    leader, follower = pty.openpty()
    client = daemon.popen(
        program,
        *words,
        stdout=follower if stdout_too else subprocess.PIPE,
        stderr=follower,
        env={**daemon.environment, "TERM": "xterm-256color", **env},
    )
    os.close(follower)
    seen, out = b"", b""
    pipes = [leader] + ([] if stdout_too else [client.stdout.fileno()])
    while pipes:
        ready, _, _ = select.select(pipes, [], [], DEADLINE)
        assert ready, "the client says nothing"
        for fd in ready:
            try:
                chunk = os.read(fd, 65536)
            except OSError:
                chunk = b""
            if not chunk:
                pipes.remove(fd)
            elif fd == leader:
                seen += chunk
            else:
                out += chunk
    os.close(leader)
    code = client.wait(20)
    if client.stdout:
        client.stdout.close()
    return code, out, seen.replace(b"\r\n", b"\n")


def test_an_operator_at_the_terminal_sees_code_output_and_errors(session: Session) -> None:
    code, out, seen = with_terminal(
        session.daemon, "run", session.name, "x = 20\nprint('from the cell')\nx * 2", NO_COLOR="1"
    )
    assert code == 0
    assert out == b"from the cell\n40\n"
    for text in (b"x = 20", b"x * 2", b"from the cell\n", b"40\n"):
        assert text in seen
    code, out, seen = with_terminal(session.daemon, "run", session.name, "1/0 # look")
    assert code == 1
    assert out == b""
    assert b"1/0 # look" in seen
    assert b"ZeroDivisionError" in seen


def test_the_echo_can_be_forced_and_forbidden(session: Session) -> None:
    daemon, name = session.daemon, session.name
    _, out, seen = with_terminal(daemon, "run", "--no-echo", name, "'only out'")
    assert (out, seen) == (b"only out\n", b"")
    done = daemon.pysh("run", "--echo", name, "'both'")
    assert done.stdout == "both\n"
    assert "'both'" in done.stderr
    assert "both\n" in done.stderr


def test_there_is_no_echo_without_a_terminal_or_with_two(session: Session) -> None:
    assert session.daemon.pysh("run", session.name, "'x'").stderr == ""
    _, _, seen = with_terminal(session.daemon, "run", session.name, "'once'", stdout_too=True)
    assert seen == b"once\n"


def test_echoed_code_cannot_drive_the_terminal(session: Session) -> None:
    _, _, seen = with_terminal(session.daemon, "run", session.name, "x = '\x1b]0;title\x07'")
    assert b"\x1b]0;title" not in seen
    assert b"\x07" not in seen


def test_no_color_is_obeyed(session: Session) -> None:
    for words in (["run", session.name, "1/0"], ["run", "nosuch", "1"], ["ls"], ["bogus"]):
        _, _, coloured = with_terminal(session.daemon, *words, stdout_too=True)
        _, _, plain = with_terminal(session.daemon, *words, stdout_too=True, NO_COLOR="1")
        assert b"\x1b[" not in plain, words
        stripped = re.sub(rb"\x1b\[[0-9;]*m", b"", coloured)
        number = re.compile(rb"<cell \d+>")
        assert number.sub(b"<cell>", stripped) == number.sub(b"<cell>", plain), words


def test_nothing_has_colour_without_a_terminal(session: Session) -> None:
    for words in (["run", session.name, "1/0"], ["run", "nosuch", "1"], ["ls"], ["--help"]):
        done = session.daemon.pysh(*words)
        assert "\x1b" not in done.stdout + done.stderr


def test_ctrl_c_at_the_terminal_interrupts_the_cell(session: Session) -> None:
    pid, leader = pty.fork()
    if pid == 0:
        os.execve(
            session.daemon.binaries / "pysh",
            ["pysh", "run", session.name, "while True: pass"],
            session.daemon.environment,
        )
    session.wait_for_state("running")
    os.write(leader, b"\x03")
    seen = b""
    while select.select([leader], [], [], DEADLINE)[0]:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"KeyboardInterrupt" in seen


# Help, version, completions, man pages.


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_is_told_in_three_ways(shared_daemon: TestDaemon, program: str) -> None:
    texts = {shared_daemon.client(program, word).stdout for word in ("--version", "-V", "version")}
    assert len(texts) == 1
    assert re.fullmatch(r"pythond \d+\.\d+\.\d+\n", texts.pop())


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_shown_without_arguments(shared_daemon: TestDaemon, program: str) -> None:
    bare = shared_daemon.client(program)
    assert bare.returncode == 0
    assert "Usage: " + program in bare.stdout
    assert bare.stderr == ""
    for words in (["--help"], ["-h"], ["help"]):
        done = shared_daemon.client(program, *words)
        assert done.returncode == 0, words
        assert "Usage: " + program in done.stdout


@pytest.mark.parametrize(
    ("program", "commands"),
    [
        ("pysh", ["new", "run", "ls", "kill", "status", "vars", "complete", "int"]),
        ("pyctl", ["start", "stop", "status"]),
        ("pythond", ["daemon"]),
    ],
)
def test_every_command_has_help(
    shared_daemon: TestDaemon, program: str, commands: list[str]
) -> None:
    whole = shared_daemon.client(program, "--help").stdout
    for command in commands:
        assert re.search(rf"^\s+{command}\b", whole, re.MULTILINE), command
        done = shared_daemon.client(program, command, "--help")
        assert done.returncode == 0
        assert "Usage:" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(
    shared_daemon: TestDaemon, program: str, shell: str, tmp_path: Path
) -> None:
    done = shared_daemon.client(program, "completions", shell)
    assert done.returncode == 0
    assert program in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_man_pages_are_valid(shared_daemon: TestDaemon, program: str) -> None:
    done = shared_daemon.client(program, "man")
    assert done.returncode == 0
    assert ".TH" in done.stdout
    assert program in done.stdout


def test_errors_are_lower_case_with_a_hint(shared_daemon: TestDaemon) -> None:
    done = shared_daemon.pysh("run", "nosuch", "1")
    assert done.stderr == (
        "error: no session named `nosuch`\n\n"
        "hint: list sessions with `pysh ls`, or create it with `pysh new nosuch`\n"
    )


# Programs found from wherever they are put.


def test_programs_work_through_links_and_from_elsewhere(
    binaries: Path, make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    links = tmp_path / "bin"
    links.mkdir()
    for name in ("pythond", "pysh", "pyctl"):
        (links / name).symlink_to(binaries / name)
    daemon = make_daemon()
    daemon.binaries = links
    daemon.start()
    assert daemon.new("a").out("1 + 1") == "2\n"
    assert daemon.pysh("run", "a", "2 + 2").stdout == "4\n"


def test_programs_work_when_installed_with_the_library_apart(
    binaries: Path, make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib" / "pythond").mkdir(parents=True)
    for name in ("pythond", "pysh", "pyctl", "pythond-host"):
        shutil.copy2(binaries / name, tmp_path / "bin" / name)
    shutil.copy2(
        binaries / "libpythond_host.so", tmp_path / "lib" / "pythond" / "libpythond_host.so"
    )
    daemon = make_daemon()
    daemon.binaries = tmp_path / "bin"
    daemon.start()
    assert daemon.new("a").out("1 + 1") == "2\n"


def test_a_missing_host_program_is_told_clearly(
    binaries: Path, make_daemon: Callable[..., TestDaemon], tmp_path: Path
) -> None:
    for name in ("pythond", "pysh", "pyctl"):
        shutil.copy2(binaries / name, tmp_path / name)
    daemon = make_daemon()
    daemon.binaries = tmp_path
    daemon.environment["PATH"] = daemon.environment["PATH"].replace(str(binaries), "")
    process = daemon.process = daemon.spawn()

    def clear() -> bool:
        if process.poll() is not None:
            return "pythond-host" in daemon.log_tail()
        done = daemon.pysh("new", "a")
        return done.returncode == 4 and "pythond-host" in done.stderr

    wait_until(clear, what="the missing program is named")


def test_clients_leave_no_process_behind(session: Session) -> None:
    session.pysh_run("1")
    left = [line for line in processes.marked(session.daemon.mark).values() if "/pysh " in line]
    assert left == []


def test_the_programs_can_be_executed_by_everybody(binaries: Path) -> None:
    for name in ("pythond", "pysh", "pyctl", "pythond-host"):
        assert stat.S_IMODE((binaries / name).stat().st_mode) & 0o100
