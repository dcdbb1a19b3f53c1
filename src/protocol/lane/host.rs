//! What a daemon and a host say to each other.

use serde::{Deserialize, Serialize};

use super::{CellRecord, CellSpec, FinishedCell, HostInfo, HostStatus};
use crate::ErrorReply;
use crate::names::CellId;
use crate::outcome::{CellKind, CellStatus};
use crate::output_log::Stream;
use crate::verbs::attach::TerminalSize;
use crate::verbs::interrupt::InterruptedCell;
use crate::verbs::stack::{StackMethod, ThreadStack};
use crate::verbs::vars::Variable;

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
    /// else when it does. [`HostEvent::Refused`] with `unknown_cell` if the host
    /// never saw it, with `lost` if it is forgotten.
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
        /// Nobody named them: those that the host does not know are left out, not
        /// refused.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unnamed: bool,
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
    /// See whether all is there that others need: listen again if somebody removed
    /// the socket or its directory, end if the main thread is gone.
    LookAround,
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

/// From a host to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum HostEvent {
    /// First message on the control lane.
    Welcome(Box<HostInfo>),
    /// First message on the cell lane.
    CellLaneReady,
    /// A cell has an id. Not sent for a new one that the main thread read from the cell
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
