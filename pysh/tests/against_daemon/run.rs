//! `pysh run` and `pysh new`: output, exit codes, echo.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::support::{ScriptedDaemon, cell};
use super::{output, pysh};

#[test]
fn a_cell_that_prints_an_error_text_succeeds() {
    let daemon = ScriptedDaemon::start(|frame| {
        assert_eq!(frame, "run work --json --stream\nprint('ERR x')");
        cell(
            "done",
            r#""stdout":"ERR x\n","stderr":"warned\n","error":null"#,
        )
    });
    let found = output(&mut pysh(&daemon, &["run", "work", "print('ERR x')"]));
    assert_eq!(found, (Some(0), "ERR x\n".into(), "warned\n".into()));
}

#[test]
fn streams_keep_their_order_where_they_meet() {
    let daemon = ScriptedDaemon::start(|_| {
        let order = r#""order":[[2,1],[1,1],[2,1]],"error":null"#;
        cell("done", &format!(r#""stdout":"b","stderr":"ac",{order}"#))
    });
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = pysh(&daemon, &["run", "work", "1"]);
    let mut child = command
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    drop(command);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "abc");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_exception_goes_to_stderr_and_the_exit_code_is_1() {
    let daemon = ScriptedDaemon::start(|_| {
        let error = r#""error":{"type":"T","message":"m","traceback":"Traceback\nT: m\n"}"#;
        cell(
            "failed",
            &format!(r#""stdout":"before\n","stderr":"",{error}"#),
        )
    });
    let found = output(&mut pysh(&daemon, &["run", "work", "1"]));
    assert_eq!(
        found,
        (Some(1), "before\n".into(), "Traceback\nT: m\n".into())
    );
}

#[test]
fn what_was_cut_or_not_recorded_is_said_with_its_number() {
    let daemon = ScriptedDaemon::start(|_| {
        let reply = cell(
            "done",
            r#""stdout":"a","stderr":"","error":null,"not_recorded":"disk full""#,
        );
        reply.replace(r#""truncated":0"#, r#""truncated":123"#)
    });
    let found = output(&mut pysh(&daemon, &["run", "work", "1"]));
    let notes = "note: 123 bytes of output were not kept\nnote: not recorded: disk full\n";
    assert_eq!(found, (Some(0), "a".into(), notes.into()));
}

#[test]
fn json_is_the_answer_as_it_was_sent() {
    let sent = cell(
        "failed",
        r#""stdout":"","stderr":"","error":null,"of_tomorrow":1"#,
    );
    let expected = format!("{sent}\n");
    let daemon = ScriptedDaemon::start(move |_| sent.clone());
    let found = output(&mut pysh(&daemon, &["run", "--json", "work", "1"]));
    assert_eq!(found, (Some(1), expected, String::new()));
}

#[test]
fn refusals_are_told_with_their_hint() {
    let daemon = ScriptedDaemon::start(|_| {
        r#"{"ok":false,"error":{"code":"no_session","message":"no session named `x`","hint":"h"}}"#
            .into()
    });
    let found = output(&mut pysh(&daemon, &["run", "x", "1"]));
    assert_eq!(
        found,
        (
            Some(4),
            String::new(),
            "error: no session named `x`\n\nhint: h\n".into()
        )
    );
    let (code, stdout, _) = output(&mut pysh(&daemon, &["vars", "x", "--json"]));
    assert_eq!(code, Some(4));
    assert!(
        stdout.starts_with(r#"{"error":{"code":"no_session""#),
        "{stdout}"
    );
}

#[test]
fn a_daemon_that_goes_away_is_no_success() {
    let daemon = ScriptedDaemon::start(|_| String::new());
    let (code, stdout, stderr) = output(&mut pysh(&daemon, &["run", "work", "1"]));
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(
        stderr.starts_with("error: the daemon closed the connection"),
        "{stderr}"
    );
}

#[test]
fn a_daemon_that_cuts_every_connection_is_not_asked_for_ever() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let daemon = ScriptedDaemon::start(move |frame| {
        let first = count.fetch_add(1, SeqCst) == 0;
        assert_ne!(first, frame.contains(" --resent="), "{frame}");
        String::new()
    });
    let mut command = pysh(&daemon, &["run", "work", "1"]);
    let (code, stdout, _) = output(command.env("PYTHOND_RECONNECT", "0.3"));
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(asked.load(SeqCst) > 1);
}

#[test]
fn code_that_is_too_big_is_refused_before_it_is_sent() {
    let daemon = ScriptedDaemon::start(|_| cell("done", r#""stdout":"","stderr":"","error":null"#));
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64).unwrap();
    let word = format!("@{}", file.path().display());
    let mut command = pysh(&daemon, &["run", "work", &word]);
    let (code, _, stderr) = output(command.env("PYTHOND_MAX_WS_PAYLOAD", "63"));
    assert_eq!(code, Some(4));
    assert!(
        stderr.starts_with("error: the code has 64 bytes; at most 63 are"),
        "{stderr}"
    );
    let (code, ..) = output(command.env("PYTHOND_MAX_WS_PAYLOAD", "64"));
    assert_eq!(code, Some(0));
}

#[test]
fn large_code_and_large_answers_pass_whole() {
    let daemon = ScriptedDaemon::start(|frame| {
        let (_, code) = frame.split_once('\n').unwrap();
        let fields = format!(
            r#""stdout":"{}","stderr":"","error":null"#,
            "o".repeat(code.len())
        );
        cell("done", &fields)
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let word = format!("@{}", file.path().display());
    let (code, stdout, _) = output(&mut pysh(&daemon, &["run", "work", &word]));
    assert_eq!((code, stdout.len()), (Some(0), 16 << 20));
}

#[test]
fn echo_shows_code_and_output_to_the_operator_too() {
    let daemon =
        ScriptedDaemon::start(|_| cell("done", r#""stdout":"42\n","stderr":"","error":null"#));
    let found = output(&mut pysh(&daemon, &["run", "--echo", "work", "x = 42\nx"]));
    assert_eq!(
        found,
        (Some(0), "42\n".into(), ">>> x = 42\n... x\n42\n".into())
    );
}
