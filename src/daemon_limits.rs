//! The limits of a daemon: each has a default, a setting in the configuration
//! file, and a variable that wins over it.

use pythond_protocol::limits::{CellLimits, KeptBudget, parse_size};

use pythond_protocol::verbs::events::KEPT_EVENTS;

use crate::config::ConfigError;
use crate::settings::{Settings, Size};

/// All limits, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaemonLimits {
    /// Most live sessions.
    pub sessions: usize,
    /// Most connections.
    pub connections: usize,
    /// Greatest body of a message, in bytes.
    pub message: usize,
    /// Greatest answer that is taken of a remote daemon, in bytes.
    pub remote_answer: usize,
    /// Most requests of one connection that are carried out at once.
    pub in_flight: usize,
    /// Most events that can be replayed.
    pub events: usize,
    /// Greatest size of a log file, in bytes.
    pub log: u64,
    /// Most bytes that may come back from a `fork` cell, if it is set.
    pub fork_result: Option<u64>,
    /// Most cells of a session.
    pub cells: CellLimits,
    /// How much sessions keep of finished cells.
    pub kept: KeptBudget,
}

impl DaemonLimits {
    /// Takes each from its variable, else from the file, else its default.
    ///
    /// # Errors
    /// [`ConfigError::Number`] about the first that makes no sense.
    pub fn read(
        settings: &Settings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let limit = |name: &'static str, set, default, least: u64, most: u64| {
            let (name, value) = match (variable(name), set) {
                (Some(text), _) => (name.to_owned(), parse_size(&text).map_err(|_| text)),
                (None, Some((setting, value))) => (format!("`{setting}`"), Ok(value)),
                (None, None) => return Ok(default),
            };
            match value {
                Ok(value) if (least..=most).contains(&value) => Ok(value),
                Ok(value) => Err((name, value.to_string())),
                Err(text) => Err((name, text.trim().to_owned())),
            }
            .map_err(|(name, value)| ConfigError::Number {
                name,
                value,
                least,
                most,
            })
        };
        let count = |name, setting, set: Option<u64>, default, least, most| {
            let found = limit(name, set.map(|it| (setting, it)), default, least, most)?;
            Ok::<_, ConfigError>(usize::try_from(found).unwrap_or(usize::MAX))
        };
        let bytes = |name, setting, set: Option<Size>, default, least, most| {
            limit(name, set.map(|it| (setting, it.0)), default, least, most)
        };
        let set = &settings.limits;
        let records = &settings.records;
        let (cells, kept) = (CellLimits::default(), KeptBudget::default());
        let message = bytes(
            "PYTHOND_MAX_WS_PAYLOAD",
            "limits.message",
            set.message,
            16 << 20,
            1 << 10,
            1 << 29,
        )?;
        // A piece of output is smaller, however it is escaped: `out` always can tell it.
        let remote_answer = bytes(
            "PYTHOND_MAX_REMOTE_ANSWER",
            "limits.remote_answer",
            set.remote_answer,
            1 << 30,
            8 << 20,
            1 << 40,
        )?;
        // The default is the session's own.
        let fork_result = bytes(
            "PYTHOND_MAX_FORK_RESULT",
            "limits.fork_result_bytes",
            set.fork_result_bytes,
            u64::MAX,
            0,
            1 << 62,
        )?;
        let cell_count = |name, setting, set: Option<u64>, default, most| {
            limit(name, set.map(|it| (setting, it)), default, 1, most)
        };
        Ok(Self {
            sessions: count(
                "PYTHOND_MAX_SESSIONS",
                "limits.sessions",
                set.sessions,
                1024,
                1,
                1 << 16,
            )?,
            connections: count(
                "PYTHOND_MAX_CONNECTIONS",
                "limits.connections",
                set.connections,
                4096,
                2,
                1 << 16,
            )?,
            message: usize::try_from(message).unwrap_or(usize::MAX),
            remote_answer: usize::try_from(remote_answer).unwrap_or(usize::MAX),
            in_flight: count(
                "PYTHOND_MAX_IN_FLIGHT",
                "limits.in_flight",
                set.in_flight,
                1024,
                1,
                1 << 16,
            )?,
            events: count(
                "PYTHOND_MAX_EVENTS",
                "limits.events",
                set.events,
                KEPT_EVENTS as u64,
                1,
                1 << 20,
            )?,
            log: bytes(
                "PYTHOND_MAX_LOG",
                "limits.log",
                set.log,
                16 << 20,
                64 << 10,
                1 << 40,
            )?,
            fork_result: Some(fork_result).filter(|most| *most < u64::MAX),
            cells: CellLimits {
                queued: cell_count(
                    "PYTHOND_MAX_QUEUED_CELLS",
                    "limits.queued_cells",
                    set.queued_cells,
                    cells.queued,
                    1 << 20,
                )?,
                fires: cell_count(
                    "PYTHOND_MAX_FIRE_CELLS",
                    "limits.fire_cells",
                    set.fire_cells,
                    cells.fires,
                    1 << 14,
                )?,
                // A session's journal has room for so many.
                forks: cell_count(
                    "PYTHOND_MAX_FORK_CELLS",
                    "limits.fork_cells",
                    set.fork_cells,
                    cells.forks,
                    cells.forks,
                )?,
            },
            kept: KeptBudget {
                cells: cell_count(
                    "PYTHOND_MAX_KEPT_CELLS",
                    "records.cells",
                    records.cells,
                    kept.cells,
                    1 << 30,
                )?,
                memory_bytes: bytes(
                    "PYTHOND_MAX_KEPT_MEMORY",
                    "records.memory",
                    records.memory,
                    kept.memory_bytes,
                    1 << 20,
                    1 << 50,
                )?,
                file_bytes: bytes(
                    "PYTHOND_MAX_KEPT_FILES",
                    "records.files",
                    records.files,
                    kept.file_bytes,
                    16 << 20,
                    1 << 60,
                )?,
                cell_file_bytes: bytes(
                    "PYTHOND_MAX_CELL_FILES",
                    "records.cell_files",
                    records.cell_files,
                    kept.cell_file_bytes,
                    16 << 20,
                    1 << 60,
                )?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<DaemonLimits, String> {
        let settings: Settings = toml::from_str(text).unwrap();
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        DaemonLimits::read(&settings, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn a_variable_wins_over_the_file_and_the_file_over_the_default() {
        let limits = read("", &[]).unwrap();
        assert_eq!((limits.sessions, limits.message), (1024, 16 << 20));
        assert_eq!((limits.fork_result, limits.cells.forks), (None, 100));
        let text = "[limits]\nsessions = 7\nmessage = \"1M\"\nfork_cells = 5";
        let limits = read(text, &[]).unwrap();
        assert_eq!((limits.sessions, limits.message), (7, 1 << 20));
        assert_eq!(limits.cells.forks, 5);
        let limits = read(text, &[("PYTHOND_MAX_SESSIONS", "8")]).unwrap();
        assert_eq!((limits.sessions, limits.message), (8, 1 << 20));
        let limits = read("", &[("PYTHOND_MAX_LOG", "1M")]).unwrap();
        assert_eq!(limits.log, 1 << 20);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let told = "PYTHOND_MAX_SESSIONS is `many`, and should be from 1 to 65536";
        let variables = [("PYTHOND_MAX_SESSIONS", "many")];
        assert_eq!(read("", &variables).unwrap_err(), told);
        let told = "`limits.fork_cells` is `101`, and should be from 1 to 100";
        assert_eq!(read("[limits]\nfork_cells = 101", &[]).unwrap_err(), told);
        for text in ["[records]\ncells = 0", "[records]\ncell_files = \"1M\""] {
            assert!(read(text, &[]).is_err(), "{text}");
        }
    }
}
