//! The cell lane as the main thread sees it.

use std::os::fd::{AsFd, OwnedFd};

use pythond_protocol::lane::{Decoder, HostEvent};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::lane_socket::receive_into;

/// The cell lane as the main thread sees it.
#[derive(Debug)]
pub(super) struct CellLane {
    pub(super) socket: OwnedFd,
    pub(super) tag: u64,
    pub(super) decoder: Decoder,
}

impl CellLane {
    /// Takes in what is there. False when the daemon has closed the lane.
    pub(super) fn receive(&mut self) -> Result<bool, Errno> {
        loop {
            match receive_into(&self.socket, self.decoder.buffer()) {
                Ok(0) => return Ok(false),
                Ok(count) if count < 64 << 10 => return Ok(true),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Writes a whole message. Gives up when the I/O thread has news: a daemon
    /// that does not read must not hold the session.
    pub(super) fn send(
        &self,
        event: &HostEvent,
        body: &[u8],
        handoff: impl AsFd,
    ) -> Result<(), Errno> {
        let message =
            pythond_protocol::lane::encode(self.tag, event, body).map_err(|_| Errno::MSGSIZE)?;
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match rustix::net::send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut set = [
                        PollFd::new(&self.socket, PollFlags::OUT),
                        PollFd::new(&handoff, PollFlags::IN),
                    ];
                    let _ = poll(&mut set, None);
                    if !set[1].revents().is_empty() && set[0].revents().is_empty() {
                        return Err(Errno::PIPE);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// True if a number does not name what it named any more.
pub(super) fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::BADF | Errno::NOTSOCK)
}
