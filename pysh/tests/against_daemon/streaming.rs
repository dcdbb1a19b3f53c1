//! `pysh run` while the cell runs: output at once, bounded memory, options.

use std::io::Read as _;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use super::support::{ACCEPTED, ScriptedDaemon, cell, piece, streamed};
use super::{DEADLINE, Found, ID, end, output, pysh};

/// A daemon that answers `run` with these messages.
fn saying(messages: &'static [String]) -> ScriptedDaemon {
    ScriptedDaemon::speaking(move |frame, say| {
        assert!(frame.starts_with("run work --json --stream"), "{frame:?}");
        messages.iter().all(|message| say(message))
    })
}

fn run_against(messages: Vec<String>, words: &[&str]) -> Found {
    let daemon = saying(messages.leak());
    let words: Vec<_> = ["run", "work", "1"].iter().chain(words).copied().collect();
    output(&mut pysh(&daemon, &words))
}

#[test]
fn output_is_shown_while_the_cell_runs() {
    let (go_on, may_go_on) = channel();
    let may_go_on = Mutex::new(may_go_on);
    let daemon = ScriptedDaemon::speaking(move |_, say| {
        say(ACCEPTED);
        say(&piece(1, 0, "early"));
        may_go_on.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        say(&piece(2, 5, "late")) && say(&streamed("done", r#""error":null"#))
    });
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let mut early = [0; 5];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    go_on.send(()).unwrap();
    assert_eq!(end(child), (Some(0), String::new(), "late".into()));
}

#[test]
fn the_end_of_a_streamed_cell_is_told_as_ever() {
    let error = r#""error":{"type":"T","message":"m","traceback":"Traceback\nT: m\n"}"#;
    let of_tomorrow = r#"{"event":"progress","cell_id":"00ab00000007"}"#.to_owned();
    // More was streamed than is kept: nothing of it is missing here.
    let reply = streamed("failed", error).replace(r#""truncated":0"#, r#""truncated":9"#);
    let messages = vec![
        ACCEPTED.into(),
        of_tomorrow,
        piece(1, 0, "é\\u0000\\n"),
        reply,
    ];
    let found = run_against(messages, &[]);
    assert_eq!(found, (Some(1), "é\0\n".into(), "Traceback\nT: m\n".into()));
}

#[test]
fn a_gap_is_told_with_its_number() {
    let gap = format!(r#"{{"event":"gap","cell_id":"{ID}","offset":1,"missing":5000000000}}"#);
    let last = piece(1, 5_000_000_001, "b");
    let reply = streamed("done", r#""error":null"#);
    let found = run_against(
        vec![ACCEPTED.into(), piece(1, 0, "a"), gap, last, reply],
        &[],
    );
    let note = "note: output is missing here: 5000000000 B from offset 1 on, not kept any more\n";
    assert_eq!(found, (Some(0), "ab".into(), note.into()));
}

#[test]
fn a_timeout_has_its_exit_code_and_says_so() {
    let error = r#""timed_out":true,"error":{"type":"KeyboardInterrupt","message":"","traceback":"KeyboardInterrupt\n"}"#;
    let messages = vec![ACCEPTED.into(), streamed("interrupted", error)];
    let found = run_against(messages, &["--timeout=1.5"]);
    let said = "KeyboardInterrupt\nnote: timed out after 1.5 s\n";
    assert_eq!(found, (Some(124), String::new(), said.into()));
}

#[test]
fn a_wait_that_is_over_names_the_cell() {
    let messages = vec![ACCEPTED.into(), streamed("running", r#""error":null"#)];
    let found = run_against(messages, &["--wait=0"]);
    let note = "note: cell 00ab00000007 is still running; follow it with \
                `pysh out work 00ab00000007 --follow`, wait with `pysh wait work 00ab00000007`\n";
    assert_eq!(found, (Some(124), String::new(), note.into()));
}

#[test]
fn a_busy_session_is_a_refusal() {
    let refusal = r#"{"ok":false,"error":{"code":"busy","message":"a cell runs"}}"#;
    let found = run_against(vec![refusal.into()], &["--busy=fail"]);
    assert_eq!(
        found,
        (Some(4), String::new(), "error: a cell runs\n".into())
    );
}

#[test]
fn a_broken_connection_names_the_cell() {
    let daemon = ScriptedDaemon::speaking(|_, say| {
        say(ACCEPTED);
        false
    });
    let (code, _, stderr) = output(&mut pysh(&daemon, &["run", "work", "1"]));
    assert_eq!(code, Some(3));
    let hint = "hint: cell `00ab00000007` may go on; see `pysh poll work 00ab00000007`\n";
    assert!(stderr.ends_with(hint), "{stderr}");
}

#[test]
fn options_travel_in_the_header_and_code_in_the_body() {
    let daemon = ScriptedDaemon::start(|frame| {
        assert_eq!(
            frame,
            "run work --json --stream --wait=2 --timeout=0.5 --busy=fail \
             --cancel-on-disconnect --id=k --author=ann\n--json"
        );
        streamed("done", r#""error":null"#)
    });
    let words = [
        "run",
        "--timeout=0.5",
        "--wait",
        "2",
        "--busy",
        "fail",
        "--cancel-on-disconnect",
        "--id",
        "k",
        "work",
        "--",
        "--json",
    ];
    let found = output(pysh(&daemon, &words).env("PYTHOND_AUTHOR", "ann"));
    assert_eq!(found, (Some(0), String::new(), String::new()));
}

#[test]
fn a_detached_cell_is_an_id() {
    let daemon = ScriptedDaemon::start(|frame| {
        assert_eq!(frame, "run work --json --detach\n1");
        cell("queued", r#""stdout":"","stderr":"","error":null"#)
    });
    let words = ["run", "work", "1", "--detach"];
    let found = output(&mut pysh(&daemon, &words));
    assert_eq!(found, (Some(0), format!("{ID}\n"), String::new()));
    let (code, stdout, _) = output(pysh(&daemon, &words).arg("--json"));
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with(r#"{"session":"work""#), "{stdout}");
}

#[test]
fn much_output_passes_in_little_memory() {
    const PIECE: u64 = 64 << 10;
    const COUNT: u64 = 1 << 10;
    let (go_on, may_go_on) = channel();
    let may_go_on = Mutex::new(may_go_on);
    let daemon = ScriptedDaemon::speaking(move |_, say| {
        let data = "x".repeat(usize::try_from(PIECE).unwrap());
        say(ACCEPTED);
        assert!((0..COUNT).all(|number| say(&piece(1, number * PIECE, &data))));
        may_go_on.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        say(&streamed("done", r#""error":null"#))
    });
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let read = std::io::copy(&mut (&mut stdout).take(COUNT * PIECE), &mut std::io::sink());
    assert_eq!(read.unwrap(), COUNT * PIECE);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 16 << 10, "{peak_kib} KiB");
    go_on.send(()).unwrap();
    assert_eq!(end(child).0, Some(0));
}
