//! The only place that prints. stdout is data, stderr is talk.

use std::io::IsTerminal as _;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use pythond_protocol::output_log::Stream;
use pythond_transport::Report;
use rustix::io::Errno;
use rustix::stdio::{stderr, stdout};

use crate::descriptors::{Written, write_or_wake};
use crate::failure::Failure;

/// Where output goes and how it looks.
#[derive(Debug)]
pub(crate) struct Render {
    /// Answers are printed as the daemon's JSON.
    pub(crate) json: bool,
    /// stdout is a terminal.
    pub(crate) stdout_is_terminal: bool,
    /// stderr is a terminal.
    pub(crate) stderr_is_terminal: bool,
    colour: bool,
}

impl Render {
    /// Looks at the process's descriptors and `NO_COLOR` (no-color.org).
    pub(crate) fn new(json: bool) -> Self {
        let stderr_is_terminal = std::io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal,
            colour: stderr_is_terminal && !no_color,
        }
    }

    /// stderr may have colour.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// One line of data.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        data(format!("{text}\n").as_bytes())
    }

    /// Data as it is.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        data(bytes)
    }

    /// Talk, as it is.
    pub(crate) fn talk(&self, text: &str) {
        talk(text.as_bytes());
    }

    /// A copy of what went to stdout, for the operator.
    pub(crate) fn echo(&self, bytes: &[u8]) {
        talk(bytes);
    }

    /// A line of talk that is no error.
    pub(crate) fn note(&self, text: &str) {
        talk(format!("note: {text}\n").as_bytes());
    }

    /// What a cell wrote, each stream where it belongs and in order; with
    /// `echo` also what went to stdout on stderr. The bytes go out as the
    /// session wrote them: a filter for terminals belongs between here and
    /// the descriptors.
    pub(crate) fn output<'a>(
        &self,
        pieces: impl IntoIterator<Item = (Stream, &'a [u8])>,
        echo: bool,
    ) -> Result<(), Failure> {
        // An operator's terminal that went away takes nothing from the program
        // that reads stdout, and the other way round.
        let mut result = Ok(());
        for (stream, bytes) in pieces {
            match stream {
                Stream::Stdout => {
                    if result.is_ok() {
                        result = data(bytes);
                    }
                    if echo {
                        talk(bytes);
                    }
                }
                Stream::Stderr => talk(bytes),
            }
        }
        result
    }

    /// A piece of what a cell wrote, as [`Self::output`] does, until one of
    /// `wake` can be read while the reader is slow. Takes off `bytes` what was
    /// written.
    pub(crate) fn write(
        &self,
        stream: Stream,
        bytes: &mut &[u8],
        wake: &[BorrowedFd<'_>],
    ) -> Result<Written, Failure> {
        match stream {
            Stream::Stdout => write_or_wake(stdout(), bytes, wake).map_err(stdout_failed),
            Stream::Stderr => Ok(write_or_wake(stderr(), bytes, wake).unwrap_or(Written::All)),
        }
    }

    /// An error that does not end the command here.
    pub(crate) fn error(&self, report: &Report) {
        talk(report.to_human(self.colour).as_bytes());
    }

    /// The error that ends the process.
    pub(crate) fn failure(&self, report: &Report) -> ExitCode {
        if self.json {
            if let Err(Failure::BrokenPipe) = self.line(&report.to_json()) {
                return ExitCode::SUCCESS;
            }
        } else {
            self.error(report);
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

fn data(mut bytes: &[u8]) -> Result<(), Failure> {
    // Without anything to be woken by, all is written.
    write_or_wake(stdout(), &mut bytes, &[])
        .map(|_| ())
        .map_err(stdout_failed)
}

fn stdout_failed(errno: Errno) -> Failure {
    match errno {
        Errno::PIPE => Failure::BrokenPipe,
        errno => Failure::Reported(Report::new(
            "stdout",
            format!("cannot write to stdout: {errno}"),
            pythond_protocol::ExitCode::Raised,
        )),
    }
}

fn talk(mut bytes: &[u8]) {
    // Whoever closed stderr does not want to hear of it.
    let _ = write_or_wake(stderr(), &mut bytes, &[]);
}
