//! Ctrl-C as something to wait for.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::SIGINT;
use signal_hook::low_level::pipe;

/// From its creation on, Ctrl-C no longer ends the process: it makes this
/// descriptor readable. A handler that only writes a byte needs no thread and
/// is safe at any moment (signal-safety(7)).
#[derive(Debug)]
pub(crate) struct Interrupts {
    reader: UnixStream,
}

impl Interrupts {
    /// Takes over SIGINT for the rest of the process.
    pub(crate) fn install() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        pipe::register(SIGINT, writer)?;
        Ok(Self { reader })
    }

    /// Takes out what has come so far; several that came together count as
    /// one, for nobody can have meant the second as an answer to what the
    /// first set off.
    pub(crate) fn clear(&self) {
        let mut bytes = [0; 16];
        while matches!((&self.reader).read(&mut bytes), Ok(count) if count > 0) {}
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
