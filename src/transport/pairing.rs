//! Two machines get to know each other: the client's end. PROTOCOL.md, "Pairing", says
//! what is sent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pythond_identity::{Certificate, IdentityError, PeerAddress, Token};
use pythond_pairing::{
    Bytes, Certificates, ClientMessage, ClientOpening, Code, MAX_MESSAGE_BYTES, Refusal,
    RefusalCode, ServerMessage,
};
use pythond_protocol::ExitCode;

use crate::connection::{Connection, Incoming};
use crate::dial::Deadline;
use crate::remote::{self, Unproven};
use crate::remote_error::{RemoteError, RemoteReason};
use crate::{Report, TcpAddress, TransportError};

/// How long the way there and its handshakes may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the exchange may take; the server gives it no longer.
const EXCHANGE: Duration = Duration::from_secs(15);

/// A server that knows the code.
#[derive(Debug)]
pub struct Paired {
    /// Its certificate, whose key is pinned to the address now.
    pub certificate: Certificate,
    /// It was not pinned before.
    pub pinned: bool,
    /// What it wants to know of its clients.
    pub token: Token,
}

/// Why nobody was paired.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The server cannot be reached, or not be used.
    #[error(transparent)]
    NotConnected(Box<RemoteError>),
    /// The server does not pair now.
    #[error("`{address}` has no code open")]
    NoCodeOpen {
        /// Where.
        address: PeerAddress,
    },
    /// The server goes no further.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The server does not know the code, though it took ours.
    #[error(
        "what answers does not know the code: somebody may be in between; nothing was pinned, and \
         it was told nothing"
    )]
    NotTheServer,
    /// What it said belongs to no pairing.
    #[error("what answers breaks the protocol of pairing")]
    Protocol,
    /// The server's key could not be pinned.
    #[error("the server's key cannot be pinned")]
    NotPinned(#[source] IdentityError),
    /// It took too long.
    #[error("the server does not answer")]
    NoAnswer,
    /// The connection broke.
    #[error("the connection broke before it was done")]
    Broken(#[source] TransportError),
    /// The server knows the code, its key is pinned, and then something failed. It may
    /// trust us.
    #[error("{failed}; the server's key is pinned here all the same")]
    AfterPin {
        /// Where.
        address: PeerAddress,
        /// What failed.
        #[source]
        failed: Box<PairError>,
    },
}

/// Pairs with the server of this address: pins its key, and has it trust ours. The
/// pins and the certificate are those below this home.
///
/// # Errors
/// [`PairError`].
pub fn pair(peer: &PeerAddress, home: PathBuf, code: &Code) -> Result<Paired, PairError> {
    let address = TcpAddress {
        peer: peer.clone(),
        tls: true,
        token: None,
        home: Some(home),
    };
    let connected = remote::connect_to_pair(&address, Deadline::after(CONNECT));
    let Unproven {
        connection,
        store,
        server,
        own,
    } = connected.map_err(|reason| match reason {
        RemoteReason::Unauthorized => PairError::NoCodeOpen {
            address: peer.clone(),
        },
        // It asks for certificates that it trusts, and takes others for pairing only.
        RemoteReason::Tls(
            pythond_tls::TlsTrouble::CertificateRefused
            | pythond_tls::TlsTrouble::CertificateDemanded,
        ) => PairError::NoCodeOpen {
            address: peer.clone(),
        },
        reason => PairError::NotConnected(Box::new(RemoteError::new(&address, reason))),
    })?;
    let mut exchange = Exchange::new(connection);
    let seen = Certificates {
        client: *own.as_bytes(),
        server: *server.fingerprint().as_bytes(),
    };
    let opening = ClientOpening::new(code, seen);
    exchange.say(&ClientMessage::Element(Bytes(opening.element().to_vec())))?;
    let ServerMessage::Element(Bytes(element)) = exchange.hear()? else {
        return Err(PairError::Protocol);
    };
    let keys = opening
        .answered(&element)
        .map_err(|_| PairError::Protocol)?;
    exchange.say(&ClientMessage::Proof(Bytes(keys.proof().to_vec())))?;
    let ServerMessage::Proof(Bytes(proof)) = exchange.hear()? else {
        return Err(PairError::Protocol);
    };
    if !keys.believes(&proof) {
        return Err(PairError::NotTheServer);
    }
    let pinned = store
        .pin(&server, Some(peer))
        .map_err(PairError::NotPinned)?;
    let token = exchange.token().map_err(|failed| PairError::AfterPin {
        address: peer.clone(),
        failed: Box::new(failed),
    })?;
    Ok(Paired {
        certificate: server,
        pinned,
        token,
    })
}

/// Messages, before a deadline.
struct Exchange {
    connection: Connection,
    deadline: Instant,
}

impl Exchange {
    fn new(mut connection: Connection) -> Self {
        connection.limit_messages(MAX_MESSAGE_BYTES);
        Self {
            connection,
            deadline: Instant::now() + EXCHANGE,
        }
    }

    /// The last step.
    fn token(&mut self) -> Result<Token, PairError> {
        self.say(&ClientMessage::Pinned(true))?;
        match self.hear()? {
            ServerMessage::Token(token) => Token::new(&token.0).map_err(|_| PairError::Protocol),
            _ => Err(PairError::Protocol),
        }
    }

    fn say(&mut self, message: &ClientMessage) -> Result<(), PairError> {
        let sent = self.connection.send_text(message.to_json());
        sent.map_err(PairError::Broken)
    }

    fn hear(&mut self) -> Result<ServerMessage, PairError> {
        let received = self.connection.receive(&[], Some(self.deadline));
        match received.map_err(PairError::Broken)? {
            Incoming::Woken | Incoming::TimeIsUp => Err(PairError::NoAnswer),
            Incoming::Text(text) => match serde_json::from_str(&text) {
                Ok(ServerMessage::Error(refusal)) => Err(PairError::Refused(refusal)),
                Ok(message) => Ok(message),
                Err(_) => Err(PairError::Protocol),
            },
        }
    }
}

impl PairError {
    /// A word for programs.
    fn code(&self) -> &'static str {
        match self {
            Self::NotConnected(error) => error.code(),
            Self::NoCodeOpen { .. } => "no_code",
            Self::Refused(refusal) => match refusal.code {
                RefusalCode::WrongCode => "wrong_code",
                RefusalCode::NoCode => "no_code",
                RefusalCode::CertificateRefused => "client_certificate_refused",
                RefusalCode::TooManyTries => "too_many_tries",
                RefusalCode::Usage | RefusalCode::Internal | RefusalCode::Unknown => {
                    "pairing_failed"
                }
            },
            Self::NotTheServer => "server_not_proven",
            Self::Protocol => "no_pythond",
            Self::NotPinned(error) => error.code(),
            Self::NoAnswer => "no_answer",
            Self::Broken(_) => "connection",
            Self::AfterPin { failed, .. } => failed.code(),
        }
    }

    fn exit(&self) -> ExitCode {
        match self {
            Self::NotConnected(error) => error.exit(),
            Self::Protocol | Self::NoAnswer | Self::Broken(_) => ExitCode::NoDaemon,
            Self::NoCodeOpen { .. }
            | Self::Refused(_)
            | Self::NotTheServer
            | Self::NotPinned(_) => ExitCode::Refused,
            Self::AfterPin { failed, .. } => failed.exit(),
        }
    }

    fn hint(&self) -> Option<String> {
        const ANOTHER: &str = "run `pyctl pair` there, and type the code that it shows";
        match self {
            Self::NotConnected(error) => match &error.reason {
                RemoteReason::Tls(pythond_tls::TlsTrouble::NotTrusted(why)) => match &**why {
                    pythond_tls::ServerNotTrusted::KeyChanged { address, .. } => Some(format!(
                        "somebody may be in between and want to read along; or the server has a \
                         new key. Ask whoever runs it. If the key is new, run `pyctl unpin \
                         {address}` and pair again; the code was not used"
                    )),
                    why => Some(why.hint()),
                },
                RemoteReason::UnknownHost(_) => Some("look at the name".to_owned()),
                RemoteReason::Closed | RemoteReason::Tls(pythond_tls::TlsTrouble::NoTls) => Some(
                    "look at the address: pairing needs TLS, and `pyctl status` there says `wss://` \
                     where the daemon speaks it"
                        .to_owned(),
                ),
                _ => error.hint(),
            },
            Self::NoCodeOpen { .. } => Some(ANOTHER.to_owned()),
            Self::Refused(refusal) => match refusal.code {
                RefusalCode::WrongCode => Some(
                    "type the code again; if it was right, somebody is in between: use another \
                     way to the server"
                        .to_owned(),
                ),
                RefusalCode::NoCode => Some(ANOTHER.to_owned()),
                RefusalCode::CertificateRefused => {
                    Some("`pyctl cert rotate --now` makes another".to_owned())
                }
                RefusalCode::TooManyTries
                | RefusalCode::Usage
                | RefusalCode::Internal
                | RefusalCode::Unknown => None,
            },
            Self::NotTheServer => Some("use another way to the server".to_owned()),
            Self::Protocol => Some(
                "look at the address; the server may be of a version that does not pair".to_owned(),
            ),
            Self::NotPinned(error) => error.hint().map(str::to_owned),
            Self::NoAnswer | Self::Broken(_) => {
                Some("look at what `pyctl pair` says there".to_owned())
            }
            Self::AfterPin { address, .. } => Some(format!(
                "look at what `pyctl pair` says there: if it has paired, `pyctl token show` there \
                 prints the token that is missing here; if not, pair again, or run `pyctl unpin \
                 {address}`"
            )),
        }
    }
}

impl From<PairError> for Report {
    fn from(error: PairError) -> Self {
        use std::error::Error as _;
        let mut message = error.to_string();
        // What failed after the pin is in the text already; its own cause is not.
        let mut cause = match &error {
            PairError::AfterPin { failed, .. } => failed.source(),
            error => error.source(),
        };
        while let Some(source) = cause {
            message.push_str(&format!(": {source}"));
            cause = source.source();
        }
        let report = Self::new(error.code(), message, error.exit());
        match error.hint() {
            Some(hint) => report.with_hint(hint),
            None => report,
        }
    }
}
