//! The exit codes that `pysh` and `pyctl` share.

/// How a client's process ends. The table stands in README.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The request was carried out; a cell ended without an exception.
    Success = 0,
    /// The cell raised an exception (`exit(n)` counts).
    Raised = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No daemon answers.
    NoDaemon = 3,
    /// The daemon or the session refused the request.
    Refused = 4,
    /// The session died before the cell ended.
    SessionDied = 5,
    /// The time given with `--timeout` or `--wait` is over.
    TimedOut = 124,
    /// The cell or the client was interrupted.
    Interrupted = 130,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
