//! `int NAME`: interrupt the running cell.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use crate::ErrorReply;
use crate::names::{CellId, SessionName};

/// Whose cells to interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterruptRequest {
    /// Where.
    pub session: SessionName,
}

pub(super) fn parse(header: &Header<'_>) -> Result<InterruptRequest, ErrorReply> {
    header.finish(1, "int <name>")?;
    match header.arguments.first() {
        Some(name) => Ok(InterruptRequest {
            session: existing_session(name)?,
        }),
        None => Err(ErrorReply::usage("int <name>")),
    }
}

/// The structured answer to `int`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterruptReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Cells that were told to stop; empty if none was running.
    pub interrupted: Vec<CellId>,
}
