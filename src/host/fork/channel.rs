//! What the child of a `fork` cell says, and how the session takes it in.
//!
//! One stream socket, written by the child only: frames of a kind (1 byte), a
//! length (4 bytes, little endian) and so many bytes; descriptors travel with
//! the frame that they belong to. What the child and its own children write to
//! descriptors 1 and 2 comes by a pipe each. A frame of output is written only
//! while both pipes are empty, and the session reads all frames before what it
//! saw in the pipes: so the order is kept.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_protocol::output_log::Stream;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most bytes of output in a frame.
const PIECE: usize = 256 << 10;
/// Longest frame that is believed.
const LONGEST: usize = 64 << 20;
/// Most descriptors that travel together (SCM_MAX_FD is 253).
const MOST_DESCRIPTORS: usize = 250;
/// How long the child waits until its pipes are read.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Bytes for standard output.
    Stdout = 1,
    /// Bytes for standard error.
    Stderr = 2,
    /// It is about to run the cell.
    Ready = 3,
    /// The shown value of the last expression; for standard output.
    Shown = 4,
    /// A new value: length of the header (4 bytes), header, pickle.
    Value = 5,
    /// How the cell ended.
    End = 6,
    /// CPython has put itself in order in the child; no code of a user's has run.
    Begun = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let kinds = [
            Self::Stdout,
            Self::Stderr,
            Self::Ready,
            Self::Shown,
            Self::Value,
            Self::End,
            Self::Begun,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The child's end.
#[derive(Debug)]
pub(super) struct Channel {
    pid: i32,
    socket: OwnedFd,
    /// Write ends of the pipes behind descriptors 1 and 2.
    pipes: [OwnedFd; 2],
    /// One frame after the other. Only ever locked in the child.
    writing: Mutex<()>,
}

static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// The channel of this process, if it is the child of a `fork` cell and not one
/// of its children.
pub(super) fn channel() -> Option<&'static Channel> {
    let channel = CHANNEL.get()?;
    (channel.pid == own_pid()).then_some(channel)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// True in a process that the child of a `fork` cell forked.
pub(super) fn is_grandchild() -> bool {
    CHANNEL.get().is_some_and(|it| it.pid != own_pid())
}

/// In the child: where everything goes from now on.
pub(super) fn open(socket: OwnedFd, pipes: [OwnedFd; 2]) {
    CHANNEL.get_or_init(|| Channel {
        pid: own_pid(),
        socket,
        pipes,
        writing: Mutex::new(()),
    });
}

impl Channel {
    /// Sends output of Python's. False if the cell closed the channel.
    pub(super) fn output(&self, py: Python<'_>, stream: Stream, bytes: &[u8]) -> bool {
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        py.detach(|| {
            self.wait_for_pipes();
            bytes
                .chunks(PIECE)
                .all(|piece| self.send(kind, piece, &[]).is_ok())
        })
    }

    /// What was written to the descriptors before must be read before.
    pub(super) fn wait_for_pipes(&self) {
        let began = Instant::now();
        let mut pause = Duration::from_micros(20);
        let waits =
            |pipe: &OwnedFd| matches!(rustix::io::ioctl_fionread(pipe), Ok(count) if count > 0);
        while self.pipes.iter().any(waits) && began.elapsed() < DRAIN_PATIENCE {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// Sends a frame.
    pub(super) fn send(
        &self,
        kind: Kind,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Errno> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut head = [kind as u8; 5];
        head[1..].copy_from_slice(&length.to_le_bytes());
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS)) * 2];
        let mut sent = 0;
        let mut rest = descriptors;
        // Many descriptors go by twos: with the kind, then with each further
        // byte of the head.
        while sent < head.len() {
            let last = sent == head.len() - 1;
            let (now, later) = rest.split_at(rest.len().min(MOST_DESCRIPTORS));
            let end = if later.is_empty() {
                head.len()
            } else {
                sent + 1
            };
            if last && !later.is_empty() {
                return Err(Errno::TOOMANYREFS);
            }
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !now.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(now)) {
                return Err(Errno::TOOMANYREFS);
            }
            let piece = [IoSlice::new(&head[sent..end])];
            match rustix::net::sendmsg(&self.socket, &piece, &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    sent += count;
                    rest = later;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// A frame as the session reads it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

/// The session's end.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) socket: OwnedFd,
    buffer: Vec<u8>,
    /// Those that came and were not asked for yet.
    pub(super) descriptors: VecDeque<OwnedFd>,
    /// Nothing more comes.
    pub(super) ended: bool,
}

impl Frames {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
            descriptors: VecDeque::new(),
            ended: false,
        }
    }

    /// Takes in what is there, at most about a frame. False if that was all.
    pub(super) fn receive(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let mut bytes = vec![0; PIECE + 16];
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS)) * 2];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut target = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(self.socket.as_fd(), &mut target, &mut ancillary, flags) {
            Ok(received) => {
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(sent) = message {
                        self.descriptors.extend(sent);
                    }
                }
                self.ended = received.bytes == 0;
                self.buffer.extend_from_slice(&bytes[..received.bytes]);
                !self.ended
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(_) => {
                self.ended = true;
                false
            }
        }
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let head = self.buffer.first_chunk::<5>()?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length).ok()?;
        let Some(kind) = Kind::of(head[0]).filter(|_| length <= LONGEST) else {
            // The cell wrote to the socket: nothing of it can be believed.
            self.ended = true;
            self.buffer.clear();
            return None;
        };
        if self.buffer.len() < 5 + length {
            return None;
        }
        let rest = self.buffer.split_off(5 + length);
        let mut bytes = std::mem::replace(&mut self.buffer, rest);
        bytes.drain(..5);
        Some(Frame { kind, bytes })
    }
}
