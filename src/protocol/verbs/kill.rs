//! `kill NAME` or `kill --all`: end sessions.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use crate::ErrorReply;
use crate::names::SessionName;

/// Which sessions to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KillRequest {
    /// This one.
    One(SessionName),
    /// Every one.
    All,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<KillRequest, ErrorReply> {
    let usage = "kill <name>";
    if header.take_flag("all") {
        header.finish(0, "kill --all")?;
        return Ok(KillRequest::All);
    }
    header.finish(1, usage)?;
    match header.arguments.first() {
        Some(name) => existing_session(name).map(KillRequest::One),
        None => Err(ErrorReply::usage(usage)),
    }
}

/// The structured answer to `kill`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KillReply {
    /// Every session that was asked for is gone.
    pub ok: bool,
    /// Sessions that ended, by name.
    pub killed: Vec<SessionName>,
    /// Sessions that did not, by name.
    pub failed: Vec<SessionName>,
}
