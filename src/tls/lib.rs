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

pub use client::{ClientTls, Pinned};
pub use trouble::TlsTrouble;
pub use untrusted::ServerNotTrusted;
