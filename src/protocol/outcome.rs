//! How a cell ended: data, not an error of ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kind of cell it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// On the main thread, in order; the client waits.
    Run,
    /// In a thread of its own.
    Fire,
    /// In a child process.
    Fork,
    /// Typed by a person at the terminal.
    Human,
}

/// Where a cell is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CellStatus {
    /// Accepted, waiting for its turn.
    Queued,
    /// Running.
    Running,
    /// Ended without an exception.
    Done,
    /// Ended with an exception.
    Failed,
    /// Ended because it was interrupted.
    Interrupted,
    /// Ended with its process.
    Killed,
    /// Nobody can know how it ended.
    Lost,
}

/// An exception that left a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExceptionInfo {
    /// Qualified name of its type, as a traceback shows it.
    #[serde(rename = "type")]
    pub kind: String,
    /// `str()` of the exception; `exit(n)` for a `SystemExit`.
    pub message: String,
    /// As Python prints it, with the user's lines and frames only; empty for a
    /// `SystemExit`.
    pub traceback: String,
}

/// What came back from the child process of a `fork` cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MergeReport {
    /// Names that were set in the session: those that were new in the child or
    /// bound to another object.
    pub merged: Vec<String>,
    /// Names that did not come back, and why.
    pub skipped: BTreeMap<String, String>,
    /// Names whose object was changed in place in the child; the session has it
    /// unchanged.
    pub mutated: Vec<String>,
    /// Names whose object is too large or of a kind that cannot be compared in
    /// full; nothing was seen to be changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchecked: Vec<String>,
    /// What may not work in the child of this session, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum ProcessEnd {
    /// It called `_exit` with this status.
    Exited {
        /// 0 to 255.
        status: i32,
    },
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// The kernel's out-of-memory killer ran meanwhile in its memory group.
        out_of_memory: bool,
    },
    /// It is gone and nobody could see how.
    Unknown,
}

impl ProcessEnd {
    /// In words: `killed by SIGSEGV (segmentation fault)`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Exited { status } => format!("exited with status {status}"),
            Self::Signaled {
                signal,
                out_of_memory,
            } => {
                let (name, meaning) = signal_words(*signal);
                let words = if meaning.is_empty() {
                    format!("killed by {name}")
                } else {
                    format!("killed by {name} ({meaning})")
                };
                if *out_of_memory {
                    format!("{words}, probably out of memory")
                } else {
                    words
                }
            }
            Self::Unknown => "gone, and nobody saw how it ended".to_owned(),
        }
    }
}

/// Name and meaning of a Linux signal number (signal(7)).
fn signal_words(signal: i32) -> (String, &'static str) {
    let (name, meaning) = match signal {
        1 => ("SIGHUP", "hangup"),
        2 => ("SIGINT", "interrupt"),
        3 => ("SIGQUIT", "quit"),
        4 => ("SIGILL", "illegal instruction"),
        5 => ("SIGTRAP", "trace trap"),
        6 => ("SIGABRT", "abort"),
        7 => ("SIGBUS", "bus error"),
        8 => ("SIGFPE", "arithmetic error"),
        9 => ("SIGKILL", ""),
        11 => ("SIGSEGV", "segmentation fault"),
        13 => ("SIGPIPE", "broken pipe"),
        14 => ("SIGALRM", "alarm clock"),
        15 => ("SIGTERM", "termination"),
        24 => ("SIGXCPU", "processor time limit"),
        25 => ("SIGXFSZ", "file size limit"),
        31 => ("SIGSYS", "bad system call"),
        other => return (format!("signal {other}"), ""),
    };
    (name.to_owned(), meaning)
}
