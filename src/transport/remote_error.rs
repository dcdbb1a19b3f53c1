//! Why a daemon that is reached by TCP is not, in words that say how to go on.

use std::fmt;
use std::io;
use std::time::Duration;

use pythond_identity::IdentityError;
use pythond_protocol::ExitCode;
use pythond_tls::TlsTrouble;

use crate::TcpAddress;

/// Why a daemon cannot be reached by TCP.
#[derive(Debug)]
pub struct RemoteError {
    /// As the address is shown: `tls:far.example:7399`.
    pub endpoint: String,
    /// The same without the scheme.
    pub peer: String,
    /// What happened.
    pub reason: RemoteReason,
    /// What somebody should know of the way there.
    pub notice: Option<String>,
}

/// What keeps from a connection.
#[derive(Debug)]
pub enum RemoteReason {
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable(io::Error),
    /// The name has no address.
    UnknownHost(io::Error),
    /// `localhost` has no address of this machine, which is needed without TLS.
    NotLoopback,
    /// It took too long.
    TimedOut {
        /// What was waited for.
        stage: Stage,
        /// For how long.
        limit: Duration,
    },
    /// It was closed before the daemon answered.
    Closed,
    /// ssh cannot be run here.
    Ssh(io::Error),
    /// ssh, or what it was to run there, failed with this exit code.
    SshEnded(i32),
    /// Something else than the daemon's answer came through ssh.
    SshNoise,
    /// `PYTHOND_TOKEN` is not set.
    NoToken,
    /// `HOME` is not set, where pins are.
    NoHome,
    /// Our own keys or pins cannot be used.
    Identity(IdentityError),
    /// TLS: the server is not believed, or does not believe us.
    Tls(TlsTrouble),
    /// It speaks TLS, and we were told that it does not.
    SpeaksTls,
    /// The token is not the daemon's.
    Unauthorized,
    /// The daemon does not let us in, whatever the token. What it says.
    Forbidden(String),
    /// Too many wrong tokens came from this address.
    TooManyWrongTokens,
    /// Another HTTP status, and what was said with it.
    Http(u16, String),
    /// What answers speaks something else.
    Protocol(Box<tungstenite::Error>),
    /// The system reported an error.
    Io(io::Error),
}

/// Steps of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The name is looked up.
    Lookup,
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// The daemon's own answer.
    WebSocket,
}

impl RemoteError {
    pub(crate) fn new(address: &TcpAddress, reason: RemoteReason) -> Self {
        Self {
            endpoint: address.to_string(),
            peer: address.peer.to_string(),
            reason,
            notice: None,
        }
    }

    /// Trying again changes nothing: somebody has to do something first.
    #[must_use]
    pub fn is_final(&self) -> bool {
        use RemoteReason as Why;
        match &self.reason {
            Why::Refused
            | Why::Unreachable(_)
            | Why::UnknownHost(_)
            | Why::TimedOut { .. }
            | Why::Closed
            | Why::SshEnded(255)
            | Why::TooManyWrongTokens
            | Why::Http(..)
            | Why::Io(_) => false,
            // A line that cuts or adds bytes does this as well.
            Why::Tls(TlsTrouble::Broken(_) | TlsTrouble::Alert(_)) => false,
            Why::Tls(TlsTrouble::TurnedAway) => false,
            Why::Tls(_)
            | Why::NotLoopback
            | Why::Ssh(_)
            | Why::SshEnded(_)
            | Why::SshNoise
            | Why::NoToken
            | Why::NoHome
            | Why::Identity(_)
            | Why::SpeaksTls
            | Why::Unauthorized
            | Why::Forbidden(_)
            | Why::Protocol(_) => true,
        }
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use RemoteReason as Why;
        match &self.reason {
            Why::Refused => "no_daemon",
            Why::Unreachable(_) => "unreachable",
            Why::UnknownHost(_) | Why::NotLoopback => "unknown_host",
            Why::TimedOut { .. } => "no_answer",
            Why::Closed | Why::Io(_) | Why::Http(..) => "connection",
            Why::Ssh(_) | Why::SshEnded(_) | Why::SshNoise => "ssh",
            Why::NoToken => "no_token",
            Why::NoHome => "no_home",
            Why::Identity(error) => error.code(),
            Why::Tls(trouble) => trouble.code(),
            Why::SpeaksTls => "tls_needed",
            Why::Unauthorized => "unauthorized",
            Why::Forbidden(_) => "forbidden",
            Why::TooManyWrongTokens => "too_many_wrong_tokens",
            Why::Protocol(_) => "no_pythond",
        }
    }

