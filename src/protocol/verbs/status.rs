//! `status NAME`: health of one session.

use serde::{Deserialize, Serialize};

use super::connect::RemoteSummary;
use super::list::SessionState;
use super::new::{PythonInfo, StartKind};
use crate::limits::{Kept, LimitsInForce};
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::ProcessEnd;

/// Whose health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRequest {
    /// The session.
    pub session: SessionName,
}

/// The structured answer to `status`. The plain wire has the same object; its
/// first four fields are those of 0.4.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StatusReply {
    /// Where the session is in its life.
    pub state: SessionState,
    /// Cells that run now.
    pub running: Vec<CellId>,
    /// Public names in the namespace when the last cell ended.
    pub vars: u64,
    /// Cells that were accepted so far.
    pub cells: u64,
    /// True unless the session is dead.
    pub ok: bool,
    /// Its name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Process id of its host.
    pub pid: i32,
    /// Cells that wait for their turn, in order.
    pub queued: Vec<CellId>,
    /// Which Python, and why.
    pub python: PythonInfo,
    /// How the process came to be.
    pub start: StartKind,
    /// Why it started cold, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_reason: Option<String>,
    /// Working directory it was created in.
    pub cwd: String,
    /// When it was created: RFC 3339, UTC.
    pub created_at: String,
    /// Name of the machine.
    pub host: String,
    /// Files that could not be written, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_recorded: Option<String>,
    /// Who lets agents' new cells wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// Terminals that are attached.
    #[serde(default)]
    pub attached: u64,
    /// What is kept of finished cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// What it may use, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsInForce>,
    /// How it died, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub death: Option<Tombstone>,
    /// The way to it, if it is on another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteSummary>,
}

/// What is left of a session whose process is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tombstone {
    /// How the process ended.
    pub end: ProcessEnd,
    /// The same in words.
    pub cause: String,
    /// The cell that ran at that moment.
    pub cell_id: Option<CellId>,
    /// The end of what was written to standard error, at most 4 KiB.
    pub last_stderr: String,
    /// When it was seen: RFC 3339, UTC.
    pub died_at: String,
}
