//! The daemon's own socket.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pythond_private_fs::{PrivateDir, PrivateFsError, bind_at};
use tokio::net::{UnixListener as Socket, UnixStream};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::{BACKLOG, Entrance, Stream};
use crate::error::chain;
use crate::handlers::Context;
use crate::peer::Peer;

/// The daemon's own socket.
pub(crate) struct UnixListener {
    socket: Mutex<Arc<Socket>>,
    /// It was made again.
    replaced: Notify,
    /// Where it is; none if it is somebody else's to make.
    place: Option<PathBuf>,
    entrance: Arc<Entrance>,
}

impl UnixListener {
    /// Takes a socket that listens.
    ///
    /// # Errors
    /// If the runtime cannot take it.
    pub(crate) fn new(
        socket: OwnedFd,
        place: Option<PathBuf>,
        entrance: Arc<Entrance>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            socket: Mutex::new(Arc::new(listening(socket)?)),
            replaced: Notify::new(),
            place,
            entrance,
        })
    }

    /// The socket itself, which goes on listening.
    ///
    /// # Errors
    /// If the runtime cannot let go of it.
    pub(crate) fn into_socket(self) -> std::io::Result<OwnedFd> {
        let socket = self.socket.into_inner();
        let socket = Arc::into_inner(socket.unwrap_or_else(PoisonError::into_inner));
        let socket = socket.ok_or_else(|| Error::other("somebody still accepts"))?;
        socket.into_std().map(OwnedFd::from)
    }

    fn socket(&self) -> Arc<Socket> {
        Arc::clone(&self.socket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Listens again if somebody removed the socket; true if it did.
    pub(crate) fn listen_again(&self) -> Result<bool, String> {
        let Some(place) = &self.place else {
            return Ok(false);
        };
        let found = std::fs::symlink_metadata(place);
        if !found.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(false);
        }
        let socket = bind_again(place).map_err(|why| format!("{}: {why}", place.display()))?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(socket);
        self.replaced.notify_one();
        Ok(true)
    }

    /// Accepts until the daemon stops. No failure ends it.
    pub(crate) async fn run(&self, context: &Arc<Context>, tracker: &TaskTracker) {
        let accept = async || loop {
            let socket = self.socket();
            tokio::select! {
                accepted = socket.accept() => return accepted.map(|(stream, _)| stream),
                () = self.replaced.notified() => {}
            }
        };
        let admit = |stream| self.admit(stream, context, tracker);
        tokio::select! {
            biased;
            () = context.stop.cancelled() => {}
            _ = self.entrance.accept_all(accept, admit) => {}
        }
    }

    fn admit(&self, stream: UnixStream, context: &Arc<Context>, tracker: &TaskTracker) {
        let Ok(peer) = Peer::of_unix(&stream) else {
            return;
        };
        let mut access = self.entrance.access_log(peer);
        if !peer.is_me() {
            self.entrance.reject(&mut access, "connect", "foreign-user");
            return;
        }
        let stream = Stream::Unix(stream);
        let Some(place) = self.entrance.place(&mut access, None) else {
            self.entrance.turn_away(stream, None, tracker);
            return;
        };
        let connection = self
            .entrance
            .connection(context, access, peer.author(), None);
        tracker.spawn(async move {
            connection.serve(stream, &place).await;
            // Its socket is closed: now there is room.
            drop(place);
        });
    }
}

fn listening(socket: OwnedFd) -> std::io::Result<Socket> {
    let socket = StdUnixListener::from(socket);
    socket.set_nonblocking(true)?;
    Socket::from_std(socket)
}

fn bind_again(place: &Path) -> Result<Socket, String> {
    let told = |error: PrivateFsError| chain(&error);
    if let Some(parent) = place.parent().filter(|parent| !parent.exists()) {
        PrivateDir::open_or_create(parent).map_err(told)?;
    }
    let socket = bind_at(place, BACKLOG).map_err(told)?;
    listening(socket).map_err(|error| error.to_string())
}
