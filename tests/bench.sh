#!/usr/bin/env bash
# Builds in release mode and measures. ROWS=warm,oneshot chooses; QUICK=1 is
# short. An environment with numpy and pandas is made when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --release --locked --workspace

venv=$target/bench-venv
if ! [ -e "$venv/done" ]; then
    echo "making an environment with numpy and pandas"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check numpy pandas
    touch "$venv/done"
fi

arguments=(--venv "$venv")
[ -z "${ROWS:-}" ] || arguments+=(--rows "$ROWS")
[ -z "${QUICK:-}" ] || arguments+=(--quick)
exec "$target/release/pythond-bench" "${arguments[@]}"
