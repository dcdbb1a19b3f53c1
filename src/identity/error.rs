//! Why a file of this user's identity cannot be used or changed.

use std::path::PathBuf;

use pythond_private_fs::PrivateFsError;

use crate::fingerprint::NotAFingerprint;
use crate::{AddressError, CertificateError, TokenError};

/// Why a file of this user's identity cannot be used or changed. None of these
/// means that something is not there: who asks for it may not go on as if it were
/// empty.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or directory cannot be read, or is not private.
    #[error(transparent)]
    Fs(#[from] PrivateFsError),
    /// Another process changes the files and does not come to an end.
    #[error("another process{} is changing the keys or pins", .pid.map_or(String::new(), |pid| format!(" ({pid})")))]
    Busy {
        /// Which, if it is known.
        pid: Option<i32>,
    },
    /// A file is no certificate that may be used.
    #[error("`{}` cannot be used: {reason}", .path.display())]
    Certificate {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: CertificateError,
    },
    /// A certificate of our own cannot be used.
    #[error("this machine's certificate `{}` cannot be used: {reason}", .path.display())]
    OwnCertificate {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: CertificateError,
    },
    /// A private key of our own cannot be used.
    #[error("this machine's private key `{}` cannot be used: it is damaged, or of a kind that is not known", .path.display())]
    OwnKey {
        /// Where.
        path: PathBuf,
    },
    /// The certificate or the key is missing.
    #[error("`{}` is there and `{}` is missing", .there.display(), .missing.display())]
    OwnHalf {
        /// What is there.
        there: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// When the announced pair takes over is not known.
    #[error("`{}` does not say when the next certificate is used", .path.display())]
    OwnTime {
        /// Where.
        path: PathBuf,
    },
    /// The certificate is that of another key.
    #[error("the key `{}` does not belong to the certificate `{}`", .key.display(), .certificate.display())]
    OwnMismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A new certificate is announced already.
    #[error("a rotation is under way: the new certificate is `{}`", .certificate.display())]
    RotationUnderWay {
        /// The new certificate.
        certificate: PathBuf,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The time is not one that a certificate can say.
    #[error("cannot make a certificate for a time so far away")]
    Time,
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A file with a fingerprint has none, or that of another certificate.
    #[error("`{}` is damaged: {reason}", .path.display())]
    FingerprintFile {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file of pins is damaged.
    #[error("`{}` is damaged in line {line}: {reason}", .path.display())]
    Pins {
        /// Where.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: PinLineError,
    },
    /// The token cannot be used.
    #[error("`{}` cannot be used: {reason}", .path.display())]
    Token {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: TokenError,
    },
}

/// What can be wrong with a line of the file of pins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinLineError {
    /// It is no UTF-8.
    #[error("it is no text")]
    NoText,
    /// It has not three words.
    #[error("it should be an address, a key and a certificate")]
    Words,
    /// The first is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The others are no fingerprints.
    #[error(transparent)]
    Fingerprint(#[from] NotAFingerprint),
}

impl IdentityError {
    /// What to do, where the message does not say it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Busy { .. } => Some("try again; if it does not end, end that process"),
            Self::OwnCertificate { .. }
            | Self::OwnKey { .. }
            | Self::OwnHalf { .. }
            | Self::OwnTime { .. }
            | Self::OwnMismatch { .. } => Some(
                "put the right file back, or make a new pair with `pyctl cert rotate`; other \
                 machines must then pin or trust the new certificate",
            ),
            Self::RotationUnderWay { .. } => {
                Some("`pyctl cert` shows it; `pyctl cert rotate --now` uses it at once")
            }
            Self::FingerprintFile { .. } => Some(
                "remove the file or move it away, then `pyctl trust` or `pyctl pin` what is to \
                 be known",
            ),
            Self::Pins { .. } => Some("mend or remove the line; nothing is believed until then"),
            Self::Token { .. } => Some("`pyctl token rotate` makes a new one"),
            Self::Certificate { .. } | Self::Fs(_) | Self::Make(_) | Self::Time | Self::Random => {
                None
            }
        }
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fs(_) => "files",
            Self::Busy { .. } => "busy",
            Self::Certificate { .. } => "bad_certificate",
            Self::OwnCertificate { .. }
            | Self::OwnKey { .. }
            | Self::OwnHalf { .. }
            | Self::OwnTime { .. }
            | Self::OwnMismatch { .. } => "own_certificate_damaged",
            Self::RotationUnderWay { .. } => "rotation_under_way",
            Self::Make(_) | Self::Time | Self::Random => "internal",
            Self::FingerprintFile { .. } => "store_damaged",
            Self::Pins { .. } => "pins_damaged",
            Self::Token { .. } => "token_damaged",
        }
    }

    /// A pair that is of no use, and that a new one may replace.
    pub(crate) fn is_a_damaged_pair(&self) -> bool {
        matches!(
            self,
            Self::OwnCertificate { .. }
                | Self::OwnKey { .. }
                | Self::OwnHalf { .. }
                | Self::OwnTime { .. }
                | Self::OwnMismatch { .. }
                | Self::Fs(PrivateFsError::FileOpenToOthers { .. })
        )
    }
}
