//! A cell on its way to a host, in its table, and at its end.

use serde::{Deserialize, Serialize};

use crate::names::CellId;
use crate::outcome::{CellKind, CellStatus, ExceptionInfo, MergeReport};

/// How a cell is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CellSpec {
    /// Work out which names changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
    /// Start after the `fire` cells before it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// The client's key: the same key is the same cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Interrupt it when it has run for so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Who submitted it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Most bytes that may come back from the child of a `fork` cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_result: Option<u64>,
    /// It was sent before, so long ago, in milliseconds: maybe to another session
    /// of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resent_ms: Option<u64>,
    /// Refuse it rather than let it wait, unless it is known by its key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub busy_fails: bool,
}

/// What a host knows of a cell, its output and its end apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRecord {
    /// Its id.
    pub cell: CellId,
    /// What kind of cell.
    pub kind: CellKind,
    /// Who submitted it.
    pub author: String,
    /// Where it is in its life.
    pub status: CellStatus,
    /// Place in its queue, 1 for the next, while it waits.
    pub queue_position: Option<u64>,
    /// When it was accepted: microseconds since 1970, UTC.
    pub accepted_us: i64,
    /// When it started, in the same form.
    pub started_us: Option<i64>,
    /// How long it has run, in nanoseconds.
    pub duration_ns: u64,
    /// Bytes of output so far, of both streams.
    pub output_bytes: u64,
    /// Bytes at the beginning of the output that are not kept any more.
    pub truncated: u64,
    /// It was interrupted and has not ended yet.
    pub interrupt_pending: bool,
    /// Its time-out interrupted it.
    pub timed_out: bool,
    /// The client's key.
    pub key: Option<String>,
    /// The beginning of its source.
    pub code: String,
}

/// The end of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedCell {
    /// The daemon's number for it; none if this daemon did not ask for it.
    pub request: Option<u64>,
    /// Its id.
    pub cell: CellId,
    /// What kind of cell.
    pub kind: CellKind,
    /// How it ended.
    pub status: CellStatus,
    /// The exception, if one left it.
    pub exception: Option<ExceptionInfo>,
    /// Where the shown value stands in the stdout bytes: start and length.
    pub result: Option<(u64, u64)>,
    /// When it started: microseconds since 1970, UTC.
    pub started_us: i64,
    /// How long it ran, in nanoseconds.
    pub duration_ns: u64,
    /// Bytes of output when it ended, of both streams; those beyond the body
    /// are read with [`HostCommand::ReadOutput`](super::HostCommand::ReadOutput).
    pub output_bytes: u64,
    /// Bytes of output that were not kept, all at its beginning.
    pub truncated: u64,
    /// Its time-out interrupted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Names that changed, if that was asked for.
    pub changed: Vec<String>,
    /// The id that the next cell from the cell lane will get.
    pub next_cell: CellId,
    /// Why files cannot be written, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_recorded: Option<String>,
    /// What came back from a `fork` cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Box<MergeReport>>,
}
