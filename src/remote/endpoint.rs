//! One way to a remote daemon.

use std::fmt;
use std::str::FromStr;

use pythond_identity::PeerAddress;
use pythond_transport::{SSH_SCHEME, SshAddress};

/// One way to a remote daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A port where it listens.
    Tcp(PeerAddress),
    /// The system's ssh.
    Ssh(SshAddress),
}

impl Endpoint {
    /// Nothing leaves this machine as it is.
    pub(super) fn is_safe_without_tls(&self) -> bool {
        let Self::Tcp(address) = self else {
            return true;
        };
        let host = address.host();
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// It asks for a token.
    pub(super) fn needs_token(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(SSH_SCHEME) {
            let address = text.parse::<SshAddress>();
            return address.map(Self::Ssh).map_err(|error| error.to_string());
        }
        let address = text.parse::<PeerAddress>();
        address.map(Self::Tcp).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Ssh(address) => address.fmt(formatter),
        }
    }
}
