//! Private words between daemon, zygotes and hosts; never seen by a client.
//!
//! Shape of a message: length of what follows (4 bytes, little endian), tag
//! (8 bytes, little endian), length of the header (4 bytes), the header (JSON),
//! the body (raw bytes). The tag is drawn by the daemon for each connection;
//! bytes that session code writes to a lane do not carry it, break the framing,
//! and cost the connection, never a wrong answer.
//!
//! Version rules: a reader ignores header fields it does not know. The daemon
//! speaks [`LINK_VERSION`] and the one before it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ErrorReply;
use crate::limits::{EnforcedBy, Kept, KeptBudget, SessionLimits};
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::{CellKind, CellStatus, ExceptionInfo, MergeReport, ProcessEnd};
use crate::output_log::Stream;
use crate::verbs::attach::TerminalSize;
use crate::verbs::interrupt::InterruptedCell;
use crate::verbs::new::{PythonInfo, StartKind};
use crate::verbs::stack::{StackMethod, ThreadStack};
use crate::verbs::vars::Variable;

/// Version of these words.
pub const LINK_VERSION: u32 = 3;
/// Tag of a [`Hello`]; every other message carries the tag that it agreed.
pub const HELLO_TAG: u64 = u64::from_le_bytes(*b"pythond1");
/// Bytes of a message before its header.
pub const PREFIX: usize = 16;
/// Greatest message, in bytes after the first length field.
pub const MAX_MESSAGE: usize = 1 << 30;
/// Greatest header, in bytes: the source travels in the body.
pub const MAX_HEADER: usize = 64 << 20;
/// Most output that travels inside [`HostEvent::Finished`], in bytes.
pub const INLINE_OUTPUT: usize = 64 << 10;
/// Most output in one [`HostEvent::OutputChunk`], in bytes.
pub const OUTPUT_CHUNK: usize = 256 << 10;

/// Bytes that are no message of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The tag is not the agreed one.
    #[error("a lane message has a wrong tag")]
    WrongTag,
    /// A length is impossible.
    #[error("a lane message has an impossible length")]
    BadLength,
    /// The header is none of the known words.
    #[error("a lane message has an unknown header: {0}")]
    BadHeader(String),
}

/// Encodes one message.
///
/// # Errors
/// [`LaneError::BadLength`] if it would be greater than [`MAX_MESSAGE`].
pub fn encode<H: Serialize>(tag: u64, header: &H, body: &[u8]) -> Result<Vec<u8>, LaneError> {
    let mut message = vec![0; PREFIX];
    serde_json::to_writer(&mut message, header)
        .map_err(|error| LaneError::BadHeader(error.to_string()))?;
    let header_length = message.len() - PREFIX;
    let length = message.len() - 4 + body.len();
    if length > MAX_MESSAGE || header_length > MAX_HEADER {
        return Err(LaneError::BadLength);
    }
    let as_u32 = |length: usize| u32::try_from(length).map_err(|_| LaneError::BadLength);
    message[..4].copy_from_slice(&as_u32(length)?.to_le_bytes());
    message[4..12].copy_from_slice(&tag.to_le_bytes());
    message[12..16].copy_from_slice(&as_u32(header_length)?.to_le_bytes());
    message.extend_from_slice(body);
    Ok(message)
}

/// The first four things of a message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Length of the header.
    pub header: usize,
    /// Length of the body.
    pub body: usize,
}

impl Prefix {
    /// Reads and checks the 16 bytes before a header.
    ///
    /// # Errors
    /// [`LaneError`] if the tag or a length is wrong.
    pub fn parse(tag: u64, bytes: &[u8; PREFIX]) -> Result<Self, LaneError> {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
        };
        let mut found = [0; 8];
        found.copy_from_slice(&bytes[4..12]);
        if u64::from_le_bytes(found) != tag {
            return Err(LaneError::WrongTag);
        }
        let (length, header) = (number(0), number(12));
        if length > MAX_MESSAGE || header > MAX_HEADER {
            return Err(LaneError::BadLength);
        }
        let body = length
            .checked_sub(PREFIX - 4 + header)
            .ok_or(LaneError::BadLength)?;
        Ok(Self { header, body })
    }

    /// Bytes that follow the prefix.
    #[must_use]
    pub fn remaining(self) -> usize {
        self.header + self.body
    }
}

