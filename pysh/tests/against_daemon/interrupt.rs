//! Ctrl-C, and readers who have enough.

use std::io::Read as _;
use std::process::ChildStdout;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;

use super::support::{ACCEPTED, ScriptedDaemon, cell, piece, streamed};
use super::{DEADLINE, ID, ctrl_c, end, pysh};

const INTERRUPTED: &str =
    r#""error":{"type":"KeyboardInterrupt","message":"","traceback":"KeyboardInterrupt\n"}"#;

/// What `int` answers.
fn answer(outcome: &str) -> String {
    let stack = r#"{"name":"MainThread","ident":16,"frames":[
        {"file":"<cell 1>","line":1,"function":"<module>"},
        {"file":"<cell 1>","line":2,"function":"a"},{"file":"<cell 1>","line":3,"function":"b"},
        {"file":"<cell 1>","line":4,"function":"c","source":"sort()"}]}"#;
    format!(
        r#"{{"ok":true,"session":"work","interrupted":["{ID}"],
        "cells":[{{"cell_id":"{ID}","kind":"run","outcome":"{outcome}","stack":{stack}}}]}}"#
    )
}

/// A daemon whose `run` says `first`, tells what it is asked and ends the cell
/// when it is told to.
fn slow_daemon(
    first: &'static str,
    ends_on_interrupt: bool,
) -> (ScriptedDaemon, Receiver<String>, Sender<()>) {
    let (asked, was_asked) = channel();
    let (end, has_end) = channel();
    let (end_of_interrupt, has_end) = (end.clone(), Mutex::new(has_end));
    let daemon = ScriptedDaemon::speaking(move |frame, say| {
        if frame.starts_with("int ") {
            if ends_on_interrupt {
                end_of_interrupt.send(()).unwrap();
            }
            let said = say(&answer(if ends_on_interrupt {
                "ended"
            } else {
                "pending"
            }));
            asked.send(frame.to_owned()).unwrap();
            return said;
        }
        if !first.is_empty() {
            say(first);
            say(&piece(1, 0, "so far"));
        }
        asked.send(frame.to_owned()).unwrap();
        has_end.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        say(&match first {
            "" => cell(
                "interrupted",
                &format!(r#""stdout":"so far","stderr":"",{INTERRUPTED}"#),
            ),
            _ => streamed("interrupted", INTERRUPTED),
        })
    });
    (daemon, was_asked, end)
}

#[test]
fn ctrl_c_interrupts_exactly_this_cell_and_waits_for_its_reply() {
    let (daemon, asked, _end) = slow_daemon(ACCEPTED, true);
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let mut so_far = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut so_far)
        .unwrap();
    asked.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    let frame = asked.recv_timeout(DEADLINE).unwrap();
    assert_eq!(frame, format!("int work --json {ID}"));
    let found = end(child);
    assert_eq!(
        found,
        (Some(130), String::new(), "KeyboardInterrupt\n".into())
    );
}

#[test]
fn ctrl_c_before_the_cell_has_an_id_interrupts_what_runs() {
    let (daemon, asked, _end) = slow_daemon("", true);
    let child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    asked.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    assert_eq!(asked.recv_timeout(DEADLINE).unwrap(), "int work --json");
    let found = end(child);
    assert_eq!(
        found,
        (Some(130), "so far".into(), "KeyboardInterrupt\n".into())
    );
}

#[test]
fn a_second_ctrl_c_leaves_and_names_the_cell_that_goes_on() {
    let (daemon, asked, end_cell) = slow_daemon(ACCEPTED, false);
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let mut so_far = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut so_far)
        .unwrap();
    ctrl_c(&child);
    let pending = "note: cell 00ab00000007 was interrupted and has not ended yet\n\
        Thread 0x10 MainThread (most recent call last):\n  \
        File \"<cell 1>\", line 2, in a\n  \
        File \"<cell 1>\", line 3, in b\n  \
        File \"<cell 1>\", line 4, in c\n    sort()\n\
        note: Ctrl-C again leaves it running\n";
    let mut told = vec![0; pending.len()];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut told)
        .unwrap();
    assert_eq!(String::from_utf8(told).unwrap(), pending);
    ctrl_c(&child);
    let left = "error: left `work` before the cell ended; cell `00ab00000007` goes on\n\n\
        hint: follow it with `pysh out work 00ab00000007 --follow`, \
        wait with `pysh wait work 00ab00000007`\n";
    assert_eq!(end(child), (Some(130), String::new(), left.into()));
    drop(asked);
    end_cell.send(()).unwrap();
}

/// A daemon whose cell prints until it is interrupted, and tells of that.
fn flooding_daemon() -> (ScriptedDaemon, Receiver<()>) {
    let (asked, was_asked) = channel();
    let stopped = AtomicBool::new(false);
    let daemon = ScriptedDaemon::flooding(move |frame, say| {
        if frame.starts_with("int ") {
            stopped.store(true, Ordering::SeqCst);
            let said = say(&answer("ended"));
            asked.send(()).unwrap();
            return said;
        }
        say(ACCEPTED);
        let line = piece(1, 0, "y\\n");
        while !stopped.load(Ordering::SeqCst) {
            if !say(&line) {
                return false;
            }
        }
        say(&streamed("interrupted", INTERRUPTED))
    });
    (daemon, was_asked)
}

#[test]
fn endless_output_does_not_keep_ctrl_c_out() {
    let (daemon, asked) = flooding_daemon();
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1 << 12]).unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    ctrl_c(&child);
    asked.recv_timeout(DEADLINE).unwrap();
    reading.join().unwrap().unwrap();
    let (code, _, stderr) = end(child);
    assert_eq!((code, stderr.as_str()), (Some(130), "KeyboardInterrupt\n"));
}

#[test]
fn a_reader_who_rests_does_not_keep_ctrl_c_out() {
    let (daemon, asked) = flooding_daemon();
    let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    wait_until_full(&stdout);
    ctrl_c(&child);
    asked.recv_timeout(DEADLINE).unwrap();
    // The second one leaves, though nobody reads what is left to write.
    ctrl_c(&child);
    let (code, _, stderr) = end(child);
    assert_eq!(code, Some(130));
    assert!(stderr.starts_with("error: left `work`"), "{stderr}");
}

/// Waits until a pipe takes no more: nothing was added for a while although
/// there is always more.
fn wait_until_full(reader: &ChildStdout) {
    let deadline = Instant::now() + DEADLINE;
    let (mut filled, mut since) = (0, Instant::now());
    // Whoever fills it may have to wait for the processor.
    while filled == 0 || since.elapsed() < Duration::from_secs(2) {
        assert!(Instant::now() < deadline, "{filled} bytes");
        let now = ioctl_fionread(reader).unwrap();
        if now != filled {
            (filled, since) = (now, Instant::now());
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_reader_who_has_enough_is_no_failure() {
    // More than a pipe holds: another test's child may hold the reader's end
    // open until it executes its program.
    let much = format!(
        r#""stdout":"{}","stderr":"","error":null"#,
        "x".repeat(1 << 20)
    );
    let whole = ScriptedDaemon::start(move |_| cell("done", &much));
    let (endless, _asked) = flooding_daemon();
    for daemon in [whole, endless] {
        let mut child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(end(child), (Some(0), String::new(), String::new()));
    }
}
