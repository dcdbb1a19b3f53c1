//! One connection of a daemon: bytes to messages and back, never blocking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pythond_protocol::lane::{self, Decoder, HELLO_TAG, LaneError, Message};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes read from a socket at once.
const CHUNK: usize = 64 << 10;
/// Bytes that may wait for a slow reader before its commands are not read any
/// more.
const MOST_WAITING: usize = 4 << 20;

/// One connection.
#[derive(Debug)]
pub(crate) struct LaneSocket {
    socket: OwnedFd,
    tag: u64,
    decoder: Decoder,
    outgoing: VecDeque<u8>,
    /// Bytes that the other end has taken.
    taken: u64,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneLost {
    /// The other end closed it.
    #[error("the daemon closed the lane")]
    Closed,
    /// The system refused.
    #[error("the lane failed")]
    Io(#[from] Errno),
    /// It carried something that is no message.
    #[error(transparent)]
    Framing(#[from] LaneError),
}

impl LaneSocket {
    /// A connection that was just accepted, before its first message.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            tag: HELLO_TAG,
            decoder: Decoder::new(HELLO_TAG),
            outgoing: VecDeque::new(),
            taken: 0,
        }
    }

    /// From now on, both ways.
    pub(crate) fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
        self.decoder.set_tag(tag);
    }

    /// What marks its messages.
    pub(crate) fn tag(&self) -> u64 {
        self.tag
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there.
    pub(crate) fn receive(&mut self) -> Result<(), LaneLost> {
        match receive_into(&self.socket, self.decoder.buffer()) {
            Ok(0) => Err(LaneLost::Closed),
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next whole message.
    pub(crate) fn next<H: DeserializeOwned>(&mut self) -> Result<Option<Message<H>>, LaneError> {
        self.decoder.next_message()
    }

    /// Queues a message and writes what can be written.
    pub(crate) fn send<H: Serialize>(&mut self, header: &H, body: &[u8]) -> Result<(), LaneLost> {
        let message = lane::encode(self.tag, header, body)?;
        self.outgoing.extend(message);
        self.flush()
    }

    /// Writes what waits, as far as the other end takes it.
    pub(crate) fn flush(&mut self) -> Result<(), LaneLost> {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match rustix::net::send(
                &self.socket,
                front,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    self.taken += count as u64;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.outgoing.is_empty() {
            self.outgoing.shrink_to(CHUNK);
        }
        Ok(())
    }

    /// True if something waits to be written.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes that wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Bytes that the other end has taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// False while so much waits to be written that no command is read.
    pub(crate) fn may_read(&self) -> bool {
        self.outgoing.len() < MOST_WAITING
    }
}

/// Appends what a socket has, at most 64 KiB, without waiting. The memory is
/// not cleared before: pages that nothing arrives in stay untouched.
pub(crate) fn receive_into(socket: impl AsFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    buffer.reserve(CHUNK);
    let spare = rustix::buffer::spare_capacity(buffer);
    rustix::net::recv(socket, spare, RecvFlags::DONTWAIT).map(|(_, count)| count)
}
