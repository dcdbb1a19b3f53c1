//! Unix sockets reached through a held directory, with both ends checked.
//!
//! Addresses are `/proc/thread-self/fd/N/NAME`, so the limit of 107 bytes (unix(7))
//! never matters and nobody can swap the directory in between.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::dir::{check_owner, directory_flags, fstat, me};
use crate::{PrivateDir, PrivateFsError};

/// Who is at the other end of a unix socket (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id: of the connecting process, or of the one that listened.
    pub pid: i32,
    /// Effective user id at that moment.
    pub uid: u32,
}

/// Asks the kernel who is at the other end.
///
/// # Errors
/// If the descriptor is no connected unix socket.
pub fn peer_credentials(socket: impl AsFd) -> std::io::Result<PeerCredentials> {
    let found = sockopt::socket_peercred(socket)?;
    Ok(PeerCredentials {
        pid: found.pid.as_raw_nonzero().get(),
        uid: found.uid.as_raw(),
    })
}

impl PrivateDir {
    /// Listens again on a socket that somebody removed; none if it is there.
    ///
    /// # Errors
    /// As [`Self::bind_socket`].
    pub fn bind_socket_again(
        &self,
        name: &str,
        backlog: i32,
    ) -> Result<Option<OwnedFd>, PrivateFsError> {
        match rustix::fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => self.bind_socket(name, backlog).map(Some),
            // What is there may be another's; it is left alone.
            _ => Ok(None),
        }
    }

    /// Listens on a new socket of mode 0600 in this directory.
    ///
    /// # Errors
    /// [`PrivateFsError::Io`], of kind `AddrInUse` if the name is taken.
    pub fn bind_socket(&self, name: &str, backlog: i32) -> Result<OwnedFd, PrivateFsError> {
        bind(self.fd().as_fd(), name, &self.join(name)?, backlog)
    }

    /// Connects to a socket in this directory; waits while its queue is full.
    ///
    /// # Errors
    /// [`PrivateFsError`] if it is no socket of mine, if the process behind it
    /// is not mine, or if nobody listens.
    pub fn connect_socket(&self, name: &str) -> Result<UnixStream, PrivateFsError> {
        connect(
            self.fd().as_fd(),
            name,
            &self.join(name)?,
            SocketFlags::empty(),
        )
    }

    /// As [`Self::connect_socket`], but never waits, and neither does the
    /// stream: an error of kind `WouldBlock` means that the queue is full.
    ///
    /// # Errors
    /// As [`Self::connect_socket`].
    pub fn connect_socket_nonblocking(&self, name: &str) -> Result<UnixStream, PrivateFsError> {
        connect(
            self.fd().as_fd(),
            name,
            &self.join(name)?,
            SocketFlags::NONBLOCK,
        )
    }
}

/// Listens on a new socket of mode 0600. Its directory must be mine or root's,
/// and nobody else may write to it unless it is sticky.
///
/// # Errors
/// As [`PrivateDir::bind_socket`], and for an unsafe directory.
pub fn bind_at(path: &Path, backlog: i32) -> Result<OwnedFd, PrivateFsError> {
    let (parent, name) = open_parent(path)?;
    bind(parent.as_fd(), &name, path, backlog)
}

/// Connects to a socket after checking its directory as [`bind_at`] does, and
/// that the socket and the process behind it are mine.
///
/// # Errors
/// As [`PrivateDir::connect_socket`], and for an unsafe directory.
pub fn connect_at(path: &Path) -> Result<UnixStream, PrivateFsError> {
    let (parent, name) = open_parent(path)?;
    connect(parent.as_fd(), &name, path, SocketFlags::empty())
}

/// As [`connect_at`], but never waits, and neither does the stream: an error of
/// kind `WouldBlock` means that the queue of whoever listens is full.
///
/// # Errors
/// As [`connect_at`].
pub fn connect_at_nonblocking(path: &Path) -> Result<UnixStream, PrivateFsError> {
    let (parent, name) = open_parent(path)?;
    connect(parent.as_fd(), &name, path, SocketFlags::NONBLOCK)
}

/// Removes a socket of mine; anything else at the path is left alone.
///
/// # Errors
/// As [`connect_at`], except that a missing socket is none.
pub fn remove_socket_at(path: &Path) -> Result<(), PrivateFsError> {
    let (parent, name) = open_parent(path)?;
    match check_socket(parent.as_fd(), &name, path) {
        Err(error) if error.is_not_found() => return Ok(()),
        checked => checked?,
    }
    match rustix::fs::unlinkat(&parent, name.as_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(PrivateFsError::io("remove", path, errno)),
    }
}

