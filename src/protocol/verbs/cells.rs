//! `cells NAME`: the cells that a session remembers.

use serde::{Deserialize, Serialize};

use super::cell::CellSummary;
use crate::names::{SessionId, SessionName};

/// Whose cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellsRequest {
    /// The session.
    pub session: SessionName,
}

/// The structured answer to `cells`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CellsReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// By age, the oldest first.
    pub cells: Vec<CellSummary>,
    /// Finished cells that were dropped to stay within the budget.
    pub forgotten: u64,
}

impl CellSummary {
    /// The line of the plain wire.
    #[must_use]
    pub fn to_plain(&self) -> String {
        let kind = super::word(&self.kind);
        let mut status = super::word(&self.status);
        if let Some(position) = self.queue_position {
            status = format!("{status} #{position}");
        }
        if self.interrupt_pending {
            status.push_str(" (interrupt pending)");
        }
        if self.timed_out {
            status.push_str(" (timed out)");
        }
        format!(
            "  {}: {kind} {status} {:.3} ms {} B by {} | {}",
            self.cell_id, self.duration_ms, self.output_bytes, self.author, self.code
        )
    }
}
