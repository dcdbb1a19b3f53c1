//! Signals as something to wait for beside the terminal and the daemon.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::low_level::pipe;

/// From its creation on these signals no longer do what they do: they make this
/// descriptor readable. A handler that only sets a flag and writes a byte needs
/// no thread and is safe at any moment (signal-safety(7)).
#[derive(Debug)]
pub(crate) struct Signals {
    reader: UnixStream,
    came: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    /// Takes over signals for the rest of the process.
    pub(crate) fn install(numbers: &[i32]) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut came = Vec::new();
        for &number in numbers {
            let flag = Arc::new(AtomicBool::new(false));
            // Actions are carried out in this order: whoever sees the byte
            // sees the flag.
            signal_hook::flag::register(number, Arc::clone(&flag))?;
            pipe::register(number, writer.try_clone()?)?;
            came.push((number, flag));
        }
        Ok(Self { reader, came })
    }

    /// Takes out what has come, each once.
    pub(crate) fn take(&self) -> Vec<i32> {
        let mut bytes = [0; 64];
        while matches!((&self.reader).read(&mut bytes), Ok(count) if count > 0) {}
        let came = self.came.iter();
        came.filter(|(_, flag)| flag.swap(false, Ordering::SeqCst))
            .map(|(number, _)| *number)
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
