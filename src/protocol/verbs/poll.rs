//! `poll NAME [ID]`: a cell as it is now.

use super::options::{Header, cell_id, existing_session};
use crate::ErrorReply;
use crate::names::{CellId, SessionName};

/// Which cell. The structured answer is a [`super::cell::CellReply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollRequest {
    /// Where.
    pub session: SessionName,
    /// Which; none means the newest `fire` or `fork` cell.
    pub cell: Option<PolledCell>,
}

/// A cell's id as it was sent: 0.4 answers also those that no cell can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolledCell {
    /// A cell may have it.
    Id(CellId),
    /// None can.
    Unknown(String),
}

pub(super) fn parse(header: &Header<'_>) -> Result<PollRequest, ErrorReply> {
    let usage = "poll <name> [<cell_id>]";
    header.finish(2, usage)?;
    let Some(name) = header.arguments.first() else {
        return Err(ErrorReply::usage(usage));
    };
    let cell = header.arguments.get(1).map(|text| {
        cell_id(text).map_or_else(
            |_| PolledCell::Unknown(text.chars().take(80).filter(|c| !c.is_control()).collect()),
            PolledCell::Id,
        )
    });
    Ok(PollRequest {
        session: existing_session(name)?,
        cell,
    })
}
