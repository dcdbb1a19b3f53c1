//! A daemon on another machine by the system's ssh, which runs `pythond bridge`
//! there: no open port, no token, no certificate but those of ssh.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tungstenite::client::IntoClientRequest as _;

use crate::connection::{Connection, HandshakeFailure};
use crate::remote_error::{RemoteError, RemoteReason, Stage};
use crate::stream::Stream;
use crate::{ClientError, TransportError};

/// How ssh begins an address.
pub const SCHEME: &str = "ssh://";
/// What is run there.
const BRIDGE: &str = "pythond bridge --stdio";
/// ssh itself failed.
const SSH_FAILED: i32 = 255;
/// A shell found no such program.
const NO_PROGRAM: i32 = 127;
/// There is no daemon, and none was to be started.
const NO_DAEMON: i32 = 3;
/// How long ssh may take to end once its connection has.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where ssh goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAddress {
    /// `USER@HOST` or `HOST`, which may be a name of ssh's configuration.
    pub destination: String,
    /// The port, if ssh is not to find it out itself.
    pub port: Option<u16>,
    /// A daemon is started there if there is none.
    pub may_start: bool,
}

/// Why a text is no address for ssh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it should be ssh://HOST, ssh://USER@HOST or ssh://USER@HOST:PORT")]
pub struct NotSshAddress;

impl FromStr for SshAddress {
    type Err = NotSshAddress;

    fn from_str(text: &str) -> Result<Self, NotSshAddress> {
        let rest = text.strip_prefix(SCHEME).ok_or(NotSshAddress)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|it| it.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').or(Some(port))),
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            None | Some("") => None,
            Some(port) => Some(port.parse().map_err(|_| NotSshAddress)?),
        };
        // ssh takes what begins with a dash for an option, and shells see the rest.
        let is_word = |text: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%+".contains(&byte);
            !text.is_empty() && !text.starts_with('-') && text.bytes().all(known)
        };
        if !is_word(host) || !user.is_none_or(is_word) || port == Some(0) {
            return Err(NotSshAddress);
        }
        let destination = match user {
            Some(user) => format!("{user}@{host}"),
            None => host.to_owned(),
        };
        Ok(Self {
            destination,
            port,
            may_start: true,
        })
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, host) = match self.destination.rsplit_once('@') {
            Some((user, host)) => (format!("{user}@"), host),
            None => (String::new(), self.destination.as_str()),
        };
        // Without brackets nothing tells an IPv6 address from its port.
        match host.contains(':') {
            true => write!(formatter, "{SCHEME}{user}[{host}]")?,
            false => write!(formatter, "{SCHEME}{user}{host}")?,
        }
        match self.port {
            Some(port) => write!(formatter, ":{port}"),
            None => Ok(()),
        }
    }
}

/// The running ssh. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Ssh(Child);

impl Drop for Ssh {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ssh {
    /// How it ended, if it does so soon.
    fn end(&mut self) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < LAST_WORDS {
            match self.0.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(status)) => return status.code(),
                Err(_) => return None,
            }
        }
        None
    }
}

/// Connects within this time.
pub(crate) fn connect(address: &SshAddress, limit: Duration) -> Result<Connection, ClientError> {
    let failed = |reason| {
        ClientError::NotConnected(Box::new(RemoteError {
            endpoint: address.to_string(),
            peer: address.destination.clone(),
            reason,
            notice: None,
        }))
    };
    let deadline = Instant::now() + limit;
    let (socket, ssh) = start(address).map_err(|error| failed(RemoteReason::Ssh(error)))?;
    let request = "ws://localhost/"
        .into_client_request()
        .map_err(TransportError::from)?;
    let ssh = Arc::new(Mutex::new(ssh));
    let left = || deadline.checked_duration_since(Instant::now());
    let stream = Stream::ssh(socket, Arc::clone(&ssh));
    Connection::handshake(stream, request, left).map_err(|failure| {
        failed(match failure {
            HandshakeFailure::TimeIsUp => RemoteReason::TimedOut {
                stage: Stage::WebSocket,
                limit,
            },
            HandshakeFailure::Io(error) => RemoteReason::Io(error),
            HandshakeFailure::Ws(error) if is_noise(&error) => RemoteReason::SshNoise,
            HandshakeFailure::Ws(_) => {
                let mut ssh = ssh.lock().unwrap_or_else(PoisonError::into_inner);
                match ssh.end() {
                    Some(NO_DAEMON) => RemoteReason::Refused,
                    Some(code @ (SSH_FAILED | NO_PROGRAM)) => RemoteReason::SshEnded(code),
                    _ => RemoteReason::Closed,
                }
            }
        })
    })
}

/// Whether what came through ssh in place of an answer is none at all: what a shell
/// prints at login.
#[must_use]
pub fn is_noise(error: &tungstenite::Error) -> bool {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    matches!(error, Error::Protocol(ProtocolError::HttparseError(_)))
}

impl SshAddress {
    /// What reaches the daemon there, once it has standard input and output.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        // It asks nobody: whoever types is asked something else. And it hears no
        // Ctrl-C, which interrupts a cell and not the way to it.
        command
            .args(["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=10"])
            .args(["-o", "ServerAliveCountMax=2"])
            .process_group(0);
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        let start = if self.may_start { "" } else { " --no-start" };
        command
            .arg("--")
            .arg(&self.destination)
            .arg(format!("{BRIDGE}{start}"));
        command
    }
}

fn start(address: &SshAddress) -> std::io::Result<(UnixStream, Ssh)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = address
        .command()
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    Ok((ours, Ssh(child)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_is_typed() {
        for text in [
            "ssh://host",
            "ssh://me@host:22",
            "ssh://me@[::1]:2222",
            "ssh://[fe80::1%eth0]",
        ] {
            let address: SshAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn addresses_are_read_and_options_are_none() {
        for (text, destination, port) in [
            ("ssh://host", "host", None),
            ("ssh://me@host", "me@host", None),
            ("ssh://me@host:22/", "me@host", Some(22)),
            ("ssh://me@[::1]:22", "me@::1", Some(22)),
            ("ssh://[::1]", "::1", None),
            ("ssh://a:b@[fe80::1%eth0]:22", "a:b@fe80::1%eth0", Some(22)),
            ("ssh://[host]:22", "host", Some(22)),
        ] {
            let address: SshAddress = text.parse().unwrap();
            assert_eq!(address.destination, destination, "{text}");
            assert_eq!(address.port, port, "{text}");
            // It is kept as it is shown, and read by the next daemon.
            assert_eq!(address.to_string().parse().as_ref(), Ok(&address), "{text}");
        }
        for text in [
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://me@-x",
            "ssh://-l@host",
            "ssh://host:0",
            "ssh://host:x",
            "ssh://a b",
            "ssh://host/path",
            "ssh://$(x)",
            "host",
        ] {
            assert!(text.parse::<SshAddress>().is_err(), "{text}");
        }
    }
}
