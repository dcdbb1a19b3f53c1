//! Commands about cells that were submitted, and `pysh events`.

use std::io::{BufRead as _, BufReader};

use super::support::{ACCEPTED, ScriptedDaemon, cell, piece};
use super::{Found, ID, ctrl_c, end, output, pysh};

/// Runs `pysh` against a daemon that expects `frame` and says `messages`.
fn ask(words: &[&str], frame: &'static str, messages: Vec<String>) -> Found {
    let daemon = ScriptedDaemon::speaking(move |got, say| {
        assert_eq!(got, frame);
        messages.iter().all(|message| say(message))
    });
    output(&mut pysh(&daemon, words))
}

fn success(stdout: impl Into<String>, stderr: impl Into<String>) -> Found {
    (Some(0), stdout.into(), stderr.into())
}

const SUMMARY: &str = r#"{"cell_id":"00ab00000007","kind":"fire","author":"unix:1000",
    "status":"done","accepted_at":"t","started_at":"t","duration_ms":1.5,"output_bytes":2,
    "code":"print(1)"}"#;

#[test]
fn fire_prints_the_id_in_the_form_of_the_plain_wire() {
    let reply = format!(
        r#"{{"ok":true,"session":"work","session_id":"00","gen":1,"cell_id":"{ID}","kind":"fire","status":"running"}}"#
    );
    let words = [
        "fire",
        "--echo",
        "work",
        "train()",
        "--queue",
        "--timeout=60",
    ];
    let frame = "fire work --json --timeout=60 --queue\ntrain()";
    let line = format!("{{\"cell_id\": \"{ID}\", \"status\": \"fired\"}}\n");
    let found = ask(&words, frame, vec![reply.clone()]);
    assert_eq!(found, success(line, ">>> train()\n"));
    let words = ["fire", "work", "1", "--json"];
    let found = ask(&words, "fire work --json\n1", vec![reply.clone()]);
    assert_eq!(found, success(reply + "\n", ""));
}

