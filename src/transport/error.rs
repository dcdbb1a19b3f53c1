//! What can go wrong between a client and the daemon.

use std::io;
use std::path::PathBuf;

use pythond_identity::PeerAddress;
use pythond_private_fs::PrivateFsError;
use pythond_protocol::ErrorReply;

use crate::heartbeat::Silent;
use crate::{RemoteError, RemoteReason};

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
    /// The daemon was there, and is not any more, or no way leads to it.
    #[error("the daemon does not answer: {0}")]
    Silent(Silent),
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
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted => Self::Closed,
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
            Self::Transport(
                Broken::Closed
                    | Broken::NotBegun
                    | Broken::Io(_)
                    | Broken::NoAnswer
                    | Broken::Silent(_)
            )
        )
    }

    /// The same, and it is certain that nothing was begun: whatever it was may be
    /// asked for again.
    #[must_use]
    pub fn is_not_begun(&self) -> bool {
        match self {
            Self::Transport(TransportError::NotBegun) => true,
            Self::NotConnected(error) => matches!(error.reason, RemoteReason::Closed),
            _ => false,
        }
    }

    /// No daemon will do as long as nobody changes something: it makes no sense to
    /// try again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::NotConnected(error) => error.is_final(),
            Self::BadVariable { .. } | Self::TlsNeeded { .. } => true,
            _ => false,
        }
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
    /// A variable that says where the daemon is has a value that means nothing.
    #[error("`{name}` cannot be used: {reason}")]
    BadVariable {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A token would cross the network in clear.
    #[error(
        "`{address}` is not this machine, and without TLS the token would cross the network in clear"
    )]
    TlsNeeded {
        /// Where it would have gone.
        address: PeerAddress,
    },
    /// A daemon cannot be reached by TCP.
    #[error(transparent)]
    NotConnected(Box<RemoteError>),
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
