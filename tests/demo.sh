#!/usr/bin/env bash
# The demo: demo.sh start|stop BIN. Shows commands with their real output and
# fails loudly if an answer is not the one that README.md promises.
set -uo pipefail

bin=$(cd "$2" 2>/dev/null && pwd) || bin=$2
PATH=$bin:$PATH

die() {
    printf '\ndemo: %s\n' "$1" >&2
    exit 1
}

# show CODE COMMAND…: prints a command as it would be typed, runs it, shows and
# keeps its output in `output`, and insists on its exit code.
show() {
    local expected=$1 typed='' word
    shift
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./=-]*) typed+=" '${word//\'/\'\\\'\'}'" ;;
        *) typed+=" $word" ;;
        esac
    done
    printf '$%s\n' "$typed"
    output=$("$@" 2>&1 </dev/null)
    local code=$?
    [ -z "$output" ] || printf '%s\n' "$output"
    [ "$code" -eq "$expected" ] || die "exit code $code instead of $expected"
}

# must TEXT: the last output is exactly this.
must() {
    [ "$output" = "$1" ] || die "expected \`$1\`"
}

start() {
    if pyctl status >/dev/null 2>&1; then
        echo 'a daemon is running; the demo uses it'
    else
        show 0 pyctl start -d
    fi

    if pysh status work 2>/dev/null </dev/null | grep -qE '"state": ?"(idle|running)"'; then
        echo 'there is a session `work`; the demo uses it'
    else
        show 0 pysh new work
    fi

    show 0 pysh run work 'x = 42'
    must ''
    show 0 pysh run work 'x + 1'
    must 43
    show 0 pysh run work 'db = sqlite3.connect(":memory:"); _ = db.execute("create table log (line)")'
    show 0 pysh run work '_ = db.execute("insert into log values (?)", ("still connected",))'
    show 0 pysh run work 'db.execute("select * from log").fetchone()'
    must "('still connected',)"
    show 1 pysh run work '1 / 0'
    case $output in
    'Traceback (most recent call last):'*'1 / 0'*'ZeroDivisionError: division by zero') ;;
    *) die 'expected the traceback of a ZeroDivisionError' ;;
    esac

    show 0 pysh fire work 'for step in range(3): print("step", step); time.sleep(0.2)'
    fired=$(grep -oE '[0-9a-f]{12}' <<<"$output")
    show 0 pysh out work "$fired" --follow
    must $'step 0\nstep 1\nstep 2'
    show 0 pysh fire work 'while True: pass'
    endless=$(grep -oE '[0-9a-f]{12}' <<<"$output")
    show 0 pysh int work "$endless"
    must 'OK int work: 1 cell'
    show 1 pysh wait work "$endless"
    show 0 pysh run work 'x + 1  # the namespace is intact'
    must 43

    cat <<END

Each command was a process of its own; session \`work\` remembered.
The daemon goes on running. What to do next:

  export PATH="$bin:\$PATH"
  pysh run work 'x * 2'      # still there
  pysh run work @script.py   # a file; \`-\` reads standard input
  pysh fire work @long.py    # beside everything else; \`pysh wait work\`
  pysh cells work            # what ran and what runs
  pysh int work              # interrupt what runs
  pysh vars work             # what is there
  pysh ls                    # all sessions
  pysh kill work             # end one
  make demo-stop             # stop the daemon and its sessions
END
}

stop() {
    if ! command -v pyctl >/dev/null; then
        echo 'nothing is built, so nothing of it runs'
        return
    fi
    pyctl status >/dev/null 2>&1
    case $? in
    0) show 0 pyctl stop ;;
    3) echo 'no daemon is running' ;;
    *) pyctl status || die 'the daemon does not answer' ;;
    esac
}

case $1 in
start | stop) "$1" ;;
*) die "usage: demo.sh start|stop BIN" ;;
esac
