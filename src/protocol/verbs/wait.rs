//! `wait NAME [ID…]`: answer when cells have ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cell::CellSummary;
use super::options::{Header, cell_id, existing_session, seconds};
use crate::ErrorReply;
use crate::names::{CellId, SessionName};

/// Most cells that one `wait` can name.
pub const MAX_CELLS: usize = 1000;

/// Which cells to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitRequest {
    /// Where.
    pub session: SessionName,
    /// Which; none means all that are not finished now.
    pub cells: Vec<CellId>,
    /// Answer after this time at the latest.
    pub timeout: Option<Duration>,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<WaitRequest, ErrorReply> {
    let timeout = seconds(header, "timeout")?;
    let usage = "wait <name> [<cell_id> ...]";
    header.finish(1 + MAX_CELLS, usage)?;
    let Some((name, ids)) = header.arguments.split_first() else {
        return Err(ErrorReply::usage(usage));
    };
    Ok(WaitRequest {
        session: existing_session(name)?,
        cells: ids.iter().map(|id| cell_id(id)).collect::<Result<_, _>>()?,
        timeout,
    })
}

/// The structured answer to `wait`, in both forms.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WaitReply {
    /// All of them ended well.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// The cells, in the order in which they were named, else by age.
    pub cells: Vec<CellSummary>,
    /// Time was up before all had ended.
    pub timed_out: bool,
}
