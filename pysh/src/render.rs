//! The only place that prints. stdout is data, stderr is talk.

use pythond_protocol::shown::escape_controls;
use std::borrow::Cow;
use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use pythond_protocol::output_log::Stream;
use pythond_transport::{Client, Report};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdout};

use crate::descriptors::{Written, write_or_wake};
use crate::failure::Failure;
use crate::terminal::escapes::Visible;

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
    /// What the streams of a cell have begun, on terminals.
    shown: RefCell<[Visible; 2]>,
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
            shown: RefCell::default(),
        }
    }

    /// stderr may have colour.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// One line of data.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Data as it is; visible on a terminal.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        if self.stdout_is_terminal {
            return data(&whole(bytes));
        }
        data(bytes)
    }

    /// Talk, as it is.
    pub(crate) fn talk(&self, text: &str) {
        talk(text.as_bytes());
    }

    /// Talk in the words of a session, visible on a terminal.
    pub(crate) fn foreign_talk(&self, text: &str) {
        if self.stderr_is_terminal {
            return talk(&whole(text.as_bytes()));
        }
        talk(text.as_bytes());
    }

    /// A copy of what went to stdout, for the operator.
    pub(crate) fn echo(&self, bytes: &[u8]) {
        talk(&self.shown(Stream::Stderr, bytes));
    }

    /// What a cell wrote as it may be written: as it is, on a terminal visible
    /// but for colours. The next piece of the same stream may go on where this
    /// one was torn.
    pub(crate) fn shown<'a>(&self, stream: Stream, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let (is_terminal, at) = match stream {
            Stream::Stdout => (self.stdout_is_terminal, 0),
            Stream::Stderr => (self.stderr_is_terminal, 1),
        };
        if is_terminal {
            Cow::Owned(self.shown.borrow_mut()[at].show(bytes))
        } else {
            Cow::Borrowed(bytes)
        }
    }

    /// The end of what cells wrote: shows what was torn, and ends colours.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        let [stdout, stderr] = &mut *self.shown.borrow_mut();
        talk(&stderr.finish());
        data(&stdout.finish())
    }

    /// A line of talk that is no error.
    pub(crate) fn note(&self, text: &str) {
        talk(format!("note: {}\n", escape_controls(text)).as_bytes());
    }

    /// A connection was made: tells what people should know of it.
    pub(crate) fn connected(&self, mut client: Client) -> Client {
        if let Some(notice) = client.take_notice() {
            self.note(&notice);
        }
        client
    }

    /// What a cell wrote, each stream where it belongs and in order; with
    /// `echo` also what went to stdout on stderr.
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
                        result = data(&self.shown(stream, bytes));
                    }
                    if echo {
                        self.echo(bytes);
                    }
                }
                Stream::Stderr => talk(&self.shown(stream, bytes)),
            }
        }
        result
    }

    /// A piece of what a cell wrote, [`Self::shown`], until one of `wake` can be
    /// read while the reader is slow. Takes off `bytes` what was written.
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

/// A text that is all there, visible.
fn whole(bytes: &[u8]) -> Vec<u8> {
    let mut visible = Visible::default();
    let mut shown = visible.show(bytes);
    shown.extend(visible.finish());
    shown
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
