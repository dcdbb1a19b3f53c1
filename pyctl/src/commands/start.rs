//! `pyctl start`: become the daemon.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use pythond_protocol::ExitCode;
use pythond_transport::{Address, Report};

use super::dispatch::address;
use crate::args::StartArgs;
use crate::failure::Outcome;
use crate::render::Render;

/// The daemon's executable.
const DAEMON: &str = "pythond";

/// Replaces this process by `pythond daemon`, which then owns the terminal,
/// the exit code and the words; returns only if that fails.
pub(super) fn start(args: &StartArgs, _render: &Render) -> Outcome {
    // A daemon would start here and commands would still go elsewhere.
    let address = address()?;
    if !address.is_here() {
        return Err(led_elsewhere(&address).into());
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
    Err(not_started(daemon.as_os_str(), &command.exec()).into())
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
