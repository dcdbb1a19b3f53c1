//! Servers that are known: which key an address has.
//!
//! Ours stand in `~/.pythond/tls/pins`, one a line: address, key, certificate,
//! with `*` for a key that has no address yet. What 0.4 pinned is a directory of
//! certificates without addresses, and is left as it is. A key without an address
//! is good for the first that it is met at, and for no other after that.

mod lines;
mod verdict;

use pythond_private_fs::Strictness;

pub use verdict::PinVerdict;

use crate::error::PinLineError;
use crate::store::{Store, read};
use crate::trusted::{is, known};
use crate::{
    Certificate, CertificateFingerprint, Fingerprint, IdentityError, KeyFingerprint, PeerAddress,
};

const FILE: &str = "pins";
const LIMIT_BYTES: u64 = 1024 * 1024;

/// One pinned key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it must be met; none if it was not said yet.
    pub address: Option<PeerAddress>,
    /// The key; 0.4 can know a certificate by its fingerprint alone.
    pub key: Option<KeyFingerprint>,
    /// The certificate that was pinned. Another one of the same key is as good.
    pub certificate: CertificateFingerprint,
    /// Until when it is valid, where the certificate was kept (by 0.4).
    pub kept: Option<Certificate>,
    /// Files of 0.4 that say so.
    files: Vec<String>,
}

impl Pin {
    /// Whether a server's certificate is what was pinned.
    fn fits(&self, presented: &Certificate) -> bool {
        match self.key {
            Some(key) => key == presented.key(),
            None => self.certificate == presented.fingerprint(),
        }
    }

    /// Whether two pins are about the same key.
    fn same_key(&self, other: &Self) -> bool {
        self.certificate == other.certificate || (self.key.is_some() && self.key == other.key)
    }
}

/// All pins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// In the order of the file; then those of 0.4 that have no address.
    pub pins: Vec<Pin>,
}

impl Pins {
    /// The pins of a file like `~/.pythond/tls/pins`.
    ///
    /// # Errors
    /// The number of the first line that is wrong, from 1, and what is wrong.
    pub fn parse(content: &[u8]) -> Result<Self, (usize, PinLineError)> {
        lines::parse(content).map(|pins| Self { pins })
    }
}

impl Store {
    /// All pins.
    ///
    /// # Errors
    /// [`IdentityError`] if any of it cannot be read or is damaged; nothing may be
    /// believed then.
    pub fn pins(&self) -> Result<Pins, IdentityError> {
        let parsed = Pins::parse(&self.pin_lines()?);
        let mut pins = parsed
            .map_err(|(line, reason)| IdentityError::Pins {
                path: self.tls.path().join(FILE),
                line,
                reason,
            })?
            .pins;
        for (certificate, known) in known(&self.trusted_servers_dir()?)? {
            let old = Pin {
                address: None,
                key: known.certificate.as_ref().map(Certificate::key),
                certificate,
                kept: known.certificate,
                files: known.files,
            };
            // What was given an address since then has no other any more.
            if !pins.iter().any(|pin| pin.same_key(&old)) {
                pins.push(old);
            }
        }
        Ok(Pins { pins })
    }

    /// Pins a server's key to an address, or to the first that it is met at. Other
    /// keys of that address stay pinned. False if it is pinned so already.
    ///
    /// # Errors
    /// As [`Self::pins`].
    pub fn pin(
        &self,
        certificate: &Certificate,
        address: Option<&PeerAddress>,
    ) -> Result<bool, IdentityError> {
        let _lock = self.lock()?;
        let pins = self.pins()?.pins;
        let same = |pin: &&Pin| pin.fits(certificate);
        if pins
            .iter()
            .filter(same)
            .any(|pin| address.is_none() || pin.address.as_ref() == address)
        {
            return Ok(false);
        }
        let old = self.pin_lines()?;
        // A line without an address has one now.
        let mut new = lines::without(&old, |pin| pin.address.is_none() && pin.fits(certificate));
        lines::add(&mut new, address, certificate);
        self.tls.write_whole(FILE, &new)?;
        Ok(true)
    }

    /// Forgets what is pinned to an address, and says what that was.
    ///
    /// # Errors
    /// As [`Self::pins`].
    pub fn unpin_address(&self, address: &PeerAddress) -> Result<Vec<Pin>, IdentityError> {
        self.unpin(|pin| pin.address.as_ref() == Some(address))
    }

    /// Forgets a key wherever it is pinned, and says where that was.
    ///
    /// # Errors
    /// As [`Self::pins`].
    pub fn unpin_key(&self, whose: Fingerprint) -> Result<Vec<Pin>, IdentityError> {
        self.unpin(|pin| is(whose, Some(pin.certificate), pin.key))
    }

    fn unpin(&self, goes: impl Fn(&Pin) -> bool) -> Result<Vec<Pin>, IdentityError> {
        let _lock = self.lock()?;
        let (gone, stays): (Vec<_>, Vec<_>) = self.pins()?.pins.into_iter().partition(&goes);
        if gone.is_empty() {
            return Ok(gone);
        }
        // What 0.4 has of a key would be good for every address again.
        let dir = self.trusted_servers_dir()?;
        for (certificate, known) in known(&dir)? {
            let key = known.certificate.as_ref().map(Certificate::key);
            let about =
                |pin: &Pin| pin.certificate == certificate || (key.is_some() && pin.key == key);
            if gone.iter().any(about) && !stays.iter().any(about) {
                for file in known.files {
                    dir.remove(&file)?;
                }
            }
        }
        dir.sync()?;
        let old = self.pin_lines()?;
        let new = lines::without(&old, &goes);
        if new != old {
            self.tls.write_whole(FILE, &new)?;
        }
        Ok(gone)
    }

    fn pin_lines(&self) -> Result<Vec<u8>, IdentityError> {
        let content = read(&self.tls, FILE, LIMIT_BYTES, Strictness::Public)?;
        Ok(content.unwrap_or_default())
    }
}
