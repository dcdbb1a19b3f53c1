"""`pysh` and `pyctl` as people type them for sessions of another machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.remotes import Remote, lasting_remote
from support.terminal import Terminal
from support.waiting import wait_until

UNKNOWN = "no remote named `nowhere`"


@pytest.fixture(scope="module")
def remote(binaries: Path, mark: str) -> Iterator[Remote]:
    """A remote whose connection nothing happens to."""
    with lasting_remote(binaries, mark) as remote:
        yield remote


def out(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed that went well."""
    assert done.returncode == 0, done
    return done.stdout


def test_two_words_and_a_path_name_the_same_session(remote: Remote) -> None:
    pysh = remote.here.pysh
    assert "OK work " in out(pysh("new", "far", "work"))
    out(pysh("run", "far", "work", "x = 20"))
    assert out(pysh("run", "far/work", "x + 1")) == "21\n"
    assert out(pysh("run", "far", "work", "print(x)\nx + 2")) == "20\n22\n"
    cell = json.loads(out(pysh("fire", "far", "work", "y = 5")))["cell_id"]
    assert cell in out(pysh("wait", "far", "work", cell))
    assert json.loads(out(pysh("poll", "far", "work", cell)))["status"] == "done"
    out(pysh("fork", "far", "work", "z = y + 1"))
    out(pysh("wait", "far/work"))
    assert out(pysh("run", "far/work", "z")) == "6\n"
    out(pysh("stack", "far", "work"))
    for words in (["status"], ["vars"], ["cells"]):
        assert out(pysh(*words, "far", "work")).strip()
    assert "work" in json.loads(out(pysh("status", "far", "work")))["session"]
    assert "getcwd" in out(pysh("complete", "far", "work", "os.getc"))
    assert out(pysh("kill", "far", "work")) == "OK killed far/work\n"
    assert remote.there.list() == {}


def test_sessions_of_a_remote_are_listed(remote: Remote) -> None:
    pysh = remote.here.pysh
    assert out(pysh("ls", "far")) == "(no sessions)\n"
    out(pysh("new", "far", "work"))
    assert out(pysh("ls", "far")).startswith("  work: alive pid=")
    (listed,) = json.loads(out(pysh("ls", "far", "--json")))["sessions"]
    assert listed["session"] == "work"
    assert "far: ->" in out(pysh("ls"))
    assert "work" not in out(pysh("ls"))
    out(pysh("kill", "far/work"))
    refused = pysh("ls", "nowhere")
    assert refused.returncode == 4, refused
    assert UNKNOWN in refused.stderr
    assert remote.here.ask("ls nowhere") == "ERR usage: ls"


def test_code_of_two_words_for_a_session_here_is_code(remote: Remote) -> None:
    with remote.here.session() as session:
        session.out("far = work = 3")
        out(remote.here.pysh("run", session.name, "del", "far"))
        assert out(remote.here.pysh("run", session.name, "work")) == "3\n"


def test_a_new_session_there_gets_nothing_of_where_the_client_is(
    remote: Remote, tmp_path: Path
) -> None:
    folder = tmp_path / "only_here"
    folder.mkdir()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/false")
    for words in (["far"], ["far", "work"]):
        done = remote.here.pysh("new", *words, cwd=folder)
        assert "only_here" not in out(done)
        session = "/".join(words)
        cwd = out(remote.here.pysh("run", session, "import os; os.getcwd()"))
        assert "only_here" not in cwd
        out(remote.here.pysh("kill", session))
    # What is typed counts there.
    out(remote.here.pysh("new", "far", "--cwd", "/"))
    assert out(remote.here.pysh("run", "far", "import os; os.getcwd()")) == "/\n"
    out(remote.here.pysh("kill", "far"))


def test_a_listing_shows_remotes_and_what_is_wrong_with_them(remote: Remote) -> None:
    line = f"  far: -> {remote.proxy.address} tls (remote)\n"
    assert out(remote.here.pysh("ls")) == line
    assert remote.here.ask("ls") == line.rstrip("\n")


def test_what_is_no_remote_is_named(remote: Remote) -> None:
    for words in (["run", "nowhere/work", "1"], ["status", "nowhere", "work"]):
        done = remote.here.pysh(*words)
        assert done.returncode == 4, done
        assert UNKNOWN in done.stderr
    done = remote.here.pyctl("disconnect", "nowhere")
    assert done.returncode == 4
    assert UNKNOWN in done.stderr


def test_a_token_on_the_command_line_works_with_a_warning(remote: Remote) -> None:
    token = remote.token_file.read_text()
    words = ["connect", "other", remote.proxy.address, token, "--tls"]
    done = remote.here.pyctl(*words)
    assert out(done) == f"OK connected other -> {remote.proxy.address} tls\n"
    assert "can be seen by every user" in done.stderr
    assert out(remote.here.pyctl("disconnect", "other")) == "OK disconnected other\n"
    done = remote.here.pyctl("connect", "other", remote.proxy.address, "--tls")
    assert done.returncode == 2
    assert "token is needed" in done.stderr
    done = remote.here.pyctl(
        "connect", "other", remote.proxy.address, "--tls", "--token-stdin", input=token
    )
    assert done.stderr == ""
    out(done)
    out(remote.here.pyctl("disconnect", "other"))


def test_a_person_types_into_a_session_there(remote: Remote) -> None:
    out(remote.here.pysh("new", "far", "typed"))
    command = [remote.here.binaries / "pysh", "attach", "far", "typed"]
    with Terminal(command, env=remote.here.environment) as person:
        person.wait_for(">>>")
        person.type("x = 6 * 7\r")
        person.type("print('value', x)\r")
        person.wait_for("value 42")
        person.press("ctrl-]")
        assert person.wait_exit() == 0, person.text()
    assert out(remote.here.pysh("run", "far/typed", "x")) == "42\n"
    out(remote.here.pysh("kill", "far/typed"))


def test_the_access_log_has_the_name_that_was_asked_for(remote: Remote) -> None:
    out(remote.here.pysh("new", "far", "logged"))
    wait_until(
        lambda: "cmd=new session=far/logged " in remote.here.access_log().read_text(),
        what="it is written",
    )
    out(remote.here.pysh("kill", "far", "logged"))
