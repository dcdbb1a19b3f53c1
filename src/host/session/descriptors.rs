//! What cells do to descriptors of the main thread, and how it is undone.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::Session;
use crate::sys;

impl Session {
    /// Gives descriptors 1 and 2 back if a cell closed them, so that child
    /// processes and C code have somewhere to write. Others that took their
    /// numbers are left alone.
    pub(super) fn restore_descriptors(&mut self) {
        self.restore_terminal();
        let capture = &self.shared.capture;
        if rustix::io::fcntl_getfd(rustix::stdio::stdin()) == Err(Errno::BADF)
            && let Ok(null) = open_null()
        {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
        if rustix::io::fcntl_getfd(rustix::stdio::stdout()) == Err(Errno::BADF)
            && rustix::stdio::dup2_stdout(&capture.stdout_write).is_err()
            && let Some(pipe) = self.reopen(&capture.stdout_write)
        {
            let _ = rustix::stdio::dup2_stdout(&pipe);
        }
        if rustix::io::fcntl_getfd(rustix::stdio::stderr()) == Err(Errno::BADF)
            && rustix::stdio::dup2_stderr(&capture.stderr_write).is_err()
            && let Some(pipe) = self.reopen(&capture.stderr_write)
        {
            let _ = rustix::stdio::dup2_stderr(&pipe);
        }
    }

    /// Opens a pipe anew through the I/O thread's descriptor table (proc(5)).
    pub(super) fn reopen(&self, pipe: &OwnedFd) -> Option<OwnedFd> {
        let path = format!(
            "/proc/self/task/{}/fd/{}",
            self.shared.io_thread_id(),
            pipe.as_raw_fd()
        );
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
    }

    /// Looks whether a cell closed the terminal's descriptors.
    pub(super) fn restore_terminal(&mut self) {
        let follower = self.shared.terminal.follower();
        if self.shared.terminal.is_wanted()
            && let Some(follower) = follower
            && rustix::io::fcntl_getfd(&follower.terminal) == Err(Errno::BADF)
        {
            self.reopen_terminal();
        }
    }

    /// A cell closed the terminal's descriptors: puts them back under their
    /// numbers, from the I/O thread's table (proc(5)).
    pub(super) fn reopen_terminal(&mut self) {
        let Some(follower) = self.shared.terminal.follower() else {
            return;
        };
        let thread = self.shared.io_thread_id();
        let mut whole = true;
        for (descriptor, extra) in [
            (&follower.terminal, rustix::fs::OFlags::empty()),
            (&follower.side, rustix::fs::OFlags::NONBLOCK),
        ] {
            let number = descriptor.as_raw_fd();
            let flags = rustix::fs::OFlags::RDWR
                | rustix::fs::OFlags::NOCTTY
                | rustix::fs::OFlags::CLOEXEC
                | extra;
            let path = format!("/proc/self/task/{thread}/fd/{number}");
            let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
            whole &= opened.is_ok_and(|opened| sys::put_at(opened, number));
        }
        if !whole {
            // Nothing can be typed any more; agents' cells go on.
            self.prompt = None;
        }
    }
}

pub(super) fn open_null() -> Result<OwnedFd, Errno> {
    let flags = rustix::fs::OFlags::RDONLY;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
}
