//! A service manager that started us: the socket that it listens on, and what it
//! is told (sd_listen_fds(3), sd_notify(3)).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The socket that it listens on for us. None if it does not.
///
/// # Errors
/// If it is not the one that clients look for.
pub(crate) fn socket_for(path: &Path, backlog: i32) -> std::io::Result<Option<OwnedFd>> {
    let Some(listener) = ListenFd::from_env().take_unix_listener(0)? else {
        return Ok(None);
    };
    if !is_at(&listener, path)? {
        let message = format!("it is not at `{}`", path.display());
        return Err(std::io::Error::other(message));
    }
    let socket = OwnedFd::from(listener);
    // Clients, and a restart, are told by the kernel who began to listen.
    rustix::net::listen(&socket, backlog)?;
    Ok(Some(socket))
}

fn is_at(listener: &UnixListener, path: &Path) -> std::io::Result<bool> {
    let address = listener.local_addr()?;
    let place = address.as_pathname().and_then(Path::parent);
    let same_name = address.as_pathname().and_then(Path::file_name) == path.file_name();
    let same_directory = match (place, path.parent()) {
        (Some(place), Some(parent)) => place.canonicalize()? == parent.canonicalize()?,
        _ => false,
    };
    Ok(same_name && same_directory)
}

/// Tells it that clients can come.
pub(crate) fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells it that we end.
pub(crate) fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells it that the next daemon takes our place.
pub(crate) fn tell_reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Without a manager there is nobody to tell; one that does not listen finds
    // out in its own ways.
    let _ = sd_notify::notify(state);
}
