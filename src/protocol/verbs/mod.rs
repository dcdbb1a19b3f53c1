//! One file per verb: its request as typed, its reply's fields.

pub mod complete;
pub mod info;
pub mod interrupt;
pub mod kill;
pub mod list;
pub mod new;
pub mod options;
pub mod request;
pub mod run;
pub mod status;
pub mod vars;

pub use request::{ReplyFormat, Request, TypedRequest};
