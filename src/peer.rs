//! Who is at the other end of a connection.

use std::fmt;
use std::net::SocketAddr;

use pythond_private_fs::{PeerCredentials, peer_credentials};
use tokio::net::UnixStream;

/// A client, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process on this machine.
    Unix(PeerCredentials),
    /// Somebody in a network, or on this machine all the same.
    Network {
        /// Where it comes from.
        address: SocketAddr,
        /// By TLS.
        is_encrypted: bool,
    },
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(crate) fn of_unix(stream: &UnixStream) -> std::io::Result<Self> {
        peer_credentials(stream).map(Self::Unix)
    }

    /// Who submits this peer's cells, unless it says another name.
    pub(crate) fn author(self) -> String {
        match self {
            Self::Unix(peer) => format!("unix:{}", peer.uid),
            Self::Network { address, .. } => format!("tcp:{}", address.ip().to_canonical()),
        }
    }

    /// The process belongs to the user that the daemon runs as.
    pub(crate) fn is_me(self) -> bool {
        match self {
            Self::Unix(peer) => peer.uid == rustix::process::geteuid().as_raw(),
            Self::Network { .. } => false,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(peer) => write!(formatter, "unix:uid={},pid={}", peer.uid, peer.pid),
            Self::Network {
                address,
                is_encrypted,
            } => {
                let scheme = if *is_encrypted { "tls" } else { "tcp" };
                write!(formatter, "{scheme}:{address}")
            }
        }
    }
}
