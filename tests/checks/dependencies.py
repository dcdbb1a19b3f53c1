"""The rules on dependencies: licences, and who may know whom.

The allowed licences stand in .deny.toml and are read from there. Runs with the
standard library of any Python from 3.10 up.
"""

import json
import re
import subprocess
import sys

# Direct dependencies that a crate of ours may have, besides its siblings.
ONLY = {
    "pyo3": {"pythond-host"},
    "tokio": {"pythond"},
    "tokio-tungstenite": {"pythond"},
    "tungstenite": {"pythond-transport", "pythond-bench"},
    "pythond-host": set(),
    "rcgen": {"pythond-identity"},
    "ring": {"pythond-identity", "pythond-pairing"},
    "spake2": {"pythond-pairing"},
    "x509-parser": {"pythond-identity"},
    # The benchmark has it bare, as a floor.
    "rustls": {"pythond-bench", "pythond-tls", "pythond-transport"},
    "tokio-rustls": {"pythond"},
    "pythond-identity": {"pyctl", "pythond", "pythond-bench", "pythond-tls", "pythond-transport"},
    "pythond-pairing": {"pyctl", "pythond", "pythond-transport"},
    "pythond-tls": {"pythond", "pythond-bench", "pythond-transport"},
}
# Cryptography has one source; these would be a second.
NEVER = {"aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"}
PROTOCOL_MAY_HAVE = {"base64", "serde", "serde_json", "sha1", "thiserror"}
# Only behind a feature that no program asks for.
PROTOCOL_MAY_OFFER = {"schemars"}


def allowed_licences():
    """Reads the list `allow` of .deny.toml.

    Returns:
        A set of SPDX identifiers, with their exceptions.
    """
    with open(".deny.toml", encoding="utf-8") as file:
        listed = re.search(r"^allow = \[(.*?)\]", file.read(), re.S | re.M)
    return set(re.findall(r'"([^"]+)"', listed.group(1)))


def permitted(expression, allowed):
    """Whether an SPDX expression can be satisfied with allowed licences.

    Args:
        expression: for example `(MIT OR Apache-2.0) AND Unicode-3.0`; the old
            form with a slash counts as OR.
        allowed: set of identifiers.
    """
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def either():
        nonlocal position
        result = both()
        while position < len(words) and words[position] == "OR":
            position += 1
            right = both()
            result = result or right
        return result

    def both():
        nonlocal position
        result = single()
        while position < len(words) and words[position] == "AND":
            position += 1
            right = single()
            result = result and right
        return result

    def single():
        nonlocal position
        word = words[position]
        position += 1
        if word == "(":
            result = either()
            position += 1
            return result
        if position < len(words) and words[position] == "WITH":
            word = f"{word} WITH {words[position + 1]}"
            position += 2
        return word in allowed

    return either()


def main():
    allowed = allowed_licences()
    assert permitted("(MIT OR GPL-3.0) AND Unicode-3.0", allowed)
    assert not permitted("MIT AND GPL-3.0", allowed)

    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ours = set(metadata["workspace_members"])
    problems = []
    for package in metadata["packages"]:
        name = package["name"]
        if not permitted(package["license"] or "none", allowed):
            problems.append(f"{name}: licence `{package['license']}` is not allowed")
        if name in NEVER:
            problems.append(f"{name} must not be among the dependencies")
        if package["id"] not in ours:
            continue
        direct = {d["name"] for d in package["dependencies"] if d["kind"] != "dev"}
        problems += [
            f"{name} must not depend on {dependency}"
            for dependency, may in ONLY.items()
            if dependency in direct and name not in may
        ]
        if name == "pythond-protocol":
            offered = {d["name"] for d in package["dependencies"] if d["optional"]}
            may = PROTOCOL_MAY_HAVE | (PROTOCOL_MAY_OFFER & offered)
            problems += [f"{name} must not depend on {extra}" for extra in sorted(direct - may)]
    for problem in problems:
        print(problem)
    print(f"{len(metadata['packages'])} packages looked at")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
