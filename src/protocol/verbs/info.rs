//! `info`: what the daemon is.

use serde::{Deserialize, Serialize};

/// The answer to `info`, always structured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InfoReply {
    /// Always true.
    pub ok: bool,
    /// Address, for example `unix:/run/user/1000/pythond.sock`.
    pub endpoint: String,
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
