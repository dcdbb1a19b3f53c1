#!/usr/bin/env bash
# Fuzzes every target for some seconds: run.sh [SECONDS] [TARGET…]
#
# Builds on the stable toolchain: what cargo-fuzz would set stands here. With
# an explicit target triple, build scripts and procedural macros are left
# uninstrumented. What a run finds goes to target/fuzz; the kept corpus is only
# read. To keep new inputs: KEEP=1.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(frame lane escapes journal records adoption identity)

triple=$(rustc -vV | sed -n 's/^host: //p')
out=${CARGO_TARGET_DIR:-$root/target}/fuzz
export CARGO_TARGET_DIR=$out/build
export RUSTFLAGS="-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
--cfg fuzzing"
cargo build --release --locked --quiet --target "$triple"

for target in "${targets[@]}"; do
    found=$out/found/$target
    mkdir -p "$found" "$out/crashes"
    if ! "$CARGO_TARGET_DIR/$triple/release/$target" \
        -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=65536 \
        -print_final_stats=1 -dict="$target.dict" -artifact_prefix="$out/crashes/$target-" \
        "$found" "corpus/$target" >"$out/$target.log" 2>&1; then
        tail -n 40 "$out/$target.log"
        echo "fuzzing $target failed; the input is in $out/crashes" >&2
        exit 1
    fi
    # A build without instrumentation would run and find nothing.
    if ! grep -q 'INFO: Loaded 1 PC tables' "$out/$target.log"; then
        echo "the target $target is not instrumented" >&2
        exit 1
    fi
    sed -n 's/^Done /  /p' "$out/$target.log"
    if [ "${KEEP:-}" ]; then
        "$CARGO_TARGET_DIR/$triple/release/$target" -merge=1 "corpus/$target" "$found"
    fi
done
