//! Writing to the terminal without ever waiting for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::stdio::stdout;

/// Most bytes of a write to a terminal that could not be opened anew: it may
/// wait, so no more than what a terminal that is ready takes.
const CAREFUL: usize = 256;

/// The terminal, and what it has not taken yet.
#[derive(Debug)]
pub(crate) struct Output {
    /// A description of our own: that of stdout is shared with the shell, which
    /// must not find it non-blocking.
    own: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// How much of it is written.
    at: usize,
}

impl Output {
    /// Opens the terminal on stdout.
    pub(crate) fn open() -> Self {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // It belongs to somebody else after su(1): then there is only ours.
        let own = open("/proc/self/fd/1", flags, Mode::empty()).ok();
        Self {
            own,
            waiting: Vec::new(),
            at: 0,
        }
    }

    /// Bytes that wait until the descriptor can be written to. Then
    /// [`Self::flush`] is due.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() - self.at
    }

    /// Writes what the terminal takes now, and keeps the rest.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.waiting.extend_from_slice(bytes);
        if self.own.is_some() || self.waiting.len() == bytes.len() {
            return self.flush();
        }
        Ok(())
    }

    /// Writes more of what waits.
    pub(crate) fn flush(&mut self) -> Result<(), Errno> {
        while self.at < self.waiting.len() {
            let mut rest = &self.waiting[self.at..];
            if self.own.is_none() {
                rest = &rest[..rest.len().min(CAREFUL)];
                if !self.ready(Duration::ZERO)? {
                    return Ok(());
                }
            }
            match rustix::io::write(self.as_fd(), rest) {
                Ok(count) => self.at += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        self.waiting.clear();
        self.at = 0;
        Ok(())
    }

    /// Forgets what waits; tells whether something was lost.
    pub(crate) fn discard(&mut self) -> bool {
        let lost = self.waiting() > 0;
        self.waiting.clear();
        self.at = 0;
        lost
    }

    /// Writes all that waits if the terminal takes it within this time.
    pub(crate) fn drain(&mut self, limit: Duration) -> Result<(), Errno> {
        let deadline = Instant::now() + limit;
        loop {
            self.flush()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if self.waiting() == 0 || left.is_zero() || !self.ready(left)? {
                return Ok(());
            }
        }
    }

    fn ready(&self, limit: Duration) -> Result<bool, Errno> {
        let limit: Option<Timespec> = limit.try_into().ok();
        let mut descriptors = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::OUT)];
        match poll(&mut descriptors, limit.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.own {
            Some(own) => own.as_fd(),
            None => stdout(),
        }
    }
}
