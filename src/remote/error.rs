//! Why a remote daemon cannot be used.

use pythond_identity::IdentityError;
use pythond_protocol::shown::is_bidi_control;
use pythond_protocol::{ErrorCode, ErrorReply};
use pythond_tls::TlsTrouble;

use crate::error::chain;

/// Why there is no connection to one endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Its name is not known, or nobody listens, or the way is broken.
    #[error("{0}")]
    Unreachable(String),
    /// Its machine is there, and no daemon listens.
    #[error("nobody listens there")]
    NobodyListens,
    /// ssh failed, or what it was to run there.
    #[error("{0}")]
    Ssh(String),
    /// Something else than the daemon's answer came through ssh, from there.
    #[error("something else than the daemon's answer came through ssh")]
    SshNoise(String),
    /// It does not answer in time.
    #[error("no answer within {0} s")]
    NoAnswer(u64),
    /// We do not believe it, or it does not believe us.
    #[error("{}", chain(.0))]
    Tls(#[source] Box<TlsTrouble>),
    /// It speaks TLS, and we were told that it does not.
    #[error("it speaks TLS")]
    SpeaksTls,
    /// It does not know our token.
    #[error("it refuses our token")]
    Unauthorized,
    /// It hears nobody from here for a while.
    #[error("it hears nobody from here for a while: too many wrong tokens")]
    Penalty,
    /// It has no room.
    #[error("it is busy")]
    Busy,
    /// It answers, and is no daemon, or refuses us for another reason.
    #[error("{0}")]
    Refused(String),
    /// Our own files cannot be used.
    #[error("{}", chain(.0))]
    Identity(#[from] IdentityError),
    /// The token's file cannot be used.
    #[error("the token file `{path}` cannot be used: {why}")]
    TokenFile {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl DialError {
    /// Trying again by itself will not help: somebody has to see to it.
    pub(crate) fn needs_somebody(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::NobodyListens
            | Self::Ssh(_)
            | Self::NoAnswer(_)
            | Self::Busy
            | Self::Penalty => false,
            Self::Tls(trouble) => {
                !matches!(**trouble, TlsTrouble::Alert(_) | TlsTrouble::Broken(_))
            }
            _ => true,
        }
    }

    /// A word for programs; clients have the same for what they reach directly.
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::NobodyListens => "no_daemon",
            Self::Ssh(_) | Self::SshNoise(_) => "ssh",
            Self::NoAnswer(_) => "no_answer",
            Self::Tls(trouble) => trouble.code(),
            Self::SpeaksTls => "tls_needed",
            Self::Unauthorized => "unauthorized",
            Self::Penalty => "too_many_wrong_tokens",
            Self::Busy => "busy",
            Self::Refused(_) => "refused",
            Self::Identity(error) => error.code(),
            Self::TokenFile { .. } => "no_token",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Tls(trouble) => trouble.hint(),
            Self::SpeaksTls => Some("connect again with `--tls`".to_owned()),
            Self::Unauthorized => {
                Some("`pyctl token show` there shows the token; connect again with it".to_owned())
            }
            Self::Identity(error) => error.hint().map(str::to_owned),
            Self::NobodyListens => Some(
                "look at the port, and start the daemon there with `pyctl start -d --listen \
                 HOST:PORT`"
                    .to_owned(),
            ),
            Self::SshNoise(destination) => Some(format!(
                "what its shell runs at login must print nothing where there is no terminal; \
                 `ssh {destination} true` shows what it prints"
            )),
            Self::TokenFile { .. } => Some(
                "write what `pyctl token show` there prints into a file of mode 0600, and name \
                 it by `--token-file`"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// What another machine says, as it may be shown to people: one line, no control
/// characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let ends_line = |c: char| matches!(c, '\u{2028}' | '\u{2029}');
    let plain = |c: char| !c.is_control() && !is_bidi_control(c) && !ends_line(c);
    let line = text.trim().chars().map(|c| if plain(c) { c } else { ' ' });
    line.take(most).collect()
}

/// Why a remote cannot be used now, as often as somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteError {
    /// One line for people.
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// [`DialError::code`] of the endpoint that says most.
    pub(crate) reason: Option<&'static str>,
    /// Somebody has to see to it: no endpoint will do by itself.
    pub(crate) needs_somebody: bool,
}

impl RemoteError {
    /// None of the endpoints could be used.
    pub(crate) fn of(attempts: &[(String, DialError)]) -> Self {
        // One that somebody has to see to says more than one that is down.
        let telling = attempts.iter().find(|(_, error)| error.needs_somebody());
        let telling = telling.or(attempts.last());
        let all: Vec<String> = attempts
            .iter()
            .map(|(endpoint, error)| format!("{endpoint}: {error}"))
            .collect();
        Self {
            message: all.join("; "),
            hint: telling.and_then(|(_, error)| error.hint()),
            reason: telling.map(|(_, error)| error.code()),
            // One that is down may come back, whatever the others say.
            needs_somebody: attempts.iter().all(|(_, error)| error.needs_somebody()),
        }
    }

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            reason: None,
            needs_somebody: false,
        }
    }

    /// The answer to whoever wanted something of it.
    pub(crate) fn reply(&self, remote: &str) -> ErrorReply {
        self.answer(remote, "see `pysh ls`; it is tried again when it is used")
    }

    /// The answer to whoever wanted to connect it, which is not done.
    pub(crate) fn refuses_connect(&self, remote: &str) -> ErrorReply {
        self.answer(
            remote,
            "look at the address and the network, then connect again: it is not tried again \
             by itself",
        )
    }

    fn answer(&self, remote: &str, hint: &str) -> ErrorReply {
        let (code, what) = if self.needs_somebody {
            (ErrorCode::RemoteRefused, "cannot be used")
        } else {
            (ErrorCode::SessionUnreachable, "cannot be reached")
        };
        let mut error =
            ErrorReply::new(code, format!("remote `{remote}` {what}: {}", self.message));
        error.reason = self.reason.map(str::to_owned);
        error.with_hint(self.hint.as_deref().unwrap_or(hint))
    }
}
