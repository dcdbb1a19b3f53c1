//! Where the daemon is, from the values of environment variables.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use pythond_private_fs::paths::{PathVariables, client_socket};

use crate::ClientError;

/// A daemon's address. TCP addresses come with a later version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket at this path.
    Unix(PathBuf),
}

/// Values of the variables that say where the daemon is.
#[derive(Clone, Debug, Default)]
pub struct AddressVariables {
    /// `PYTHOND_HOST`: a remote daemon.
    pub pythond_host: Option<OsString>,
    /// Those that lead to the local socket.
    pub paths: PathVariables,
}

impl AddressVariables {
    /// The values that this process has.
    #[must_use]
    pub fn from_environment() -> Self {
        let read = |name| std::env::var_os(name);
        Self {
            pythond_host: read("PYTHOND_HOST"),
            paths: PathVariables {
                pythond_sock: read("PYTHOND_SOCK"),
                xdg_runtime_dir: read("XDG_RUNTIME_DIR"),
                tmpdir: read("TMPDIR"),
            },
        }
    }
}

impl Address {
    /// The daemon that a client talks to.
    ///
    /// # Errors
    /// [`ClientError::RemoteNotAvailable`] if `PYTHOND_HOST` is set: a request
    /// meant for another machine must not reach the local daemon.
    pub fn from_variables(variables: &AddressVariables) -> Result<Self, ClientError> {
        if variables
            .pythond_host
            .as_ref()
            .is_some_and(|host| !host.is_empty())
        {
            return Err(ClientError::RemoteNotAvailable);
        }
        Ok(Self::Unix(client_socket(&variables.paths).path))
    }

    /// The path of the unix socket.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        match self {
            Self::Unix(path) => path,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: Option<&str>, socket: &str) -> Result<Address, ClientError> {
        Address::from_variables(&AddressVariables {
            pythond_host: host.map(Into::into),
            paths: PathVariables {
                pythond_sock: Some(socket.into()),
                ..Default::default()
            },
        })
    }

    #[test]
    fn a_remote_daemon_is_never_replaced_by_the_local_one() {
        assert!(matches!(
            address(Some("gpu:7399"), "/s"),
            Err(ClientError::RemoteNotAvailable)
        ));
        assert_eq!(address(Some(""), "/s").unwrap(), Address::Unix("/s".into()));
        assert_eq!(address(None, "/s").unwrap().to_string(), "unix:/s");
    }
}
