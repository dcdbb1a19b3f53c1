//! Address → connection. Of a unix socket the server is checked before the first
//! byte; then follows the WebSocket handshake.

use std::path::Path;
use std::time::Duration;

use pythond_private_fs::connect_at;

use crate::connection::Connection;
use crate::{Address, ClientError, remote, ssh};

/// How long a daemon may take to answer the handshake, and the way there. It does
/// no other work for it, so one that takes longer is stopped or stuck.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Connects to a daemon, and says what there is to say of how that was done.
pub(crate) fn connect(
    address: &Address,
    limit: Duration,
) -> Result<(Connection, Option<String>), ClientError> {
    match address {
        Address::Unix(path) => Ok((unix(path, limit)?, None)),
        Address::Ssh(address) => Ok((ssh::connect(address, limit)?, None)),
        Address::Tcp(address) => {
            let connected = remote::connect(address, limit)?;
            Ok((connected.connection, connected.notice))
        }
    }
}

fn unix(path: &Path, limit: Duration) -> Result<Connection, ClientError> {
    let stream = connect_at(path).map_err(|error| {
        // A missing directory or socket and a socket that nobody listens on
        // all mean that no daemon runs; the rest is worth its own words.
        if error.is_not_found() || error.is_refused() {
            ClientError::NoDaemon {
                socket: path.to_owned(),
            }
        } else {
            ClientError::Socket(error)
        }
    })?;
    Ok(Connection::over_unix(stream, limit)?)
}
