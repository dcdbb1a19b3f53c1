//! Where is listened for other machines.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use pythond_identity::DEFAULT_PORT;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::listener::BACKLOG;

/// A connection that says nothing is asked after this time whether it is there,
/// then as often, and is given up after so many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// What was sent and not acknowledged for so long ends a connection.
const UNACKNOWLEDGED_MS: u32 = 300_000;

/// Why nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is no address.
    #[error("`{text}` is no address to listen on; it should be HOST:PORT, [IPV6]:PORT or PORT")]
    NoAddress {
        /// As it was typed.
        text: String,
    },
    /// Its name is not known.
    #[error("the host of `{text}` is not known")]
    NoHost {
        /// As it was typed.
        text: String,
        /// What the resolver said.
        #[source]
        source: Error,
    },
    /// The system refuses.
    #[error("cannot listen on {address}{}", taken(.source))]
    Refused {
        /// Where.
        address: SocketAddr,
        /// What it said.
        #[source]
        source: Error,
    },
}

fn taken(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => " (another program does; choose another port)",
        ErrorKind::AddrNotAvailable => " (it is no address of this machine)",
        ErrorKind::PermissionDenied => " (ports below 1024 are for root)",
        _ => "",
    }
}

/// What somebody said to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    text: String,
    host: String,
    port: u16,
}

impl std::str::FromStr for ListenAddress {
    type Err = ListenError;

    /// `HOST:PORT`, `[IPV6]:PORT`, `HOST`, or, as in 0.4, `PORT` and `:PORT` for
    /// every address. Port 0 lets the system choose.
    fn from_str(text: &str) -> Result<Self, ListenError> {
        let no_address = || ListenError::NoAddress {
            text: text.chars().take(300).collect(),
        };
        let is_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (host, port) = if is_port {
            ("", Some(text))
        } else if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(no_address)?;
            host.parse::<Ipv6Addr>().map_err(|_| no_address())?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':').ok_or_else(no_address)?)),
            }
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let is_number = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => Some(port)
                .filter(is_number)
                .and_then(|port| port.parse().ok())
                .ok_or_else(no_address)?,
        };
        let good = |host: &str| host.bytes().all(|byte| byte.is_ascii_graphic());
        if !good(host) || text.is_empty() || host.contains(['/', '@']) {
            return Err(no_address());
        }
        let everywhere = host.is_empty() || host == "*";
        let host = if everywhere { "0.0.0.0" } else { host };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            port,
        })
    }
}

impl ListenAddress {
    /// As it was typed.
    #[must_use]
    pub fn as_typed(&self) -> &str {
        &self.text
    }

    fn resolve(&self) -> Result<Vec<SocketAddr>, ListenError> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let failed = |source| ListenError::NoHost {
            text: self.text.clone(),
            source,
        };
        let found: Vec<_> = found.map_err(failed)?.collect();
        if found.is_empty() {
            return Err(failed(ErrorKind::NotFound.into()));
        }
        Ok(found)
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) socket: TcpListener,
    pub(crate) address: SocketAddr,
}

/// Listens on all of them, or on none. Those that an earlier daemon left are taken
/// over.
///
/// # Errors
/// [`ListenError`] for the first that cannot be.
pub(crate) fn listen(
    addresses: &[ListenAddress],
    mut inherited: Vec<TcpListener>,
) -> Result<Vec<Listening>, ListenError> {
    let mut wanted = BTreeSet::new();
    for address in addresses {
        wanted.extend(address.resolve()?);
    }
    let listens_on_v4 = |port| {
        let is_v4 = |other: &SocketAddr| other.is_ipv4() && other.port() == port;
        wanted.iter().any(is_v4)
    };
    // Ports that were said come first: an inherited socket that has one is not taken
    // for one that the system chose.
    let (chosen, said): (Vec<_>, Vec<_>) = wanted.iter().partition(|address| address.port() == 0);
    let sockets = said.into_iter().chain(chosen).map(|address: &SocketAddr| {
        let is_it = |socket: &TcpListener| {
            let bound = socket.local_addr();
            bound.is_ok_and(|bound| {
                bound == *address || address.port() == 0 && bound.ip() == address.ip()
            })
        };
        let socket = match inherited.iter().position(is_it) {
            Some(at) => Ok(inherited.remove(at)),
            None => bind(*address, listens_on_v4(address.port())),
        };
        let address = *address;
        let socket = socket.map_err(|source| ListenError::Refused { address, source })?;
        let address = socket.local_addr().unwrap_or(address);
        Ok(Listening { socket, address })
    });
    sockets.collect()
}

