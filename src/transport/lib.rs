//! How clients of pythond reach the daemon: one blocking connection, one typed
//! call for each verb, and what failures mean to people and programs.
//!
//! Reads and prints nothing of a terminal; knows nothing of command lines.
#![forbid(unsafe_code)]

mod address;
mod attachment;
mod cells;
mod client;
mod connect;
mod connection;
mod error;
mod header;
mod pending;
mod report;
mod streaming;

pub use address::{Address, AddressVariables};
pub use attachment::{AttachOptions, Attachment, Incoming, TerminalBytes};
pub use cells::{Idle, MAX_CODE_BYTES, PollReply};
pub use client::Client;
pub use error::{ClientError, TransportError};
pub use pending::{Pending, Reply, Waited};
pub use report::{EXIT_CODES, Report};
pub use streaming::{DaemonGoes, Event, Streamed, Streaming};
