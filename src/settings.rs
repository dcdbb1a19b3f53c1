//! The configuration file: what a user sets once and for all. Variables of the
//! environment win over it.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pythond_protocol::limits::{self, BadSize, SessionLimits};
use serde::Deserialize;

/// Greatest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Everything that can be set. What is unknown is refused: a misspelt setting
/// must not be silently without effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Habits of older versions.
    pub compat: Compat,
    /// Limits of the daemon.
    pub limits: Limits,
    /// What a session may use that does not say so itself.
    pub session: Session,
    /// How much sessions keep of finished cells.
    pub records: Records,
}

/// Habits of older versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compat {
    /// `new` on a live name replaces it, as pythond 0.4 did.
    pub new_replaces: bool,
}

/// Limits of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most live sessions.
    pub sessions: Option<u64>,
    /// Most connections.
    pub connections: Option<u64>,
    /// Greatest message.
    pub message: Option<Size>,
    /// Greatest answer of a remote daemon.
    pub remote_answer: Option<Size>,
    /// Most requests of one connection that are carried out at once.
    pub in_flight: Option<u64>,
    /// Most events that can be replayed.
    pub events: Option<u64>,
    /// Greatest log file.
    pub log: Option<Size>,
    /// Most bytes that may come back from a `fork` cell.
    pub fork_result_bytes: Option<Size>,
    /// Most cells of a session that wait.
    pub queued_cells: Option<u64>,
    /// Most `fire` cells of a session that run.
    pub fire_cells: Option<u64>,
    /// Most `fork` cells of a session that run.
    pub fork_cells: Option<u64>,
}

/// What a session may use that does not say so itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// Memory of each of its processes.
    pub memory: Option<Size>,
    /// Processes and threads.
    pub procs: Option<u64>,
    /// Open files of each of its processes.
    pub nofile: Option<u64>,
    /// Processor time of each of its processes, in seconds.
    pub cpu: Option<u64>,
    /// Share of the processors against other sessions.
    pub cpu_weight: Option<u64>,
}

impl Session {
    /// The same in the words of the wire.
    #[must_use]
    pub fn limits(&self) -> SessionLimits {
        SessionLimits {
            memory_bytes: self.memory.map(|size| size.0),
            procs: self.procs,
            nofile: self.nofile,
            cpu_s: self.cpu,
            cpu_weight: self.cpu_weight,
        }
    }
}

/// How much sessions keep of finished cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// Finished cells.
    pub cells: Option<u64>,
    /// Memory of all of them.
    pub memory: Option<Size>,
    /// Files of all of them.
    pub files: Option<Size>,
    /// Files of one cell, also while it runs.
    pub cell_files: Option<Size>,
}

/// A number of bytes: `"2G"`, or `2147483648`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeAsWritten")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a size is a number of bytes, or a text such as \"2G\""
)]
enum SizeAsWritten {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeAsWritten> for Size {
    type Error = BadSize;

    fn try_from(written: SizeAsWritten) -> Result<Self, BadSize> {
        match written {
            SizeAsWritten::Bytes(bytes) => Ok(Self(bytes)),
            SizeAsWritten::Text(text) => limits::parse_size(&text).map(Self),
        }
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("cannot read the configuration file `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else may write it.
    #[error("the configuration file `{0}` belongs to or can be written by somebody else")]
    Unsafe(PathBuf),
    /// It says something that is not understood.
    #[error("the configuration file `{path}` is not understood: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where and why, in one line.
        reason: String,
    },
}

impl Settings {
    /// Reads the file; none is as good as an empty one.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let failed = |source| SettingsError::Read {
            path: path.to_owned(),
            source,
        };
        let opened = std::fs::File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let file = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            opened => opened.map_err(failed)?,
        };
        let about = file.metadata().map_err(failed)?;
        let me = rustix::process::geteuid().as_raw();
        let trusted = about.uid() == me || about.uid() == 0;
        if !about.is_file() || !trusted || about.mode() & 0o022 != 0 {
            return Err(SettingsError::Unsafe(path.to_owned()));
        }
        let not_understood = |reason| SettingsError::Content {
            path: path.to_owned(),
            reason,
        };
        let mut text = String::new();
        let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
        if read.map_err(failed)? as u64 > MAX_FILE {
            return Err(not_understood("it has more than 1 MiB".to_owned()));
        }
        Self::parse(&text).map_err(not_understood)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().map_or(0, |span| span.start);
            let breaks = text.bytes().take(before).filter(|byte| *byte == b'\n');
            let line = breaks.count() + 1;
            format!("line {line}: {}", error.message())
        })?;
        settings.session.limits().check()?;
        Ok(settings)
    }
}

/// `$XDG_CONFIG_HOME/pythond/config.toml`, else `~/.config/pythond/config.toml`.
#[must_use]
pub fn place(config_home: Option<PathBuf>, home: &Path) -> PathBuf {
    config_home
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| home.join(".config"))
        .join("pythond/config.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_known_and_what_is_not_is_refused() {
        assert_eq!(Settings::parse(""), Ok(Settings::default()));
        let set = Settings::parse(
            "[compat]\nnew_replaces = true\n[limits]\nsessions = 7\nfork_result_bytes = 9",
        )
        .unwrap();
        assert!(set.compat.new_replaces);
        assert_eq!(set.limits.sessions, Some(7));
        assert_eq!(set.limits.fork_result_bytes, Some(Size(9)));
        for (text, line) in [
            ("[compat]\nnew_replace = true", "line 2"),
            ("x = ", "line 1"),
        ] {
            let error = Settings::parse(text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn limits_of_sessions_are_sizes_and_numbers() {
        let set = Settings::parse("[session]\nmemory = \"2G\"\nnofile = 256\ncpu = 10").unwrap();
        let limits = set.session.limits();
        assert_eq!(limits.memory_bytes, Some(2 << 30));
        assert_eq!(
            (limits.nofile, limits.cpu_s, limits.procs),
            (Some(256), Some(10), None)
        );
        for text in [
            "[session]\nmemory = \"2X\"",
            "[session]\nmemory = true",
            "[session]\nmemory = 5",
            "[session]\nnofile = 1",
            "[session]\nmem = 1",
        ] {
            assert!(Settings::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        assert_eq!(Settings::read(&path).unwrap(), Settings::default());
        std::fs::File::create(&path).unwrap();
        assert!(Settings::read(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(
            Settings::read(&path),
            Err(SettingsError::Unsafe(_))
        ));
    }
}
