//! On answers that the published pythond 0.4.0 gave, on CPython 3.11; only paths and
//! numbers of processes are others.

use pythond_protocol::outcome::CellStatus;
use serde_json::{Value, json};

use super::*;

/// What a request is for 0.4, and its answer for us.
struct Talk {
    exchange: Exchange,
    step: Step,
}

impl Talk {
    fn of(frame: &str) -> Self {
        let (exchange, step) = Exchange::begin(frame);
        Self { exchange, step }
    }

    /// 0.4 is asked this now, and says that.
    fn then(mut self, asked: &str, said: &str) -> Self {
        let text = match &self.step {
            Step::Ask(text) | Step::AskLater(_, text) => text,
            Step::Answer(texts) => panic!("it is over: {texts:?}"),
        };
        assert_eq!(text, asked);
        self.step = self.exchange.answered(said);
        self
    }

    fn texts(&self) -> &[String] {
        let Step::Answer(texts) = &self.step else {
            panic!("it is not over: {:?}", self.step)
        };
        texts
    }

    fn answer(&self) -> Value {
        let text = self.texts().last().expect("there is an answer");
        let value: Value = serde_json::from_str(text).expect(text);
        assert_eq!(value["protocol"], "pythond.0.4", "{text}");
        value
    }

    /// Fields of the answer.
    fn has(&self, fields: Value) {
        let answer = self.answer();
        for (name, value) in fields.as_object().expect("fields are an object") {
            assert_eq!(&answer[name], value, "{name} in {answer}");
        }
    }

