//! The only place that prints. stdout is data, stderr is talk.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

use pythond_protocol::shown::escape_controls;
use pythond_transport::Report;

use crate::failure::Failure;

/// Where output goes and how it looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Render {
    /// Answers are printed as JSON.
    pub(crate) json: bool,
    colour: bool,
}

impl Render {
    /// Looks at the process's descriptors and `NO_COLOR` (no-color.org).
    pub(crate) fn new(json: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: std::io::stderr().is_terminal() && !no_color,
        }
    }

    /// Lines of data. A daemon of another machine may say anything: nothing of it
    /// steers a terminal.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let text = match std::io::stdout().is_terminal() {
            true => escape_controls(text),
            false => text.into(),
        };
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Data as it is.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                ErrorKind::BrokenPipe => Failure::BrokenPipe,
                _ => Failure::Reported(Report::new(
                    "stdout",
                    format!("cannot write to stdout: {error}"),
                    pythond_protocol::ExitCode::Raised,
                )),
            })
    }

    /// Something that somebody should know, and that ends nothing.
    pub(crate) fn warning(&self, text: &str) {
        let word = if self.colour {
            "\x1b[1;33mwarning\x1b[0m"
        } else {
            "warning"
        };
        // Whoever closed stderr does not want to hear of it.
        let _ = writeln!(std::io::stderr(), "{word}: {text}");
    }

    /// A line of talk that is no error.
    pub(crate) fn note(&self, text: &str) {
        // Whoever closed stderr does not want to hear of it.
        let _ = std::io::stderr().write_all(format!("note: {text}\n").as_bytes());
    }

    /// A question; what is typed follows on the same line.
    pub(crate) fn prompt(&self, text: &str) {
        // Whoever closed stderr does not want to hear of it.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// The error that ends the process.
    pub(crate) fn failure(&self, report: &Report) -> ExitCode {
        if self.json {
            if let Err(Failure::BrokenPipe) = self.line(&report.to_json()) {
                return ExitCode::SUCCESS;
            }
        } else {
            // Whoever closed stderr does not want to hear of it.
            let _ = std::io::stderr().write_all(report.to_human(self.colour).as_bytes());
        }
        report.exit.into()
    }
}

/// Help, version, or what is wrong with the command line.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to tell anybody if this fails.
    let _ = error.print();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ => pythond_protocol::ExitCode::Usage.into(),
    }
}