/// A message: words and raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<H> {
    /// The words.
    pub header: H,
    /// The raw bytes, empty for most.
    pub body: Vec<u8>,
}

/// Decodes what followed a prefix.
///
/// # Errors
/// [`LaneError::BadHeader`] if the header is none of `H`'s words.
pub fn decode<H: DeserializeOwned>(
    prefix: Prefix,
    mut bytes: Vec<u8>,
) -> Result<Message<H>, LaneError> {
    let header = bytes
        .get(..prefix.header)
        .ok_or(LaneError::BadLength)
        .and_then(|header| {
            serde_json::from_slice(header).map_err(|error| LaneError::BadHeader(error.to_string()))
        })?;
    bytes.drain(..prefix.header);
    Ok(Message {
        header,
        body: bytes,
    })
}

/// Takes whole messages out of a byte stream.
#[derive(Debug)]
pub struct Decoder {
    tag: u64,
    buffer: Vec<u8>,
}

impl Decoder {
    /// A decoder of messages with this tag.
    #[must_use]
    pub fn new(tag: u64) -> Self {
        Self {
            tag,
            buffer: Vec::new(),
        }
    }

    /// Expects another tag from the next message on.
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// The bytes that wait, for a reader that appends to them in place; it must
    /// not touch those that are there.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Adds bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// [`LaneError`] if the bytes are no message; the stream is useless then.
    pub fn next_message<H: DeserializeOwned>(&mut self) -> Result<Option<Message<H>>, LaneError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let prefix = Prefix::parse(self.tag, prefix)?;
        let end = PREFIX + prefix.remaining();
        if self.buffer.len() < end {
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..PREFIX);
        decode(prefix, message).map(Some)
    }
}

/// Which of a host's two sockets a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Cells and their ends.
    Cell,
    /// Everything that must not wait behind a cell.
    Control,
    /// One attached terminal; a host takes many.
    Terminal,
}

/// The first message on every connection to a host or a zygote, with
/// [`HELLO_TAG`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The daemon's [`LINK_VERSION`].
    pub version: u32,
    /// Tag of all further messages, both ways.
    pub tag: u64,
    /// Which lane this is; a zygote has one connection, the control lane.
    pub lane: Lane,
}

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
}

/// What a host says of itself when a control lane opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host's [`LINK_VERSION`].
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
    /// How long ago that was by a clock that nobody sets, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
    /// Cells that are not finished and have or want the main thread, the
    /// running one first.
    pub unfinished: Vec<CellId>,
    /// All others that are not finished.
    #[serde(default)]
    pub unfinished_beside: Vec<CellId>,
    /// Those of them that are `fork` cells.
    #[serde(default)]
    pub unfinished_forks: Vec<CellId>,
    /// It knows `fork` cells, which came with version 3.
    #[serde(default)]
    pub forks: bool,
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

