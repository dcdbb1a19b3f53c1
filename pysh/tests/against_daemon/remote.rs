//! What only matters for a daemon on another machine.

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::far::{Clients, Machine, TOKEN, VERSIONS, admitted, encrypted, listen};
use super::over_tls::support::ScriptedDaemon;
use super::support::{ACCEPTED, Daemon, Say, cell, converse, piece, streamed};
use super::{DEADLINE, ctrl_c, end, output, pysh};

#[test]
fn a_new_session_there_gets_no_path_of_this_machine_unasked() {
    let (asked, was_asked) = channel();
    let asked = Mutex::new(asked);
    let daemon = ScriptedDaemon::start(move |frame| {
        asked.lock().unwrap().send(frame.to_owned()).unwrap();
        r#"{"ok":false,"error":{"code":"limit","message":"m"}}"#.to_owned()
    });
    let here = tempfile::tempdir().unwrap();
    for (words, body) in [
        (&[][..], "{}"),
        (&["--cwd", "/srv/data"], r#"{"cwd":"/srv/data"}"#),
        (
            &["--venv", "/srv/venv"],
            r#"{"python":"/srv/venv/bin/python","python_reason":"--venv /srv/venv"}"#,
        ),
    ] {
        let words: Vec<_> = ["new", "work"].iter().chain(words).copied().collect();
        let mut command = pysh(&daemon, &words);
        command.env("VIRTUAL_ENV", here.path());
        assert_eq!(output(&mut command).0, Some(4));
        let frame = was_asked.recv_timeout(DEADLINE).unwrap();
        let sent: serde_json::Value =
            serde_json::from_str(frame.split_once('\n').unwrap().1).unwrap();
        let expected: serde_json::Value = serde_json::from_str(body).unwrap();
        for name in ["cwd", "python", "python_reason"] {
            assert_eq!(sent.get(name), expected.get(name), "{frame}");
        }
    }
    let (code, _, stderr) = output(&mut pysh(&daemon, &["new", "work", "--cwd", "data"]));
    assert_eq!(code, Some(4));
    assert!(stderr.contains("`data` is no absolute path"), "{stderr}");
}

#[test]
fn a_cell_goes_on_over_a_cut_connection_with_its_key_and_without_doubled_output() {
    let connections = AtomicUsize::new(0);
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let count = connections.fetch_add(1, Ordering::SeqCst);
        // In the middle of it all, there are some that do not come about.
        if (1..4).contains(&count) {
            return;
        }
        let Some(socket) = admitted(encrypted(&config, stream)) else {
            return;
        };
        converse(
            socket,
            &move |frame, say| {
                say(ACCEPTED);
                say(&piece(1, 0, "one "));
                if count == 0 {
                    return false;
                }
                assert!(frame.contains(" --resent="), "{frame}");
                say(&piece(1, 4, "two"));
                say(&streamed("done", r#""error":null"#))
            },
            true,
        );
    });
    here.pins(&far, Some(&format!("127.0.0.1:{port}")));
    let daemon = At { here, port };
    let mut command = pysh(&daemon, &["run", "work", "1"]);
    command.env("PYTHOND_RECONNECT", "15");
    let (code, out, err) = output(&mut command);
    assert_eq!((code, out.as_str()), (Some(0), "one two"));
    // Said only if it takes a while.
    let is_note = |line: &str| line.starts_with("note: the daemon at ");
    assert!(err.lines().all(is_note), "{err}");
}

#[test]
fn a_key_that_changed_during_an_outage_ends_the_wait_at_once() {
    let connections = AtomicUsize::new(0);
    let (here, far, other) = (Machine::new(), Machine::new(), Machine::new());
    let configs = [&far, &other].map(|it| it.tls(Clients::NotAsked, VERSIONS[0]));
    let port = listen(move |stream| {
        let count = connections.fetch_add(1, Ordering::SeqCst);
        if let Some(socket) = admitted(encrypted(&configs[count.min(1)], stream)) {
            let cut = |_: &str, say: Say<'_>| {
                say(ACCEPTED);
                false
            };
            converse(socket, &cut, true);
        }
    });
    here.pins(&far, Some(&format!("127.0.0.1:{port}")));
    let daemon = At { here, port };
    let mut command = pysh(&daemon, &["run", "--json", "work", "1"]);
    // Would be waited for longer than any test may take.
    command.env("PYTHOND_RECONNECT", "3600");
    let (code, stdout, _) = output(&mut command);
    assert_eq!(code, Some(4));
    assert!(
        stdout.contains(r#""code":"server_key_changed""#),
        "{stdout}"
    );
}

#[test]
fn the_token_reaches_no_output() {
    let daemon = ScriptedDaemon::start(|_| cell("done", r#""stdout":"","stderr":"","error":null"#));
    for words in [
        &["run", "work", "1"][..],
        &["--json", "ls"],
        &["status", "x"],
    ] {
        let (_, stdout, stderr) = output(&mut pysh(&daemon, words));
        assert!(!format!("{stdout}{stderr}").contains(TOKEN));
    }
    let mut command = pysh(&daemon, &["ls"]);
    command.env("PYTHOND_TOKEN", format!("x{TOKEN}"));
    let (code, stdout, stderr) = output(&mut command);
    assert_eq!((code, stdout.as_str()), (Some(4), ""));
    assert!(
        stderr.contains("refuses this token") && !stderr.contains(TOKEN),
        "{stderr}"
    );
}

#[test]
fn ctrl_c_leaves_a_server_that_says_nothing() {
    let (came, comes) = channel();
    let came = Mutex::new(came);
    let port = listen(move |stream| came.lock().unwrap().send(stream).unwrap());
    let daemon = At {
        here: Machine::new(),
        port,
    };
    let child = pysh(&daemon, &["run", "work", "1"]).spawn().unwrap();
    let first = comes.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    // It asks for the interrupt on a connection of its own.
    let second = comes.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    let (code, _, stderr) = end(child);
    assert_eq!(code, Some(130));
    assert!(stderr.starts_with("error: left `work`"), "{stderr}");
    drop((first, second));
}

#[test]
fn ctrl_c_leaves_a_daemon_that_does_not_take_the_code() {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let (came, comes) = channel();
    let came = Mutex::new(came);
    let port = listen(move |stream| {
        // Whoever takes it holds it, and reads nothing.
        let socket = admitted(encrypted(&config, stream));
        came.lock().unwrap().send(socket).unwrap();
    });
    here.pins(&far, Some(&format!("127.0.0.1:{port}")));
    let daemon = At { here, port };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all("0123456789".repeat(1 << 20).as_bytes())
        .unwrap();
    let source = format!("@{}", file.path().display());
    let child = pysh(&daemon, &["run", "work", &source]).spawn().unwrap();
    let first = comes.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    let second = comes.recv_timeout(DEADLINE).unwrap();
    ctrl_c(&child);
    let (code, _, stderr) = end(child);
    assert_eq!(code, Some(130));
    assert!(stderr.starts_with("error: left `work`"), "{stderr}");
    drop((first, second));
}

/// A port, and who goes there.
struct At {
    here: Machine,
    port: u16,
}

impl Daemon for At {
    fn way(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        vec![
            ("PYTHOND_HOST", format!("127.0.0.1:{}", self.port).into()),
            ("PYTHOND_TLS", "yes".into()),
            ("PYTHOND_TOKEN", TOKEN.into()),
            ("HOME", self.here.home.path().into()),
        ]
    }
}
