//! Ctrl-C as something to wait for.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use pythond_protocol::ExitCode;
use pythond_transport::Report;
use signal_hook::consts::SIGINT;
use signal_hook::low_level::pipe;

use crate::failure::Failure;
use crate::watch::Watch;

/// From its creation on, Ctrl-C no longer ends the process: it makes this
/// descriptor readable. A handler that only writes a byte needs no thread and
/// is safe at any moment (signal-safety(7)).
#[derive(Debug)]
pub(crate) struct Interrupts {
    reader: UnixStream,
}

impl Interrupts {
    /// Takes over SIGINT for the rest of the process.
    pub(crate) fn install() -> Result<Self, Report> {
        Self::register().map_err(|error| {
            Report::new(
                "internal",
                format!("cannot wait for Ctrl-C: {error}"),
                ExitCode::Refused,
            )
        })
    }

    fn register() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        pipe::register(SIGINT, writer)?;
        Ok(Self { reader })
    }

    /// Takes out what has come so far, and says whether anything has; several
    /// that came together count as one, for nobody can have meant the second
    /// as an answer to what the first set off.
    pub(crate) fn take(&self) -> bool {
        let mut bytes = [0; 16];
        let mut came = false;
        while matches!((&self.reader).read(&mut bytes), Ok(count) if count > 0) {
            came = true;
        }
        came
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Ctrl-C ends the command.
#[derive(Debug)]
pub(crate) struct Leaving {
    interrupts: Interrupts,
    end: Failure,
}

impl Leaving {
    /// Ctrl-C is how one ends the command.
    pub(crate) fn quietly() -> Result<Self, Report> {
        Ok(Self {
            interrupts: Interrupts::install()?,
            end: Failure::Ended,
        })
    }

    /// Ctrl-C ends the command with this message, hint and exit code 130.
    pub(crate) fn with(message: &str, hint: String) -> Result<Self, Report> {
        let mut leaving = Self::quietly()?;
        leaving.say(message, hint);
        Ok(leaving)
    }

    /// Changes what Ctrl-C makes the command say.
    pub(crate) fn say(&mut self, message: &str, hint: String) {
        let report = Report::new("interrupted", message, ExitCode::Interrupted);
        self.end = report.with_hint(hint).into();
    }
}

impl Watch for Leaving {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.interrupts.as_fd()]
    }

    fn woken(&mut self) -> Result<(), Failure> {
        if self.interrupts.take() {
            return Err(self.end.clone());
        }
        Ok(())
    }
}
