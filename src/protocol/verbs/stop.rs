//! `stop [--keep-sessions]` and `restart`: the daemon ends, or makes place for
//! the program that stands in its file now.

use serde::{Deserialize, Serialize};

use super::Request;
use super::options::Header;
use crate::ErrorReply;

/// Reason with which a connection is closed that has asked for nothing yet, as
/// far as the daemon has read, when the daemon makes way for the next one:
/// whatever was sent may be sent again.
pub const NOTHING_BEGUN: &str = "daemon restarting; nothing was begun";

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// With all its sessions.
    EndSessions,
    /// Its sessions go on; the next daemon takes them over.
    KeepSessions,
    /// As [`Self::KeepSessions`], and the next one begins in its place.
    Restart,
}

/// The answer to `stop` and `restart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StopReply {
    /// The daemon ends.
    pub ok: bool,
    /// Live sessions.
    #[serde(default)]
    pub sessions: u64,
    /// They go on.
    #[serde(default)]
    pub kept: bool,
}

/// Takes `stop` apart.
pub(super) fn parse(header: &mut Header<'_>) -> Result<Request, ErrorReply> {
    let keep = header.take_flag("keep-sessions");
    header.finish(0, "pyctl stop")?;
    Ok(Request::Stop(if keep {
        StopRequest::KeepSessions
    } else {
        StopRequest::EndSessions
    }))
}
