//! The text form of certificates and keys (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem};
use zeroize::Zeroizing;

/// What a PEM file may hold, in bytes: a certificate with a large key is 4 KiB.
pub(crate) const LIMIT_BYTES: u64 = 64 * 1024;

/// What is wrong with a PEM file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// No certificate is in it.
    #[error("it holds no certificate")]
    NoCertificate,
    /// There is a private key instead.
    #[error("it holds a private key and no certificate; a key must never be copied")]
    KeyInstead,
    /// There are several.
    #[error("it holds more than one certificate")]
    Several,
    /// A block is cut or is no base64.
    #[error("it is cut short or damaged")]
    Damaged,
    /// No private key is in it.
    #[error("it holds no private key")]
    NoKey,
}

/// The one certificate of a file.
pub(crate) fn certificate(text: &[u8]) -> Result<CertificateDer<'static>, PemError> {
    let mut found = None;
    let mut key = false;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(|_| PemError::Damaged)?;
        match kind {
            SectionKind::Certificate if found.is_some() => return Err(PemError::Several),
            SectionKind::Certificate => found = Some(CertificateDer::from(der)),
            SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey => {
                drop(Zeroizing::new(der));
                key = true;
            }
            _ => {}
        }
    }
    found.ok_or(if key {
        PemError::KeyInstead
    } else {
        PemError::NoCertificate
    })
}

/// The private key of a file.
pub(crate) fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => PemError::NoKey,
        _ => PemError::Damaged,
    })
}

/// A block of lines of 64 characters.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    // Room for all of it, for a text that grows leaves copies of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(
        encoded.len() * 2 + 2 * label.len() + 64,
    ));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        for length in [1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length)
                .map(|byte: usize| byte.to_le_bytes()[0])
                .collect();
            let text = encode("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64));
            assert_eq!(certificate(text.as_bytes()).unwrap().as_ref(), der);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_apart() {
        let one = encode("CERTIFICATE", b"x");
        let key_text = encode("PRIVATE KEY", b"k");
        for (text, wrong) in [
            (String::new(), PemError::NoCertificate),
            ("\0\u{1}garbage".to_owned(), PemError::NoCertificate),
            (key_text.to_string(), PemError::KeyInstead),
            (format!("{}{}", *one, *one), PemError::Several),
            (one[..one.len() - 10].to_owned(), PemError::Damaged),
            (one.replace("eA==", "e!=="), PemError::Damaged),
        ] {
            assert_eq!(certificate(text.as_bytes()), Err(wrong), "{text}");
        }
        assert_eq!(key(one.as_bytes()).unwrap_err(), PemError::NoKey);
    }
}
