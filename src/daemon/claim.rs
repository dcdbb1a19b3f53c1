//! What one daemon has and no other: the lock, the socket, the listening sockets.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pythond_private_fs::{
    LockGuard, LockOutcome, PrivateDir, bind_at, connect_at_nonblocking, peer_credentials,
    remove_socket_at,
};
use pythond_tls::server::{KeysError, ServerKeys};

use super::{DaemonError, LOCK};
use crate::config::Config;
use crate::error::chain;
use crate::handover;
use crate::listener::BACKLOG;
use crate::network::keys;
use crate::network::listen::{Listening, listen, take_over};
use crate::supervisor;

/// How long another start may have the lock that a restart let go for a moment.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What one daemon has and no other.
pub(super) struct Claim {
    pub(super) dir: Arc<PrivateDir>,
    pub(super) lock: LockGuard,
    pub(super) socket: OwnedFd,
    /// A service manager made the socket.
    pub(super) activated: bool,
    /// Sockets that other machines can reach.
    pub(super) network: Vec<Listening>,
    /// What says who may come in there, if anybody may.
    pub(super) keys: Option<Result<ServerKeys, KeysError>>,
    /// Why not all is listened on that should be.
    pub(super) trouble: Option<String>,
}

/// Takes the lock and the socket, or says who has them.
pub(super) fn claim(config: &Config) -> Result<Claim, DaemonError> {
    if !config.socket_dir().exists() {
        PrivateDir::open_or_create(config.socket_dir())?;
    }
    let dir = Arc::new(PrivateDir::open_or_create(&config.runtime_dir)?);
    let patience = if config.inherit {
        LOCK_PATIENCE
    } else {
        Duration::ZERO
    };
    let lock = lock(&dir, patience)?;
    let path = &config.socket.path;
    if config.inherit {
        let failed = DaemonError::system("take over the socket in our standard input");
        let (socket, inherited) = handover::inherited_sockets(path).map_err(failed)?;
        let failed = DaemonError::system("take over the sockets that others can reach");
        let (network, error) = take_over(&config.listen.listen, inherited).map_err(failed)?;
        return Ok(Claim {
            dir,
            lock,
            socket,
            activated: config.activated,
            // Sessions wait for us: what cannot be read lets nobody in until it can.
            keys: (!network.is_empty()).then(|| keys::read_again(&config.home)),
            network,
            trouble: error.map(|error| chain(&error)),
        });
    }
    let failed = DaemonError::system("take the socket of the service manager");
    let network = listen(&config.listen.listen, Vec::new())?;
    // Before anybody can connect: whoever waits for our socket takes it for a start
    // that went well.
    let keys = match network.is_empty() {
        true => None,
        false => Some(Ok(keys::read(&config.home)?)),
    };
    let given = supervisor::socket_for(path, BACKLOG).map_err(failed)?;
    let activated = given.is_some();
    let socket = match given {
        Some(socket) => socket,
        None => bind_where_nobody_is(path)?,
    };
    Ok(Claim {
        dir,
        lock,
        socket,
        activated,
        network,
        keys,
        trouble: None,
    })
}

/// Makes our socket, unless somebody answers there who has not our lock: an older
/// daemon.
fn bind_where_nobody_is(path: &Path) -> Result<OwnedFd, DaemonError> {
    match connect_at_nonblocking(path) {
        Ok(stream) => {
            let pid = peer_credentials(&stream).ok().map(|peer| peer.pid);
            return Err(DaemonError::Running { pid });
        }
        // Its queue is full.
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::WouldBlock) => {
            return Err(DaemonError::Running { pid: None });
        }
        Err(error) if error.is_refused() => remove_socket_at(path)?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(bind_at(path, BACKLOG)?)
}

pub(super) fn lock(dir: &PrivateDir, patience: Duration) -> Result<LockGuard, DaemonError> {
    let deadline = Instant::now() + patience;
    loop {
        match dir.lock(LOCK)? {
            LockOutcome::Acquired(lock) => return Ok(lock),
            LockOutcome::Held { pid } if Instant::now() >= deadline => {
                return Err(DaemonError::Running { pid });
            }
            LockOutcome::Held { .. } => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
