"""Runs the commands of a Markdown page and compares what they print.

`console` blocks: each line that begins with `$ ` is run by bash, and the lines
below it are its output, both streams together. `…` stands for anything within a
line; a line that is only `…` stands for any number of lines. A command fails
unless it exits with 0 or with what its comment `# exit code N` says.

`python` blocks are run, and the `text` block below one is its output. `sh`
blocks are run by other steps of the tests and only checked to be known here.

Usage: readme.py PAGE. The programs are those in PYTHOND_BIN_DIR; README_PATH
holds further directories for what the page uses and this machine may lack.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

# Run by tests/all.sh, as a newcomer would.
ELSEWHERE = {"make demo", "make test", "make install PREFIX=$HOME/.local"}


def blocks(page):
    """Yields (language, number of the first line, lines) of each fenced block."""
    language, first, lines = None, 0, []
    for number, line in enumerate(page.splitlines(), 1):
        if language is None and line.startswith("```"):
            language, first, lines = line[3:].strip(), number + 1, []
        elif language is not None and line == "```":
            yield language, first, lines
            language = None
        elif language is not None:
            lines.append(line)


def commands(lines, first):
    """Yields (line number, command, exit code, expected lines) of a console block."""
    current = None
    for number, line in enumerate(lines, first):
        if line.startswith("$ "):
            if current:
                yield current
            code = re.search(r"# exit code (\d+)$", line)
            current = (number, line[2:], int(code.group(1)) if code else 0, [])
        elif current is None:
            raise SystemExit(f"line {number}: output without a command")
        else:
            current[3].append(line)
    if current:
        yield current


def matches(expected, printed):
    """Whether the printed lines are the expected ones, with their wildcards."""
    pattern = ""
    for line in expected:
        if line == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, line.split("…"))) + r"\n"
    return re.fullmatch(pattern, printed) is not None


def run(command, environment, directory):
    """Runs a command line; gives its exit code and what both streams had."""
    # Like a terminal where nobody types: some clients leave when it ends.
    read, write = os.pipe()
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=directory,
            stdin=read,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
    finally:
        os.close(read)
        os.close(write)
    printed = done.stdout.decode()
    return done.returncode, printed if printed.endswith("\n") or not printed else printed + "\n"


def examples(page, environment, directory):
    """Runs every example of a page.

    Returns:
        Number of commands, and a text for each one that went wrong.
    """
    count, wrong, expects_output_of = 0, [], None
    for language, first, lines in blocks(page):
        if language == "console":
            for number, command, code, expected in commands(lines, first):
                count += 1
                found, printed = run(["bash", "-c", command], environment, directory)
                if found != code or not matches(expected, printed):
                    wrong.append(f"line {number}: $ {command}\n[exit code {found}]\n{printed}")
        elif language == "python":
            count += 1
            script = ["python3", "-c", "\n".join(lines)]
            expects_output_of = first, run(script, environment, directory)
        elif language == "text" and expects_output_of:
            number, (found, printed) = expects_output_of
            expects_output_of = None
            if found != 0 or not matches(lines, printed):
                wrong.append(f"line {number}: python\n[exit code {found}]\n{printed}")
        elif language == "sh":
            wrong += [f"not tested: {line}" for line in lines if line not in ELSEWHERE]
    return count, wrong


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        page = file.read()
    programs = os.path.abspath(os.environ["PYTHOND_BIN_DIR"])
    further = os.environ.get("README_PATH", "")
    home = tempfile.mkdtemp(prefix="pythond-readme-")
    os.mkdir(f"{home}/run", 0o700)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHOND_") and name != "VIRTUAL_ENV"
    }
    environment["HOME"] = home
    environment["XDG_RUNTIME_DIR"] = f"{home}/run"
    environment["PATH"] = os.pathsep.join(
        part for part in (programs, further, environment["PATH"]) if part
    )
    try:
        count, wrong = examples(page, environment, home)
    finally:
        # The page stops its daemon itself; this is for when it failed before.
        subprocess.run(
            [f"{programs}/pyctl", "stop"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(home, ignore_errors=True)
    print("\n".join(wrong))
    print(f"{sys.argv[1]}: {count} examples, {len(wrong)} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
