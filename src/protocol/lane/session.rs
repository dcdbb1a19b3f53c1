//! What a session is made of and what its host says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{CellLimits, EnforcedBy, Kept, KeptBudget, SessionLimits};
use crate::names::{CellId, SessionId, SessionName};
use crate::verbs::new::{PythonInfo, StartKind};

/// Everything a host must know to be a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// Its name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Working directory, absolute.
    pub cwd: String,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The session's directory for `history.py` and its kin, absolute.
    pub directory: String,
    /// Why this interpreter, in words.
    pub python_reason: String,
    /// What it may use.
    #[serde(default, skip_serializing_if = "SessionLimits::is_none")]
    pub limits: SessionLimits,
    /// How much it keeps of finished cells.
    #[serde(default)]
    pub kept: KeptBudget,
    /// How many cells it takes.
    #[serde(default)]
    pub cells: CellLimits,
    /// Why it does not come from a zygote that was ready, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_reason: Option<String>,
    /// It must not be forked, but started from nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub must_start_cold: bool,
}

/// What a host says of itself when a control lane opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host's [`LINK_VERSION`](super::LINK_VERSION).
    pub version: u32,
    /// Version of the host library.
    pub build: String,
    /// Process id.
    pub pid: i32,
    /// The session; none while the host is a parked spare.
    pub session: Option<HostedSession>,
    /// Another live process holds the session's directory.
    #[serde(default)]
    pub name_in_use: bool,
    /// The process cannot be this session, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The session that a host holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostedSession {
    /// What it was created with; the environment is left out.
    pub spec: SessionSpec,
    /// Which Python.
    pub python: PythonInfo,
    /// How the process came to be.
    pub start: StartKind,
    /// Why it started cold, if it did.
    pub cold_reason: Option<String>,
    /// When it was created: RFC 3339, UTC.
    pub created_at: String,
    /// Cells that are not finished and have or want the main thread, the
    /// running one first.
    pub unfinished: Vec<CellId>,
    /// Those of them that a person typed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished_humans: Vec<CellId>,
    /// All others that are not finished.
    #[serde(default)]
    pub unfinished_beside: Vec<CellId>,
    /// Those of them that are `fork` cells.
    #[serde(default)]
    pub unfinished_forks: Vec<CellId>,
    /// It knows `fork` cells, which came with version 3.
    #[serde(default)]
    pub forks: bool,
    /// It takes cells with keys by the cell lane, and spends an id for each.
    #[serde(default)]
    pub keys_by_cell_lane: bool,
    /// Those of both that wait for their turn.
    #[serde(default)]
    pub queued: Vec<CellId>,
    /// The id that the next cell from the cell lane will get.
    pub next_cell: CellId,
    /// Why its files cannot be written, if so.
    pub not_recorded: Option<String>,
    /// Who lets agents' new cells wait.
    #[serde(default)]
    pub held_by: Option<String>,
    /// Who sees to its limits, if it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<EnforcedBy>,
    /// Process id of the zygote that reaps it.
    pub zygote_pid: i32,
}

/// State that a host publishes at the boundaries of cells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Cells that run.
    pub running: Vec<CellId>,
    /// Cells that wait, in order.
    pub queued: Vec<CellId>,
    /// Public names in the namespace.
    pub vars: u64,
    /// Cells accepted so far.
    pub cells: u64,
    /// Why files cannot be written, if so.
    pub not_recorded: Option<String>,
    /// Who lets agents' new cells wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// Terminals that are attached.
    #[serde(default)]
    pub attached: u64,
    /// What is kept of finished cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Box<Kept>>,
}