    /// How the process ends.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        use RemoteReason as Why;
        match &self.reason {
            Why::Refused
            | Why::Unreachable(_)
            | Why::UnknownHost(_)
            | Why::NotLoopback
            | Why::TimedOut { .. }
            | Why::Closed
            | Why::Ssh(_)
            | Why::SshEnded(_)
            | Why::SshNoise
            | Why::Http(..)
            | Why::Protocol(_)
            | Why::Io(_)
            | Why::Tls(TlsTrouble::NoTls | TlsTrouble::Broken(_) | TlsTrouble::Alert(_))
            | Why::SpeaksTls => ExitCode::NoDaemon,
            Why::NoToken | Why::NoHome => ExitCode::Usage,
            Why::Tls(_)
            | Why::Identity(_)
            | Why::Unauthorized
            | Why::Forbidden(_)
            | Why::TooManyWrongTokens => ExitCode::Refused,
        }
    }

    /// How to go on.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        use RemoteReason as Why;
        let hint = match &self.reason {
            Why::Refused => format!(
                "start it on that machine with `pyctl start -d --listen {}`, and look at the port",
                self.peer
            ),
            Why::Unreachable(_) => "look whether this machine has a way to that one".to_owned(),
            Why::UnknownHost(_) => "look at the name in `PYTHOND_HOST`".to_owned(),
            Why::NotLoopback => "set `PYTHOND_TLS=1`, or use `127.0.0.1` or `::1`".to_owned(),
            Why::TimedOut {
                stage: Stage::Lookup | Stage::Tcp,
                ..
            } => "look at the address, and whether a firewall is in between".to_owned(),
            Why::TimedOut {
                stage: Stage::Tls | Stage::WebSocket,
                ..
            } => "the daemon may be stopped or stuck, or something else listens there".to_owned(),
            Why::Closed => format!(
                "nothing was submitted; look at the daemon's log, and at `PYTHOND_HOST` and \
                 `PYTHOND_TLS` here, which lead to `{}`",
                self.endpoint
            ),
            Why::Ssh(_) => "install OpenSSH's client".to_owned(),
            Why::SshEnded(127) => format!(
                "install pythond there, where `ssh {} pythond version` finds it",
                self.peer
            ),
            Why::SshEnded(_) => format!(
                "`ssh {}` must get in without asking: look at its keys, its agent and its \
                 known hosts",
                self.peer
            ),
            Why::SshNoise => format!(
                "what its shell runs at login must print nothing where there is no terminal; \
                 `ssh {} true` shows what it prints",
                self.peer
            ),
            Why::NoToken => "ask the server's owner for what `pyctl token show` prints there, and \
                             put it into `PYTHOND_TOKEN`"
                .to_owned(),
            Why::NoHome => "pins and keys are kept below it".to_owned(),
            Why::Identity(error) => return error.hint().map(str::to_owned),
            Why::Tls(TlsTrouble::NoTls) => format!(
                "look at the address and its port; a daemon of this machine that listens \
                 without TLS is reached with `PYTHOND_TLS=0`, and `{}` must be one",
                self.peer
            ),
            Why::Tls(trouble) => return trouble.hint(),
            Why::SpeaksTls => "set `PYTHOND_TLS=1`".to_owned(),
            Why::Unauthorized => "ask the server's owner for what `pyctl token show` prints \
                                  there: it may have been rotated"
                .to_owned(),
            Why::Forbidden(_) => "look at the daemon's log".to_owned(),
            Why::TooManyWrongTokens => "wait a little, and look at `PYTHOND_TOKEN`".to_owned(),
            Why::Http(..) | Why::Protocol(_) => {
                "look at the address and its port; another program may listen there".to_owned()
            }
            Why::Io(_) => return None,
        };
        Some(hint)
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_reason(f)?;
        match &self.notice {
            Some(notice) => write!(f, "; {notice}"),
            None => Ok(()),
        }
    }
}