/// From the daemon to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum HostCommand {
    /// Run a cell; the body is its source. On the cell lane at once, on the
    /// control lane behind those that wait.
    Run {
        /// The daemon's number for it.
        request: u64,
        /// How.
        #[serde(default)]
        how: CellSpec,
        /// The cell that went by the cell lane before this one, on the control
        /// lane: it has this id and its turn, even if it is read later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<CellId>,
    },
    /// Run a cell in a thread of its own; the body is its source.
    Fire {
        /// The daemon's number for it.
        request: u64,
        /// How.
        how: CellSpec,
    },
    /// Answer with [`HostEvent::Status`].
    Status {
        /// The daemon's number for it.
        request: u64,
    },
    /// Answer with [`HostEvent::Vars`].
    Vars {
        /// The daemon's number for it.
        request: u64,
    },
    /// Answer with [`HostEvent::Completions`].
    Complete {
        /// The daemon's number for it.
        request: u64,
        /// The text so far.
        text: String,
    },
    /// Answer with [`HostEvent::Cells`].
    Cells {
        /// The daemon's number for it.
        request: u64,
    },
    /// Answer with [`HostEvent::Cell`].
    Look {
        /// The daemon's number for it.
        request: u64,
        /// Which; none means the newest `fire` or `fork` cell.
        cell: Option<CellId>,
    },
    /// Answer with [`HostEvent::OutputChunk`].
    ReadOutput {
        /// The daemon's number for it.
        request: u64,
        /// Whose output.
        cell: CellId,
        /// Only this stream's.
        stream: Option<Stream>,
        /// Where to begin, in raw bytes of both streams in the order of
        /// arrival, or of the one stream.
        offset: u64,
        /// Most raw bytes to send.
        most: u32,
        /// Wait until there is something, or the cell has ended.
        follow: bool,
    },
    /// Answer with [`HostEvent::Finished`] of this cell: now if it has ended,
    /// else when it does; [`HostEvent::Refused`] if the host never saw it.
    Await {
        /// The daemon's number for it.
        request: u64,
        /// Which.
        cell: CellId,
    },
    /// Interrupt these cells if they still run or wait, and no others.
    Interrupt {
        /// The daemon's number for it.
        request: u64,
        /// Which; empty means every running one.
        cells: Vec<CellId>,
        /// `fork` cells are interrupted too, and not killed. Version 3.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        soft: bool,
    },
    /// Answer with [`HostEvent::Stack`].
    Stack {
        /// The daemon's number for it.
        request: u64,
    },
    /// Kill the child processes of a cell's thread.
    KillChildren {
        /// The daemon's number for it.
        request: u64,
        /// Whose.
        cell: CellId,
    },
    /// This cell was sent by the cell lane: it may be asked for before it is
    /// read there.
    Expect {
        /// Its id.
        cell: CellId,
    },
    /// Nobody waits for the answer to this request any more.
    Forget {
        /// The daemon's number for it.
        request: u64,
    },
    /// Let new cells of agents wait, or let them run again; answer with
    /// [`HostEvent::Hold`].
    Hold {
        /// The daemon's number for it.
        request: u64,
        /// Who holds the session; none lets it go.
        by: Option<String>,
        /// The terminal that this was asked for at: when that one is gone, the
        /// session is let go.
        terminal: Option<u64>,
    },
    /// Set the size of the terminal for those who are attached without saying
    /// theirs; answer with [`HostEvent::Resized`].
    Resize {
        /// The daemon's number for it.
        request: u64,
        /// In characters.
        size: TerminalSize,
    },
    /// Run the exit handlers and end, interrupting a running cell.
    Shutdown,
    /// Run a cell in a child process; the body is its source. Version 3.
    Fork {
        /// The daemon's number for it.
        request: u64,
        /// How.
        how: CellSpec,
    },
}

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

