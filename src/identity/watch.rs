//! Whether anything has changed since somebody looked.

use std::path::{Path, PathBuf};

use pythond_private_fs::{DirStamp, EntryStamp, PrivateDir};

use crate::IdentityError;
use crate::store::Store;

/// Looks at the files' stamps and reads none of them; about ten system calls and
/// one for each file. Ask it as often as a change is to be noticed. An announced
/// certificate takes over without a change: see [`crate::Announced::used_from`].
#[derive(Debug)]
pub struct Watch {
    home: PathBuf,
    /// None if they could not be looked at.
    last: Option<Look>,
    again: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Look {
    token: Option<EntryStamp>,
    tls: DirStamp,
    trusted: [Option<DirStamp>; 2],
}

impl Watch {
    /// The first look finds a change.
    #[must_use]
    pub fn new(home: &Path) -> Self {
        Self {
            home: home.to_owned(),
            last: None,
            again: true,
        }
    }

    /// True if something has changed since the last look: ask the [`Store`] again.
    /// True once more after that, for what is written twice within one tick of a
    /// file system's clock looks the same; and always while there is nothing that
    /// can be looked at.
    pub fn changed(&mut self) -> bool {
        let now = self.look().ok();
        let differs = now.is_none() || now != self.last;
        let changed = differs || self.again;
        self.again = differs;
        self.last = now;
        changed
    }

    /// By the path and not by held directories: those may be replaced too. The
    /// directory above has the token, and also all sessions: only the token counts.
    fn look(&self) -> Result<Look, IdentityError> {
        let store = Store::open(&self.home)?;
        let [clients, servers] = store.trusted_dirs()?;
        let stamp = |dir: Option<PrivateDir>| dir.map(|dir| dir.stamp()).transpose();
        Ok(Look {
            token: store.root.stamp()?.only(crate::token::FILE),
            tls: store.tls.stamp()?,
            trusted: [stamp(clients)?, stamp(servers)?],
        })
    }
}
