//! One lane to a host or a zygote: messages in and out, never blocking.
//!
//! Owned by a single task. Knows the framing, not what the words mean.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pythond_private_fs::{PrivateDir, PrivateFsError};
use pythond_protocol::lane::{
    self, Decoder, HELLO_TAG, Hello, LINK_VERSION, Lane, LaneError, Message,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How much is read at once.
const READ_SIZE: usize = 64 << 10;
/// Pause before a socket whose queue is full is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// Lanes that the process has open: descriptors that are no connection's.
static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where what is read passes through. Nothing stays in it, so one serves all
    /// lanes: a buffer for each would be most of what the daemon has in memory.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into());
}

/// How many lanes there are.
pub(crate) fn open_lanes() -> usize {
    OPEN.load(Ordering::Relaxed)
}

/// One of them.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a lane is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneLoss {
    /// The other end closed it.
    #[error("the other end closed the lane")]
    Closed,
    /// Reading or writing failed.
    #[error("the lane failed")]
    Io(#[source] io::Error),
    /// What arrived is no message.
    #[error("what arrived on the lane is no message")]
    Framing(#[source] LaneError),
}

/// Why a lane could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The socket cannot be used.
    #[error("cannot connect")]
    Socket(#[source] PrivateFsError),
    /// The lane broke during the first words.
    #[error("the lane broke")]
    Lost(#[source] LaneLoss),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The other end does not speak our words.
    #[error("it speaks link version {0}")]
    Version(u32),
    /// The first words are not those that were expected.
    #[error("unexpected first words")]
    Unexpected,
    /// The host found its session's directory taken.
    #[error("another process has the session's directory")]
    NameInUse,
    /// The host cannot be the session that it was to be; one line.
    #[error("{0}")]
    Refused(String),
    /// No randomness for the tag.
    #[error("the system has no random bytes")]
    Random,
}

impl ConnectError {
    /// Nobody listens there any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Socket(error) if error.is_refused() || error.is_not_found())
    }
}

/// One connection with its agreed tag.
#[derive(Debug)]
pub(crate) struct LaneIo {
    stream: UnixStream,
    tag: u64,
    decoder: Decoder,
    /// Messages that the other end has not taken yet; the first one from
    /// `written` on.
    outgoing: VecDeque<Vec<u8>>,
    written: usize,
    /// Bytes of all of them.
    queued: usize,
    _counted: Counted,
}

impl LaneIo {
    /// Connects to a socket of ours and says hello; the answer is the first
    /// message.
    ///
    /// # Errors
    /// [`ConnectError`] if nobody of ours listens, or not within `deadline`.
    pub(crate) async fn connect(
        dir: &PrivateDir,
        socket: &str,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Self, ConnectError> {
        loop {
            match dir.connect_socket_nonblocking(socket) {
                Ok(stream) => return Self::open(stream, lane),
                Err(error)
                    if error.io_kind() == Some(io::ErrorKind::WouldBlock)
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err(error) => return Err(ConnectError::Socket(error)),
            }
        }
    }

    fn open(stream: StdUnixStream, lane: Lane) -> Result<Self, ConnectError> {
        let lost = |error| ConnectError::Lost(LaneLoss::Io(error));
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| ConnectError::Random)?;
        let tag = u64::from_le_bytes(random);
        stream.set_nonblocking(true).map_err(lost)?;
        let mut opened = Self {
            stream: UnixStream::from_std(stream).map_err(lost)?,
            tag,
            decoder: Decoder::new(tag),
            outgoing: VecDeque::new(),
            written: 0,
            queued: 0,
            _counted: Counted::new(),
        };
        let hello = Hello {
            version: LINK_VERSION,
            tag,
            lane,
        };
        let message = lane::encode(HELLO_TAG, &hello, b"")
            .map_err(|error| ConnectError::Lost(LaneLoss::Framing(error)))?;
        opened.queue(message);
        Ok(opened)
    }

    /// Sends a message: at once if the other end takes it, else while
    /// [`Self::next`] is polled.
    ///
    /// # Errors
    /// [`LaneError::BadLength`] if it is too great. A broken connection is told
    /// by [`Self::next`].
    pub(crate) fn send<H: Serialize>(&mut self, header: &H, body: &[u8]) -> Result<(), LaneError> {
        let message = lane::encode(self.tag, header, body)?;
        self.queue(message);
        Ok(())
    }

    /// Bytes that the other end has not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.queued - self.written
    }

    fn queue(&mut self, message: Vec<u8>) {
        self.queued += message.len();
        self.outgoing.push_back(message);
        // An error shows again, and is told, when the lane is read.
        let _ = self.write_some();
    }

    fn write_some(&mut self) -> io::Result<()> {
        while let Some(message) = self.outgoing.front() {
            match self.stream.try_write(&message[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    if self.written == message.len() {
                        self.queued -= message.len();
                        self.outgoing.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// [`LaneLoss`]; the lane is useless then.
    ///
    /// # Cancel safety
    /// Nothing is lost if it is dropped before it is ready.
    pub(crate) async fn next<H: DeserializeOwned>(&mut self) -> Result<Message<H>, LaneLoss> {
        loop {
            if let Some(message) = self.next_or_room(usize::MAX).await? {
                return Ok(message);
            }
        }
    }

    /// The next message; none as soon as no more than `most` bytes wait to be
    /// sent, if there were more.
    ///
    /// # Errors
    /// As [`Self::next`].
    ///
    /// # Cancel safety
    /// As [`Self::next`].
    pub(crate) async fn next_or_room<H: DeserializeOwned>(
        &mut self,
        most: usize,
    ) -> Result<Option<Message<H>>, LaneLoss> {
        let was_full = self.waiting() > most;
        loop {
            if let Some(message) = self.decoder.next_message().map_err(LaneLoss::Framing)? {
                return Ok(Some(message));
            }
            self.write_some().map_err(LaneLoss::Io)?;
            if was_full && self.waiting() <= most {
                return Ok(None);
            }
            let interest = if self.outgoing.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.stream.ready(interest).await.map_err(LaneLoss::Io)?;
            if ready.is_readable() || ready.is_read_closed() {
                self.read_some()?;
            }
        }
    }

    /// A message that is here already, without waiting.
    pub(crate) fn take_arrived<H: DeserializeOwned>(&mut self) -> Option<Message<H>> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Some(message),
                Err(_) => return None,
                Ok(None) => {}
            }
            if !matches!(self.read_some(), Ok(true)) {
                return None;
            }
        }
    }

    /// A message that the kernel has here already, also if that was not noticed
    /// yet.
    pub(crate) fn take_delivered<H: DeserializeOwned>(&mut self) -> Option<Message<H>> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Some(message),
                Err(_) => return None,
                Ok(None) => {}
            }
            let flags = rustix::net::RecvFlags::DONTWAIT;
            // What is wrong with the lane shows again when it is waited for.
            let came = SCRATCH.with_borrow_mut(|scratch| {
                match rustix::net::recv(&self.stream, &mut scratch[..], flags) {
                    Ok((count, _)) => {
                        self.decoder.extend(&scratch[..count]);
                        count > 0
                    }
                    Err(_) => false,
                }
            });
            if !came {
                return None;
            }
        }
    }

    fn read_some(&mut self) -> Result<bool, LaneLoss> {
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let count = self.stream.try_read(scratch)?;
            self.decoder.extend(&scratch[..count]);
            Ok::<_, io::Error>(count)
        });
        match read {
            Ok(0) => Err(LaneLoss::Closed),
            Ok(count) => {
                if count < READ_SIZE {
                    // The socket is empty: saying so spares the read that
                    // would only find that out. What arrives from now on makes
                    // it ready again (epoll(7), edge-triggered).
                    let empty = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = self.stream.try_io(Interest::READABLE, empty);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(LaneLoss::Io(error)),
        }
    }
}
