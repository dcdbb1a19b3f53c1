//! Hashes of certificates and keys, in forms that people can compare.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::{SHA256, digest};

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// SHA-256 of a whole certificate (DER). Shown as pythond 0.4 and openssl show
/// it: `AB:CD:…`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateFingerprint([u8; 32]);

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER). Shown in the form of ssh:
/// `SHA256:` and base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFingerprint([u8; 32]);

/// Either of them, as somebody typed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fingerprint {
    /// 64 hexadecimal digits, with or without colons.
    Certificate(CertificateFingerprint),
    /// `SHA256:` and base64.
    Key(KeyFingerprint),
}

/// The text is neither of the forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no fingerprint", .0.escape_debug())]
pub struct NotAFingerprint(pub String);

impl CertificateFingerprint {
    pub(crate) fn of(der: &[u8]) -> Self {
        Self(sha256(der))
    }

    /// The hash itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits without colons, as in names of files.
    pub(crate) fn digits(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02X}")).collect()
    }
}

impl KeyFingerprint {
    pub(crate) fn of(spki_der: &[u8]) -> Self {
        Self(sha256(spki_der))
    }
}

impl fmt::Display for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CertificateFingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let wrong = || NotAFingerprint(text.chars().take(120).collect());
        let bytes = text.as_bytes();
        let step = match bytes.len() {
            64 => 2,
            95 => 3,
            _ => return Err(wrong()),
        };
        let mut hash = [0; 32];
        for (byte, part) in hash.iter_mut().zip(bytes.chunks(step)) {
            let [high, low, rest @ ..] = part else {
                return Err(wrong());
            };
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(wrong());
            };
            if !matches!(rest, [] | [b':']) {
                return Err(wrong());
            }
            *byte = high << 4 | low;
        }
        Ok(Self(hash))
    }
}

fn digit(byte: u8) -> Option<u8> {
    let value = char::from(byte).to_digit(16)?;
    u8::try_from(value).ok()
}

impl FromStr for KeyFingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let hash = text
            .strip_prefix("SHA256:")
            .and_then(|encoded| STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')).ok());
        match hash.as_deref().map(<[u8; 32]>::try_from) {
            Some(Ok(hash)) => Ok(Self(hash)),
            _ => Err(NotAFingerprint(text.chars().take(120).collect())),
        }
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let text = text.trim();
        // As `openssl x509 -fingerprint` prints it.
        let hex = match text.split_once('=') {
            Some((name, hex)) if name.eq_ignore_ascii_case("sha256 fingerprint") => hex,
            _ => text,
        };
        if let Ok(key) = text.parse() {
            return Ok(Self::Key(key));
        }
        hex.parse()
            .map(Self::Certificate)
            .map_err(|_| NotAFingerprint(text.chars().take(120).collect()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(fingerprint) => fingerprint.fmt(f),
            Self::Key(fingerprint) => fingerprint.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        let certificate = CertificateFingerprint::of(b"certificate");
        let key = KeyFingerprint::of(b"key");
        for (text, expected) in [
            (
                certificate.to_string(),
                Fingerprint::Certificate(certificate),
            ),
            (certificate.digits(), Fingerprint::Certificate(certificate)),
            (
                certificate.digits().to_lowercase(),
                Fingerprint::Certificate(certificate),
            ),
            (
                format!("sha256 Fingerprint={certificate}"),
                Fingerprint::Certificate(certificate),
            ),
            (key.to_string(), Fingerprint::Key(key)),
            (format!("{key}="), Fingerprint::Key(key)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let good = CertificateFingerprint::of(b"x").to_string();
        for text in [
            "",
            "SHA256:",
            "SHA256:AAAA",
            &good[1..],
            &good.replacen(':', "-", 1),
            &good.replacen(':', "é", 1),
            &"é".repeat(32),
            &"+0".repeat(32),
        ] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_standard() {
        assert!(
            CertificateFingerprint::of(b"abc")
                .digits()
                .starts_with("BA7816BF8F01CFEA")
        );
    }
}
