//! Where the daemon's socket and files are, from the values of environment
//! variables that the caller read.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::dir::me;

/// Values of the variables that say where the socket is.
#[derive(Clone, Debug, Default)]
pub struct PathVariables {
    /// `PYTHOND_SOCK`.
    pub pythond_sock: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
    /// `TMPDIR`.
    pub tmpdir: Option<OsString>,
}

/// Why the socket is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOrigin {
    /// `PYTHOND_SOCK` says so.
    Override,
    /// It stands in the user's runtime directory.
    Runtime,
    /// It stands in a directory of its own under the temporary one.
    Private,
}

/// Where the daemon's socket is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPlace {
    /// Its path.
    pub path: PathBuf,
    /// Why there.
    pub origin: SocketOrigin,
}

/// Where a daemon listens: `PYTHOND_SOCK`; else `$XDG_RUNTIME_DIR/pythond.sock`
/// if that directory is real, mine and of mode 0700; else
/// `$TMPDIR/pythond-UID/pythond.sock`.
#[must_use]
pub fn default_socket(variables: &PathVariables) -> SocketPlace {
    if let Some(path) = set(&variables.pythond_sock) {
        return SocketPlace {
            path: PathBuf::from(path),
            origin: SocketOrigin::Override,
        };
    }
    match set(&variables.xdg_runtime_dir).map(Path::new) {
        Some(directory) if is_private_directory(directory) => in_runtime(directory),
        _ => private(variables),
    }
}

/// Where a client looks, best first. Without `XDG_RUNTIME_DIR` (cron, sudo,
/// ssh without a login session) `/run/user/UID` comes before the private
/// directory.
#[must_use]
pub fn client_sockets(variables: &PathVariables) -> Vec<SocketPlace> {
    let first = default_socket(variables);
    let mut places = Vec::new();
    if first.origin == SocketOrigin::Private && set(&variables.xdg_runtime_dir).is_none() {
        let directory = PathBuf::from(format!("/run/user/{}", me()));
        if is_private_directory(&directory) {
            places.push(in_runtime(&directory));
        }
    }
    places.push(first);
    places
}

/// The first of [`client_sockets`] that is there, else the last of them.
#[must_use]
pub fn client_socket(variables: &PathVariables) -> SocketPlace {
    let mut places = client_sockets(variables);
    let there = places
        .iter()
        .position(|place| std::fs::symlink_metadata(&place.path).is_ok());
    let chosen = there.unwrap_or(places.len() - 1);
    places.swap_remove(chosen)
}

/// The private directory of `access.log`, host sockets and the daemon's lock.
#[must_use]
pub fn runtime_dir(socket: &SocketPlace) -> PathBuf {
    let parent = socket.path.parent().unwrap_or(Path::new("/"));
    match socket.origin {
        SocketOrigin::Runtime => parent.join("pythond"),
        SocketOrigin::Private => parent.to_owned(),
        SocketOrigin::Override => {
            let mut path = socket.path.clone().into_os_string();
            path.push(".d");
            PathBuf::from(path)
        }
    }
}

/// Where sessions keep their files.
#[must_use]
pub fn sessions_dir(home: &Path) -> PathBuf {
    home.join(".pythond").join("sessions")
}

fn in_runtime(directory: &Path) -> SocketPlace {
    SocketPlace {
        path: directory.join("pythond.sock"),
        origin: SocketOrigin::Runtime,
    }
}

fn private(variables: &PathVariables) -> SocketPlace {
    let temporary = set(&variables.tmpdir).map_or(Path::new("/tmp"), Path::new);
    let path = temporary
        .join(format!("pythond-{}", me()))
        .join("pythond.sock");
    SocketPlace {
        path,
        origin: SocketOrigin::Private,
    }
}

/// An empty variable is as good as none.
fn set(value: &Option<OsString>) -> Option<&OsString> {
    value.as_ref().filter(|value| !value.is_empty())
}

fn is_private_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == me() && found.mode() & 0o7777 == 0o700)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn variables(sock: Option<&str>, xdg: Option<&Path>, tmpdir: Option<&str>) -> PathVariables {
        PathVariables {
            pythond_sock: sock.map(Into::into),
            xdg_runtime_dir: xdg.map(Into::into),
            tmpdir: tmpdir.map(Into::into),
        }
    }

    #[test]
    fn the_override_wins_and_has_a_directory_beside_it() {
        let place = default_socket(&variables(Some("/x/y.sock"), None, None));
        assert_eq!(place.path, Path::new("/x/y.sock"));
        assert_eq!(runtime_dir(&place), Path::new("/x/y.sock.d"));
    }

    #[test]
    fn the_runtime_directory_must_be_private() {
        let root = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o700);
        let place = default_socket(&variables(None, Some(root.path()), None));
        assert_eq!(place.path, root.path().join("pythond.sock"));
        assert_eq!(runtime_dir(&place), root.path().join("pythond"));
        set(0o755);
        let place = default_socket(&variables(Some(""), Some(root.path()), Some("/t")));
        assert_eq!(
            place.path,
            PathBuf::from(format!("/t/pythond-{}/pythond.sock", me()))
        );
        assert_eq!(
            runtime_dir(&place),
            PathBuf::from(format!("/t/pythond-{}", me()))
        );
    }

    #[test]
    fn a_client_ends_at_the_same_place_as_the_daemon() {
        let places = client_sockets(&variables(None, None, Some("/t")));
        assert_eq!(
            places.last().unwrap(),
            &default_socket(&variables(None, None, Some("/t")))
        );
    }
}
