//! Two machines get to know each other by a short code that a person carries from
//! one to the other: what both ends say, and what each believes then.
//!
//! SPAKE2 gives both a key that is the same only if the code is, and nobody who
//! listens or answers learns more of the code than whether one guess was right. Both
//! then prove that they have that key and saw the same two certificates. Knows no
//! sockets, no files and no clock. PROTOCOL.md, "Pairing", is normative.
#![forbid(unsafe_code)]

mod code;
mod exchange;
mod message;

pub use code::{Code, NotACode};
pub use exchange::{Certificates, ClientKeys, ClientOpening, NoElement, ServerKeys};
pub use message::{
    Bytes, ClientMessage, MAX_MESSAGE_BYTES, Refusal, RefusalCode, SecretText, ServerMessage,
};
