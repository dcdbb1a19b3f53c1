//! Directories of certificates as 0.4 has them, and the clients that may connect.
//!
//! A file `….pem` is a certificate; any other is the fingerprint of one. A file
//! that is neither makes the whole directory unusable: what it was meant to allow
//! or to demand is not known.

use std::collections::BTreeMap;

use pythond_private_fs::{PrivateDir, Strictness};
use rustls_pki_types::UnixTime;

use crate::pem::LIMIT_BYTES;
use crate::store::Store;
use crate::{
    Certificate, CertificateFingerprint, Fingerprint, IdentityError, KeyFingerprint, ValidityState,
};

/// A client that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedClient {
    /// Its certificate's fingerprint.
    pub fingerprint: CertificateFingerprint,
    /// Its certificate; 0.4 can know one by its fingerprint alone.
    pub certificate: Option<Certificate>,
    /// Names of the files that say so; certificates first.
    files: Vec<String>,
}

/// All clients that may connect. None at all means that no certificate is asked of
/// a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedClients {
    /// Each once, in the order of fingerprints.
    pub clients: Vec<TrustedClient>,
}

/// What a client's certificate is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustVerdict {
    /// It may connect.
    Trusted,
    /// Nobody said that it may.
    Unknown,
    /// It might, had its certificate not expired.
    Expired,
    /// It might, were its certificate valid already.
    NotYetValid,
}

impl TrustedClients {
    /// Whether a client needs a certificate.
    #[must_use]
    pub fn are_demanded(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Whether somebody said that a client with this certificate may connect.
    #[must_use]
    pub fn knows(&self, presented: &Certificate) -> bool {
        let known = |client: &TrustedClient| client.fingerprint == presented.fingerprint();
        self.clients.iter().any(known)
    }

    /// Whether a client with this certificate may connect.
    #[must_use]
    pub fn check(&self, presented: &Certificate, now: UnixTime) -> TrustVerdict {
        if !self.knows(presented) {
            return TrustVerdict::Unknown;
        }
        match presented.validity().at(now) {
            ValidityState::Valid => TrustVerdict::Trusted,
            ValidityState::Expired => TrustVerdict::Expired,
            ValidityState::NotYetValid => TrustVerdict::NotYetValid,
        }
    }
}

impl Store {
    /// The clients that may connect; nobody if nobody ever said who.
    ///
    /// # Errors
    /// [`IdentityError`] if any of it cannot be read or is damaged; it must not be
    /// taken for empty then.
    pub fn trusted_clients(&self) -> Result<TrustedClients, IdentityError> {
        let Some(dir) = self.found_trusted_clients_dir()? else {
            return Ok(TrustedClients::default());
        };
        let clients = known(&dir)?.into_iter();
        Ok(TrustedClients {
            clients: clients
                .map(|(fingerprint, known)| TrustedClient {
                    fingerprint,
                    certificate: known.certificate,
                    files: known.files,
                })
                .collect(),
        })
    }

    /// Lets a client connect. False if it might already.
    ///
    /// # Errors
    /// As [`Self::trusted_clients`].
    pub fn trust(&self, certificate: &Certificate) -> Result<bool, IdentityError> {
        let _lock = self.lock()?;
        let trusted = self.trusted_clients()?.clients;
        let fingerprint = certificate.fingerprint();
        if trusted
            .iter()
            .any(|client| client.fingerprint == fingerprint && client.certificate.is_some())
        {
            return Ok(false);
        }
        let dir = self.trusted_clients_dir()?;
        let digits = fingerprint.digits();
        let short = format!("{}.pem", &digits[..16]);
        // Who can make two certificates that begin the same replaces nobody.
        let taken = dir.entries()?.contains(&short);
        let name = if taken {
            format!("{digits}.pem")
        } else {
            short
        };
        dir.write_whole(&name, certificate.to_pem().as_bytes())?;
        Ok(true)
    }

    /// Lets clients with this certificate or key connect no more, and says which
    /// those were.
    ///
    /// # Errors
    /// As [`Self::trusted_clients`].
    pub fn untrust(&self, whom: Fingerprint) -> Result<Vec<TrustedClient>, IdentityError> {
        let _lock = self.lock()?;
        let mut clients = self.trusted_clients()?.clients;
        clients.retain(|client| {
            let key = client.certificate.as_ref().map(Certificate::key);
            is(whom, Some(client.fingerprint), key)
        });
        let Some(dir) = self.found_trusted_clients_dir()? else {
            return Ok(Vec::new());
        };
        for file in clients.iter().flat_map(|client| &client.files) {
            dir.remove(file)?;
        }
        dir.sync()?;
        Ok(clients)
    }
}

/// Whether a fingerprint is one of these.
pub(crate) fn is(
    whom: Fingerprint,
    certificate: Option<CertificateFingerprint>,
    key: Option<KeyFingerprint>,
) -> bool {
    match whom {
        Fingerprint::Certificate(fingerprint) => certificate == Some(fingerprint),
        Fingerprint::Key(fingerprint) => key == Some(fingerprint),
    }
}

/// What a directory says of one certificate.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) certificate: Option<Certificate>,
    pub(crate) files: Vec<String>,
}

/// Everything that a directory says.
pub(crate) fn known(
    dir: &PrivateDir,
) -> Result<BTreeMap<CertificateFingerprint, Known>, IdentityError> {
    let mut found: BTreeMap<_, Known> = BTreeMap::new();
    let mut names = Vec::new();
    for name in dir.all_entries()? {
        match name.into_string() {
            // Temporary files; see `write_whole`.
            Ok(name) if name.starts_with('.') => {}
            Ok(name) => names.push(name),
            Err(name) => {
                let path = dir.path().join(name);
                let reason = "its name is no text";
                return Err(IdentityError::FingerprintFile { path, reason });
            }
        }
    }
    // A certificate comes before the fingerprint file that 0.4 has beside it.
    names.sort();
    for name in names {
        let path = dir.path().join(&name);
        let content = dir.read_strict(&name, LIMIT_BYTES, Strictness::Public)?;
        if name.ends_with(".pem") {
            let certificate = Certificate::from_pem(&content)
                .map_err(|reason| IdentityError::Certificate { path, reason })?;
            let known = found.entry(certificate.fingerprint()).or_default();
            known.certificate = Some(certificate);
            known.files.push(name);
        } else {
            let damaged = |reason| IdentityError::FingerprintFile {
                path: path.clone(),
                reason,
            };
            let fingerprint = fingerprint(&content)
                .ok_or_else(|| damaged("it should be a fingerprint, or be named `….pem`"))?;
            let beside = name.strip_suffix(".fingerprint");
            let other = found.iter().any(|(known, entry)| {
                *known != fingerprint
                    && entry.files.iter().any(|file| Some(file.as_str()) == beside)
            });
            if other {
                return Err(damaged("it is not that of the certificate beside it"));
            }
            found.entry(fingerprint).or_default().files.push(name);
        }
    }
    Ok(found)
}

/// The first word, as 0.4 reads it.
fn fingerprint(content: &[u8]) -> Option<CertificateFingerprint> {
    let text = std::str::from_utf8(content).ok()?;
    text.split_whitespace().next()?.parse().ok()
}
