#!/usr/bin/env bash
# Everything that must hold: all.sh [lint]. Stops at the first step that fails
# and names it. Needs Rust, gcc, make and CPython; installs what else it needs.
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
only=${1:-all}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR=$target CARGO_TERM_PROGRESS_WHEN=never
# A test must not meet the daemon of whoever runs it.
unset "${!PYTHOND_@}" VIRTUAL_ENV
steps=0
began=$SECONDS

say() { printf '%s\n' "$@"; }

# step NAME COMMAND…
step() {
    local name=$1 from=$SECONDS
    shift
    say '' "== $name"
    if ! "$@"; then
        say '' "FAILED: $name" "$steps passed, 1 failed" >&2
        exit 1
    fi
    steps=$((steps + 1))
    say "   ok, $((SECONDS - from)) s"
}

have() { command -v "$1" >/dev/null 2>&1; }

# Debian packages that are missing: only root can install them, everybody else
# is told.
packages() {
    local missing=()
    have g++ || missing+=(g++)
    have strace || missing+=(strace)
    have openssl || missing+=(openssl)
    have tmux || missing+=(tmux)
    have node || missing+=(nodejs)
    have npm || missing+=(npm)
    # Two networks in one machine, and a scanner of TLS. Not on everybody's PATH.
    have ip || [ -x /usr/sbin/ip ] || missing+=(iproute2)
    have nft || [ -x /usr/sbin/nft ] || missing+=(nftables)
    have testssl || missing+=(testssl.sh)
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
    [ -x /usr/bin/python3 ] || missing+=(python3)
    /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    compgen -G '/usr/lib/*/libpython3*.so*' >/dev/null || missing+=(libpython3-dev)
    if [ ${#missing[@]} -eq 0 ]; then
        say 'nothing is missing'
    elif have apt-get && [ "$(id -u)" = 0 ]; then
        say "installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update && apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null
    else
        say "please install these first: ${missing[*]}"
        return 1
    fi
}

# A Python environment for the tests, made again when its requirements change.
environment() {
    local venv=.venv-tests wanted
    wanted=$(cat python-tests/requirements.txt; python3 -V)
    if [ "$wanted" = "$(cat "$venv/requirements.done" 2>/dev/null)" ]; then
        say "$venv is ready"
        return
    fi
    say "making $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || /usr/bin/python3 -m venv "$venv" || return 1
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r python-tests/requirements.txt || return 1
    printf '%s\n' "$wanted" >"$venv/requirements.done"
}

documentation() {
    RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps --document-private-items --locked
}

rust_tests() {
    if have cargo-nextest; then
        cargo nextest run --workspace --locked
    else
        say 'cargo-nextest is not installed; cargo test runs the same tests'
        cargo test --quiet --workspace --locked --lib --bins --tests
    fi
}

deny() {
    if have cargo-deny; then
        cargo deny --offline check bans licenses sources
    else
        say 'cargo-deny is not installed; the check above has the same rules'
    fi
}

ruff() {
    .venv-tests/bin/ruff check python-tests src/host/python src/bench tests &&
        .venv-tests/bin/ruff format --check python-tests src/bench tests
}

# The demo as a newcomer runs it, twice, with a home of its own.
demo() (
    home=$(mktemp -d) || exit 1
    trap 'bash tests/demo.sh stop "$target/release" >/dev/null 2>&1; rm -rf "$home"' EXIT
    mkdir -m 700 "$home/run"
    export XDG_RUNTIME_DIR=$home/run HOME=$home
    for round in first second; do
        bash tests/demo.sh start "$target/release" >"$home/$round" 2>&1 || {
            cat "$home/$round"
            exit 1
        }
    done
    grep -q 'the demo uses it' "$home/second" || { cat "$home/second"; exit 1; }
    bash tests/demo.sh stop "$target/release" || exit 1
    bash tests/demo.sh stop "$target/release" | grep -q 'no daemon is running'
)

# Installed files work from where they were put, and go away again.
installation() (
    home=$(mktemp -d) || exit 1
    bin=$home/stage/opt/pythond/bin
    trap '"$bin/pyctl" stop >/dev/null 2>&1; rm -rf "$home"' EXIT
    mkdir -m 700 "$home/run"
    make --silent install DESTDIR="$home/stage" PREFIX=/opt/pythond >"$home/log" 2>&1 || {
        cat "$home/log"
        exit 1
    }
    export XDG_RUNTIME_DIR=$home/run
    (
        export HOME=$home
        cd "$home" && "$bin/pyctl" start -d && "$bin/pysh" new work &&
            [ "$("$bin/pysh" run work '6 * 7')" = 42 ] && "$bin/pyctl" stop
    ) || exit 1
    make --silent uninstall DESTDIR="$home/stage" PREFIX=/opt/pythond >/dev/null || exit 1
    left=$(find "$home/stage" -type f)
    [ -z "$left" ] || { say "left behind: $left"; exit 1; }
)

# After the Python tests, which have installed the other clients that it shows.
readme() {
    local wscat
    wscat=$(compgen -G "$target/python-tests/npm-wscat*/node_modules/.bin" | head -n 1)
    README_PATH=$PWD/.venv-tests/bin:$wscat PYTHOND_BIN_DIR=$target/debug \
        python3 tests/cmd/readme.py README.md
}

python_tests() {
    PYTHOND_BIN_DIR=$target/debug PYTHOND_TEST_CACHE=$target/python-tests \
        .venv-tests/bin/python -m pytest -q -n 2 python-tests
}

lint() {
    step 'formatting' cargo fmt --all --check
    step 'clippy' cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
    step 'documentation' documentation
    step 'dependencies and licences' python3 tests/checks/dependencies.py
    step 'cargo deny' deny
    step 'text of the repository' python3 tests/checks/text.py
    step 'nothing is decided by the wall clock' python3 tests/checks/clock.py
}

if [ "$only" = lint ]; then
    lint
    exit
fi
step 'what the tests need' packages
step 'Python environment for the tests' environment
lint
step 'ruff' ruff
step 'build' cargo build --quiet --workspace --locked
step 'Rust tests' rust_tests
step 'examples in the documentation' cargo test --quiet --workspace --doc --locked
step 'Python tests' python_tests
step 'README' readme
step 'release build' make --silent build
step 'demo' demo
step 'installation' installation
step 'fuzzing, briefly' bash src/protocol/fuzz/run.sh "${FUZZ_SECONDS:-20}"
say '' "All checks hold ($((SECONDS - began)) s)." "$steps passed, 0 failed"
