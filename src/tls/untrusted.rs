//! Why a server is not believed, in words that say how to go on.

use pythond_identity::{CertificateError, Fingerprint, PeerAddress, PinVerdict, UnixTime};
use time::OffsetDateTime;

/// Why a server is not believed. Nothing was sent to it but what every server gets
/// to see of a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerNotTrusted {
    /// Nothing is pinned to this address, and this key to no other.
    #[error("no certificate is pinned for `{address}`; it shows the key {met}")]
    Unpinned {
        /// Where.
        address: PeerAddress,
        /// The key that was met.
        met: Fingerprint,
    },
    /// Another key is pinned to this address.
    #[error(
        "`{address}` shows another key than the one that is pinned: it shows {met}, pinned is {}{}",
        either(pinned),
        also(known_at)
    )]
    KeyChanged {
        /// Where.
        address: PeerAddress,
        /// What is pinned.
        pinned: Vec<Fingerprint>,
        /// The key that was met.
        met: Fingerprint,
        /// Addresses that have the key that was met.
        known_at: Vec<PeerAddress>,
    },
    /// Nothing is pinned to this address, and this key is another's.
    #[error(
        "the key that `{address}` shows, {met}, is pinned to {}",
        addresses(known_at)
    )]
    WrongAddress {
        /// Where.
        address: PeerAddress,
        /// The key that was met.
        met: Fingerprint,
        /// Where it is pinned.
        known_at: Vec<PeerAddress>,
    },
    /// It is the one that is pinned, and it has expired.
    #[error("the certificate of `{address}` expired on {}", date(*since))]
    Expired {
        /// Where.
        address: PeerAddress,
        /// When.
        since: UnixTime,
    },
    /// It is the one that is pinned, and it is not valid yet.
    #[error("the certificate of `{address}` is not valid before {}", date(*from))]
    NotYetValid {
        /// Where.
        address: PeerAddress,
        /// When it will be.
        from: UnixTime,
    },
    /// It is none that may be pinned.
    #[error("the certificate of `{address}` cannot be used: {reason}")]
    Unusable {
        /// Where.
        address: PeerAddress,
        /// What is wrong.
        reason: CertificateError,
    },
    /// It has a certificate that is pinned, and not its key.
    #[error("`{address}` shows a certificate that is pinned and does not have its key")]
    KeyNotProven {
        /// Where.
        address: PeerAddress,
    },
}

impl ServerNotTrusted {
    /// What a verdict means that is not good.
    pub(crate) fn of(address: &PeerAddress, verdict: PinVerdict) -> Self {
        let address = address.clone();
        match verdict {
            PinVerdict::Unpinned { met } => Self::Unpinned { address, met },
            PinVerdict::Changed {
                pinned,
                met,
                known_at,
            } => Self::KeyChanged {
                address,
                pinned,
                met,
                known_at,
            },
            PinVerdict::WrongAddress { met, known_at } => Self::WrongAddress {
                address,
                met,
                known_at,
            },
            PinVerdict::Expired { since } => Self::Expired { address, since },
            PinVerdict::NotYetValid { from } => Self::NotYetValid { address, from },
            PinVerdict::Matches | PinVerdict::MatchesWithoutAddress => {
                Self::KeyNotProven { address }
            }
        }
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unpinned { .. } => "server_unpinned",
            Self::KeyChanged { .. } => "server_key_changed",
            Self::WrongAddress { .. } => "server_wrong_address",
            Self::Expired { .. } => "certificate_expired",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::Unusable { .. } => "certificate_refused",
            Self::KeyNotProven { .. } => "server_key_not_proven",
        }
    }

    /// How to go on.
    #[must_use]
    pub fn hint(&self) -> String {
        let pin = |address| {
            format!("copy the server's certificate here and run `pyctl pin CERT {address}`")
        };
        match self {
            Self::Unpinned { address, .. } => format!(
                "run `pyctl pair` on the server and `pyctl pair {address}` here; or {}: `pyctl \
                 cert` on the server says where it is, and its key must be the one above",
                pin(address)
            ),
            Self::KeyChanged { address, .. } => format!(
                "somebody may be in between and want to read along; or the server has a new key. \
                 Ask whoever runs it. If the key is new, run `pyctl unpin {address}`, then {}",
                pin(address)
            ),
            Self::WrongAddress {
                address, known_at, ..
            } => match &known_at[..] {
                [known] => format!(
                    "use the address {known}; or, if this server may answer at both, {}",
                    pin(address)
                ),
                _ => format!("if this server may answer at both, {}", pin(address)),
            },
            Self::Expired { address, .. } => format!(
                "compare this machine's clock; if it is right, run `pyctl cert rotate --now` on \
                 the server, then {}",
                pin(address)
            ),
            Self::NotYetValid { .. } => {
                "compare the clocks of this machine and of the server".to_owned()
            }
            Self::Unusable { address, .. } => format!(
                "only a certificate that speaks for itself alone can be pinned: run `pyctl cert \
                 rotate` on the server, then {}",
                pin(address)
            ),
            Self::KeyNotProven { .. } => {
                "somebody may be in between, with a copy of the certificate. Ask whoever runs the \
                 server"
                    .to_owned()
            }
        }
    }
}

fn either(keys: &[Fingerprint]) -> String {
    let keys: Vec<_> = keys.iter().map(Fingerprint::to_string).collect();
    keys.join(" or ")
}

fn addresses(known_at: &[PeerAddress]) -> String {
    let known: Vec<_> = known_at.iter().map(|it| format!("`{it}`")).collect();
    known.join(" and ")
}

fn also(known_at: &[PeerAddress]) -> String {
    match known_at {
        [] => String::new(),
        known_at => format!(" (that key is pinned to {})", addresses(known_at)),
    }
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .map_or_else(
            || format!("second {} of 1970", time.as_secs()),
            |time| time.date().to_string(),
        )
}