fn open_parent(path: &Path) -> Result<(OwnedFd, String), PrivateFsError> {
    let bad_name = || PrivateFsError::BadName(path.display().to_string());
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(bad_name)?;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(bad_name()),
    };
    // A symbolic link is all right here (`/var/run`): what it leads to is held
    // and checked.
    let flags = directory_flags() - rustix::fs::OFlags::NOFOLLOW;
    let fd = rustix::fs::open(parent, flags, Mode::empty())
        .map_err(|errno| PrivateFsError::io("open directory", parent, errno))?;
    let stat = fstat(&fd, parent)?;
    if stat.st_uid != 0 {
        check_owner(&stat, parent)?;
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(PrivateFsError::WritableByOthers {
            path: parent.to_owned(),
            mode,
        });
    }
    Ok((fd, name.to_owned()))
}

fn address(dir: BorrowedFd<'_>, name: &str, path: &Path) -> Result<SocketAddrUnix, PrivateFsError> {
    let through = PathBuf::from(format!("/proc/thread-self/fd/{}/{name}", dir.as_raw_fd()));
    SocketAddrUnix::new(through).map_err(|errno| PrivateFsError::io("address", path, errno))
}

fn new_socket(flags: SocketFlags, path: &Path) -> Result<OwnedFd, PrivateFsError> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags | SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| PrivateFsError::io("make a socket for", path, errno))
}

fn bind(
    dir: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    backlog: i32,
) -> Result<OwnedFd, PrivateFsError> {
    let socket = new_socket(SocketFlags::empty(), path)?;
    let failed = |errno: Errno| PrivateFsError::io("listen on", path, errno);
    // Linux gives the new file the mode of the socket's own inode, so it is
    // never open to others, not even between bind and a chmod of the path.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::bind(&socket, &address(dir, name, path)?).map_err(failed)?;
    rustix::net::listen(&socket, backlog).map_err(failed)?;
    Ok(socket)
}

fn check_socket(dir: BorrowedFd<'_>, name: &str, path: &Path) -> Result<(), PrivateFsError> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| PrivateFsError::io("reach", path, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => check_owner(&stat, path),
        FileType::Symlink => Err(PrivateFsError::Symlink(path.to_owned())),
        _ => Err(PrivateFsError::NotASocket(path.to_owned())),
    }
}

fn connect(
    dir: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    flags: SocketFlags,
) -> Result<UnixStream, PrivateFsError> {
    check_socket(dir, name, path)?;
    let socket = new_socket(flags, path)?;
    let target = address(dir, name, path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &target))
        .map_err(|errno| PrivateFsError::io("connect to", path, errno))?;
    let peer = peer_credentials(&socket)
        .map_err(|error| PrivateFsError::io("examine the peer of", path, error))?;
    if peer.uid != me() {
        return Err(PrivateFsError::WrongServer {
            path: path.to_owned(),
            owner: peer.uid,
            me: me(),
        });
    }
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_socket_deep_down_is_private_from_birth_and_reachable() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120)).join("e".repeat(120));
        let dir = PrivateDir::open_or_create(&deep).unwrap();
        let _listener = dir.bind_socket("s.sock", 8).unwrap();
        let mode = std::fs::metadata(deep.join("s.sock"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        let stream = dir.connect_socket("s.sock").unwrap();
        let peer = peer_credentials(&stream).unwrap();
        assert_eq!(
            (peer.pid, peer.uid),
            (i32::try_from(std::process::id()).unwrap(), me())
        );
        connect_at(&deep.join("s.sock")).unwrap();
        let taken = dir.bind_socket("s.sock", 8).unwrap_err();
        assert_eq!(taken.io_kind(), Some(std::io::ErrorKind::AddrInUse));
    }

    #[test]
    fn a_socket_nobody_listens_on_is_refused_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s.sock");
        drop(bind_at(&path, 8).unwrap());
        assert!(connect_at(&path).unwrap_err().is_refused());
        remove_socket_at(&path).unwrap();
        assert!(connect_at(&path).unwrap_err().is_not_found());
    }

    #[test]
    fn other_files_are_neither_connected_to_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s.sock");
        std::fs::File::create(&path).unwrap();
        assert!(matches!(
            connect_at(&path),
            Err(PrivateFsError::NotASocket(_))
        ));
        assert!(matches!(
            remove_socket_at(&path),
            Err(PrivateFsError::NotASocket(_))
        ));
        assert!(path.exists());
    }

    #[test]
    fn a_directory_that_others_write_is_refused_unless_sticky() {
        let root = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o777);
        let error = bind_at(&root.path().join("s"), 1).unwrap_err();
        assert!(
            matches!(error, PrivateFsError::WritableByOthers { mode: 0o777, .. }),
            "{error}"
        );
        set(0o1777);
        bind_at(&root.path().join("s"), 1).unwrap();
    }
}
