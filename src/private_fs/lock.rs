//! One holder at a time, across processes.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::{PrivateDir, PrivateFsError};

/// A held lock; dropping it, or the end of the process, lets it go.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum LockOutcome {
    /// It is ours.
    Acquired(LockGuard),
    /// Somebody else has it.
    Held {
        /// The holder's process id; none if it has not written it yet.
        pid: Option<i32>,
    },
}

impl PrivateDir {
    /// Takes the exclusive flock(2) on a file and writes our process id into
    /// it. Does not wait. The file stays when the lock is let go, for a second
    /// asker may hold it open by then.
    ///
    /// # Errors
    /// As [`PrivateDir::append_file`].
    pub fn lock(&self, name: &str) -> Result<LockOutcome, PrivateFsError> {
        let mut file = self.read_write_file(name)?;
        let path = self.join(name)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut text);
                return Ok(LockOutcome::Held {
                    pid: text.trim().parse().ok(),
                });
            }
            Err(errno) => return Err(PrivateFsError::io("lock", &path, errno)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| PrivateFsError::io("write", &path, error))?;
        Ok(LockOutcome::Acquired(LockGuard { _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_asker_learns_who_has_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("d")).unwrap();
        let first = dir.lock("lock").unwrap();
        assert!(matches!(first, LockOutcome::Acquired(_)));
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(dir.lock("lock").unwrap(), LockOutcome::Held { pid: Some(pid) } if pid == me)
        );
        drop(first);
        assert!(matches!(
            dir.lock("lock").unwrap(),
            LockOutcome::Acquired(_)
        ));
    }
}
