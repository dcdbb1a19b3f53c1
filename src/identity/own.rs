//! This machine's certificate and key, and their rotation.
//!
//! A pair is two files, and no two files change at once. So a new pair is written
//! as `next-key.pem` and `next-cert.pem` first, and is real once the second is
//! there. Then both are renamed, the key first. Whoever finds that half done
//! finishes it: each state in between tells which pair is meant.

use std::path::PathBuf;
use std::time::Duration;

use pythond_private_fs::Strictness;
use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use zeroize::{Zeroize as _, Zeroizing};

use crate::make::{make, seconds};
use crate::pem::{self, LIMIT_BYTES};
use crate::store::{Store, read};
use crate::{Certificate, IdentityError};

const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
/// When that pair takes over, in seconds since 1970. It is no part of the
/// certificate, which must be of use at once if somebody wants it so.
const NEXT_FROM: &str = "next-from";

/// A certificate with its key. Shows no key.
#[derive(Debug)]
pub struct OwnPair {
    /// The certificate.
    pub certificate: Certificate,
    /// Its file.
    pub certificate_path: PathBuf,
    /// The key's file.
    pub key_path: PathBuf,
    key: PrivateKeyDer<'static>,
}

impl OwnPair {
    /// The private key, for a TLS library.
    #[must_use]
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl Drop for OwnPair {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A pair that will be used later, so that others can pin or trust it before.
#[derive(Debug)]
pub struct Announced {
    /// The pair.
    pub pair: OwnPair,
    /// When it takes the place of the one that is used now.
    pub used_from: UnixTime,
}

/// Who this machine is.
#[derive(Debug)]
pub struct OwnIdentity {
    /// What it shows to others now.
    pub pair: OwnPair,
    /// What it will show.
    pub announced: Option<Announced>,
}

/// For how long the old certificate is still the one that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The new one is announced for so long.
    For(Duration),
    /// The new one is used at once; one that was announced is that one.
    None,
}

/// What a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// There was none.
    Made,
    /// A new pair is announced; the old one is used until then.
    Announced,
    /// A new pair is used; the old key is gone.
    Replaced,
    /// The pair that was announced is used; the old key is gone.
    Finished,
    /// The old pair was of no use; a new one is used.
    Repaired,
}

/// What the files say.
enum Found {
    Nothing,
    Pair(Box<OwnIdentity>),
    /// An installation that somebody has to finish.
    Unfinished,
}

impl Store {
    /// This machine's certificate and key; none if they were never made. An
    /// announced pair whose time has come takes the place of the old one.
    ///
    /// # Errors
    /// [`IdentityError`]: what is there is damaged, does not belong together, or
    /// others may read the key. Nothing is ever made in its place.
    pub fn own(&self, now: UnixTime) -> Result<Option<OwnIdentity>, IdentityError> {
        // Somebody may be at it just now; what is found under the lock counts.
        if let Ok(Found::Pair(found)) = self.look()
            && !is_due(&found, now)
        {
            return Ok(Some(*found));
        }
        let _lock = self.lock()?;
        self.settled(now)
    }

