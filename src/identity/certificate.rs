//! One certificate, as far as it matters who has it and until when.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use crate::pem::{self, PemError};
use crate::{CertificateFingerprint, KeyFingerprint};

/// Most characters of a subject that are kept.
const SHOWN_CHARACTERS: usize = 200;

/// Why something is no certificate that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The file is not what it should be.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The block is no X.509 certificate.
    #[error("it is no X.509 certificate, or a damaged one")]
    NotX509,
    /// It could vouch for others; only certificates that speak for themselves may
    /// be pinned or trusted.
    #[error("it is a certificate authority's: it can sign others")]
    Authority,
    /// It is older than what says that it signs nobody.
    #[error("it is of X.509 version 1 or 2, which cannot say that it signs no others")]
    Version,
    /// Its key or an extension of it is of no use to TLS.
    #[error(
        "TLS cannot use it: its key is too weak or of an unknown kind, or it has an extension that is not known"
    )]
    Unsuitable,
}

/// From when and until when a certificate may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: UnixTime,
    /// Last second.
    pub not_after: UnixTime,
}

/// What a time means for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValidityState {
    /// It may be used.
    Valid,
    /// It may not be used any more.
    Expired,
    /// It may not be used yet: it is new, or a clock is wrong.
    NotYetValid,
}

impl Validity {
    /// What it is at this time.
    #[must_use]
    pub fn at(&self, now: UnixTime) -> ValidityState {
        if now < self.not_before {
            ValidityState::NotYetValid
        } else if now > self.not_after {
            ValidityState::Expired
        } else {
            ValidityState::Valid
        }
    }
}

/// A certificate that speaks for itself alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    fingerprint: CertificateFingerprint,
    key: KeyFingerprint,
    public_key: Vec<u8>,
    subject: String,
    validity: Validity,
}

impl Certificate {
    /// Reads the only certificate of a PEM file.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_pem(text: &[u8]) -> Result<Self, CertificateError> {
        Self::from_der(pem::certificate(text)?)
    }

    /// Reads a certificate that a peer sent, for example.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let (rest, parsed) =
            X509Certificate::from_der(&der).map_err(|_| CertificateError::NotX509)?;
        if !rest.is_empty() {
            return Err(CertificateError::NotX509);
        }
        if parsed.version() != X509Version::V3 {
            return Err(CertificateError::Version);
        }
        if can_sign_others(&parsed)? {
            return Err(CertificateError::Authority);
        }
        let validity = Validity {
            not_before: time(parsed.validity.not_before.timestamp()),
            not_after: time(parsed.validity.not_after.timestamp()),
        };
        let fingerprint = CertificateFingerprint::of(&der);
        let key = KeyFingerprint::of(parsed.public_key().raw);
        let public_key = parsed.public_key().subject_public_key.data.to_vec();
        let subject = parsed.subject().to_string();
        let subject = subject.chars().take(SHOWN_CHARACTERS).collect();
        Ok(Self {
            fingerprint,
            key,
            public_key,
            subject,
            validity,
            der,
        })
    }

    /// As a TLS library takes it.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// As a file has it.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der).to_string()
    }

    /// What 0.4 pins and trusts it by.
    #[must_use]
    pub fn fingerprint(&self) -> CertificateFingerprint {
        self.fingerprint
    }

    /// What we pin it by.
    #[must_use]
    pub fn key(&self) -> KeyFingerprint {
        self.key
    }

    /// What it says that it is about, bounded: `CN=pythond`. Nobody vouches for it, and
    /// it may have any character.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// From when and until when it may be used.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The key's own bits, without its algorithm.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// No time before 1970 is told from 1970: nothing of ours was valid before.
fn time(seconds: i64) -> UnixTime {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

/// By its basic constraints or by the uses of its key. What cannot be read counts
/// as damaged, never as harmless.
fn can_sign_others(certificate: &X509Certificate<'_>) -> Result<bool, CertificateError> {
    let mut can = false;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => can |= constraints.ca,
            ParsedExtension::KeyUsage(usage) => can |= usage.key_cert_sign() || usage.crl_sign(),
            ParsedExtension::ParseError { .. } => return Err(CertificateError::NotX509),
            _ => {}
        }
    }
    Ok(can)
}
