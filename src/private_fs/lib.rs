//! Directories, files and sockets that belong to one user alone.
//!
//! Everything is opened relative to a held directory descriptor, so nobody who
//! renames or links a path in between can redirect us. Knows nothing of what
//! is kept in the files.
#![forbid(unsafe_code)]

pub mod cgroup;
mod dir;
mod error;
mod lock;
pub mod paths;
mod socket;
mod stamp;
mod strict;

pub use dir::PrivateDir;
pub use error::PrivateFsError;
pub use lock::{LockGuard, LockOutcome};
pub use socket::{
    PeerCredentials, bind_at, connect_at, connect_at_nonblocking, peer_credentials,
    remove_socket_at,
};
pub use stamp::{DirStamp, EntryStamp};
pub use strict::Strictness;
