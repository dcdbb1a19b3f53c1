//! How clients of pythond reach the daemon: one blocking connection,
//! by a unix socket, TCP or TLS, one typed
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
mod dial;
mod dialect;
mod error;
mod header;
mod heartbeat;
mod pairing;
mod pending;
mod remote;
mod remote_error;
mod report;
mod ssh;
mod stream;
mod streaming;
mod tls_stream;
mod translated;

pub use address::{Address, AddressVariables, Secret, TcpAddress};
pub use attachment::{AttachOptions, Attachment, Incoming, TerminalBytes};
pub use cells::{Idle, MAX_CODE_BYTES, PollReply};
pub use client::Client;
pub use dialect::{Exchange, OFFERED, Spoken, Step, is_wrong_token};
pub use error::{ClientError, TransportError};
pub use heartbeat::{PERIOD, Pulse, SILENCE, Silent, Traffic};
pub use pairing::{PairError, Paired, pair};
pub use pending::{Pending, Reply, Waited};
pub use remote_error::{RemoteError, RemoteReason, Stage};
pub use report::{ANOTHER_MACHINE, EXIT_CODES, NO_ANSWER, Report};
pub use ssh::{NotSshAddress, SCHEME as SSH_SCHEME, SshAddress, is_noise};
pub use streaming::{DaemonGoes, Event, Streamed, Streaming};
