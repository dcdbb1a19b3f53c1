//! What is as strict as sshd's `StrictModes`: for keys, and for what is believed.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::dir::{directory_flags, explain_open, fstat, me};
use crate::{PrivateDir, PrivateFsError};

/// Who may do what with a file, besides its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Nobody may read it: a key, a token.
    Secret,
    /// Everybody may read it and nobody write it: a certificate.
    Public,
}

impl Strictness {
    fn forbidden(self) -> u32 {
        match self {
            Self::Secret => 0o077,
            Self::Public => 0o022,
        }
    }
}

impl PrivateDir {
    /// Opens a directory right below somebody's home, making it if it is missing.
    /// The home itself may be reached through links, and must be such that nobody
    /// else can put another directory in this one's place.
    ///
    /// # Errors
    /// [`PrivateFsError::UnsafeParent`] or [`PrivateFsError::WrongOwner`] for the
    /// home, which may be root's; else as [`Self::open_or_create`].
    pub fn in_home(home: &Path, name: &str) -> Result<Self, PrivateFsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = rustix::fs::openat(rustix::fs::CWD, home, flags, Mode::empty())
            .map_err(|errno| explain_open(home, errno))?;
        let stat = fstat(&held, home)?;
        if stat.st_uid != me() && stat.st_uid != 0 {
            return Err(PrivateFsError::WrongOwner {
                path: home.to_owned(),
                owner: stat.st_uid,
                me: me(),
            });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o022 != 0 {
            return Err(PrivateFsError::UnsafeParent {
                path: home.to_owned(),
                mode,
            });
        }
        let path = home.join(name);
        match rustix::fs::mkdirat(&held, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(PrivateFsError::io("create directory", &path, errno)),
        }
        let fd = rustix::fs::openat(&held, name, directory_flags(), Mode::empty())
            .map_err(|errno| explain_open(&path, errno))?;
        Self::checked(fd, path)
    }

    /// As [`Self::read_file`], of a file that others can do no more with than this.
    ///
    /// # Errors
    /// [`PrivateFsError::FileOpenToOthers`], and as [`Self::read_file`].
    pub fn read_strict(
        &self,
        name: &str,
        limit_bytes: u64,
        strictness: Strictness,
    ) -> Result<Vec<u8>, PrivateFsError> {
        let file = self.open_file(name)?;
        let path = self.join(name)?;
        let mode = fstat(&file, &path)?.st_mode & 0o7777;
        if mode & strictness.forbidden() != 0 {
            return Err(PrivateFsError::FileOpenToOthers { path, mode });
        }
        self.read_opened(file, name, limit_bytes)
    }

    /// Waits until names that were given or taken here are on the disk.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn sync(&self) -> Result<(), PrivateFsError> {
        rustix::fs::fsync(self.fd())
            .map_err(|errno| PrivateFsError::io("write", self.path(), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_home_that_others_may_write_to_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for (mode, good) in [
            (0o755, true),
            (0o775, false),
            (0o757, false),
            (0o1777, false),
        ] {
            set_permissions(root.path(), Permissions::from_mode(mode)).unwrap();
            let opened = PrivateDir::in_home(root.path(), "mine");
            match opened {
                Ok(_) => assert!(good, "{mode:o}"),
                Err(PrivateFsError::UnsafeParent { mode: told, .. }) => {
                    assert!(!good);
                    assert_eq!(told, mode);
                }
                Err(error) => panic!("{mode:o}: {error}"),
            }
        }
    }

    #[test]
    fn a_home_may_be_a_link_and_what_is_in_it_may_not() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        PrivateDir::in_home(&link, "mine").unwrap();
        std::os::unix::fs::symlink(home.join("mine"), home.join("other")).unwrap();
        assert!(matches!(
            PrivateDir::in_home(&link, "other"),
            Err(PrivateFsError::Symlink(_))
        ));
    }

    #[test]
    fn a_secret_must_be_private_and_a_certificate_may_be_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::in_home(root.path(), "d").unwrap();
        dir.write_whole("file", b"content").unwrap();
        for (mode, secret, public) in [
            (0o600, true, true),
            (0o644, false, true),
            (0o640, false, true),
            (0o620, false, false),
            (0o602, false, false),
        ] {
            set_permissions(dir.path().join("file"), Permissions::from_mode(mode)).unwrap();
            let reads = |strictness| match dir.read_strict("file", 100, strictness) {
                Ok(_) => true,
                Err(PrivateFsError::FileOpenToOthers { .. }) => false,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(reads(Strictness::Secret), secret, "{mode:o}");
            assert_eq!(reads(Strictness::Public), public, "{mode:o}");
        }
    }
}
