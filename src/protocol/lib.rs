//! The words that clients, daemon and hosts of pythond exchange.
//!
//! Values and text only: no I/O, no async, no clock. [`frame`] and [`verbs`]
//! are what clients see; [`lane`] is private between daemon, zygotes and hosts.
#![forbid(unsafe_code)]
#![doc = include_str!("PROTOCOL.md")]

pub mod error;
pub mod exit_code;
pub mod frame;
pub mod lane;
pub mod limits;
pub mod names;
pub mod outcome;
pub mod output_log;
#[cfg(feature = "schema")]
pub mod schema;
pub mod shown;
pub mod verbs;

pub use error::{ErrorCode, ErrorReply, Fate};
pub use exit_code::ExitCode;
pub use frame::Frame;
pub use names::{CellId, InvalidSessionPath, SessionId, SessionName, SessionPath, remote_name};