/// From a host to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum HostEvent {
    /// First message on the control lane.
    Welcome(Box<HostInfo>),
    /// First message on the cell lane.
    CellLaneReady,
    /// A cell has an id. Not sent for one that came without a key by the cell
    /// lane: its id is known.
    Accepted {
        /// The daemon's number for it.
        request: u64,
        /// Its id.
        cell: CellId,
        /// It was submitted earlier under the same key.
        existing: bool,
        /// Where it is in its life.
        status: CellStatus,
    },
    /// A cell that had to wait, or has a thread of its own, runs now.
    Started {
        /// Its id.
        cell: CellId,
        /// What kind of cell.
        kind: CellKind,
    },
    /// A cell ended; the body is the beginning of its output log.
    Finished(Box<FinishedCell>),
    /// State as of the last boundary of a cell.
    Status {
        /// The daemon's number for it.
        request: u64,
        /// What was published.
        status: HostStatus,
    },
    /// Names of the namespace.
    Vars {
        /// The daemon's number for it.
        request: u64,
        /// Public names, in order.
        vars: Vec<Variable>,
    },
    /// Completions.
    Completions {
        /// The daemon's number for it.
        request: u64,
        /// At most [`crate::verbs::complete::MAX_MATCHES`].
        matches: Vec<String>,
    },
    /// What the host knows of its cells.
    Cells {
        /// The daemon's number for it.
        request: u64,
        /// By age.
        cells: Vec<CellRecord>,
        /// Finished cells that are not remembered any more.
        forgotten: u64,
    },
    /// What the host knows of one cell.
    Cell {
        /// The daemon's number for it.
        request: u64,
        /// The cell; none if there is none.
        record: Option<Box<CellRecord>>,
        /// Its end, if it has ended.
        end: Option<Box<FinishedCell>>,
    },
    /// Records of output, in the body.
    OutputChunk {
        /// The daemon's number for it.
        request: u64,
        /// Where the body begins, in raw bytes.
        offset: u64,
        /// Where the next chunk would begin.
        next: u64,
        /// Bytes before `offset` that were asked for and are not kept.
        missing: u64,
        /// The cell has ended and this was the last of its output.
        ended: bool,
    },
    /// Which cells were told to stop, and what came of it so far.
    Interrupted {
        /// The daemon's number for it.
        request: u64,
        /// Empty if none ran.
        cells: Vec<InterruptedCell>,
    },
    /// Where the threads are.
    Stack {
        /// The daemon's number for it.
        request: u64,
        /// How the frames were read.
        method: StackMethod,
        /// The main thread first.
        threads: Vec<ThreadStack>,
    },
    /// How many child processes were killed.
    ChildrenKilled {
        /// The daemon's number for it.
        request: u64,
        /// Their process ids.
        pids: Vec<i32>,
    },
    /// Whether agents' new cells wait, after it changed or was asked for.
    Hold {
        /// The daemon's number for it; none if nobody asked.
        request: Option<u64>,
        /// Who holds the session.
        held_by: Option<String>,
        /// Cells that wait.
        waiting: u64,
    },
    /// The size of the terminal, after somebody asked for one.
    Resized {
        /// The daemon's number for it.
        request: u64,
    },
    /// The session ends because its person said so.
    Leaving,
    /// A command could not be carried out.
    Refused {
        /// The daemon's number for it.
        request: u64,
        /// Why.
        error: ErrorReply,
    },
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
    /// are read with [`HostCommand::ReadOutput`].
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

/// How somebody attaches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attach {
    /// The size of the person's terminal, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
    /// Sees everything, types nothing.
    pub read_only: bool,
    /// Wants the screen as it is; else the last bytes that were written to it.
    pub screen: bool,
    /// Whose cells are typed here.
    pub author: String,
    /// What the person's terminal is (`TERM`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// How many colours it has (`COLORTERM`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colorterm: Option<String>,
}

/// From the daemon to a host, on a terminal lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum TerminalCommand {
    /// The first: answer with [`TerminalEvent::Attached`].
    Attach(Attach),
    /// What was typed, in the body.
    Input,
    /// The person's terminal has another size now.
    Resize(TerminalSize),
}

/// From a host to the daemon, on a terminal lane. A host that closes it while
/// the session lives has cut the terminal off: it was too far behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum TerminalEvent {
    /// The first; the body is what is to be written first.
    Attached {
        /// Tells the terminals of a host apart.
        terminal: u64,
        /// The size that all who are attached share.
        size: TerminalSize,
        /// How many are attached, with this one.
        attached: u64,
        /// Who lets agents' new cells wait.
        held_by: Option<String>,
    },
    /// Nobody can attach.
    Refused {
        /// Why.
        error: ErrorReply,
    },
    /// Bytes for the terminal, in the body.
    Output,
    /// The shared size changed.
    Resized(TerminalSize),
    /// Agents' new cells wait, or run again.
    Held {
        /// Who lets them wait.
        held_by: Option<String>,
        /// Cells that wait.
        waiting: u64,
    },
}

