//! A directory that only its owner may enter, held by descriptor.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::PrivateFsError;

static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A directory of mode 0700 that is mine, held open.
#[derive(Debug)]
pub struct PrivateDir {
    /// Replaced if somebody removes the directory; see [`PrivateDir::restore`].
    fd: RwLock<Arc<OwnedFd>>,
    path: PathBuf,
}

/// The user this process acts as.
pub(crate) fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl PrivateDir {
    /// Opens a directory, making it and its missing parents with mode 0700.
    /// The mode of one that exists is never changed.
    ///
    /// # Errors
    /// [`PrivateFsError`] if its last component is a symbolic link or no
    /// directory, if it is not mine, or if others may enter it.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self, PrivateFsError> {
        let path = path.as_ref();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .or_else(|error| match std::fs::symlink_metadata(path) {
                // The check of what stands there says it better.
                Ok(_) => Ok(()),
                Err(_) => Err(PrivateFsError::io("create directory", path, error)),
            })?;
        Self::open(path)
    }

    /// Opens a directory that exists already.
    ///
    /// # Errors
    /// As [`Self::open_or_create`]; [`PrivateFsError::is_not_found`] if it is
    /// not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PrivateFsError> {
        let path = path.as_ref();
        let fd = rustix::fs::openat(rustix::fs::CWD, path, directory_flags(), Mode::empty())
            .map_err(|errno| explain_open(path, errno))?;
        Self::checked(fd, path.to_owned())
    }

    /// Opens a directory inside this one, making it if it is missing.
    ///
    /// # Errors
    /// As [`Self::open_or_create`].
    pub fn subdir(&self, name: &str) -> Result<Self, PrivateFsError> {
        let path = self.join(name)?;
        let dir = self.fd();
        match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(PrivateFsError::io("create directory", &path, errno)),
        }
        let fd = rustix::fs::openat(&dir, name, directory_flags(), Mode::empty())
            .map_err(|errno| explain_open(&path, errno))?;
        Self::checked(fd, path)
    }

    /// Makes the directory again if somebody removed it, or holds the one that
    /// another made in its place. True if it is not the one that it was, and has
    /// nothing in it of what was made through this.
    ///
    /// # Errors
    /// As [`Self::open_or_create`].
    pub fn restore(&self) -> Result<bool, PrivateFsError> {
        let held = fstat(self.fd(), &self.path)?;
        let there = rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        match there {
            Ok(there) if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) => {
                return Ok(false);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(PrivateFsError::io("examine", &self.path, errno)),
        }
        let made = Self::open_or_create(&self.path)?.fd();
        *self.fd.write().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(true)
    }

    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn checked(fd: OwnedFd, path: PathBuf) -> Result<Self, PrivateFsError> {
        let stat = fstat(&fd, &path)?;
        check_owner(&stat, &path)?;
        let mode = stat.st_mode & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PrivateFsError::OpenToOthers { path, mode });
        }
        let fd = RwLock::new(Arc::new(fd));
        Ok(Self { fd, path })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry, for messages.
    ///
    /// # Errors
    /// [`PrivateFsError::BadName`] if `name` is no single component.
    pub fn join(&self, name: &str) -> Result<PathBuf, PrivateFsError> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(PrivateFsError::BadName(name.escape_debug().to_string()));
        }
        Ok(self.path.join(name))
    }

    /// Names of all entries, in no order; those that are no UTF-8 are left
    /// out, for none of ours are.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn entries(&self) -> Result<Vec<String>, PrivateFsError> {
        let names = self.all_entries()?.into_iter();
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    }

    /// Names of all entries, whatever they are, in no order.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn all_entries(&self) -> Result<Vec<OsString>, PrivateFsError> {
        let failed = |errno: Errno| PrivateFsError::io("list", &self.path, errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.fd()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned().into_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Opens a file for appending, making it with mode 0600.
    ///
    /// # Errors
    /// [`PrivateFsError`] if it is no regular file, not mine, or hard-linked.
    pub fn append_file(&self, name: &str) -> Result<File, PrivateFsError> {
        self.open_checked(name, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)
    }

    /// As [`Self::append_file`], and empties it.
    ///
    /// # Errors
    /// As [`Self::append_file`].
    pub fn empty_file(&self, name: &str) -> Result<File, PrivateFsError> {
        let file = self.append_file(name)?;
        file.set_len(0)
            .map_err(|error| PrivateFsError::io("truncate", &self.path.join(name), error))?;
        Ok(file)
    }

    /// Opens a file for reading and writing, making it with mode 0600.
    ///
    /// # Errors
    /// As [`Self::append_file`].
    pub fn read_write_file(&self, name: &str) -> Result<File, PrivateFsError> {
        self.open_checked(name, OFlags::RDWR | OFlags::CREATE)
    }

    /// Opens a file that exists for reading.
    ///
    /// # Errors
    /// As [`Self::append_file`].
    pub fn open_file(&self, name: &str) -> Result<File, PrivateFsError> {
        self.open_checked(name, OFlags::RDONLY)
    }

    /// The content of a file of at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`Self::open_file`], and [`PrivateFsError::TooBig`].
    pub fn read_file(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, PrivateFsError> {
        self.read_opened(self.open_file(name)?, name, limit_bytes)
    }

    pub(crate) fn read_opened(
        &self,
        file: File,
        name: &str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, PrivateFsError> {
        let path = self.path.join(name);
        let mut content = Vec::new();
        file.take(limit_bytes.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|error| PrivateFsError::io("read", &path, error))?;
        if content.len() as u64 > limit_bytes {
            return Err(PrivateFsError::TooBig { path, limit_bytes });
        }
        Ok(content)
    }

    /// Replaces a file as a whole: readers see the old content or the new one.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn write_whole(&self, name: &str, content: &[u8]) -> Result<(), PrivateFsError> {
        self.replace(name, content, true)
    }

    /// The same for what need not outlive the machine: nothing waits for a disk.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn write_whole_unsynced(&self, name: &str, content: &[u8]) -> Result<(), PrivateFsError> {
        self.replace(name, content, false)
    }

    fn replace(&self, name: &str, content: &[u8], synced: bool) -> Result<(), PrivateFsError> {
        let path = self.join(name)?;
        let failed = |error: std::io::Error| PrivateFsError::io("write", &path, error);
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{name}.{}.{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | file_flags();
        let dir = self.fd();
        let fd = rustix::fs::openat(&dir, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed(errno.into()))?;
        let mut file = File::from(fd);
        let written = file
            .write_all(content)
            .and_then(|()| if synced { file.sync_all() } else { Ok(()) })
            .and_then(|()| {
                rustix::fs::renameat(&dir, temporary.as_str(), &dir, name)?;
                // The new name itself must survive a crash as well.
                if synced {
                    rustix::fs::fsync(&dir)?;
                }
                Ok(())
            });
        written.map_err(|error| {
            // What is left behind would only be litter.
            let _ = rustix::fs::unlinkat(&dir, temporary.as_str(), AtFlags::empty());
            failed(error)
        })
    }

    /// Gives a file or socket another name, in place of what had it.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), PrivateFsError> {
        let path = self.join(to)?;
        self.join(from)?;
        let dir = self.fd();
        rustix::fs::renameat(&dir, from, &dir, to)
            .map_err(|errno| PrivateFsError::io("rename to", &path, errno))
    }

    /// Removes a file or socket; it is no error if it is not there.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), PrivateFsError> {
        let path = self.join(name)?;
        match rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(PrivateFsError::io("remove", &path, errno)),
        }
    }

    fn open_checked(&self, name: &str, flags: OFlags) -> Result<File, PrivateFsError> {
        let path = self.join(name)?;
        let fd = rustix::fs::openat(
            self.fd(),
            name,
            flags | file_flags(),
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| match errno {
            Errno::LOOP => PrivateFsError::Symlink(path.clone()),
            // A FIFO without a reader, a socket, a directory.
            Errno::NXIO | Errno::ISDIR => PrivateFsError::NotAFile(path.clone()),
            errno => PrivateFsError::io("open", &path, errno),
        })?;
        let stat = fstat(&fd, &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(PrivateFsError::NotAFile(path));
        }
        check_owner(&stat, &path)?;
        if stat.st_nlink != 1 {
            return Err(PrivateFsError::HardLinked(path));
        }
        Ok(File::from(fd))
    }
}