impl RemoteError {
    fn fmt_reason(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use RemoteReason as Why;
        let Self { endpoint, peer, .. } = self;
        match &self.reason {
            Why::Refused => write!(f, "no daemon listens on `{endpoint}`"),
            Why::Unreachable(_) => write!(f, "`{endpoint}` cannot be reached"),
            Why::UnknownHost(_) => write!(f, "the host of `{endpoint}` is not known"),
            Why::NotLoopback => write!(
                f,
                "the host of `{endpoint}` is not this machine, and without TLS the token would \
                 cross the network in clear"
            ),
            Why::TimedOut { stage, limit } => {
                let what = match stage {
                    Stage::Lookup => "its name was not found",
                    Stage::Tcp => "nothing answers",
                    Stage::Tls => "it took the connection and did not finish the TLS handshake",
                    Stage::WebSocket => "it took the connection and did not answer",
                };
                let seconds = limit.as_secs_f64();
                write!(f, "`{endpoint}` does not answer: {what} within {seconds} s")
            }
            Why::Closed => write!(f, "`{endpoint}` closed the connection before it answered"),
            Why::Ssh(_) => write!(f, "`ssh` cannot be run"),
            Why::SshEnded(127) => write!(f, "`{endpoint}` has no `pythond` on its PATH"),
            Why::SshEnded(code) => {
                write!(f, "ssh did not get to `{peer}` (exit code {code})")
            }
            Why::SshNoise => write!(
                f,
                "something else than the daemon's answer came through ssh from `{peer}`"
            ),
            Why::NoToken => write!(
                f,
                "`{endpoint}` wants a token, and `PYTHOND_TOKEN` has none"
            ),
            Why::NoHome => write!(f, "HOME is not set to an absolute path"),
            Why::Identity(error) => write!(f, "{error}"),
            Why::Tls(TlsTrouble::NotTrusted(why)) => write!(f, "{why}"),
            Why::Tls(trouble) => write!(f, "cannot connect to `{endpoint}`: {trouble}"),
            Why::SpeaksTls => write!(f, "the daemon at `{peer}` speaks TLS"),
            Why::Unauthorized => write!(f, "the daemon at `{peer}` refuses this token"),
            Why::Forbidden(words) => write!(
                f,
                "the daemon at `{peer}` does not let this machine in{}",
                said(words)
            ),
            Why::TooManyWrongTokens => write!(
                f,
                "the daemon at `{peer}` had too many wrong tokens from this address"
            ),
            Why::Http(status, words) => write!(
                f,
                "`{endpoint}` refused the connection with HTTP status {status}{}",
                said(words)
            ),
            Why::Protocol(_) => write!(f, "what listens on `{endpoint}` is no pythond"),
            Why::Io(_) => write!(f, "the connection to `{endpoint}` failed"),
        }
    }
}

fn said(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

impl std::error::Error for RemoteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        use RemoteReason as Why;
        match &self.reason {
            Why::Unreachable(error) | Why::UnknownHost(error) | Why::Io(error) => Some(error),
            Why::Identity(error) => error.source(),
            Why::Tls(trouble) => trouble.source(),
            Why::Protocol(error) => Some(error),
            _ => None,
        }
    }
}