/// From the daemon to a zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ZygoteCommand {
    /// Make a session host.
    Spawn {
        /// The daemon's number for it.
        request: u64,
        /// What it shall be.
        spec: Box<SessionSpec>,
    },
    /// Answer with [`ZygoteEvent::Fresh`]: are the directories of `sys.path`
    /// as they were when it started?
    CheckFresh {
        /// The daemon's number for it.
        request: u64,
    },
    /// End when the last host is gone; spares end at once.
    Retire,
    /// End now, with its spares. Hosts go on without anybody to report them.
    Shutdown,
}

/// From a zygote to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ZygoteEvent {
    /// First message: what it is, once Python is up.
    Welcome(Box<ZygoteInfo>),
    /// It cannot serve and ends.
    Failed {
        /// One line that says what is wrong with the environment.
        error: String,
    },
    /// A host was made and listens.
    Spawned {
        /// The daemon's number for it.
        request: u64,
        /// The host's process id.
        pid: i32,
        /// Its socket's file name in the runtime directory.
        socket: String,
    },
    /// No host could be made.
    SpawnFailed {
        /// The daemon's number for it.
        request: u64,
        /// One line.
        error: String,
    },
    /// Answer to [`ZygoteCommand::CheckFresh`].
    Fresh {
        /// The daemon's number for it.
        request: u64,
        /// Nothing was installed since.
        fresh: bool,
    },
    /// A host ended. Told for each host once to every daemon that connects.
    Exited {
        /// Its process id.
        pid: i32,
        /// Its socket's file name.
        socket: String,
        /// How.
        end: ProcessEnd,
        /// The end of its standard error, at most 4 KiB.
        last_stderr: String,
        /// The cell that ran at that moment.
        cell: Option<CellId>,
        /// The session it held.
        session: Option<(SessionName, SessionId, u64)>,
        /// Bytes of that cell's output that are lost; the body has the end of
        /// its output log.
        #[serde(default)]
        log_lost: u64,
        /// The limit that it exceeded, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exceeded: Option<String>,
    },
}

/// What a zygote is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZygoteInfo {
    /// The zygote's [`LINK_VERSION`].
    pub version: u32,
    /// Version of the host library.
    pub build: String,
    /// Process id.
    pub pid: i32,
    /// Tells environments apart; the name of its socket is made from it.
    pub key: String,
    /// `sys.executable`.
    pub executable: String,
    /// For example `3.11.7`.
    pub python_version: String,
    /// Modules imported on request.
    pub preload: Vec<String>,
    /// Why it cannot fork, if it cannot: hosts start cold.
    pub cannot_fork: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_whatever_way_it_is_cut() {
        let command = HostCommand::Run {
            request: 7,
            how: CellSpec {
                changed: true,
                ..CellSpec::default()
            },
            after: None,
        };
        let bytes = encode(5, &command, b"x = 1").unwrap();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::new(5);
            decoder.extend(&bytes[..cut]);
            assert_eq!(decoder.next_message::<HostCommand>(), Ok(None));
            decoder.extend(&bytes[cut..]);
            decoder.extend(&bytes[..3]);
            let message = decoder.next_message::<HostCommand>().unwrap().unwrap();
            assert_eq!(message.header, command);
            assert_eq!(message.body, b"x = 1");
            assert_eq!(decoder.next_message::<HostCommand>(), Ok(None));
        }
    }

    #[test]
    fn stray_bytes_are_never_taken_for_a_message() {
        let mut decoder = Decoder::new(5);
        decoder.extend(b"print('hello from session code')");
        assert_eq!(
            decoder.next_message::<HostEvent>(),
            Err(LaneError::WrongTag)
        );
        let forged = encode(6, &HostEvent::CellLaneReady, b"").unwrap();
        let mut decoder = Decoder::new(5);
        decoder.extend(&forged);
        assert_eq!(
            decoder.next_message::<HostEvent>(),
            Err(LaneError::WrongTag)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tagged in any::<bool>()) {
            let mut all = bytes.clone();
            if tagged && all.len() >= 12 { all[4..12].copy_from_slice(&9u64.to_le_bytes()); }
            let mut decoder = Decoder::new(9);
            decoder.extend(&all);
            while let Ok(Some(_)) = decoder.next_message::<HostEvent>() {}
        }
    }
}
