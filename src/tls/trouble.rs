//! What can go wrong with TLS, as far as somebody can do something about it.

use rustls::{AlertDescription, Error};

use crate::ServerNotTrusted;
use crate::own::OwnCertificate;

/// Why there is no connection by TLS, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum TlsTrouble {
    /// We do not believe the server.
    #[error(transparent)]
    NotTrusted(#[from] Box<ServerNotTrusted>),
    /// The server asks for a certificate, and this machine has none.
    #[error(
        "the server only lets clients in whose certificate it trusts, and this machine has none"
    )]
    CertificateDemanded,
    /// The server does not trust our certificate.
    #[error("the server does not trust this machine's certificate")]
    CertificateRefused,
    /// The server finds that our certificate has expired, or is not valid yet.
    #[error("the server takes this machine's certificate for expired or not yet valid")]
    CertificateLapsed,
    /// The server hears nobody from here for a while.
    #[error("the server hears nobody from this address for a while: too many wrong tokens")]
    TurnedAway,
    /// The server ended it for another reason.
    #[error("the server ended the TLS handshake ({})", alert_word(*.0))]
    Alert(AlertDescription),
    /// What came is no TLS.
    #[error("what answers does not speak TLS")]
    NoTls,
    /// The rules of TLS were broken, or there is nothing that both ends know.
    #[error("TLS failed")]
    Broken(#[source] Error),
}

impl TlsTrouble {
    pub(crate) fn of(error: Error, own: &OwnCertificate) -> Self {
        match error {
            Error::AlertReceived(AlertDescription::CertificateExpired) if own.is_there() => {
                Self::CertificateLapsed
            }
            // Ours says so before it has asked for anything.
            Error::AlertReceived(AlertDescription::AccessDenied) if !own.was_asked_for() => {
                Self::TurnedAway
            }
            Error::AlertReceived(alert) if own.was_asked_for() && is_about_a_certificate(alert) => {
                if own.is_there() {
                    Self::CertificateRefused
                } else {
                    Self::CertificateDemanded
                }
            }
            Error::AlertReceived(alert) => Self::Alert(alert),
            // The first bytes were no record of TLS.
            Error::InvalidMessage(
                rustls::InvalidMessage::InvalidContentType
                | rustls::InvalidMessage::UnknownProtocolVersion
                | rustls::InvalidMessage::MessageTooLarge
                | rustls::InvalidMessage::InvalidEmptyPayload,
            ) => Self::NoTls,
            other => Self::Broken(other),
        }
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotTrusted(why) => why.code(),
            Self::CertificateDemanded => "client_certificate_required",
            Self::CertificateRefused | Self::CertificateLapsed => "client_certificate_refused",
            Self::TurnedAway => "too_many_wrong_tokens",
            Self::NoTls => "no_tls",
            Self::Alert(_) | Self::Broken(_) => "tls",
        }
    }

    /// How to go on, where there is a way.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotTrusted(why) => Some(why.hint()),
            Self::CertificateDemanded => Some(
                "run `pyctl pair` on the server and `pyctl pair HOST:PORT` here; or `pyctl cert` \
                 here, and `pyctl trust CERT` on the server with the certificate that it names"
                    .to_owned(),
            ),
            Self::CertificateRefused => Some(
                "`pyctl cert` here names the certificate; run `pyctl trust CERT` with it on the \
                 server"
                    .to_owned(),
            ),
            Self::CertificateLapsed => Some(
                "compare the clocks of both machines; `pyctl cert` shows until when it is good. \
                 If it has expired, run `pyctl cert rotate --now` here, then `pyctl trust CERT` \
                 on the server"
                    .to_owned(),
            ),
            Self::TurnedAway => Some("wait a little, and look at the token".to_owned()),
            Self::NoTls => Some(
                "look at the address and its port; another program may listen there".to_owned(),
            ),
            Self::Alert(_) | Self::Broken(_) => None,
        }
    }
}

/// What servers say of a client's certificate. What they say of ours in TLS 1.2
/// may be no more than that the handshake has failed.
fn is_about_a_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::HandshakeFailure
    )
}

/// As RFC 8446 writes it, or its number.
fn alert_word(alert: AlertDescription) -> String {
    let mut word = String::new();
    for letter in format!("{alert:?}").chars() {
        if letter.is_ascii_uppercase() && !word.is_empty() && !word.ends_with(['_', '(']) {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}
