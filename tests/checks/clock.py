"""Nothing is decided by the wall clock: where it is read, it is only shown.

But for certificates: from when and until when one is valid is a time of the calendar.
Durations and time-outs use the clock that no one can set.
"""

import re
import sys
from pathlib import Path

READS = re.compile(
    r"SystemTime|Timestamp::now|Zoned::now|UnixTime::now|ClockId::Realtime"
    r"|\btime\.time\(|\bimport datetime"
)
"""How the wall clock is read."""
SHOWN = {
    "pyctl/src/commands/identity.rs": (1, "whether a certificate is valid, which a clock decides"),
    "src/transport/remote.rs": (1, "whether a certificate is valid, which a clock decides"),
    "src/remote/dial.rs": (1, "whether a server's certificate is valid"),
    "src/remote/remote.rs": (1, "when a remote was tried"),
    "src/remote/table.rs": (1, "a part of keys, where there is nothing random"),
    "src/access_log.rs": (2, "the time of a line"),
    "src/events.rs": (3, "the time of an event"),
    "src/host/cell.rs": (1, "the time of a record"),
    "src/host/cells/mod.rs": (1, "when a cell was accepted and started"),
    "src/host/session.rs": (1, "when a session was created"),
    "src/host/zygote/death.rs": (1, "when a death was seen"),
    "src/listener/gate.rs": (1, "whether a client's certificate is valid"),
    "src/listener/pairing.rs": (1, "the same for one that is to be trusted"),
    "src/network/keys.rs": (4, "the same, and when an announced one takes over"),
    "src/session/death.rs": (1, "the same, by a daemon"),
    "src/tombstones.rs": (1, "when a death was seen that nobody reported"),
}
"""Where it may be read: how often, and what for."""


def main() -> int:
    """Compare what is there with what may be there."""
    root = Path(__file__).parents[2]
    wrong = 0
    files = [
        path
        for top in ("src", "pysh", "pyctl")
        for path in sorted((root / top).rglob("*"))
        if path.suffix in (".rs", ".py")
        and not {"vendor", "tests", "bench", "target"} & set(path.relative_to(root).parts)
    ]
    for path in files:
        name = str(path.relative_to(root))
        lines = path.read_text().splitlines()
        found = [number for number, line in enumerate(lines, 1) if READS.search(line)]
        most, _ = SHOWN.get(name, (0, ""))
        if len(found) != most:
            wrong += 1
            where = ", ".join(map(str, found)) or "nowhere"
            print(f"{name}: the wall clock is read in lines {where}, and may be {most} times")
    print(f"{len(files)} files looked at")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
