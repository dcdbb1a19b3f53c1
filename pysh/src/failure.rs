//! Why a command ends early.

use pythond_protocol::ExitCode;
use pythond_transport::{ClientError, Report, TransportError};

use crate::environment::EnvironmentError;
use crate::source::SourceError;

/// Why a command ends early.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Something to tell.
    Reported(Report),
    /// The connection broke; the daemon may come back.
    Broken(Report),
    /// The same, and nothing was begun.
    NotBegun(Report),
    /// The daemon has no room for another client just now.
    NoRoom(Report),
    /// Nobody reads our stdout any more.
    BrokenPipe,
    /// Ctrl-C ended what nothing else ends.
    Ended,
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
        let (broken, not_begun) = (error.is_broken_connection(), error.is_not_begun());
        let no_room = matches!(error, ClientError::Transport(TransportError::Busy));
        let report = error.into();
        if no_room {
            Self::NoRoom(report)
        } else if not_begun {
            Self::NotBegun(report)
        } else if broken {
            Self::Broken(report)
        } else {
            Self::Reported(report)
        }
    }
}

impl From<EnvironmentError> for Failure {
    fn from(error: EnvironmentError) -> Self {
        let report = Report::new("environment", with_cause(&error), ExitCode::Refused);
        Self::Reported(report.with_hint(error.hint()))
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let report = Report::new("usage", with_cause(&error), ExitCode::Usage);
        Self::Reported(match error.hint() {
            Some(hint) => report.with_hint(hint),
            None => report,
        })
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
