//! Who is at the other end of a connection.

use std::fmt;

use pythond_private_fs::{PeerCredentials, peer_credentials};
use tokio::net::UnixStream;

/// A client on the unix socket, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer(PeerCredentials);

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        peer_credentials(stream).map(Self)
    }

    /// Who submits this peer's cells, unless it says another name.
    pub(crate) fn author(self) -> String {
        format!("unix:{}", self.0.uid)
    }

    /// The process belongs to the user that the daemon runs as.
    pub(crate) fn is_me(self) -> bool {
        self.0.uid == rustix::process::geteuid().as_raw()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unix:uid={},pid={}", self.0.uid, self.0.pid)
    }
}
