//! A daemon that makes place for the next one in the same process: its socket
//! stays open, so that no client finds nobody there.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pythond_private_fs::{connect_at_nonblocking, peer_credentials};
use rustix::fs::{Mode, OFlags};

use crate::config::Config;

/// Becomes the program that stands in our file now, and hands it the socket as
/// its standard input. Returns only if that fails.
pub(crate) fn become_next(config: &Config, activated: bool, socket: OwnedFd) -> std::io::Error {
    let mut next = Command::new(&config.executable);
    next.args(["daemon", "--inherit"]);
    for (on, word) in [(config.detached, "--detached"), (activated, "--activated")] {
        if on {
            next.arg(word);
        }
    }
    next.stdin(Stdio::from(socket)).exec()
}

/// The socket that the daemon before us left in our standard input.
///
/// # Errors
/// If there is none, or if another listens at `path`.
pub(crate) fn inherited_socket(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let listens = rustix::net::sockopt::socket_acceptconn(&socket)?;
    let ours = match connect_at_nonblocking(path) {
        // The kernel remembers who began to listen, and we are the same process.
        Ok(stream) => peer_credentials(&stream)
            .is_ok_and(|peer| peer.pid.unsigned_abs() == std::process::id()),
        // Clients have filled its queue while nobody accepted: that it is ours
        // follows from our lock, and to wait for room would be to wait for us.
        Err(error) => error.io_kind() == Some(std::io::ErrorKind::WouldBlock),
    };
    if !listens || !ours {
        return Err(std::io::Error::other("it is not the daemon's socket"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}
