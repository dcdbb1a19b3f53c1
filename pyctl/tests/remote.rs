//! `pyctl` and a daemon on another machine.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../src/transport/tests/remote/far.rs"]
#[expect(dead_code, reason = "another test needs the rest")]
mod far;

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use far::{Clients, Machine, TOKEN, VERSIONS, admitted, encrypted};
use tungstenite::Message;

/// A daemon that answers each frame; none ends it and closes its port.
struct Far {
    here: Machine,
    port: u16,
    /// Connections so far.
    count: Arc<AtomicUsize>,
}

impl Far {
    fn start(answer: impl Fn(usize, &str) -> Option<String> + Send + 'static) -> Self {
        let (here, far) = (Machine::new(), Machine::new());
        let config = far.tls(Clients::NotAsked, VERSIONS[0]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            loop {
                let (stream, _) = listener.accept().unwrap();
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let Some(mut socket) = admitted(encrypted(&config, stream)) else {
                    continue;
                };
                while let Ok(Message::Text(frame)) = socket.read() {
                    let Some(text) = answer(number, &frame) else {
                        // Nobody listens any more when the connection ends.
                        drop(listener);
                        return;
                    };
                    socket.send(Message::text(text)).unwrap();
                }
            }
        });
        here.pins(&far, Some(&format!("127.0.0.1:{port}")));
        Self { here, port, count }
    }

    /// Exit code, stdout, stderr.
    fn pyctl(&self, words: &[&str], token: &str) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_pyctl"))
            .args(words)
            .env("HOME", self.here.home.path())
            .env("PYTHOND_HOST", format!("127.0.0.1:{}", self.port))
            .env("PYTHOND_TLS", "1")
            .env("PYTHOND_TOKEN", token)
            // Nothing of the local daemon counts.
            .env("PYTHOND_SOCK", "/nonexistent/pythond.sock")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

fn info(boot: &str) -> String {
    // The process id is that of somebody here: who took it for the daemon's would
    // wait for the wrong one.
    let pid = std::process::id();
    format!(
        r#"{{"ok":true,"endpoint":"unix:/s","pid":{pid},"boot":"{boot}","version":"0.1.0","uptime_s":1.0,"sessions":0,"max_sessions":1024,"runtime_dir":"/r","zygotes":[]}}"#
    )
}

#[test]
fn status_names_the_endpoint() {
    let far = Far::start(|_, _| Some(info("a")));
    let endpoint = format!("tls:127.0.0.1:{}", far.port);
    let (code, stdout, stderr) = far.pyctl(&["status"], TOKEN);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.starts_with(&format!("endpoint: {endpoint}\nalive: True\npid: ")),
        "{stdout}"
    );
    assert!(!stdout.contains("socket:"), "{stdout}");
    let (code, stdout, _) = far.pyctl(&["status", "--json"], TOKEN);
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(found["endpoint"], endpoint.as_str());
    assert_eq!(found["alive"], true);
}

#[test]
fn status_tells_a_wrong_token_from_nobody() {
    let far = Far::start(|_, _| None);
    let (code, stdout, _) = far.pyctl(&["status"], &"x".repeat(40));
    assert_eq!(code, Some(4));
    let expected = format!(
        "endpoint: tls:127.0.0.1:{port}\nalive: True\nerror: the daemon at `127.0.0.1:{port}` \
         refuses this token\nhint: ask the server's owner for what `pyctl token show` prints \
         there: it may have been rotated\n",
        port = far.port
    );
    assert_eq!(stdout, expected);
    // The answer `none` ends it.
    let (code, ..) = far.pyctl(&["status"], TOKEN);
    assert_eq!(code, Some(3));
    let (code, stdout, _) = far.pyctl(&["status"], TOKEN);
    assert_eq!(code, Some(3));
    let expected = format!("endpoint: tls:127.0.0.1:{}\nalive: False\n", far.port);
    assert_eq!(stdout, expected);
}

#[test]
fn start_does_not_start_a_daemon_here() {
    let far = Far::start(|_, _| None);
    let (code, _, stderr) = far.pyctl(&["start"], TOKEN);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("`PYTHOND_HOST` is set"), "{stderr}");
    assert_eq!(far.count.load(Ordering::SeqCst), 0);
}

#[test]
fn stop_waits_until_nobody_listens_there() {
    const LATER: usize = 3;
    let far = Far::start(|connection, frame| match frame {
        _ if connection > LATER => None,
        frame if frame.starts_with("stop") => Some(r#"{"ok":true,"sessions":2}"#.to_owned()),
        _ => Some(info("a")),
    });
    let found = far.pyctl(&["stop"], TOKEN);
    let line = "OK stopping daemon; 2 sessions ended\n";
    assert_eq!(found, (Some(0), line.into(), String::new()));
    assert!(far.count.load(Ordering::SeqCst) > LATER);
}

#[test]
fn stop_takes_another_daemon_at_the_address_for_the_end_of_the_first() {
    let far = Far::start(|connection, frame| {
        if frame.starts_with("stop") {
            return Some(r#"{"ok":true,"sessions":0}"#.to_owned());
        }
        Some(info(if connection < 2 { "a" } else { "b" }))
    });
    let found = far.pyctl(&["stop"], TOKEN);
    assert_eq!(
        found,
        (Some(0), "OK stopping daemon\n".into(), String::new())
    );
    assert_eq!(far.count.load(Ordering::SeqCst), 3);
}

#[test]
fn restart_waits_for_the_next_one() {
    let far = Far::start(|connection, frame| {
        if frame.starts_with("restart") {
            return Some(r#"{"ok":true,"sessions":0}"#.to_owned());
        }
        if frame.starts_with("ls") {
            return Some(r#"{"ok":true,"sessions":[]}"#.to_owned());
        }
        Some(info(if connection < 3 { "a" } else { "b" }))
    });
    let (code, stdout, stderr) = far.pyctl(&["restart"], TOKEN);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("OK restarted pythond 0.1.0"), "{stdout}");
    assert!(far.count.load(Ordering::SeqCst) > 3);
}