/// Takes over the sockets of the daemon before, and listens on what it did not. If
/// that is not possible any more (a name has another address, or none), its sockets
/// stay as they are: a daemon that has sessions goes on.
///
/// # Errors
/// If a socket is none.
pub(crate) fn take_over(
    addresses: &[ListenAddress],
    inherited: Vec<TcpListener>,
) -> std::io::Result<(Vec<Listening>, Option<ListenError>)> {
    let copies = inherited.iter().map(TcpListener::try_clone);
    match listen(addresses, copies.collect::<Result<_, _>>()?) {
        Ok(listening) => Ok((listening, None)),
        Err(error) => {
            let as_they_are = inherited.into_iter().map(|socket| {
                let address = socket.local_addr()?;
                Ok(Listening { socket, address })
            });
            Ok((as_they_are.collect::<std::io::Result<_>>()?, Some(error)))
        }
    }
}

fn bind(address: SocketAddr, v6_only: bool) -> std::io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a daemon before may still be in their last state.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // `[::]` has the IPv4 addresses too, unless somebody names them beside it.
        sockopt::set_ipv6_v6only(&socket, v6_only)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// What every connection has, so that none waits for nothing and none that is gone
/// stays.
pub(crate) fn prepare(stream: &tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    let (idle, every, times) = KEEPALIVE;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, every)?;
    sockopt::set_tcp_keepcnt(socket, times)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Only this machine can reach it.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl From<Listening> for OwnedFd {
    fn from(listening: Listening) -> Self {
        listening.socket.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_type_them() {
        for (text, host, port) in [
            ("127.0.0.1:80", "127.0.0.1", 80),
            ("localhost:0", "localhost", 0),
            ("[::1]:7", "::1", 7),
            ("[::]", "::", 7399),
            ("::1", "::1", 7399),
            ("gpu.example", "gpu.example", 7399),
            ("8080", "0.0.0.0", 8080),
            (":8080", "0.0.0.0", 8080),
            ("*:8080", "0.0.0.0", 8080),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, port),
                "{text}"
            );
        }
        for text in [
            "",
            "host:",
            "host:x",
            "host:65536",
            "[::1",
            "[::1]7",
            "[host]:7",
            "a b:7",
            "a:b:7",
            "http://x:7",
            "u@h:7",
            "h:+7",
            "\n",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn both_families_have_one_port_and_a_taken_one_is_told() {
        let first: ListenAddress = "127.0.0.1:0".parse().unwrap();
        let one = listen(std::slice::from_ref(&first), Vec::new()).unwrap();
        let port = one[0].address.port();
        let both = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
        let both = both.map(|text| text.parse().unwrap());
        let error = listen(&both, Vec::new()).unwrap_err();
        assert!(
            error.to_string().contains("another program does"),
            "{error}"
        );
        let sockets: Vec<TcpListener> = one.into_iter().map(|one| one.socket).collect();
        let again = listen(&[first], sockets).unwrap();
        assert_eq!(again[0].address.port(), port);
        drop(again);
        let mixed = ["127.0.0.1:0", "127.0.0.2:0"].map(|text| text.parse().unwrap());
        let mixed = [&mixed[..], &[format!("127.0.0.2:{port}").parse().unwrap()]].concat();
        let sockets = |listening: Vec<Listening>| -> Vec<TcpListener> {
            listening.into_iter().map(|one| one.socket).collect()
        };
        let mut before = sockets(listen(&mixed, Vec::new()).unwrap());
        let ports = |sockets: &[TcpListener]| -> BTreeSet<SocketAddr> {
            sockets
                .iter()
                .map(|one| one.local_addr().unwrap())
                .collect()
        };
        let wanted = ports(&before);
        for turn in 0..3 {
            before.rotate_left(turn);
            before = sockets(listen(&mixed, before).unwrap());
            assert_eq!(ports(&before), wanted);
        }
        // What cannot be listened on any more is told, and all that there was stays.
        let gone = ["192.0.2.1:0", "127.0.0.1:0"].map(|text| text.parse().unwrap());
        let (kept, error) = take_over(&gone, before).unwrap();
        assert!(error.is_some());
        before = sockets(kept);
        assert_eq!(ports(&before), wanted);
        drop(before);
        assert_eq!(listen(&both, Vec::new()).unwrap().len(), 2);
    }
}
