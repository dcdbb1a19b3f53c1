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

mod cell;
mod framing;
mod host;
mod key;
mod session;
mod terminal;
mod zygote;

use serde::{Deserialize, Serialize};

pub use self::cell::{CellRecord, CellSpec, FinishedCell};
pub use self::framing::{Decoder, LaneError, Message, Prefix, decode, encode};
pub use self::host::{HostCommand, HostEvent};
pub use self::key::KeyDigest;
pub use self::session::{HostInfo, HostStatus, HostedSession, SessionSpec};
pub use self::terminal::{Attach, InputKey, InputTaken, TerminalCommand, TerminalEvent};
pub use self::zygote::{
    CellFate, HostEnd, LIVING, Reached, TOMBSTONE, ZygoteCommand, ZygoteEvent, ZygoteHost,
    ZygoteInfo,
};

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
