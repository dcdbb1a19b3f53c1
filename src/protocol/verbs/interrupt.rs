//! `int NAME [ID…]`: interrupt running cells, or take queued ones back.

use serde::{Deserialize, Serialize};

use super::options::{Header, cell_id, existing_session};
use super::stack::ThreadStack;
use crate::ErrorReply;
use crate::names::{CellId, SessionName};
use crate::outcome::CellKind;

/// Whose cells to interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterruptRequest {
    /// Where.
    pub session: SessionName,
    /// Which; none means every running cell.
    pub cells: Vec<CellId>,
    /// Do what it takes, up to ending the session.
    pub kill: bool,
    /// `fork` cells are interrupted too, and not killed.
    pub soft: bool,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<InterruptRequest, ErrorReply> {
    let kill = header.take_flag("kill");
    let soft = header.take_flag("soft");
    let usage = "int <name> [<cell_id> ...]";
    header.finish(1 + super::wait::MAX_CELLS, usage)?;
    let Some((name, ids)) = header.arguments.split_first() else {
        return Err(ErrorReply::usage(usage));
    };
    Ok(InterruptRequest {
        session: existing_session(name)?,
        cells: ids.iter().map(|id| cell_id(id)).collect::<Result<_, _>>()?,
        kill,
        soft,
    })
}

/// What came of interrupting one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InterruptOutcome {
    /// It ended.
    Ended,
    /// It was still waiting for its turn and will not run.
    Dequeued,
    /// It was told and has not ended: C code does not return, or the cell
    /// catches the exception.
    Pending,
}

/// One cell that was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InterruptedCell {
    /// The cell.
    pub cell_id: CellId,
    /// Kind of cell.
    pub kind: CellKind,
    /// What came of it until the answer.
    pub outcome: InterruptOutcome,
    /// Where it is while it is pending, innermost frame last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<ThreadStack>,
}

/// The structured answer to `int`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InterruptReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Cells that were told to stop; empty if none was running.
    pub interrupted: Vec<CellId>,
    /// How many, where the daemon does not say which (0.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted_count: Option<u64>,
    /// The same with what came of it.
    #[serde(default)]
    pub cells: Vec<InterruptedCell>,
    /// What `--kill` did beyond the interrupt, in order, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// `--kill` ended the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub killed: bool,
}
