"""No file of the repository may speak of one machine or one workplace.

Paths of a machine make instructions that nobody else can follow; names of
package registries belong into the configuration of whoever builds. Links
between the documents must lead somewhere.
"""

import os
import re
import subprocess
import sys

FORBIDDEN = [
    ("a path of one machine", r"/(?:work|root|Users)/|/home/[a-z]|/tmp/target-|\.pyenv/versions"),
    ("a package registry", r"crates\.io\b|pypi\.org|pythonhosted|npmjs\."),
    ("talk about the making of it", r"\b[Ii]ssue #?\d|\bCEO\b"),
]
# This list itself, and what cargo writes: it names its registry in each entry.
SKIPPED = ("tests/checks/text.py", "Cargo.lock")


def main():
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, stdout=subprocess.PIPE).stdout
    paths = [path for path in listed.decode().split("\0") if path]
    found = 0
    for path in paths:
        if path.endswith(SKIPPED):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        for number, line in enumerate(lines, 1):
            if path.endswith(".md"):
                for target in re.findall(r"\]\(([^)#:\s]+)\)", line):
                    if not os.path.exists(os.path.join(os.path.dirname(path), target)):
                        print(f"{path}:{number}: no such file: {target}")
                        found += 1
            for what, pattern in FORBIDDEN:
                match = re.search(pattern, line)
                if match:
                    print(f"{path}:{number}: {what}: {match.group()}")
                    found += 1
    print(f"{len(paths)} files looked at")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
