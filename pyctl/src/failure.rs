//! Why a command ends early.

use pythond_protocol::ExitCode;
use pythond_transport::{ClientError, Report};

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something to tell.
    Reported(Report),
    /// Nobody reads our stdout any more.
    BrokenPipe,
}

/// What a command gives back: how the process ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Reported(report)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Reported(error.into())
    }
}
