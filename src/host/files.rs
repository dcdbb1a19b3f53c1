//! The session's directory, opened anew each time it is needed: main and I/O
//! thread have descriptor tables of their own, and a cell may close whatever it
//! finds in its own.

use std::path::Path;

use pythond_private_fs::{PrivateDir, PrivateFsError};

/// Opens `~/.pythond/sessions/NAME`, making what is missing.
///
/// # Errors
/// [`PrivateFsError`] if it or one of the two directories above it, which are
/// ours as well, is not the user's alone.
pub(crate) fn session_directory(path: &Path) -> Result<PrivateDir, PrivateFsError> {
    let sessions = path.parent();
    for ours in [sessions.and_then(Path::parent), sessions]
        .into_iter()
        .flatten()
    {
        PrivateDir::open_or_create(ours)?;
    }
    PrivateDir::open_or_create(path)
}
