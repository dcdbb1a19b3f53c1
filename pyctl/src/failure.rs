//! Why a command ends early.

use std::error::Error as _;

use pythond_identity::IdentityError;
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

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        // What is shown as the error itself has its cause's text already.
        if let IdentityError::Fs(inner) = &error {
            cause = inner.source();
        }
        while let Some(inner) = cause {
            message.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        let report = Report::new(error.code(), message, ExitCode::Refused);
        match error.hint() {
            Some(hint) => report.with_hint(hint).into(),
            None => report.into(),
        }
    }
}
