//! A home of its own, and files that others made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pythond_identity::{Certificate, Overlap, Store, UnixTime};

/// Made by openssl: not an authority's.
pub(crate) const RSA_CERTIFICATE: &str = include_str!("made/rsa-cert.pem");
/// Its key. It was made for this test and opens nothing.
pub(crate) const RSA_KEY: &str = include_str!("made/rsa-key.pem");
/// Made by openssl: basic constraints say that it is an authority's.
pub(crate) const AUTHORITY: &str = include_str!("made/authority.pem");
/// Made by openssl: only the use of its key says so.
pub(crate) const SIGNER: &str = include_str!("made/signer.pem");

/// A home directory that goes with its value.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path()).unwrap()
    }

    /// A path below `~/.pythond/tls`.
    pub(crate) fn tls(&self, name: &str) -> PathBuf {
        self.path().join(".pythond/tls").join(name)
    }

    /// Files of `~/.pythond/tls`, sorted.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.tls("."))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// A time in 2027; no test asks the clock.
pub(crate) fn now() -> UnixTime {
    at(1_800_000_000)
}

/// The certificate of some machine, from this time on.
pub(crate) fn certificate_from(time: UnixTime) -> Certificate {
    let home = Home::new();
    let (_, own) = home.store().rotate(Overlap::None, time).unwrap();
    own.pair.certificate.clone()
}

pub(crate) fn certificate() -> Certificate {
    certificate_from(now())
}

/// Writes a file as somebody else would, with mode 0600.
#[expect(clippy::disallowed_methods, reason = "these files are planted")]
pub(crate) fn replace(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
