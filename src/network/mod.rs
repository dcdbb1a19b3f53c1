//! What is needed to let other machines in: where is listened, by which keys
//! clients are let in, and how wrong ones are slowed down. Accepts nobody itself.

pub(crate) mod keys;
pub mod listen;
pub(crate) mod pairing;
pub(crate) mod penalties;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pythond_tls::server::{KeysError, ServerKeys};

use self::keys::Keys;
use self::pairing::Pairing;
use self::penalties::Penalties;
use crate::log::Log;

/// What all connections from networks have in common.
pub(crate) struct Network {
    pub(crate) keys: Keys,
    pub(crate) penalties: Penalties,
    /// The code by which a client may be let in that is not trusted yet.
    pub(crate) pairing: Arc<Pairing>,
}

impl Network {
    /// Begins with what was read below this home.
    pub(crate) fn new(home: PathBuf, read: Result<ServerKeys, KeysError>, log: Log) -> Arc<Self> {
        Arc::new(Self {
            keys: Keys::new(home, read, log),
            penalties: Penalties::default(),
            pairing: Arc::default(),
        })
    }
}

/// Prints what a client has to know: the token, and by which certificate it knows
/// us.
///
/// # Errors
/// [`KeysError`].
pub fn print_secrets(home: &Path) -> Result<(), KeysError> {
    let keys = keys::read(home)?;
    let (token, certificate) = (keys.token().reveal(), keys.certificate());
    // A reader that has gone away did not want it.
    let _ = writeln!(
        std::io::stdout(),
        "token={token}\nfingerprint={certificate}"
    );
    Ok(())
}
