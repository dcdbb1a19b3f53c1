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
    /// Asks for what it types to be counted. A host that does not know this says
    /// nothing of it in [`TerminalEvent::Attached`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<InputKey>,
}

/// Whose typing is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputKey {
    /// Drawn by the client; the same over all its connections.
    pub key: String,
    /// It was attached before, and what it typed then may not have arrived.
    pub resume: bool,
}

/// How far the input of a key was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputTaken {
    /// Bytes, from the first that came with this key.
    pub taken: u64,
    /// The key was known: they are counted over the connections before, too.
    pub resumed: bool,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
        /// How far its input was taken, if that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<InputTaken>,
    },
    /// So many bytes of its input were taken by now. Only who has asked for it is
    /// told.
    Taken {
        /// As in [`InputTaken`].
        taken: u64,
    },
    /// The last: a terminal with the same input key is attached in its place.
    Reattached,
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
