"""What a person reads who uses a remote: names that can be typed, and what to do next."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import TestDaemon
from support.fake_daemon import FakeDaemon
from support.remotes import Remote, remote_of
from support.terminal import Terminal
from support.waiting import wait_until


@pytest.fixture
def remote(make_daemon: Callable[..., TestDaemon]) -> Iterator[Remote]:
    """A remote with a session `work`."""
    with remote_of(make_daemon) as remote:
        made = remote.here.pysh("new", remote.name, "work")
        assert made.returncode == 0, made.stderr
        yield remote


def test_a_refusal_from_there_names_the_session_as_it_is_typed_here(remote: Remote) -> None:
    refused = remote.here.pysh("new", remote.name, "work")
    assert refused.returncode == 4, refused
    assert f"session `{remote.name}/work` already exists" in refused.stderr, refused.stderr
    # As it stood, this would have replaced a session of this machine.
    assert f"`pysh new {remote.name}/work --replace`" in refused.stderr, refused.stderr
    refused = remote.here.pysh("run", f"{remote.name}/nobody", "1")
    assert refused.returncode == 4, refused
    assert f"no session named `{remote.name}/nobody`" in refused.stderr, refused.stderr
    assert f"`pysh new {remote.name}/nobody`" in refused.stderr, refused.stderr
    made = remote.here.pysh("new", f"{remote.name}/nobody")
    assert made.returncode == 0, made.stderr
    assert "nobody" in remote.there.pysh("ls").stdout


def test_a_name_that_is_taken_says_by_what_and_how_to_go_on(remote: Remote) -> None:
    refused = remote.connect()
    assert refused.returncode == 4, refused
    assert f"remote `{remote.name}` is connected already" in refused.stderr, refused.stderr
    assert f"`pyctl disconnect {remote.name}`" in refused.stderr, refused.stderr
    with remote.here.session() as local:
        refused = remote.connect(name=local.name)
        assert refused.returncode == 4, refused
        assert f"a session of this machine is named `{local.name}`" in refused.stderr
        assert "--replace" not in refused.stderr, refused.stderr


def test_what_was_not_connected_is_not_said_to_be_tried_again(remote: Remote) -> None:
    remote.proxy.refuse()
    refused = remote.connect(name="other")
    assert refused.returncode == 4, refused
    assert "pyctl start -d --listen" in refused.stderr, refused.stderr
    assert "tried again when" not in refused.stderr, refused.stderr
    refused = remote.here.pyctl("disconnect", "other")
    assert "no remote named `other`" in refused.stderr, refused.stderr


def test_the_status_of_the_daemon_tells_of_its_remotes(remote: Remote) -> None:
    line = f"remote: {remote.name} -> {remote.address} tls up, round trip "
    remote.here.pysh("run", f"{remote.name}/work", "1")
    assert line in remote.here.pyctl("status").stdout
    (told,) = remote.here.info()["remotes"]
    assert (told["name"], told["state"]) == (remote.name, "up")
    remote.proxy.refuse()
    remote.proxy.cut("rst")
    remote.wait_for_state("down")
    shown = remote.here.pyctl("status").stdout
    assert f"remote: {remote.name} -> {remote.address} tls down: " in shown, shown


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_another_machine_does_not_steer_the_terminal_of_who_asks(
    binaries: Path, words: list[str]
) -> None:
    said = {
        **{"ok": True, "endpoint": "", "pid": 7, "version": "\x9b31mred\u202e", "uptime_s": 1.0},
        **{"sessions": 0, "max_sessions": 0, "runtime_dir": "", "zygotes": []},
    }
    with (
        FakeDaemon() as fake,
        Terminal([binaries / "pyctl", "status", *words], env=fake.environment()) as terminal,
    ):
        peer = fake.peer()
        peer.next()
        peer.send(json.dumps(said, ensure_ascii=False))
        assert terminal.wait_exit() == 0
        text = terminal.raw.decode()
    assert "31mred" in text
    assert "\x9b" not in text, text
    assert "\u202e" not in text, text


def test_what_to_do_next_names_the_session_as_it_was_typed(remote: Remote) -> None:
    pysh, name = remote.here.pysh, f"{remote.name}/work"
    waits = "while True:\n  try: time.sleep(9)\n  except KeyboardInterrupt: pass"
    begun = pysh("run", "--wait", "0.2", name, waits)
    assert f"`pysh out {name} " in begun.stderr, begun
    assert f"`pysh wait {name} " in begun.stderr, begun
    asked = pysh("int", name)
    assert f"`pysh int {name} " in asked.stderr, asked
    cell = asked.stderr.split(f"`pysh int {name} ")[1].split()[0]
    ended = pysh("int", name, cell, "--kill")
    assert ended.returncode == 0, ended


def test_ctrl_c_and_hints_mean_the_session_of_two_words(remote: Remote) -> None:
    here, name = remote.here, f"{remote.name}/work"
    begun = here.pysh("run", "--wait=0.2", remote.name, "work", "import time; time.sleep(9)")
    assert f"`pysh out {name} " in begun.stderr, begun
    assert here.pysh("int", name).returncode == 0
    client = subprocess.Popen(
        [here.binaries / "pysh", "run", remote.name, "work", "print('in'); time.sleep(60)"],
        env=here.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "in\n"
    client.send_signal(signal.SIGINT)
    _, errors = client.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors, errors
    assert "could not be interrupted" not in errors, errors


@pytest.mark.parametrize("path", [False, True])
def test_options_stand_after_the_session_of_two_words(remote: Remote, path: bool) -> None:
    name = [f"{remote.name}/work"] if path else [remote.name, "work"]
    pysh = remote.here.pysh
    late = pysh("run", *name, "--timeout", "0.2", "import time; time.sleep(60)")
    assert late.returncode == 124, late
    assert "timed out after 0.2 s" in late.stderr, late
    named = json.loads(pysh("run", *name, "--json", "--id", "mine", "1").stdout)
    assert named["session"] == "work", named
    wrong = pysh("run", *name, "--timeout", "soon", "1")
    assert wrong.returncode == 2, wrong
    assert "a number of seconds is expected" in wrong.stderr, wrong
    fired = pysh("fire", *name, "--queue", "z = 5")
    assert fired.returncode == 0, fired
    pysh("wait", f"{remote.name}/work")
    assert pysh("run", *name, "z").stdout == "5\n"


def test_files_and_stdin_are_code_for_the_session_of_two_words(
    remote: Remote, tmp_path: Path
) -> None:
    pysh = remote.here.pysh
    file = tmp_path / "code.py"
    file.write_text("x = 40 + 2\nx\n")
    assert pysh("run", remote.name, "work", f"@{file}").stdout == "42\n"
    assert pysh("run", remote.name, "work", "-", input="x + 1").stdout == "43\n"
    file.write_text("y = x\n")
    for verb in ("fire", "fork"):
        assert pysh(verb, remote.name, "work", f"@{file}").returncode == 0
        pysh("wait", f"{remote.name}/work")
        assert pysh("run", remote.name, "work", "y; del y").returncode == 0


def test_words_for_a_session_of_this_machine_stay_code(remote: Remote, tmp_path: Path) -> None:
    with remote.here.session() as local:
        pysh, name = remote.here.pysh, local.name
        for words, shown in (
            (["x", "=", "3"], ""),
            (["del", "x"], ""),
            (["work", "=", "1"], ""),
            (["work", "- 3"], "-2\n"),
            (["work", "--1"], "2\n"),
        ):
            done = pysh("run", name, *words)
            assert (done.returncode, done.stdout) == (0, shown), done
        # It is no file, and standard input is none of its.
        wrong = pysh("run", name, "work", f"@{tmp_path}/none.py")
        assert "SyntaxError" in wrong.stderr, wrong


@pytest.mark.parametrize("code", ["", " "])
def test_no_code_is_the_same_here_and_there(remote: Remote, code: str) -> None:
    with remote.here.session() as local:
        for name in ([local.name], [f"{remote.name}/work"], [remote.name, "work"]):
            done = remote.here.pysh("run", *name, code)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), (name, done)
            for verb in ("fire", "fork"):
                done = remote.here.pysh(verb, *name, code)
                assert done.returncode == 0, (name, done)
                cell = json.loads(done.stdout)["cell_id"]
                path = "/".join(name)
                wait_until(
                    lambda path=path, cell=cell: (
                        json.loads(remote.here.pysh("poll", path, cell).stdout)["status"] == "done"
                    ),
                    what="it has ended",
                )


@pytest.mark.parametrize("option", ["--cwd", "--python", "--venv"])
def test_a_path_that_is_not_absolute_names_the_remote(remote: Remote, option: str) -> None:
    refused = remote.here.pysh("new", f"{remote.name}/other", option, "no/such")
    assert refused.returncode == 4, refused
    assert f"`{remote.name}` is a daemon on another machine" in refused.stderr, refused.stderr
    assert "PYTHOND_HOST" not in refused.stderr, refused.stderr


def test_an_address_with_a_scheme_is_told_its_form(remote: Remote) -> None:
    pyctl = remote.here.pyctl
    listening = f"wss://{remote.address}"
    refused = remote.connect(name="other", address=listening)
    assert refused.returncode == 2, refused
    assert f"`{listening}` should be HOST:PORT, without `wss://`" in refused.stderr
    assert "`--tls`" in refused.stderr, refused.stderr
    refused = pyctl("pair", listening)
    assert refused.returncode == 2, refused
    assert "should be HOST:PORT, without `wss://`" in refused.stderr, refused.stderr
    refused = pyctl("pair", "ssh://me@host")
    assert refused.returncode == 2, refused
    assert "needs no pairing" in refused.stderr, refused.stderr
    assert "`pyctl connect NAME ssh://me@host`" in refused.stderr, refused.stderr


def test_a_name_that_is_not_allowed_is_told_what_is(remote: Remote) -> None:
    allowed = "1 to 80 characters of a-z, 0-9, _ and -"
    for program, words, kind in (
        ("pyctl", ["connect", "GPÜ", "host"], "remote"),
        ("pyctl", ["connect", "con nect", "host"], "remote"),
        ("pyctl", ["disconnect", "a.b"], "remote"),
        ("pysh", ["ls", "GPU"], "remote"),
        ("pysh", ["new", "GPU/work"], "remote"),
        ("pysh", ["run", f"{remote.name}/", "1"], "session"),
        ("pysh", ["new", "con"], "session"),
    ):
        refused = remote.here.client(program, *words)
        assert refused.returncode == 2, refused
        assert f"a {kind} name is {allowed}" in refused.stderr, refused.stderr


def test_a_token_in_the_variable_is_for_the_daemon_that_is_asked(remote: Remote) -> None:
    asked = {"PYTHOND_HOST": remote.address, "PYTHOND_TLS": "1"}
    env = {**remote.here.environment, **asked, "PYTHOND_TOKEN": remote.token_file.read_text()}
    refused = remote.here.pyctl("connect", "other", "10.0.0.5", "--tls", env=env)
    assert refused.returncode == 2, refused
    assert "PYTHOND_TOKEN is for the daemon of PYTHOND_HOST" in refused.stderr, refused.stderr