    /// As [`Self::own`], and makes a pair if there is none.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub fn own_or_make(&self, now: UnixTime) -> Result<OwnIdentity, IdentityError> {
        if let Some(found) = self.own(now)? {
            return Ok(found);
        }
        let _lock = self.lock()?;
        if self.settled(now)?.is_none() {
            self.stage(now, now)?;
            self.install()?;
        }
        self.present()
    }

    /// Makes a new pair and says when it is used.
    ///
    /// # Errors
    /// [`IdentityError::RotationUnderWay`] if one is announced and this asks for
    /// another; and as [`Self::own`], but for a pair that is of no use: that one is
    /// replaced.
    pub fn rotate(
        &self,
        overlap: Overlap,
        now: UnixTime,
    ) -> Result<(Rotation, OwnIdentity), IdentityError> {
        let _lock = self.lock()?;
        let mut found = self.settled(now);
        // What is used now is not given up for what was only announced.
        if matches!(&found, Err(error) if error.is_a_damaged_pair()) && self.is_usable() {
            for name in [NEXT_CERTIFICATE, NEXT_KEY, NEXT_FROM] {
                self.tls.remove(name)?;
            }
            found = self.settled(now);
        }
        let done = match found {
            Ok(None) => self.replace(now, Rotation::Made)?,
            Ok(Some(found)) => match (&found.announced, overlap) {
                (Some(announced), Overlap::For(_)) => {
                    let certificate = announced.pair.certificate_path.clone();
                    return Err(IdentityError::RotationUnderWay { certificate });
                }
                (Some(_), Overlap::None) => {
                    self.install()?;
                    Rotation::Finished
                }
                // Nobody takes it any more: there is nothing to overlap with.
                (None, Overlap::For(_)) if found.pair.certificate.validity().not_after <= now => {
                    self.replace(now, Rotation::Replaced)?
                }
                (None, Overlap::For(time)) => {
                    // Not later than the old one is of use.
                    let end = seconds(found.pair.certificate.validity().not_after);
                    let used_from = seconds(now).saturating_add(time.as_secs()).min(end);
                    let used_from = Duration::from_secs(used_from);
                    self.stage(now, UnixTime::since_unix_epoch(used_from))?;
                    Rotation::Announced
                }
                (None, Overlap::None) => self.replace(now, Rotation::Replaced)?,
            },
            Err(error) if error.is_a_damaged_pair() => self.replace(now, Rotation::Repaired)?,
            Err(error) => return Err(error),
        };
        Ok((done, self.present()?))
    }

    /// Whether the pair in its place is one, whatever stands beside it.
    fn is_usable(&self) -> bool {
        let certificate = self.read(CERTIFICATE, Strictness::Public);
        let key = self.read(KEY, Strictness::Secret);
        match (certificate, key) {
            (Ok(Some(certificate)), Ok(Some(key))) => {
                self.pair(&certificate, &key, [CERTIFICATE, KEY]).is_ok()
            }
            _ => false,
        }
    }

    fn replace(&self, now: UnixTime, done: Rotation) -> Result<Rotation, IdentityError> {
        self.stage(now, now)?;
        self.install()?;
        Ok(done)
    }

    fn present(&self) -> Result<OwnIdentity, IdentityError> {
        match self.look()? {
            Found::Pair(found) => Ok(*found),
            Found::Nothing | Found::Unfinished => Err(self.half(CERTIFICATE, KEY)),
        }
    }

    /// What there is when all that was begun is finished. Under the lock.
    fn settled(&self, now: UnixTime) -> Result<Option<OwnIdentity>, IdentityError> {
        let found = match self.look()? {
            Found::Unfinished => {
                self.install()?;
                self.look()?
            }
            found => found,
        };
        match found {
            Found::Nothing => Ok(None),
            Found::Pair(found) if is_due(&found, now) => {
                self.install()?;
                self.present().map(Some)
            }
            Found::Pair(found) => Ok(Some(*found)),
            Found::Unfinished => Err(self.half(NEXT_CERTIFICATE, NEXT_KEY)),
        }
    }

    fn look(&self) -> Result<Found, IdentityError> {
        let certificate = self.read(CERTIFICATE, Strictness::Public)?;
        let key = self.read(KEY, Strictness::Secret)?;
        let next_certificate = self.read(NEXT_CERTIFICATE, Strictness::Public)?;
        let next_key = self.read(NEXT_KEY, Strictness::Secret)?;
        let pair = |certificate: &[u8], key: &[u8], names| self.pair(certificate, key, names);
        match (certificate, key, next_certificate, next_key) {
            // A new key without its certificate was never finished.
            (None, None, None, _) => Ok(Found::Nothing),
            (None, None, Some(_), Some(_)) => Ok(Found::Unfinished),
            // The key was renamed and the certificate was not.
            (_, Some(key), Some(next), None) => {
                pair(&next, &key, [NEXT_CERTIFICATE, KEY])?;
                Ok(Found::Unfinished)
            }
            // A disk may keep the second name and lose the first.
            (Some(certificate), key, None, Some(next))
                if pair(&certificate, &next, [CERTIFICATE, NEXT_KEY]).is_ok()
                    && key
                        .as_ref()
                        .is_none_or(|key| pair(&certificate, key, [CERTIFICATE, KEY]).is_err()) =>
            {
                Ok(Found::Unfinished)
            }
            (Some(certificate), Some(key), next, next_key) => {
                let current = pair(&certificate, &key, [CERTIFICATE, KEY])?;
                let announced = match (next, next_key) {
                    (Some(next), Some(next_key)) => {
                        let pair = pair(&next, &next_key, [NEXT_CERTIFICATE, NEXT_KEY])?;
                        let used_from = self.used_from()?;
                        Some(Announced { pair, used_from })
                    }
                    _ => None,
                };
                Ok(Found::Pair(Box::new(OwnIdentity {
                    pair: current,
                    announced,
                })))
            }
            (Some(_), None, ..) => Err(self.half(CERTIFICATE, KEY)),
            (None, Some(_), ..) => Err(self.half(KEY, CERTIFICATE)),
            (None, None, Some(_), None) => Err(self.half(NEXT_CERTIFICATE, NEXT_KEY)),
        }
    }

    fn used_from(&self) -> Result<UnixTime, IdentityError> {
        let content = self
            .read(NEXT_FROM, Strictness::Public)?
            .ok_or_else(|| self.half(NEXT_CERTIFICATE, NEXT_FROM))?;
        std::str::from_utf8(&content)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
            .ok_or_else(|| IdentityError::OwnTime {
                path: self.tls.path().join(NEXT_FROM),
            })
    }

    /// Writes a pair that is used from this time on, beside the one that is used.
    fn stage(&self, now: UnixTime, used_from: UnixTime) -> Result<(), IdentityError> {
        // The certificate makes it real, so it goes first and comes last.
        self.tls.remove(NEXT_CERTIFICATE)?;
        self.tls.sync()?;
        let made = make(now, used_from)?;
        let from = format!("{}\n", seconds(used_from));
        self.tls.write_whole(NEXT_FROM, from.as_bytes())?;
        self.tls.write_whole(NEXT_KEY, made.key.as_bytes())?;
        self.tls
            .write_whole(NEXT_CERTIFICATE, made.certificate.as_bytes())?;
        Ok(())
    }

    /// Puts the pair that was written last in its place, as far as it is not there.
    fn install(&self) -> Result<(), IdentityError> {
        for (from, to) in [(NEXT_KEY, KEY), (NEXT_CERTIFICATE, CERTIFICATE)] {
            match self.tls.rename(from, to) {
                Ok(()) => self.tls.sync()?,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.tls.remove(NEXT_FROM)?;
        Ok(())
    }

    fn read(
        &self,
        name: &str,
        strictness: Strictness,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        Ok(read(&self.tls, name, LIMIT_BYTES, strictness)?.map(Zeroizing::new))
    }

    fn half(&self, there: &str, missing: &str) -> IdentityError {
        let [there, missing] = [there, missing].map(|name| self.tls.path().join(name));
        IdentityError::OwnHalf { there, missing }
    }

    fn pair(
        &self,
        certificate: &[u8],
        key: &[u8],
        names: [&str; 2],
    ) -> Result<OwnPair, IdentityError> {
        let [certificate_path, key_path] = names.map(|name| self.tls.path().join(name));
        let certificate = Certificate::from_pem(certificate).map_err(|reason| {
            let path = certificate_path.clone();
            IdentityError::OwnCertificate { path, reason }
        })?;
        let bad_key = || IdentityError::OwnKey {
            path: key_path.clone(),
        };
        let key = pem::key(key).map_err(|_| bad_key())?;
        let parsed = Zeroizing::new(KeyPair::try_from(&key).map_err(|_| bad_key())?);
        if parsed.public_key_raw() != certificate.public_key() {
            return Err(IdentityError::OwnMismatch {
                certificate: certificate_path,
                key: key_path,
            });
        }
        Ok(OwnPair {
            certificate,
            certificate_path,
            key_path,
            key,
        })
    }
}

fn is_due(found: &OwnIdentity, now: UnixTime) -> bool {
    found
        .announced
        .as_ref()
        .is_some_and(|announced| announced.used_from <= now)
}
