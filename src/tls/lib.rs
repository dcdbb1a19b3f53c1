//! What both ends of a connection to another machine demand of TLS, from the
//! files that `pythond-identity` keeps: configurations for rustls, and why a peer
//! is not believed.
//!
//! Opens no socket: whoever has one hands it to rustls with what is made here.
#![forbid(unsafe_code)]

mod client;
mod own;
mod provider;
pub mod server;
mod trouble;
mod untrusted;

/// What a client offers (RFC 7301) that wants to pair: both ends then demand no more of
/// each other in the handshake than a certificate and its key. It is the name of the
/// subprotocol as well.
pub const PAIRING: &str = "pythond.pair.1";

pub use client::{ClientTls, Pinned};
pub use trouble::TlsTrouble;
pub use untrusted::ServerNotTrusted;
