//! `pair`: let one new client in by a short code that somebody types there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::options::{Header, seconds};
use crate::{ErrorCode, ErrorReply};

/// How long a code is valid unless somebody says so.
pub const DEFAULT_SPAN: Duration = Duration::from_secs(300);
/// How long it can be at most: a code is short, and not for keeping.
pub const MAX_SPAN: Duration = Duration::from_secs(3600);

/// A code is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRequest {
    /// For how long it is valid.
    pub span: Duration,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<PairRequest, ErrorReply> {
    let span = seconds(header, "for")?.unwrap_or(DEFAULT_SPAN);
    header.finish(0, "pair [--for=<seconds>]")?;
    if span.is_zero() || span > MAX_SPAN {
        let message = format!(
            "`--for` takes more than 0 and at most {} seconds",
            MAX_SPAN.as_secs()
        );
        return Err(ErrorReply::new(ErrorCode::Usage, message));
    }
    Ok(PairRequest { span })
}

/// What comes before the answer to `pair`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PairEvent {
    /// First: the code is valid from now on.
    Code(Box<PairingCode>),
    /// Somebody showed a wrong one.
    WrongCode {
        /// From where: an IP address and a port.
        address: String,
        /// How many tries are left, of everybody together.
        tries_left: u32,
    },
}

/// A code that is valid.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PairingCode {
    /// Eight digits, `4821-7305`: what to type on the other machine.
    pub code: String,
    /// In so many seconds it lapses.
    pub lapses_in_s: f64,
    /// How many wrong tries end it.
    pub tries: u32,
    /// This machine's name.
    pub host: String,
    /// Where is listened by TLS: `HOST:PORT`.
    pub listen: Vec<String>,
    /// SHA-256 of the certificate that the other machine will see.
    pub certificate: String,
    /// Clients need a certificate already. Where not, they all will once the first
    /// one is trusted.
    pub client_certificates: bool,
}

/// Without the code.
impl std::fmt::Debug for PairingCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PairingCode")
            .field("listen", &self.listen)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The answer to `pair`: somebody typed the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PairReply {
    /// Always true.
    pub ok: bool,
    /// Who is trusted now.
    pub client: PairedClient,
}

/// A client that knew the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PairedClient {
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// SHA-256 of its key.
    pub public_key: String,
    /// What the certificate says that it is about, control characters escaped.
    pub subject: String,
    /// Where it came from: an IP address and a port.
    pub address: String,
    /// False if it was trusted before.
    pub trusted: bool,
}
