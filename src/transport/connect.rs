//! Address → connection: the socket and its server are checked before the
//! first byte, then the WebSocket handshake.

use pythond_private_fs::connect_at;

use crate::connection::Connection;
use crate::{Address, ClientError};

/// Connects to a daemon.
pub(crate) fn connect(address: &Address) -> Result<Connection, ClientError> {
    let Address::Unix(path) = address;
    let stream = connect_at(path).map_err(|error| {
        // A missing directory or socket and a socket that nobody listens on
        // all mean that no daemon runs; the rest is worth its own words.
        if error.is_not_found() || error.is_refused() {
            ClientError::NoDaemon {
                socket: path.clone(),
            }
        } else {
            ClientError::Socket(error)
        }
    })?;
    Ok(Connection::handshake(stream)?)
}