pub(crate) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// `O_NONBLOCK`, so that opening a FIFO that somebody put there cannot hang.
fn file_flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC
}

pub(crate) fn fstat(fd: impl AsFd, path: &Path) -> Result<Stat, PrivateFsError> {
    rustix::fs::fstat(fd).map_err(|errno| PrivateFsError::io("examine", path, errno))
}

pub(crate) fn check_owner(stat: &Stat, path: &Path) -> Result<(), PrivateFsError> {
    if stat.st_uid == me() {
        return Ok(());
    }
    Err(PrivateFsError::WrongOwner {
        path: path.to_owned(),
        owner: stat.st_uid,
        me: me(),
    })
}

/// `O_DIRECTORY|O_NOFOLLOW` answers `ENOTDIR` for a symbolic link (open(2)).
pub(crate) fn explain_open(path: &Path, errno: Errno) -> PrivateFsError {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    match errno {
        Errno::NOTDIR | Errno::LOOP if is_link => PrivateFsError::Symlink(path.to_owned()),
        Errno::NOTDIR => PrivateFsError::NotADirectory(path.to_owned()),
        errno => PrivateFsError::io("open directory", path, errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn missing_directories_are_made_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("a/b")).unwrap();
        assert_eq!(mode_of(&root.path().join("a")), 0o700);
        assert_eq!(mode_of(dir.path()), 0o700);
        assert_eq!(mode_of(dir.subdir("c").unwrap().path()), 0o700);
    }

    #[test]
    fn an_open_directory_is_refused_and_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o750)).unwrap();
        let error = PrivateDir::open_or_create(&open).unwrap_err();
        assert!(
            matches!(error, PrivateFsError::OpenToOthers { mode: 0o750, .. }),
            "{error}"
        );
        assert_eq!(mode_of(&open), 0o750);
    }

    #[test]
    fn links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("real")).unwrap();
        symlink(dir.path(), root.path().join("link")).unwrap();
        let error = PrivateDir::open_or_create(root.path().join("link")).unwrap_err();
        assert!(matches!(error, PrivateFsError::Symlink(_)), "{error}");
        symlink("/etc/passwd", dir.path().join("file")).unwrap();
        assert!(matches!(
            dir.append_file("file"),
            Err(PrivateFsError::Symlink(_))
        ));
        dir.append_file("one").unwrap();
        std::fs::hard_link(dir.path().join("one"), dir.path().join("two")).unwrap();
        assert!(matches!(
            dir.open_file("one"),
            Err(PrivateFsError::HardLinked(_))
        ));
    }

    #[test]
    fn a_fifo_neither_hangs_nor_passes() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("d")).unwrap();
        rustix::fs::mknodat(dir.fd(), "fifo", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(
            dir.append_file("fifo"),
            Err(PrivateFsError::NotAFile(_))
        ));
        assert!(matches!(
            dir.open_file("fifo"),
            Err(PrivateFsError::NotAFile(_))
        ));
    }

    #[test]
    fn files_are_written_whole_and_read_within_a_limit() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("d")).unwrap();
        dir.write_whole("f", b"old").unwrap();
        dir.write_whole("f", b"newer").unwrap();
        assert_eq!(dir.read_file("f", 5).unwrap(), b"newer");
        assert!(matches!(
            dir.read_file("f", 4),
            Err(PrivateFsError::TooBig { .. })
        ));
        assert_eq!(mode_of(&dir.path().join("f")), 0o600);
        assert_eq!(dir.entries().unwrap(), ["f"]);
        dir.remove("f").unwrap();
        dir.remove("f").unwrap();
        assert!(dir.read_file("f", 5).unwrap_err().is_not_found());
    }

    #[test]
    fn a_directory_that_is_gone_is_made_again_for_all_who_hold_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("a/b")).unwrap();
        assert!(!dir.restore().unwrap());
        std::fs::remove_dir_all(root.path().join("a")).unwrap();
        assert!(dir.append_file("f").is_err());
        assert!(dir.restore().unwrap());
        assert!(!dir.restore().unwrap());
        dir.append_file("f").unwrap();
        assert_eq!(mode_of(dir.path()), 0o700);
        // One that another made, and one that is not to be trusted.
        std::fs::rename(dir.path(), root.path().join("elsewhere")).unwrap();
        let made = PrivateDir::open_or_create(dir.path()).unwrap();
        made.append_file("g").unwrap();
        assert!(dir.restore().unwrap());
        assert_eq!(dir.entries().unwrap(), ["g"]);
        std::fs::remove_dir_all(dir.path()).unwrap();
        symlink(root.path(), dir.path()).unwrap();
        let error = dir.restore().unwrap_err();
        assert!(matches!(error, PrivateFsError::Symlink(_)), "{error}");
    }

    #[test]
    fn names_with_slashes_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("d")).unwrap();
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0"] {
            assert!(
                matches!(dir.append_file(name), Err(PrivateFsError::BadName(_))),
                "{name:?}"
            );
        }
    }
}
