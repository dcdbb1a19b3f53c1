//! What a server's certificate is worth at the address where it was met.

use rustls_pki_types::UnixTime;

use super::{Pin, Pins};
use crate::{Certificate, Fingerprint, PeerAddress, ValidityState};

/// What a server's certificate is worth at the address where it was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinVerdict {
    /// It is the one that is pinned to this address.
    Matches,
    /// It is pinned, and to no address yet: pin it to this one, and say so.
    MatchesWithoutAddress,
    /// Nothing is pinned to this address, and this key to no other.
    Unpinned {
        /// The key that was met.
        met: Fingerprint,
    },
    /// Another key is pinned to this address.
    Changed {
        /// What is pinned.
        pinned: Vec<Fingerprint>,
        /// What was met.
        met: Fingerprint,
        /// Addresses that have the key that was met.
        known_at: Vec<PeerAddress>,
    },
    /// Nothing is pinned to this address, and this key is another's.
    WrongAddress {
        /// What was met.
        met: Fingerprint,
        /// Where it is pinned.
        known_at: Vec<PeerAddress>,
    },
    /// It is the one that is pinned, and it has expired.
    Expired {
        /// When.
        since: UnixTime,
    },
    /// It is the one that is pinned, and it is not valid yet.
    NotYetValid {
        /// When it will be.
        from: UnixTime,
    },
}

impl Pins {
    /// What a certificate is worth at this address. An address that has a pin is
    /// good with no key but that, even one that is pinned without an address.
    #[must_use]
    pub fn check(
        &self,
        address: &PeerAddress,
        presented: &Certificate,
        now: UnixTime,
    ) -> PinVerdict {
        let met = Fingerprint::Key(presented.key());
        let (here, elsewhere): (Vec<&Pin>, Vec<&Pin>) = self
            .pins
            .iter()
            .partition(|pin| pin.address.as_ref() == Some(address));
        let known: Vec<&&Pin> = elsewhere.iter().filter(|pin| pin.fits(presented)).collect();
        let known_at: Vec<PeerAddress> =
            known.iter().filter_map(|pin| pin.address.clone()).collect();
        let good = if here.is_empty() {
            if !known_at.is_empty() {
                return PinVerdict::WrongAddress { met, known_at };
            }
            if known.is_empty() {
                return PinVerdict::Unpinned { met };
            }
            PinVerdict::MatchesWithoutAddress
        } else {
            if !here.iter().any(|pin| pin.fits(presented)) {
                let shown = |pin: &&Pin| match pin.key {
                    Some(key) => Fingerprint::Key(key),
                    None => Fingerprint::Certificate(pin.certificate),
                };
                let pinned = here.iter().map(shown).collect();
                return PinVerdict::Changed {
                    pinned,
                    met,
                    known_at,
                };
            }
            PinVerdict::Matches
        };
        let validity = presented.validity();
        match validity.at(now) {
            ValidityState::Valid => good,
            ValidityState::Expired => PinVerdict::Expired {
                since: validity.not_after,
            },
            ValidityState::NotYetValid => PinVerdict::NotYetValid {
                from: validity.not_before,
            },
        }
    }
}
