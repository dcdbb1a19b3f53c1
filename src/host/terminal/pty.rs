//! The session's pseudo-terminal: the one place where it is opened and resized.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use portable_pty::{MasterPty, PtySize, native_pty_system};
use pythond_protocol::verbs::attach::TerminalSize;
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios};

/// The size of a terminal that nobody has given one.
pub(crate) const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// The leading end. Read and written by its descriptor only: the writer that
/// the library offers types a newline and an end of file when it is dropped.
pub(crate) struct Leader {
    pty: Box<dyn MasterPty + Send>,
    descriptor: OwnedFd,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Leader")
            .field(&self.descriptor)
            .finish()
    }
}

/// The end that programs see, opened twice.
#[derive(Debug)]
pub(crate) struct Follower {
    /// For programs, and for a person's cell.
    pub(crate) terminal: OwnedFd,
    /// For what is shown beside: never waits.
    pub(crate) side: OwnedFd,
}

/// Opens a terminal. Call while the process has one thread: names of terminals
/// are looked up in memory that all threads share (ptsname(3)).
///
/// # Errors
/// If the system has no more of them, or none at all.
pub(crate) fn open() -> std::io::Result<(Leader, Follower)> {
    let size = as_pty_size(DEFAULT_SIZE);
    let pair = native_pty_system()
        .openpty(size)
        .map_err(std::io::Error::other)?;
    let no_number = || std::io::Error::other("the terminal has no descriptor");
    let number = pair.master.as_raw_fd().ok_or_else(no_number)?;
    let leader = crate::sys::borrow_descriptor(number, &pair.master);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(leader, flags)?;
    let side = rustix::pty::ioctl_tiocgptpeer(leader, flags)?;
    rustix::fs::fcntl_setfl(&side, OFlags::RDWR | OFlags::NONBLOCK)?;
    let descriptor = rustix::io::fcntl_dupfd_cloexec(leader, 3)?;
    rustix::fs::fcntl_setfl(&descriptor, OFlags::RDWR | OFlags::NONBLOCK)?;
    let mut modes = rustix::termios::tcgetattr(&terminal)?;
    set_up(&mut modes);
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &modes)?;
    drop(pair.slave);
    let leader = Leader {
        pty: pair.master,
        descriptor,
    };
    Ok((leader, Follower { terminal, side }))
}

/// What our terminal has that others have not: no key stops the output, since
/// nobody but a person at another terminal could start it again; and no key
/// quits, since that would end the session.
fn set_up(modes: &mut Termios) {
    use rustix::termios::{InputModes, LocalModes};
    modes
        .input_modes
        .remove(InputModes::IXON | InputModes::IXOFF);
    modes.input_modes.insert(InputModes::IUTF8);
    modes
        .local_modes
        .insert(LocalModes::ECHOCTL | LocalModes::ECHOKE);
    modes.special_codes[SpecialCodeIndex::VQUIT] = 0;
}

impl Leader {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The numbers of its descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> {
        let own = self.descriptor.as_raw_fd();
        self.pty.as_raw_fd().into_iter().chain([own])
    }

    /// Sets the size; the foreground programs are told (SIGWINCH).
    pub(crate) fn resize(&self, size: TerminalSize) {
        // A size that cannot be set leaves the old one.
        let _ = self.pty.resize(as_pty_size(size));
    }
}

fn as_pty_size(size: TerminalSize) -> PtySize {
    PtySize {
        rows: size.rows,
        cols: size.cols,
        pixel_width: 0,
        pixel_height: 0,
    }
}
