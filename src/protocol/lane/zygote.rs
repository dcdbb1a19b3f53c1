//! What a daemon and a zygote say to each other.

use serde::{Deserialize, Serialize};

use super::{HostedSession, KeyDigest, SessionSpec};
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::ProcessEnd;

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
    /// Listen again if somebody removed the socket or its directory.
    ListenAgain,
    /// End when the last host is gone; spares end at once.
    Retire,
    /// End now, with its spares, and with hosts that the daemon did not know of.
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
    Exited(Box<HostEnd>),
}

/// How a host ended. The body has the end of the output log of the cell that
/// ran on its main thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// Its process id.
    pub pid: i32,
    /// Its socket's file name.
    pub socket: String,
    /// How.
    pub end: ProcessEnd,
    /// The end of its standard error, at most 4 KiB.
    pub last_stderr: String,
    /// The cell that ran at that moment.
    pub cell: Option<CellId>,
    /// The session it held.
    pub session: Option<(SessionName, SessionId, u64)>,
    /// Bytes of that cell's output that are lost before what the body has.
    #[serde(default)]
    pub log_lost: u64,
    /// The cause in words, where more is known than how it ended: for example a
    /// limit that it exceeded.
    #[serde(default, alias = "exceeded", skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it was seen: RFC 3339, UTC.
    #[serde(default)]
    pub died_at: String,
    /// The same by the clock that nobody can set (`CLOCK_BOOTTIME`), in ns: which
    /// of two died first.
    #[serde(default)]
    pub died_ns: u64,
    /// What its journal says of its last cells, by age.
    #[serde(default)]
    pub fates: Vec<CellFate>,
    /// These are all cells that it ever accepted, each with its key.
    #[serde(default)]
    pub fates_are_all: bool,
    /// When it became this session, by the clock of `died_ns`; 0 if that is not
    /// known.
    #[serde(default)]
    pub born_ns: u64,
    /// A daemon had told it to end, and it did.
    #[serde(default)]
    pub ordered: bool,
    /// When its process started, as `/proc/PID/stat` says it; 0 if that is not
    /// known.
    #[serde(default)]
    pub start_time: u64,
    /// What a daemon wrote down of the session while it lived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<Box<HostedSession>>,
}

/// What a host's journal says of one of its last cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellFate {
    /// Which.
    pub cell: CellId,
    /// The number of the daemon that asked for it; 0 if none did.
    pub request: u64,
    /// How far it came.
    pub reached: Reached,
    /// The client's key and what came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyDigest>,
}

/// How far a cell came in a host that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// It was accepted, and never started.
    Accepted,
    /// It started, and did not end.
    Started,
    /// It ended.
    Finished,
}

/// How names of files end that tell of a host's death: a [`HostEnd`] each.
pub const TOMBSTONE: &str = "tombstone";
/// How names of files end that say which session a live host is: what is to be
/// told if nobody sees it die, a [`HostEnd`] each.
pub const LIVING: &str = "session";

/// What a zygote is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZygoteInfo {
    /// The zygote's [`LINK_VERSION`](super::LINK_VERSION).
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
    /// The sessions that it made and that have not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<ZygoteHost>,
}

/// A session as its zygote knows it: also one that is stopped and says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZygoteHost {
    /// Its process id.
    pub pid: i32,
    /// Its socket's file name.
    pub socket: String,
    /// Name, id and generation.
    pub session: (SessionName, SessionId, u64),
}
