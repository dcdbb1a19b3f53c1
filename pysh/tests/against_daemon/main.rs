//! `pysh` as a process against a scripted daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::duplicate_mod, reason = "the same must hold over TLS")]

mod cells;
#[path = "../../../src/transport/tests/remote/far.rs"]
#[expect(dead_code, reason = "another test needs the rest")]
mod far;
mod interrupt;
mod new;
mod over_tls;
mod remote;
mod run;
mod streaming;
mod support;

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::Daemon;

/// Longer than anything here takes, shorter than a patient person's wait.
const DEADLINE: Duration = Duration::from_secs(20);

/// The cell of all tests.
const ID: &str = "00ab00000007";

fn pysh(daemon: &impl Daemon, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pysh"));
    command
        .args(words)
        .envs(daemon.way())
        .env_remove("VIRTUAL_ENV")
        .env_remove("PYTHOND_AUTHOR")
        .env("PYTHOND_RECONNECT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, stdout, stderr.
type Found = (Option<i32>, String, String);

fn output(command: &mut Command) -> Found {
    found(command.output().unwrap())
}

/// Waits for the end of a process and takes its output.
fn end(child: Child) -> Found {
    found(child.wait_with_output().unwrap())
}

fn found(output: Output) -> Found {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn ctrl_c(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}
