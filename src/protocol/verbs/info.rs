//! `info`: what the daemon is.

use serde::{Deserialize, Serialize};

use super::connect::RemoteSummary;

/// The answer to `info`, always structured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InfoReply {
    /// Always true.
    pub ok: bool,
    /// Address, for example `unix:/run/user/1000/pythond.sock`.
    pub endpoint: String,
    /// Where other machines can reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Endpoint>,
    /// What other machines see of it, if any can reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSummary>,
    /// Process id.
    pub pid: u32,
    /// Another one after each start, also where the process id stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Number of live sessions.
    pub sessions: u64,
    /// Most live sessions.
    pub max_sessions: u64,
    /// Directory of sockets and `access.log`.
    pub runtime_dir: String,
    /// The environments that are kept ready.
    pub zygotes: Vec<ZygoteSummary>,
    /// Daemons of other machines that have a name here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<RemoteSummary>,
}

/// An address that is listened on for other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// Connections are encrypted.
    pub tls: bool,
}

/// Who may come in from other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkSummary {
    /// SHA-256 of the certificate that clients are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Clients need a certificate, beside the token.
    pub client_certificates: bool,
    /// Why nobody is let in, if nobody is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One environment that is kept ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ZygoteSummary {
    /// Process id.
    pub pid: i32,
    /// `sys.executable`.
    pub python: String,
    /// For example `3.11.7`.
    pub version: String,
    /// Modules imported on request.
    pub preload: Vec<String>,
    /// Live sessions that came from it.
    pub sessions: u64,
    /// Why it cannot fork, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_fork: Option<String>,
}
