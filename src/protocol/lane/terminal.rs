//! What a daemon and a host say about one terminal.

use serde::{Deserialize, Serialize};

use crate::ErrorReply;
use crate::verbs::attach::TerminalSize;

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
