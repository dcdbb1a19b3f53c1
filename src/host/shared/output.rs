//! What cells write: taken in, kept, shown to the person.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pyo3::Python;
use pythond_protocol::CellId;
use pythond_protocol::lane::FinishedCell;
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::Stream;
use rustix::event::epoll;

use super::Shared;
use crate::outputs::Written;

/// How long a writer waits before it looks again whether its readers came near.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Both ends of the pipes behind descriptors 1 and 2. The numbers are the same
/// in the descriptor tables of both threads.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) stdout_read: OwnedFd,
    pub(crate) stderr_read: OwnedFd,
    pub(crate) stdout_write: OwnedFd,
    pub(crate) stderr_write: OwnedFd,
    /// Knows whether there is something to read from them.
    pub(crate) filled: OwnedFd,
}

impl Capture {
    /// False if there may be something to read.
    ///
    /// Costs no more than the bare system call: whoever fills a pipe puts it on
    /// the list that this looks at, before its `write` returns (epoll(7)). Not
    /// for two threads at once, of which the kernel may tell one that there is
    /// nothing while it looks for the other; so it takes the interpreter's lock.
    fn is_empty(&self, _lock: Python<'_>) -> bool {
        let mut events = [MaybeUninit::uninit()];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let found = epoll::wait(&self.filled, &mut events, Some(&now));
        matches!(found, Ok((found, _)) if found.is_empty())
    }
}

impl Shared {
    /// Adds Python-level output. True if a reader is so far behind that the
    /// writer has to wait for it.
    pub(crate) fn append(&self, cell: u64, stream: Stream, data: &[u8]) -> bool {
        let written = self.outputs.append(cell, stream, data);
        self.tell_written(written);
        if self.terminal.is_wanted() {
            self.show(cell, data);
        }
        written.too_fast
    }

    /// Shows the person which cell of an agent's begins.
    pub(crate) fn introduce(&self, cell: CellId, kind: CellKind, source: &str) {
        let word = match kind {
            CellKind::Fire => "fire",
            CellKind::Fork => "fork",
            _ => "run",
        };
        if self.terminal.introduce(cell.as_u64(), word, source) {
            self.wake_io();
        }
    }

    /// Shows the person how a cell of an agent's ended.
    pub(crate) fn conclude(&self, end: &FinishedCell) {
        let error = end.exception.as_ref().map(|exception| {
            if exception.traceback.is_empty() {
                exception.message.as_str()
            } else {
                exception.traceback.as_str()
            }
        });
        if self.terminal.conclude(end.cell.as_u64(), error) {
            self.wake_io();
        }
    }

    /// Shows the person what a cell wrote that is not theirs.
    fn show(&self, cell: u64, data: &[u8]) {
        if self.terminal.is_persons(cell) {
            return;
        }
        let main = self.running_main().map(CellId::as_u64);
        if self.terminal.output(cell, main != Some(cell), data) {
            self.wake_io();
        }
    }

    fn tell_written(&self, written: Written) {
        if written.awaited {
            self.tell_news();
        }
    }

    /// Waits a little for the readers of a cell. True if that was not enough.
    pub(crate) fn wait_for_readers(&self, cell: u64) -> bool {
        self.outputs.wait_for_readers(cell, LOOK_AGAIN)
    }

    /// Takes in what was written to descriptors 1 and 2 so far, so that what
    /// Python writes next comes after it.
    pub(crate) fn drain(&self, py: Python<'_>) {
        if !self.capture.is_empty(py) {
            self.take_in();
        }
    }

    /// Reads descriptors 1 and 2. True if a reader is so far behind that the
    /// rest has to wait.
    pub(crate) fn take_in(&self) -> bool {
        let (out, err) = (&self.capture.stdout_read, &self.capture.stderr_read);
        let shown = self.terminal.is_wanted();
        let mut copy = Vec::new();
        let written = self.outputs.drain(|stream, buffer| {
            let descriptor = match stream {
                Stream::Stdout => out.as_fd(),
                Stream::Stderr => err.as_fd(),
            };
            // A cell may have made reading block: no more is asked for than is there.
            let there = rustix::io::ioctl_fionread(descriptor).unwrap_or(0);
            let there = usize::try_from(there).map_or(buffer.len(), |it| it.min(buffer.len()));
            // Empty, closed by a cell, or broken: nothing to take in.
            let count = match there {
                0 => 0,
                there => rustix::io::read(descriptor, &mut buffer[..there]).unwrap_or(0),
            };
            if shown {
                copy.extend_from_slice(&buffer[..count]);
            }
            count
        });
        if !copy.is_empty() {
            self.show(self.running_main().map_or(0, CellId::as_u64), &copy);
        }
        self.tell_written(written);
        written.too_fast
    }
}
