//! What a parked process receives when it becomes a session.

use std::os::fd::{AsFd, OwnedFd};

use pythond_protocol::lane::{self, Decoder, HELLO_TAG, SessionSpec};
use pythond_protocol::verbs::new::{PythonInfo, StartKind};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use crate::handoff;

/// From the zygote to one of its children.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) spec: SessionSpec,
    pub(crate) python: PythonInfo,
    pub(crate) start: StartKind,
    pub(crate) cold_reason: Option<String>,
    pub(crate) zygote_pid: i32,
    /// Directory of sockets and journals.
    pub(crate) runtime_dir: String,
    /// Name that socket and journal of this host begin with.
    pub(crate) name: String,
}

/// Sends an assignment.
pub(crate) fn send(socket: impl AsFd, assignment: &Assignment) -> std::io::Result<()> {
    let message = lane::encode(HELLO_TAG, assignment, b"").map_err(std::io::Error::other)?;
    let mut rest = message.as_slice();
    while !rest.is_empty() {
        match rustix::net::send(&socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Tells the zygote that a parked process has come up.
pub(crate) fn tell_ready(socket: impl AsFd) {
    // A zygote that is gone shows when the assignment is waited for.
    let _ = rustix::net::send(socket, b"r", SendFlags::NOSIGNAL);
}

/// Whether a parked process had come up before it died.
pub(crate) fn was_ready(socket: impl AsFd) -> bool {
    let mut byte = [0; 1];
    matches!(
        rustix::net::recv(socket, &mut byte[..], RecvFlags::DONTWAIT),
        Ok((1, _))
    )
}

/// Waits for an assignment. None if the zygote is gone.
pub(crate) fn receive(socket: impl AsFd) -> Option<Assignment> {
    let mut decoder = Decoder::new(HELLO_TAG);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match decoder.next_message::<Assignment>() {
            Ok(Some(message)) => return Some(message.header),
            Ok(None) => {}
            Err(_) => return None,
        }
        match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return None,
            Ok((count, _)) => decoder.extend(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Sends a cold host its descriptors: listener, both read ends.
pub(crate) fn send_descriptors(
    socket: impl AsFd,
    listener: &OwnedFd,
    stdout_read: &OwnedFd,
    stderr_read: &OwnedFd,
) -> Result<(), Errno> {
    let descriptors = [listener.as_fd(), stdout_read.as_fd(), stderr_read.as_fd()];
    handoff::send_with_descriptors(socket, b"d", &descriptors, SendFlags::empty())
}

/// Receives what [`send_descriptors`] sent.
pub(crate) fn receive_descriptors(socket: impl AsFd) -> Option<[OwnedFd; 3]> {
    let mut byte = [0; 1];
    let (_, descriptors) =
        handoff::receive_with_descriptors(socket, &mut byte, RecvFlags::empty()).ok()?;
    descriptors.try_into().ok()
}
