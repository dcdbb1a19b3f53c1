//! What can go wrong between a client and the daemon.

use std::io;
use std::path::PathBuf;

use pythond_private_fs::PrivateFsError;
use pythond_protocol::ErrorReply;

/// A connection that could not be made or that broke.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It was closed before the answer came.
    #[error("the daemon closed the connection before it answered")]
    Closed,
    /// The same, and the daemon has not begun what was asked for, if anything was.
    #[error("the daemon closed the connection before it answered")]
    NotBegun,
    /// The handshake was not answered in time.
    #[error("the daemon does not answer")]
    NoAnswer,
    /// The daemon has as many connections as it can serve.
    #[error("the daemon is busy: it has as many connections as it can serve")]
    Busy,
    /// The handshake was refused.
    #[error("the daemon refused the connection with HTTP status {status}")]
    HandshakeRefused {
        /// HTTP status.
        status: u16,
    },
    /// The system reported an error.
    #[error("the connection to the daemon failed")]
    Io(#[source] io::Error),
    /// What came was no WebSocket.
    #[error("what listens at the daemon's address does not speak its protocol")]
    Protocol(#[source] Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for TransportError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::Error as Ws;
        use tungstenite::error::ProtocolError as Broken;
        match error {
            Ws::ConnectionClosed | Ws::AlreadyClosed => Self::Closed,
            Ws::Protocol(Broken::ResetWithoutClosingHandshake | Broken::HandshakeIncomplete) => {
                Self::Closed
            }
            Ws::Io(error) => match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
                _ => Self::Io(error),
            },
            Ws::Http(response) if response.status() == 503 => Self::Busy,
            Ws::Http(response) => Self::HandshakeRefused {
                status: response.status().as_u16(),
            },
            other => Self::Protocol(Box::new(other)),
        }
    }
}

impl ClientError {
    /// The connection was there and broke: the daemon ended, or another takes its
    /// place.
    #[must_use]
    pub fn is_broken_connection(&self) -> bool {
        use TransportError as Broken;
        matches!(
            self,
            Self::Transport(Broken::Closed | Broken::NotBegun | Broken::Io(_) | Broken::NoAnswer)
        )
    }

    /// The same, and it is certain that nothing was begun: whatever it was may be
    /// asked for again.
    #[must_use]
    pub fn is_not_begun(&self) -> bool {
        matches!(self, Self::Transport(TransportError::NotBegun))
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon or the session refused it.
    #[error("{}", .0.message)]
    Refused(ErrorReply),
    /// Nobody listens.
    #[error("no daemon listens on `{}`", socket.display())]
    NoDaemon {
        /// Where one was looked for.
        socket: PathBuf,
    },
    /// The socket cannot be used, for example because it is somebody else's.
    #[error(transparent)]
    Socket(PrivateFsError),
    /// `PYTHOND_HOST` is set.
    #[error("remote daemons are not available in this version")]
    RemoteNotAvailable,
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The code is greater than a frame may be.
    #[error("the code has {bytes} bytes; at most {limit_bytes} are accepted")]
    CodeTooBig {
        /// Bytes of the code.
        bytes: usize,
        /// Bytes that are accepted.
        limit_bytes: usize,
    },
    /// The answer is none that this client knows.
    #[error("the daemon gave an answer that this client does not understand: {answer}")]
    Unexpected {
        /// Its beginning.
        answer: String,
    },
}
