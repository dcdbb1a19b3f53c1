//! From a host and a port to a TCP connection, before a deadline.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::TcpAddress;
use crate::remote_error::{RemoteReason, Stage};

/// A connection on which nothing comes for so long is looked at, so often, and is
/// gone if nobody answers: a line that was cut says nothing by itself.
const IDLE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// The same for bytes that nobody acknowledges, and for a connection that was looked
/// at, in milliseconds. Linux asks for it only when a probe is due (tcp(7),
/// `TCP_USER_TIMEOUT`), so that 30 s would be 30.6.
const UNACKNOWLEDGED_MS: u32 = 25_000;

/// When it has to be done, and how long it was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    /// None if it is over.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn missed(&self, stage: Stage) -> RemoteReason {
        let limit = self.limit;
        RemoteReason::TimedOut { stage, limit }
    }
}

/// Connects to the first of the host's addresses that takes it.
pub(crate) fn dial(address: &TcpAddress, deadline: Deadline) -> Result<TcpStream, RemoteReason> {
    let mut found = look_up(address, deadline)?;
    if !address.tls {
        // The name is `localhost`, which may be anybody's.
        found.retain(|it| it.ip().to_canonical().is_loopback());
        if found.is_empty() {
            return Err(RemoteReason::NotLoopback);
        }
    }
    let mut failed = None;
    for (place, candidate) in found.iter().enumerate() {
        let Some(left) = deadline.left() else {
            break;
        };
        // One that is silent must leave time for the others.
        let others = u32::try_from(found.len() - place).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(candidate, left / others) {
            Ok(stream) => return prepare(stream).map_err(RemoteReason::Io),
            // What somebody said is worth more than that nobody said anything.
            Err(error) => match &failed {
                Some(known) if !is_silence(known) => {}
                _ => failed = Some(error),
            },
        }
    }
    Err(match failed {
        Some(error) if is_silence(&error) => deadline.missed(Stage::Tcp),
        Some(error) if error.kind() == ErrorKind::ConnectionRefused => RemoteReason::Refused,
        Some(error) => RemoteReason::Unreachable(error),
        None => deadline.missed(Stage::Tcp),
    })
}

fn is_silence(error: &Error) -> bool {
    error.kind() == ErrorKind::TimedOut
}

/// The addresses of the host. The system's search has no limit of its own: one
/// that takes too long is left alone, on a thread that ends with it.
fn look_up(address: &TcpAddress, deadline: Deadline) -> Result<Vec<SocketAddr>, RemoteReason> {
    let (host, port) = (address.peer.host(), address.peer.port());
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (found, wait) = sync_channel(1);
    std::thread::Builder::new()
        .spawn(move || {
            let looked = (host.as_str(), port).to_socket_addrs();
            // Nobody waits for it if it comes too late.
            let _ = found.send(looked.map(Vec::from_iter));
        })
        .map_err(RemoteReason::Io)?;
    let left = deadline.left().unwrap_or_default();
    match wait.recv_timeout(left) {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err(RemoteReason::UnknownHost(ErrorKind::NotFound.into())),
        Ok(Err(error)) => Err(RemoteReason::UnknownHost(error)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(deadline.missed(Stage::Lookup))
        }
    }
}

/// Small messages go out at once; a line that is dead is told; nothing waits.
fn prepare(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, PROBE)?;
    sockopt::set_tcp_keepcnt(&stream, PROBES)?;
    sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MS)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_line_that_is_dead_is_noticed_within_30_seconds() {
        let most = Duration::from_secs(30);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = prepare(stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let idle = sockopt::tcp_keepidle(&stream).unwrap();
        let probe = sockopt::tcp_keepintvl(&stream).unwrap();
        let probes = sockopt::tcp_keepcnt(&stream).unwrap();
        assert!(idle + probe * probes <= most);
        let unacknowledged = sockopt::tcp_user_timeout(&stream).unwrap();
        // It is looked at with each probe, so that one more may have to come.
        assert!(Duration::from_millis(unacknowledged.into()) + probe <= most);
        assert!(stream.nodelay().unwrap());
    }
}
