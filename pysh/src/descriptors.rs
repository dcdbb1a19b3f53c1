//! Writing to descriptors, whoever reads them and however slowly.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2, write};

/// Most bytes that a pipe which is ready takes without waiting (pipe(7),
/// `PIPE_BUF`).
const ATOMIC: usize = 4096;

/// What ended a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// All is written.
    All,
    /// The reader does not read and one of the other descriptors became
    /// readable.
    Woken,
}

/// How a write that must not wait is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Files and terminals wait for no other process.
    Plain,
    /// `RWF_NOWAIT`: Linux 6.4 and later have it for pipes.
    NoWait,
    /// After poll, no more than surely fits.
    Atomic,
}

/// Writes `bytes` at once and in order, past the standard library's buffers.
/// While the descriptor is a pipe that is full, also waits for `wake`; takes
/// off `bytes` what was written. Not by `O_NONBLOCK`, which would be set for
/// all processes that share the pipe.
pub(crate) fn write_or_wake(
    fd: BorrowedFd<'_>,
    bytes: &mut &[u8],
    wake: &[BorrowedFd<'_>],
) -> Result<Written, Errno> {
    let is_pipe = || fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
    let mut way = if wake.is_empty() || !is_pipe() {
        Way::Plain
    } else {
        Way::NoWait
    };
    while !bytes.is_empty() {
        let written = match way {
            Way::Plain => write(fd, bytes),
            Way::NoWait => pwritev2(fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT),
            Way::Atomic => {
                if wait(fd, wake)? == Ready::Wake {
                    return Ok(Written::Woken);
                }
                write(fd, &bytes[..bytes.len().min(ATOMIC)])
            }
        };
        match written {
            Ok(count) => *bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if way == Way::NoWait => {
                way = Way::Atomic;
            }
            // Full, or a descriptor that another process made non-blocking.
            Err(Errno::AGAIN) => {
                if wait(fd, wake)? == Ready::Wake {
                    return Ok(Written::Woken);
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(Written::All)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Descriptor,
    Wake,
}

/// Waits until the descriptor takes something, or for the others.
fn wait(fd: BorrowedFd<'_>, wake: &[BorrowedFd<'_>]) -> Result<Ready, Errno> {
    let mut descriptors = vec![PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    descriptors.extend(
        wake.iter()
            .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
    );
    rustix::io::retry_on_intr(|| poll(&mut descriptors, None))?;
    if descriptors[0].revents().is_empty() {
        Ok(Ready::Wake)
    } else {
        Ok(Ready::Descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    #[test]
    fn a_full_pipe_does_not_keep_from_waking() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (wake, mut waker) = std::io::pipe().unwrap();
        waker.write_all(b"!").unwrap();
        let data: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let mut left = data.as_slice();
        let written = write_or_wake(writer.as_fd(), &mut left, &[wake.as_fd()]);
        assert_eq!(written, Ok(Written::Woken));
        assert!(!left.is_empty() && left.len() < data.len());

        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        while write_or_wake(writer.as_fd(), &mut left, &[wake.as_fd()]) == Ok(Written::Woken) {}
        drop(writer);
        assert!(reading.join().unwrap() == data);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_broken() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        for wake in [&[][..], &[writer.as_fd()]] {
            let found = write_or_wake(writer.as_fd(), &mut &b"x"[..], wake);
            assert_eq!(found, Err(Errno::PIPE));
        }
    }
}
