//! The directories that hold it all, and one change at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use pythond_private_fs::{LockGuard, LockOutcome, PrivateDir, PrivateFsError, Strictness};

use crate::IdentityError;

/// Where 0.4 keeps clients that may connect.
const TRUSTED_CLIENTS: &str = "trusted_clients";
/// Where 0.4 keeps servers that it pinned.
const TRUSTED_SERVERS: &str = "trusted_servers";
const LOCK: &str = "identity.lock";
/// A change takes milliseconds; so long is waited for somebody else's.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_STEP: Duration = Duration::from_millis(10);

/// `~/.pythond` and `~/.pythond/tls`, held open. What it gives back was read from
/// the files at that moment; see [`crate::Watch`] for when to ask again.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PrivateDir,
    pub(crate) tls: PrivateDir,
}

impl Store {
    /// Opens the directories below this home, and makes what is missing.
    ///
    /// # Errors
    /// [`IdentityError::Fs`] if one of them, or the home, is not safe from others.
    pub fn open(home: &Path) -> Result<Self, IdentityError> {
        let root = PrivateDir::in_home(home, ".pythond")?;
        let tls = root.subdir("tls")?;
        Ok(Self { root, tls })
    }

    /// The directory of certificates and pins.
    #[must_use]
    pub fn tls_path(&self) -> &Path {
        self.tls.path()
    }

    pub(crate) fn trusted_clients_dir(&self) -> Result<PrivateDir, IdentityError> {
        Ok(self.tls.subdir(TRUSTED_CLIENTS)?)
    }

    /// Whether the directory of trusted clients is there: one that was removed says
    /// nothing of who may connect.
    ///
    /// # Errors
    /// [`IdentityError::Fs`] if it is not safe from others.
    pub fn has_trusted_clients(&self) -> Result<bool, IdentityError> {
        Ok(there(&self.tls, TRUSTED_CLIENTS)?.is_some())
    }

    /// The directory of trusted clients, if it is there.
    pub(crate) fn found_trusted_clients_dir(&self) -> Result<Option<PrivateDir>, IdentityError> {
        there(&self.tls, TRUSTED_CLIENTS)
    }

    /// Makes the directory of trusted clients, empty, if it is not there: only for who
    /// begins, as its absence tells everybody else that it was taken away.
    ///
    /// # Errors
    /// [`IdentityError::Fs`] if it cannot be made, or is not safe from others.
    pub fn begin_trusted_clients(&self) -> Result<(), IdentityError> {
        self.trusted_clients_dir().map(drop)
    }

    pub(crate) fn trusted_servers_dir(&self) -> Result<PrivateDir, IdentityError> {
        Ok(self.tls.subdir(TRUSTED_SERVERS)?)
    }

    /// The directories of trusted clients and servers, as far as they are there.
    pub(crate) fn trusted_dirs(&self) -> Result<[Option<PrivateDir>; 2], IdentityError> {
        Ok([
            there(&self.tls, TRUSTED_CLIENTS)?,
            there(&self.tls, TRUSTED_SERVERS)?,
        ])
    }

    /// One change at a time, over all processes. What a writer that was killed
    /// left unfinished is removed first: half a key is nobody's business.
    pub(crate) fn lock(&self) -> Result<LockGuard, IdentityError> {
        let deadline = Instant::now() + LOCK_LIMIT;
        let guard = loop {
            match self.root.lock(LOCK)? {
                LockOutcome::Acquired(guard) => break guard,
                LockOutcome::Held { pid } if Instant::now() > deadline => {
                    return Err(IdentityError::Busy { pid });
                }
                LockOutcome::Held { .. } => std::thread::sleep(LOCK_STEP),
            }
        };
        remove_temporaries(&self.tls)?;
        // What is not there any more is not made again by whoever looks.
        if let Some(dir) = there(&self.tls, TRUSTED_CLIENTS)? {
            remove_temporaries(&dir)?;
        }
        let of_the_token = format!(".{}.", crate::token::FILE);
        remove_starting_with(&self.root, &of_the_token)?;
        Ok(guard)
    }
}

/// `write_whole` names its temporary files `.NAME.PROCESS.NUMBER`; nothing else of
/// ours has a dot first.
fn remove_temporaries(dir: &PrivateDir) -> Result<(), IdentityError> {
    remove_starting_with(dir, ".")
}

fn remove_starting_with(dir: &PrivateDir, start: &str) -> Result<(), IdentityError> {
    for name in dir.entries()? {
        let mut parts = name.rsplit('.');
        let numbers = [parts.next(), parts.next()]
            .into_iter()
            .flatten()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        if name.starts_with(start) && numbers {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// The content of a file; none if it is not there.
pub(crate) fn read(
    dir: &PrivateDir,
    name: &str,
    limit_bytes: u64,
    strictness: Strictness,
) -> Result<Option<Vec<u8>>, PrivateFsError> {
    match dir.read_strict(name, limit_bytes, strictness) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn there(tls: &PrivateDir, name: &str) -> Result<Option<PrivateDir>, IdentityError> {
    match PrivateDir::open(tls.path().join(name)) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