    fn is_refused(&self, code: &str) -> String {
        let answer = self.answer();
        assert_eq!(
            (&answer["ok"], &answer["error"]["code"]),
            (&json!(false), &json!(code))
        );
        answer["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

const OWN_FRAMES: &str =
    "  File \"/v/lib/python3.11/site-packages/pythond.py\", line 1368, in _exec
    _eval_exec_cell(src, ns)
  File \"/v/lib/python3.11/site-packages/pythond.py\", line 1310, in _eval_exec_cell
    r = eval(compile(src, \"<cell>\", \"eval\"), ns)
        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
";

#[test]
fn a_cell_has_what_it_wrote() {
    for (said, stdout) in [
        ("", ""),
        ("43", "43\n"),
        ("a\nb\n5", "a\nb\n5\n"),
        ("é🐍", "é🐍\n"),
        ("ERR x", "ERR x\n"),
        ("{\"error\": \"x\"}", "{\"error\": \"x\"}\n"),
    ] {
        let talk = Talk::of("run work --json --stream --id=pysh-0a --author=ann\nx + 1");
        let talk = talk.then("run work\nx + 1", said);
        talk.has(json!({"ok": true, "status": "done", "stdout": stdout, "cell_id": null}));
    }
    Talk::of("run work --json\n")
        .then("run work\n\n", "")
        .has(json!({"ok": true}));
}

#[test]
fn a_failed_cell_has_its_output_apart_from_its_exception() {
    let said = format!(
        "ERR execution failed\nTraceback (most recent call last):\n{OWN_FRAMES}  File \"<cell>\", \
         line 1, in <module>\nZeroDivisionError: division by zero"
    );
    let traceback = "Traceback (most recent call last):\n  File \"<cell>\", line 1, in <module>\n\
                     ZeroDivisionError: division by zero\n";
    Talk::of("run work --json\n1/0")
        .then("run work\n1/0", &said)
        .has(json!({
            "ok": false, "status": "failed", "stdout": "", "error":
            {"type": "ZeroDivisionError", "message": "division by zero", "traceback": traceback},
        }));
    let first = "Traceback (most recent call last):\n  File \"<cell>\", line 3, in <module>\n\
                 ZeroDivisionError: division by zero\n\n\
                 During handling of the above exception, another exception occurred:\n\n";
    let last = "  File \"<cell>\", line 4, in <module>\nValueError: x";
    let said = format!(
        "ERR execution failed\n1\n{first}Traceback (most recent call last):\n{OWN_FRAMES}{last}"
    );
    let traceback = format!("{first}Traceback (most recent call last):\n{last}\n");
    Talk::of("run work --json\nc").then("run work\nc", &said).has(json!({
        "stdout": "1\n", "error": {"type": "ValueError", "message": "x", "traceback": traceback},
    }));
    let said = format!(
        "ERR execution failed\nTraceback (most recent call last):\n{OWN_FRAMES}  File \
         \"/usr/lib/python3.11/ast.py\", line 50, in parse\n    return compile(source)\n  File \
         \"<cell>\", line 1\n    bad\nIndentationError: unexpected indent"
    );
    let traceback = "Traceback (most recent call last):\n  File \"<cell>\", line 1\n    bad\n\
                     IndentationError: unexpected indent\n";
    let talk = Talk::of("run work --json\n bad").then("run work\n bad", &said);
    assert_eq!(talk.answer()["error"]["traceback"], traceback);
    let said = "ERR execution failed\na\nexit(3)";
    Talk::of("run work --json\nc")
        .then("run work\nc", said)
        .has(json!({
            "status": "failed", "stdout": "a\n",
            "error": {"type": "SystemExit", "message": "exit(3)", "traceback": ""},
        }));
}

#[test]
fn what_is_said_of_a_session_is_no_output() {
    let sent = "run work\n1";
    for (said, code) in [
        (
            "ERR no session 'work' -- create it first with: new work",
            "no_session",
        ),
        (
            "{\"error\": \"session 'work' dead -- new work to restart\"}",
            "session_died",
        ),
        (
            "{\"error\": \"session command failed\"}",
            "session_unreachable",
        ),
        (
            "{\"error\": \"timeout -- command channel may be out of sync; use int work or kill \
             work if stuck\"}",
            "session_unreachable",
        ),
        (
            "{\"error\": \"session 'work' command channel out of sync after timeout; use kill \
             work\"}",
            "session_unreachable",
        ),
        ("ERR internal error", "internal"),
    ] {
        Talk::of("run work --json\n1")
            .then(sent, said)
            .is_refused(code);
    }
    // Another session's name: a cell has printed it.
    let said = "ERR no session 'other' -- create it first with: new other";
    Talk::of("run work --json\n1")
        .then(sent, said)
        .has(json!({"ok": true}));
}

#[test]
fn what_it_cannot_do_is_not_sent() {
    for (frame, what) in [
        ("run work --json --id=k\n1", "`--id`"),
        ("run work --json --timeout=1\n1", "`--timeout`"),
        ("run work --json --wait=1\n1", "`--wait`"),
        ("run work --detach\n1", "`--detach`"),
        ("run work --json --busy=fail\n1", "`--busy=fail`"),
        (
            "run work --json --cancel-on-disconnect\n1",
            "`--cancel-on-disconnect`",
        ),
        ("fire work --json --queue\n1", "`--queue`"),
        ("fork work --json --max-result=1\n1", "`--max-result`"),
        ("new work --json\n{\"cwd\": \"/\"}", "`--cwd`"),
        ("new work --json\n{\"limits\": {\"nofile\": 100}}", "limits"),
        ("int work --json 5f2c00000003", "one cell"),
        ("kill --all --json", "`kill --all`"),
        ("cells work --json", "`cells`"),
        ("stack work --json", "`stack`"),
        ("events --json", "`events`"),
        ("hold work --json", "`hold`"),
        ("wait work --json", "list of its cells"),
        ("out work --json --stdout 5f2c00000003", "`--stdout`"),
        ("attach work --json --read-only", "`--read-only`"),
        ("stop --json --keep-sessions", "`--keep-sessions`"),
        ("restart --json", "`restart`"),
    ] {
        let message = Talk::of(frame).is_refused("not_available");
        assert!(
            message.contains("0.4") && message.contains(what),
            "{frame}: {message}"
        );
    }
    let talk = Talk::of("run work --detach --id=k\n1");
    assert_eq!(talk.texts().len(), 1);
}

#[test]
fn a_cell_is_never_sent_twice() {
    let again = Talk::of("run work --json --id=pysh-0a --resent=2\n1");
    assert!(again.is_refused("lost").contains("may have run"));
    for (frame, code) in [
        ("run work --json\n1", Some("lost")),
        ("fire work --json\n1", Some("lost")),
        ("kill work --json", Some("session_unreachable")),
        ("int work --json", Some("session_unreachable")),
        ("stop --json", Some("session_unreachable")),
        ("poll work --json", None),
        // It only looks so far.
        ("new work --json", None),
    ] {
        let broken = Talk::of(frame).exchange.broken();
        let broken = broken.map(|text| serde_json::from_str::<Value>(&text).expect(&text));
        let found = broken
            .as_ref()
            .map(|it| it["error"]["code"].as_str().unwrap_or_default());
        assert_eq!(found, code, "{frame}");
    }
    let talk = Talk::of("new work --json").then("ls", "(no sessions)");
    assert!(talk.exchange.broken().is_some());
}

#[test]
fn a_live_session_is_not_replaced_unless_that_is_asked_for() {
    let alive = "  a: -> 10.0.0.5:7984 tls (remote)\n  work: alive pid=24376 (pty)";
    let new = "new work --json\n{\"cwd\": \"/\", \"implied\": [\"cwd\"]}";
    Talk::of(new).then("ls", alive).is_refused("session_exists");
    Talk::of("new a --json --replace")
        .then("ls", alive)
        .is_refused("session_exists");
    Talk::of("new work --json --replace")
        .then("ls", alive)
        .then("new work", "OK work pid=24428")
        .has(json!({"ok": true, "pid": 24428, "replaced": true, "session": "work"}));
    for other in ["(no sessions)", "  work: DEAD pid=24376 (pty)"] {
        Talk::of(new)
            .then("ls", other)
            .then("new work", "OK work pid=24428")
            .has(json!({"replaced": false}));
    }
    let message = "ERR too many sessions (max 128)";
    let refused = Talk::of(new)
        .then("ls", "(no sessions)")
        .then("new work", message);
    refused.is_refused("limit");
}

const RUNNING: &str = r#"{"cell_id": "c15e08791573", "status": "running", "output": ""}"#;
const MERGED: &str = r#"{"cell_id": "be01a77a860a", "status": "done", "output": "", "merged": ["y"], "skipped": ["l"]}"#;
const KILLED: &str = r#"{"cell_id": "414f73ba060a", "status": "done", "output": "(killed)", "merged": [], "skipped": [], "error": true}"#;
const STOPPED: &str = r#"{"cell_id": "4fdacdb7aa56", "status": "done", "output": "Traceback (most recent call last):\n  File \"<cell>\", line 2, in <module>\nKeyboardInterrupt", "error": true}"#;
const DONE: &str = r#"{"cell_id": "c15e08791573", "status": "done", "output": "done é"}"#;
const UNKNOWN: &str = r#"{"cell_id": "000000000000", "status": "error", "output": "unknown cell"}"#;

#[test]
fn cells_are_polled_and_waited_for() {
    Talk::of("fire work --json --id=pysh-0a\n1")
        .then(
            "fire work\n1",
            r#"{"cell_id": "14d5bff14455", "status": "fired"}"#,
        )
        .has(json!({"ok": true, "cell_id": "14d5bff14455", "kind": "fire", "status": "running"}));
    let poll = |said| Talk::of("poll work --json").then("poll work", said);
    poll(r#"{"status": "idle"}"#).has(json!({"ok": true, "status": "idle"}));
    poll(RUNNING).has(json!({"ok": false, "status": "running", "kind": "fire"}));
    poll(DONE).has(json!({"ok": true, "status": "done", "stdout": "done é\n"}));
    poll(KILLED).has(json!({"status": "killed", "kind": "fork", "merged": []}));
    poll(STOPPED).has(json!({"status": "interrupted"}));
    let skipped = json!({"l": "it cannot be pickled"});
    poll(MERGED).has(json!({"kind": "fork", "merged": ["y"], "skipped": skipped}));
    let asked = "poll work 000000000000";
    Talk::of("poll work --json 000000000000")
        .then(asked, UNKNOWN)
        .is_refused("unknown_cell");

    let (first, second) = ("poll work c15e08791573", "poll work 414f73ba060a");
    let wait = Talk::of("wait work --json c15e08791573 414f73ba060a").then(first, RUNNING);
    assert!(matches!(wait.step, Step::AskLater(..)));
    let waited = wait
        .then(first, RUNNING)
        .then(first, DONE)
        .then(second, KILLED);
    waited.has(json!({"ok": false, "timed_out": false}));
    let statuses: Vec<CellStatus> = waited.answer()["cells"]
        .as_array()
        .expect("cells are many")
        .iter()
        .map(|it| serde_json::from_value(it["status"].clone()).expect("it has a status"))
        .collect();
    assert_eq!(statuses, [CellStatus::Done, CellStatus::Killed]);
    let late = Talk::of("wait work --json --timeout=0 c15e08791573").then(first, RUNNING);
    late.has(json!({"ok": false, "timed_out": true}));
}

#[test]
fn output_is_read_from_its_end_on() {
    let asked = "poll work c15e08791573";
    let out = Talk::of("out work --json --since=5 c15e08791573").then(asked, DONE);
    out.has(json!({"offset": 5, "next": 8, "ended": true, "stdout": "é\n"}));
    let out = Talk::of("out work --json --follow c15e08791573").then(asked, RUNNING);
    let out = out.then(asked, DONE);
    out.has(json!({"next": 8, "ended": true, "stdout": ""}));
    let event = out.texts()[0].as_str();
    assert!(event.starts_with(r#"{"event":"output","#), "{event}");
    let out = Talk::of("out work --json c15e08791573").then(asked, RUNNING);
    out.has(json!({"next": 0, "ended": false, "status": "running"}));
    let far = Talk::of("out work c15e08791573 --since=99").then(asked, DONE);
    assert_eq!(far.texts(), [""]);
}

#[test]
fn what_would_wait_for_a_running_cell_is_not_asked() {
    let status = Talk::of("status work --json").then("ls", "  work: alive pid=7 (pty)");
    let status = status.then("poll work", RUNNING);
    status.has(json!({"state": "running", "running": ["c15e08791573"], "pid": 7, "ok": true}));
    let vars = |frame| Talk::of(frame).then("poll work", RUNNING);
    vars("vars work --json").is_refused("busy");
    vars("complete work --json os.pa").is_refused("busy");
    Talk::of("vars work --json")
        .then("poll work", DONE)
        .then("vars work", r#"{"vars": ["os", "x"]}"#)
        .has(json!({"vars": [
            {"name": "os", "type": "", "size_bytes": null},
            {"name": "x", "type": "", "size_bytes": null},
        ]}));
    Talk::of("complete work --json os.pard")
        .then("poll work", r#"{"status": "idle"}"#)
        .then("complete work\nos.pard", r#"{"matches": ["os.pardir"]}"#)
        .has(json!({"matches": ["os.pardir"]}));
    Talk::of("status work --json")
        .then("ls", "  work: alive pid=7 (pty)")
        .then("poll work", DONE)
        .then(
            "status work",
            r#"{"state": "idle", "running": [], "vars": 13, "cells": 2}"#,
        )
        .has(json!({"state": "idle", "vars": 13, "cells": 2}));
    Talk::of("status nobody --json")
        .then("ls", "(no sessions)")
        .is_refused("no_session");
    let dead = Talk::of("status work --json").then("ls", "  work: DEAD pid=7 (pty)");
    dead.has(json!({"state": "dead", "ok": false}));
}

#[test]
fn the_rest_is_told_in_our_form() {
    let int = |said| Talk::of("int work --json").then("int work", said);
    int("OK no running cells in work").has(json!({"interrupted_count": 0, "ok": true}));
    int("OK int work: 1 thread (best-effort), 2 processes (killed)").has(json!({
        "interrupted_count": 3, "actions": ["1 thread (best-effort)", "2 processes (killed)"],
    }));
    int("OK int work: 18446744073709551615 threads, 1 process")
        .has(json!({"interrupted_count": u64::MAX}));
    int("ERR no session 'work'").is_refused("no_session");
    int(
        "ERR int failed for work: session 'work' command channel out of sync after timeout; use \
         kill work. Session may be stuck in run or C code; use kill work.",
    )
    .is_refused("session_unreachable");
    Talk::of("kill work --json")
        .then("kill work", "OK killed work")
        .has(json!({"killed": ["work"]}));
    Talk::of("kill work --json")
        .then("kill work", "ERR no session 'work'")
        .is_refused("no_session");
    Talk::of("stop --json")
        .then("stop", "OK stopping daemon")
        .has(json!({"ok": true}));
    Talk::of("info --json")
        .then(
            "help",
            "pythond 0.4.0 raw WebSocket protocol\n\nCommands:\n  help\n",
        )
        .then("ls", "  work: alive pid=7 (pty)\n  old: DEAD pid=8 (pty)")
        .has(json!({"version": "0.4.0", "sessions": 1}));
    let list = Talk::of("ls --json").then("ls", "  work: alive pid=7 (pty)\n  old: DEAD (pty)");
    let states = list.answer()["sessions"].clone();
    assert_eq!(
        (&states[0]["state"], &states[1]["state"]),
        (&json!("idle"), &json!("dead"))
    );
    let attach = |said| Talk::of("attach work --json 24 80").then("attach work 24 80", said);
    attach("OK attached").has(json!({"ok": true, "rows": 24, "cols": 80}));
    attach("ERR session 'work' already attached").is_refused("busy");
}

#[test]
fn whoever_asks_in_plain_words_gets_its_own() {
    let talk = Talk::of("run work 1 + 1").then("run work\n1 + 1", "2");
    assert_eq!(talk.texts(), ["2"]);
    let talk = Talk::of("poll work").then("poll work", UNKNOWN);
    assert_eq!(talk.texts(), [UNKNOWN]);
    let talk = Talk::of("cells work");
    assert!(talk.texts()[0].starts_with("ERR the daemon there is pythond 0.4"));
}

#[test]
fn nothing_that_it_says_is_believed_unseen() {
    let frames = [
        "run w\n1",
        "run w --json\n1",
        "fire w --json\n1",
        "poll w --json",
        "status w --json",
        "vars w --json",
        "complete w --json x",
        "new w --json",
        "kill w --json",
        "int w --json",
        "info",
        "ls --json",
        "out w --json --follow 5f2c00000003",
        "wait w --json --timeout=0 5f2c00000003",
        "attach w --json 1 1",
        "resize w --json 1 1",
    ];
    let words = [
        "",
        "{}",
        "[]",
        "null",
        "ERR ",
        "ERR execution failed\n",
        "OK",
        "OK int w: x y, , z",
        "{\"error\":\"\"}",
        "{\"cell_id\":\"x\",\"status\":\"done\"}",
        "{\"status\":\"done\"}",
        "  w: ",
        "  w: alive pid=99999999999 (pty)",
        "Traceback (most recent call last):",
        "\u{0}\u{1b}[2J",
        "{\"status\":\"done\",\"merged\":[\"\"],\"error\":true}",
    ];
    for frame in frames {
        for first in words {
            for second in words {
                let (mut exchange, mut step) = Exchange::begin(frame);
                for said in [first, second, second] {
                    if let Step::Answer(texts) = &step {
                        assert!(!texts.is_empty());
                        break;
                    }
                    step = exchange.answered(said);
                }
            }
        }
    }
}