#[test]
fn poll_tells_a_refusal_from_an_output() {
    let said = cell("done", r#""stdout":"ERR x\n","stderr":"","error":null"#);
    let line = format!(r#"{{"cell_id": "{ID}", "status": "done", "output": "ERR x"}}"#);
    let found = ask(&["poll", "work"], "poll work --json", vec![said]);
    assert_eq!(found, success(line + "\n", ""));
    let refusal = r#"{"ok":false,"error":{"code":"unknown_cell","message":"unknown cell"}}"#;
    let words = ["poll", "work", ID];
    let (code, stdout, stderr) = ask(
        &words,
        "poll work --json 00ab00000007",
        vec![refusal.into()],
    );
    assert_eq!((code, stdout.as_str()), (Some(4), ""));
    assert_eq!(stderr, "error: unknown cell\n");
    let idle = r#"{"ok":true,"status":"idle"}"#;
    let found = ask(&["poll", "work"], "poll work --json", vec![idle.into()]);
    assert_eq!(found, success("{\"status\": \"idle\"}\n", ""));
}

#[test]
fn wait_prints_a_line_for_each_cell() {
    let reply = |fields: &str| format!(r#"{{"ok":false,"session":"work",{fields}}}"#);
    let frame = "wait work --json --timeout=1 00ab00000007";
    let words = ["wait", "work", ID, "--timeout", "1"];
    let ended = reply(&format!(r#""cells":[{SUMMARY}],"timed_out":false"#));
    let line = "00ab00000007  fire  done  unix:1000  1.5 ms  2 B  print(1)\n";
    assert_eq!(ask(&words, frame, vec![ended]), success(line, ""));
    let late = reply(r#""cells":[],"timed_out":true"#);
    assert_eq!(ask(&words, frame, vec![late]).0, Some(124));
}

#[test]
fn cells_are_a_table_and_forgotten_ones_are_counted() {
    let reply = format!(
        r#"{{"ok":true,"session":"work","session_id":"00","gen":1,"cells":[{SUMMARY}],"forgotten":3}}"#
    );
    let table = "\
ID            KIND  STATE  AUTHOR     TIME    OUTPUT  CODE
00ab00000007  fire  done   unix:1000  1.5 ms  2 B     print(1)
";
    let found = ask(&["cells", "work"], "cells work --json", vec![reply]);
    let note = "note: 3 older cells are not remembered any more\n";
    assert_eq!(found, success(table, note));
}

fn out_reply() -> String {
    format!(
        r#"{{"ok":true,"session":"work","cell_id":"{ID}","status":"done","offset":0,"next":9,"missing":0,"ended":true,"stdout":"","stderr":""}}"#
    )
}

#[test]
fn out_puts_each_stream_where_it_belongs() {
    let gap = format!(r#"{{"event":"gap","cell_id":"{ID}","offset":2,"missing":1}}"#);
    let messages = || {
        vec![
            gap.clone(),
            piece(1, 3, "out"),
            piece(2, 6, "err"),
            out_reply(),
        ]
    };
    let note = "note: output is missing here: 1 B from offset 2 on, not kept any more\n";
    let words = ["out", "work", ID, "--since", "2", "--follow"];
    let frame = "out work --json --follow --since=2 00ab00000007";
    assert_eq!(
        ask(&words, frame, messages()),
        success("out", format!("{note}err"))
    );
    let words = ["out", "work", ID, "--stderr"];
    let frame = "out work --json --stream --stderr 00ab00000007";
    let only = vec![piece(2, 0, "err"), out_reply()];
    assert_eq!(ask(&words, frame, only), success("err", ""));
}

#[test]
fn out_as_json_is_what_the_daemon_says() {
    let frame = "out work --json 00ab00000007";
    let found = ask(&["out", "work", ID, "--json"], frame, vec![out_reply()]);
    assert_eq!(found, success(out_reply() + "\n", ""));
    let frame = "out work --json --follow 00ab00000007";
    let messages = vec![ACCEPTED.to_owned(), piece(1, 0, "a"), out_reply()];
    let lines = messages.join("\n") + "\n";
    let found = ask(&["out", "work", ID, "--json", "--follow"], frame, messages);
    assert_eq!(found, success(lines, ""));
}

#[test]
fn leaving_what_is_followed_says_where_to_go_on() {
    let daemon = ScriptedDaemon::speaking(|_, say| say(&piece(2, 3, "err\\n")));
    let mut child = pysh(&daemon, &["out", "work", ID, "--follow"])
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "err\n");
    ctrl_c(&child);
    let rest = std::io::read_to_string(stderr).unwrap();
    let expected = "error: left `work` before the end of the output of cell `00ab00000007`\n\n\
        hint: go on with `pysh out work 00ab00000007 --since 7`\n";
    assert_eq!(rest, expected);
    assert_eq!(end(child).0, Some(130));
}

#[test]
fn int_names_cells_and_escalates_when_told() {
    let reply = format!(
        r#"{{"ok":true,"session":"work","interrupted":["{ID}"],"cells":[{{"cell_id":"{ID}","kind":"run","outcome":"ended"}}],"actions":["killed the session"],"killed":true}}"#
    );
    let words = ["int", "work", ID, "--kill"];
    let found = ask(&words, "int work --json --kill 00ab00000007", vec![reply]);
    assert_eq!(
        found,
        success("OK int work: 1 cell\n", "note: killed the session\n")
    );
}

#[test]
fn stacks_are_printed_as_tracebacks() {
    let thread = |ident| {
        format!(
            r#"{{"ident":{ident},"frames":[{{"file":"<cell 1>","line":1,"function":"f","source":"x\u001b"}}]}}"#
        )
    };
    let reply = format!(
        r#"{{"ok":true,"session":"work","method":"copy","threads":[{},{}]}}"#,
        thread(1),
        thread(2)
    );
    let found = ask(&["stack", "work"], "stack work --json", vec![reply]);
    let shown =
        "Thread 0x1 (most recent call last):\n  File \"<cell 1>\", line 1, in f\n    x\\x1b\n";
    let note = "note: C code holds the interpreter; read from a copy of the process\n";
    let both = format!("{shown}\n{}", shown.replace("0x1 ", "0x2 "));
    assert_eq!(found, success(both, note));
}

#[test]
fn events_are_lines_until_ctrl_c() {
    let event = r#"{"cursor":"a.1","time":"t","event":"cell_done","session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007","kind":"run","status":"done"}"#;
    let plain = "t cell_done work 00ab00000007 run done\n";
    for (words, expected) in [
        (&["events", "work", "--since=a.0"][..], plain.to_owned()),
        (
            &["events", "work", "--since=a.0", "--json"],
            format!("{event}\n"),
        ),
    ] {
        let daemon = ScriptedDaemon::speaking(move |frame, say| {
            assert_eq!(frame, "events work --json --since=a.0");
            say(event)
        });
        let mut child = pysh(&daemon, words).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
        ctrl_c(&child);
        assert_eq!(end(child), (Some(0), String::new(), String::new()));
    }
}

#[test]
fn events_end_with_the_daemon_and_say_so() {
    let daemon = ScriptedDaemon::start(|_| String::new());
    let (code, _, stderr) = output(&mut pysh(&daemon, &["events"]));
    assert_eq!(code, Some(3));
    assert!(
        stderr.starts_with("error: the daemon closed the connection"),
        "{stderr}"
    );
}
