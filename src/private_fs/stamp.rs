//! Whether anything in a directory has changed, without reading a file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use crate::dir::fstat;
use crate::{PrivateDir, PrivateFsError};

/// What a directory and its entries looked like. Two that differ mean that
/// something changed; what is written twice within the clock tick of a file
/// system may look the same, so whoever saw a change looks once more later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirStamp {
    directory: Look,
    entries: BTreeMap<OsString, Look>,
}

/// What one entry looked like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryStamp(Look);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    mode: u32,
    owner: u32,
    size: i64,
    changed: (i64, i64),
}

impl Look {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            owner: stat.st_uid,
            size: stat.st_size,
            changed: (
                stat.st_ctime,
                i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
            ),
        }
    }
}

impl DirStamp {
    /// Whatever else changes in this directory does not matter.
    #[must_use]
    pub fn only(&self, name: &str) -> Option<EntryStamp> {
        self.entries.get(OsStr::new(name)).cloned().map(EntryStamp)
    }
}

impl PrivateDir {
    /// What it looks like now.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn stamp(&self) -> Result<DirStamp, PrivateFsError> {
        let mut entries = BTreeMap::new();
        for name in self.all_entries()? {
            match rustix::fs::statat(self.fd(), &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    entries.insert(name, Look::of(&stat));
                }
                // It went between the two calls.
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(PrivateFsError::io(
                        "examine",
                        &self.path().join(name),
                        errno,
                    ));
                }
            }
        }
        let directory = Look::of(&fstat(self.fd(), self.path())?);
        Ok(DirStamp { directory, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn whatever_changes_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::in_home(root.path(), "d").unwrap();
        let mut last = dir.stamp().unwrap();
        assert_eq!(dir.stamp().unwrap(), last);
        let mut differs = |what: &str| {
            let now = dir.stamp().unwrap();
            assert_ne!(now, last, "{what}");
            last = now;
        };
        dir.write_whole("a", b"one").unwrap();
        differs("a new file");
        dir.write_whole("a", b"longer").unwrap();
        differs("a replaced file");
        dir.append_file("a").unwrap().write_all(b"!").unwrap();
        differs("a file that grew in place");
        dir.remove("a").unwrap();
        differs("a removed file");
    }
}
