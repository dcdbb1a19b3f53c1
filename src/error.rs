//! What can go wrong, and the one place where it becomes an answer.

use pythond_private_fs::PrivateFsError;
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};

use crate::environment::{EnvironmentError, plain_words};
use crate::lane_io::ConnectError;

/// Why a session's process could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// No usable interpreter.
    #[error(transparent)]
    Interpreter(#[from] EnvironmentError),
    /// The environment does not come up; one line that says why.
    #[error("{0}")]
    Environment(String),
    /// The zygote could not make a host; one line.
    #[error("{0}")]
    Refused(String),
    /// The launcher could not be started.
    #[error("cannot start the session host")]
    Launch(#[source] std::io::Error),
    /// The runtime directory cannot be used.
    #[error("the runtime directory cannot be used")]
    Files(#[source] PrivateFsError),
    /// The host was made and does not answer.
    #[error("the session host does not answer")]
    Connect(#[source] ConnectError),
    /// A session of another daemon has the name.
    #[error("the name `{0}` is in use by a session of another daemon with this home directory")]
    NameInUse(SessionName),
    /// A limit cannot be kept; one line.
    #[error("{0}")]
    Limits(String),
    /// The working directory is not there.
    #[error("no directory `{0}` to work in")]
    Directory(String),
    /// The system has no random bytes.
    #[error("the system has no random bytes")]
    Random,
}

impl From<SpawnError> for ErrorReply {
    fn from(error: SpawnError) -> Self {
        let text = error.to_string();
        match error {
            SpawnError::Environment(_) if text.starts_with("cannot preload") => {
                Self::new(ErrorCode::Environment, text)
                    .with_hint("leave it out of `--preload`, or make it importable first")
            }
            SpawnError::Interpreter(_) | SpawnError::Environment(_) => {
                Self::new(ErrorCode::Environment, text)
                    .with_hint("choose another with `pysh new NAME --python PATH` or `--venv DIR`")
            }
            SpawnError::Directory(_) => Self::new(ErrorCode::Environment, text)
                .with_hint("choose another with `pysh new NAME --cwd DIR`"),
            SpawnError::Limits(_) => Self::new(ErrorCode::Limit, text),
            SpawnError::NameInUse(_) => Self::new(ErrorCode::NameInUse, text)
                .with_hint("choose another name, or end that session through its own daemon"),
            SpawnError::Refused(_) | SpawnError::Random => Self::new(ErrorCode::SpawnFailed, text),
            SpawnError::Launch(source) => Self::new(
                ErrorCode::SpawnFailed,
                format!("{text}: {}", plain_words(&source)),
            )
            .with_hint("`pythond-host` belongs beside `pythond`; install both again"),
            SpawnError::Files(source) => Self::new(
                ErrorCode::SpawnFailed,
                format!("{text}: {}", chain(&source)),
            ),
            SpawnError::Connect(source) => Self::new(
                ErrorCode::SpawnFailed,
                format!("{text}: {}", chain(&source)),
            ),
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
