//! Which Python environment a session gets, and the key that tells
//! environments apart. No processes are made here.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// One Python environment to start hosts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Environment {
    /// The interpreter as given: a real path would lose the venv.
    pub(crate) python: String,
    /// Why this one, in words.
    pub(crate) reason: String,
    /// Modules to import beforehand.
    pub(crate) preload: Vec<String>,
    /// The variables of the session.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Why no interpreter can be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    /// There is none on the daemon's `PATH`.
    #[error("no `python3` on the daemon's PATH")]
    NoDefault,
    /// The path leads nowhere.
    #[error("no interpreter at `{path}`: {}", plain_words(.source))]
    Missing {
        /// As given.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no program.
    #[error("`{path}` is not executable")]
    NotExecutable {
        /// As given.
        path: String,
    },
}

/// An error of the system without its number.
pub(crate) fn plain_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = words.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(characters).collect()
    })
}

/// The first `python3` on a `PATH`.
///
/// # Errors
/// [`EnvironmentError::NoDefault`].
pub(crate) fn default_python(path: &OsStr) -> Result<String, EnvironmentError> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("python3"))
        .find(|candidate| is_executable(candidate))
        .and_then(|found| found.into_os_string().into_string().ok())
        .ok_or(EnvironmentError::NoDefault)
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Says at once what a start would only say after a while.
///
/// # Errors
/// [`EnvironmentError`].
pub(crate) fn check_python(path: &str) -> Result<(), EnvironmentError> {
    std::fs::metadata(path).map_err(|source| EnvironmentError::Missing {
        path: path.to_owned(),
        source,
    })?;
    if is_executable(Path::new(path)) {
        Ok(())
    } else {
        Err(EnvironmentError::NotExecutable {
            path: path.to_owned(),
        })
    }
}

/// Variables that a zygote has from its start, so that sessions which differ
/// in them cannot share one.
fn is_relevant(name: &str) -> bool {
    name.starts_with("PYTHON")
        || name.starts_with("LD_")
        || name.starts_with("LC_")
        || name.ends_with("_NUM_THREADS")
        || matches!(name, "LANG" | "TZ" | "HOME")
}

/// What identifies files on which an environment's meaning stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FileMark {
    path: PathBuf,
    found: Option<(u64, u64, i64, i64)>,
}

impl FileMark {
    /// Device, inode and time of change of a file, if it is there.
    pub(crate) fn of(path: PathBuf) -> Self {
        let found = std::fs::metadata(&path)
            .ok()
            .map(|found| (found.dev(), found.ino(), found.mtime(), found.mtime_nsec()));
        Self { path, found }
    }
}

impl Environment {
    /// 16 hex digits that are the same exactly for sessions that can come from
    /// the same zygote. `build` marks the host program and library.
    pub(crate) fn key(&self, build: &[FileMark]) -> String {
        let python = Path::new(&self.python);
        let beside = python.parent();
        let configurations = [beside, beside.and_then(Path::parent)]
            .into_iter()
            .flatten();
        let mut marks = vec![FileMark::of(python.to_owned())];
        marks.extend(configurations.map(|directory| FileMark::of(directory.join("pyvenv.cfg"))));
        let mut preload = self.preload.clone();
        preload.sort();
        preload.dedup();
        let relevant: BTreeMap<_, _> = self
            .variables
            .iter()
            .filter(|(name, _)| is_relevant(name))
            .collect();
        // Debug text is unambiguous (strings are quoted), and nobody but a
        // daemon of the same build compares keys: the build is part of them.
        let text = format!("{marks:?}{build:?}{preload:?}{relevant:?}");
        format!("{:016x}", fnv1a(text.as_bytes()))
    }
}

/// FNV-1a, 64 bits: stable over versions of Rust, unlike the hasher of std.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(python: &str, preload: &[&str], variables: &[(&str, &str)]) -> Environment {
        Environment {
            python: python.to_owned(),
            reason: String::new(),
            preload: preload.iter().map(|&module| module.to_owned()).collect(),
            variables: variables
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    #[test]
    fn the_key_changes_with_what_matters_and_nothing_else() {
        let key = |preload: &[&str], variables: &[(&str, &str)]| {
            environment("/x/bin/python", preload, variables).key(&[])
        };
        let plain = key(&[], &[]);
        assert_eq!(plain.len(), 16);
        assert_eq!(plain, key(&[], &[("EDITOR", "vi")]));
        assert_ne!(plain, key(&[], &[("PYTHONPATH", "/p")]));
        assert_ne!(plain, key(&[], &[("OMP_NUM_THREADS", "2")]));
        assert_ne!(plain, key(&[], &[("LC_ALL", "C")]));
        assert_eq!(key(&["a", "b"], &[]), key(&["b", "a", "a"], &[]));
        assert_ne!(plain, key(&["a"], &[]));
        assert_ne!(plain, environment("/y/bin/python", &[], &[]).key(&[]));
    }

    #[test]
    fn a_venv_that_is_made_again_has_another_key() {
        let root = tempfile::tempdir().unwrap();
        let python = root.path().join("bin/python");
        std::fs::create_dir(root.path().join("bin")).unwrap();
        let environment = environment(python.to_str().unwrap(), &[], &[]);
        let before = environment.key(&[]);
        std::fs::File::create(root.path().join("pyvenv.cfg")).unwrap();
        assert_ne!(before, environment.key(&[]));
    }

    #[test]
    fn the_default_is_the_first_executable_on_the_path() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::File::create(root.path().join(name).join("python3")).unwrap();
        }
        let path = std::env::join_paths(["a", "b"].map(|name| root.path().join(name))).unwrap();
        assert!(matches!(
            default_python(&path),
            Err(EnvironmentError::NoDefault)
        ));
        let second = root.path().join("b/python3");
        std::fs::set_permissions(&second, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(default_python(&path).unwrap(), second.to_str().unwrap());
    }
}
