//! What can be wrong with a file or directory that must be private.

use std::io;
use std::path::{Path, PathBuf};

/// Why a private directory, file or socket cannot be used. The text says what
/// is wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFsError {
    /// The path is a symbolic link.
    #[error("`{}` is a symbolic link; remove it, or use the directory it points to", .0.display())]
    Symlink(PathBuf),
    /// Something that is no directory stands there.
    #[error("`{}` is not a directory; move it away", .0.display())]
    NotADirectory(PathBuf),
    /// It belongs to somebody else.
    #[error("`{}` belongs to user {owner}, not to you (user {me}); move it away", .path.display())]
    WrongOwner {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// Others may enter the directory.
    #[error("`{}` is open to others (mode {mode:04o}); close it with `chmod 700 {}`", .path.display(), .path.display())]
    OpenToOthers {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may put files into the directory that holds the socket.
    #[error("`{}` can be written by others (mode {mode:04o}), so a socket there is not safe; choose a private directory", .path.display())]
    WritableByOthers {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may put files where what we keep secret or believe would be.
    #[error("`{}` can be written by others (mode {mode:04o}), so nothing below it can be trusted; close it with `chmod go-w {}`", .path.display(), .path.display())]
    UnsafeParent {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may read a secret, or write what we believe.
    #[error("`{}` is open to others (mode {mode:04o}); close it with `chmod 600 {}`", .path.display(), .path.display())]
    FileOpenToOthers {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no regular file.
    #[error("`{}` is not a regular file; move it away", .0.display())]
    NotAFile(PathBuf),
    /// The file has a second name somewhere.
    #[error("`{}` has other hard links; move it away", .0.display())]
    HardLinked(PathBuf),
    /// The path is there and is no socket.
    #[error("`{}` is not a socket; move it away", .0.display())]
    NotASocket(PathBuf),
    /// The process behind a socket belongs to somebody else.
    #[error("the process that listens on `{}` belongs to user {owner}, not to you (user {me})", .path.display())]
    WrongServer {
        /// Where.
        path: PathBuf,
        /// Whose process it is.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// The file is greater than the caller accepts.
    #[error("`{}` is greater than {limit_bytes} bytes", .path.display())]
    TooBig {
        /// Where.
        path: PathBuf,
        /// What is accepted.
        limit_bytes: u64,
    },
    /// The name is no single component of a path.
    #[error("`{0}` is not a file name")]
    BadName(String),
    /// The system refused.
    #[error("cannot {action} `{}`", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl PrivateFsError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// The kind of the system's error, if the system refused.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// Nothing stands at the path.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::NotFound)
    }

    /// A socket stands at the path and nobody listens on it.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::ConnectionRefused)
    }
}
