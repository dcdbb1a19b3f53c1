//! One file per verb: its request as typed, its reply's fields.

pub mod attach;
pub mod cell;
pub mod cells;
pub mod complete;
pub mod connect;
pub mod disconnect;
pub mod events;
pub mod hold;
pub mod info;
pub mod interrupt;
pub mod kill;
pub mod list;
pub mod new;
pub mod options;
pub mod out;
pub mod pair;
pub mod poll;
pub mod request;
pub mod resize;
pub mod stack;
pub mod status;
pub mod stop;
pub mod submit;
pub mod vars;
pub mod wait;

pub use request::{Parsed, ReplyFormat, Request};

/// A unit variant as the word it is on the wire.
#[must_use]
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
