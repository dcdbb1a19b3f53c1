//! `events [NAME]`: what happens to sessions and cells, as it happens.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use crate::ErrorReply;
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::{CellKind, CellStatus};

/// Events that a daemon keeps for replay.
pub const KEPT_EVENTS: usize = 4096;

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsRequest {
    /// Only this session's.
    pub session: Option<SessionName>,
    /// Replay what came after this cursor; none begins now.
    pub since: Option<String>,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<EventsRequest, ErrorReply> {
    let since = header.take_value("since")?.map(str::to_owned);
    header.finish(1, "events [<name>]")?;
    let session = header.arguments.first().map(|name| existing_session(name));
    Ok(EventsRequest {
        session: session.transpose()?,
        since,
    })
}

/// One event with its place in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventMessage {
    /// Its place: the `--since` to go on with after it.
    pub cursor: String,
    /// When: RFC 3339, UTC, microseconds.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First: from here on nothing is missed.
    Ready,
    /// The log does not reach back to the cursor, or the cursor is another
    /// daemon's: what happened in between is to be asked for.
    Reset,
    /// A session is there.
    SessionCreated {
        /// Its name.
        session: SessionName,
        /// Tells sessions of one name apart.
        session_id: SessionId,
        /// Which state of the session.
        #[serde(rename = "gen")]
        generation: u64,
        /// Process id of its host.
        pid: i32,
    },
    /// A session's process is gone.
    SessionClosed {
        /// Its name.
        session: SessionName,
        /// Tells sessions of one name apart.
        session_id: SessionId,
        /// Which state of the session.
        #[serde(rename = "gen")]
        generation: u64,
        /// `killed`, `replaced`, `stopped` (with the daemon), `exited`, `died`.
        reason: String,
        /// In words.
        cause: String,
    },
    /// A cell waits for its turn.
    CellQueued(CellEvent),
    /// A cell runs.
    CellStarted(CellEvent),
    /// A cell ended.
    CellDone(CellEvent),
}

/// A cell at the moment of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CellEvent {
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The cell.
    pub cell_id: CellId,
    /// Kind of cell.
    pub kind: CellKind,
    /// Where it is in its life.
    pub status: CellStatus,
    /// How long it ran, in milliseconds, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// Bytes of output, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

impl Event {
    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> Option<&SessionName> {
        match self {
            Self::Ready | Self::Reset => None,
            Self::SessionCreated { session, .. } | Self::SessionClosed { session, .. } => {
                Some(session)
            }
            Self::CellQueued(cell) | Self::CellStarted(cell) | Self::CellDone(cell) => {
                Some(&cell.session)
            }
        }
    }
}
