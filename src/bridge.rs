//! `pythond bridge --stdio`: a connection to the daemon for whoever has our standard
//! input and output, which is how ssh reaches it. Knows nothing of what is said.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use pythond_private_fs::{PrivateFsError, connect_at};

use crate::config::Config;
use crate::detach::{self, DetachError};

/// How much is moved at once, in bytes.
const PIECE: usize = 64 << 10;

/// Why there is no bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Nobody listens, and nobody was to be started.
    #[error("no daemon listens on `{0}`")]
    NoDaemon(String),
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] PrivateFsError),
    /// There is no daemon, and none can be started.
    #[error("the daemon does not start")]
    Start(#[from] DetachError),
    /// The bytes cannot be moved.
    #[error("the bridge broke")]
    Io(#[from] std::io::Error),
}

/// Moves bytes until the daemon closes the connection, or nobody is left to hear
/// it. Starts the daemon if there is none and it may be started.
///
/// # Errors
/// [`BridgeError`].
pub fn run(config: &Config, may_start: bool) -> Result<(), BridgeError> {
    let socket = connect(config, may_start)?;
    // Without the buffers of the standard library: what came is wanted at once.
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut to_daemon = socket.try_clone()?;
    std::thread::Builder::new().spawn(move || {
        // It hears that nobody says anything more, and may still answer.
        let _ = relay(input, &mut to_daemon);
        let _ = to_daemon.shutdown(Shutdown::Write);
    })?;
    match relay(socket, &mut output) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn connect(config: &Config, may_start: bool) -> Result<UnixStream, BridgeError> {
    let place: &Path = &config.client_socket;
    match connect_at(place) {
        Ok(socket) => Ok(socket),
        Err(error) if !(error.is_not_found() || error.is_refused()) => Err(error.into()),
        Err(_) if !may_start => Err(BridgeError::NoDaemon(place.display().to_string())),
        Err(_) => {
            match detach::start(config) {
                // Somebody else was quicker.
                Ok(_) | Err(DetachError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(connect_at(&config.socket.path)?)
        }
    }
}

fn relay(mut from: impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&piece[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
