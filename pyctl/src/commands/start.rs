//! `pyctl start`: become the daemon; or have one started, and tell of it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pythond_protocol::ExitCode;
use pythond_transport::{Address, Client, Report};
use serde_json::Value;

use super::dispatch::address;
use super::identity::with;
use crate::args::StartArgs;
use crate::failure::Outcome;
use crate::render::Render;

/// The daemon's executable.
const DAEMON: &str = "pythond";

/// Replaces this process by `pythond daemon`, which then owns the terminal,
/// the exit code and the words; returns only if that fails. With `--json` the daemon
/// goes to the background, and the words are ours.
pub(super) fn start(args: &StartArgs, render: &Render) -> Outcome {
    // A daemon would start here and commands would still go elsewhere.
    let address = address()?;
    if !address.is_here() {
        return Err(led_elsewhere(&address).into());
    }
    if render.json && !args.detach {
        let message = "`--json` needs `--detach`: a daemon in the foreground has no one answer";
        return Err(Report::new("usage", message.to_owned(), ExitCode::Usage).into());
    }
    let daemon = std::env::current_exe()
        .ok()
        .and_then(|own| beside(&own))
        .unwrap_or_else(|| PathBuf::from(DAEMON));
    let mut command = Command::new(&daemon);
    command.arg("daemon");
    if args.detach {
        command.arg("--detach");
    }
    for address in &args.listen {
        command.arg(format!("--listen={address}"));
    }
    for (on, word) in [(args.tls, "--tls"), (args.show_token, "--show-token")] {
        if on {
            command.arg(word);
        }
    }
    if render.json {
        let output = command.output();
        let output = output.map_err(|error| not_started(daemon.as_os_str(), &error))?;
        return tell(&address, &output, render);
    }
    Err(not_started(daemon.as_os_str(), &command.exec()).into())
}

/// Tells of the daemon that was started: what `pyctl status` says, and what it
/// printed of its keys.
fn tell(address: &Address, output: &Output, render: &Render) -> Outcome {
    if !output.status.success() {
        return Err(refused(output).into());
    }
    let info = Client::connect(address)?.info()?;
    let mut object: Value = serde_json::from_str(info.json()).unwrap_or_default();
    let printed = String::from_utf8_lossy(&output.stdout);
    for (name, value) in printed.lines().filter_map(|line| line.split_once('=')) {
        if ["token", "fingerprint"].contains(&name) {
            object = with(object, serde_json::json!({ name: value }));
        }
    }
    render.line(&object.to_string())?;
    Ok(ExitCode::Success)
}

/// What the daemon said that did not start.
fn refused(output: &Output) -> Report {
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let words = words.strip_prefix("error: ").unwrap_or(words);
    let (code, exit) = match output.status.code() {
        Some(code) if code == ExitCode::Usage as i32 => ("usage", ExitCode::Usage),
        _ => ("environment", ExitCode::Refused),
    };
    Report::new(code, words.to_owned(), exit)
}

/// The daemon beside our own executable: it has our version and needs no
/// PATH.
fn beside(own: &Path) -> Option<PathBuf> {
    let candidate = own.parent()?.join(DAEMON);
    candidate.is_file().then_some(candidate)
}

fn led_elsewhere(address: &Address) -> Report {
    let message = format!(
        "`PYTHOND_HOST` is set: commands go to `{address}`, and `start` would start a daemon here"
    );
    Report::new("usage", message, ExitCode::Usage)
        .with_hint("unset `PYTHOND_HOST`, or start it on that machine")
}

fn not_started(daemon: &OsStr, error: &io::Error) -> Report {
    let daemon = daemon.to_string_lossy();
    let report = Report::new(
        "environment",
        format!("cannot start `{daemon}`: {error}"),
        ExitCode::Refused,
    );
    match error.kind() {
        io::ErrorKind::NotFound => {
            report.with_hint("install `pythond` beside `pyctl`, or in a directory of the PATH")
        }
        _ => report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_beside_us_is_preferred() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("pyctl");
        assert_eq!(beside(&own), None);
        let daemon = directory.path().join(DAEMON);
        std::fs::File::create(&daemon).unwrap();
        assert_eq!(beside(&own), Some(daemon));
    }

    #[test]
    fn a_missing_daemon_is_named_with_what_to_do() {
        let report = not_started(OsStr::new("pythond"), &io::ErrorKind::NotFound.into());
        assert_eq!(report.message, "cannot start `pythond`: entity not found");
        assert!(report.hint.is_some());
    }
}
