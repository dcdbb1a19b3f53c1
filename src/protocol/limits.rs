//! What one session may use: as it is asked for, as it is in force, in words.

use serde::{Deserialize, Serialize};

/// Least memory that a session can be limited to, in bytes.
pub const LEAST_MEMORY: u64 = 64 << 20;
/// Fewest open files that a session can be limited to.
pub const LEAST_NOFILE: u64 = 64;
/// Greatest share of the processors.
const MOST_WEIGHT: u64 = 10_000;
/// Greatest limit: the kernel takes greater ones for none.
const MOST: u64 = 1 << 62;

/// Limits of one session. One that is left out is the daemon's default; 0 means
/// no limit, whatever the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SessionLimits {
    /// Memory of its own that each process of the session may have, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads of the session, all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub procs: Option<u64>,
    /// Files that each process of the session may have open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// Processor time that each process of the session may use, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<u64>,
    /// Share of the processors against other sessions, 1 to 10000; 100 is that of
    /// one without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u64>,
}

/// The names of [`SessionLimits`]' fields.
pub const FIELDS: [&str; 5] = ["memory_bytes", "procs", "nofile", "cpu_s", "cpu_weight"];

impl SessionLimits {
    /// Nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// These limits, and for what they leave open the defaults.
    #[must_use]
    pub fn over(self, defaults: Self) -> Self {
        let pick = |mine: Option<u64>, default: Option<u64>| mine.or(default).filter(|it| *it > 0);
        Self {
            memory_bytes: pick(self.memory_bytes, defaults.memory_bytes),
            procs: pick(self.procs, defaults.procs),
            nofile: pick(self.nofile, defaults.nofile),
            cpu_s: pick(self.cpu_s, defaults.cpu_s),
            cpu_weight: pick(self.cpu_weight, defaults.cpu_weight),
        }
    }

    /// Refuses what no session can live with.
    ///
    /// # Errors
    /// One line that says which limit and what is the least.
    pub fn check(&self) -> Result<(), String> {
        let least = [
            ("memory_bytes", self.memory_bytes, LEAST_MEMORY),
            ("procs", self.procs, 1),
            ("nofile", self.nofile, LEAST_NOFILE),
            ("cpu_s", self.cpu_s, 1),
            ("cpu_weight", self.cpu_weight, 1),
        ];
        for (name, value, least) in least {
            match value.filter(|value| *value > 0) {
                Some(value) if value < least => {
                    return Err(format!(
                        "the limit `{name}` is {value}, and a session needs at least {least}"
                    ));
                }
                Some(value) if value > MOST || (name == "cpu_weight" && value > MOST_WEIGHT) => {
                    return Err(format!("the limit `{name}` is {value}, which is too much"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// How much a session keeps of finished cells: their ends and their output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct KeptBudget {
    /// Finished cells.
    pub cells: u64,
    /// Memory of all of them, in bytes.
    pub memory_bytes: u64,
    /// Files of all of them, in bytes.
    pub file_bytes: u64,
    /// Files of one cell, also while it runs, in bytes.
    pub cell_file_bytes: u64,
}

impl Default for KeptBudget {
    fn default() -> Self {
        Self {
            cells: 1000,
            memory_bytes: 16 << 20,
            file_bytes: 1 << 30,
            cell_file_bytes: 256 << 20,
        }
    }
}

/// How many cells a session takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CellLimits {
    /// Cells that wait.
    pub queued: u64,
    /// `fire` cells that run.
    pub fires: u64,
    /// `fork` cells that run.
    pub forks: u64,
}

impl Default for CellLimits {
    fn default() -> Self {
        Self {
            queued: 10_000,
            fires: 1000,
            forks: 100,
        }
    }
}

/// What a session keeps of finished cells now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Kept {
    /// Finished cells.
    pub cells: u64,
    /// Memory of all of them, in bytes.
    pub memory_bytes: u64,
    /// Files of all of them, in bytes.
    pub file_bytes: u64,
    /// Finished cells that are not kept any more.
    pub forgotten: u64,
    /// What is kept at most.
    pub budget: KeptBudget,
}

/// Who sees to it that a session keeps its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EnforcedBy {
    /// Limits of each process (setrlimit(2)).
    Rlimit,
    /// A control group of the session (cgroups(7)), beside limits of each process.
    Cgroup,
}

/// The limits that a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LimitsInForce {
    /// What they are.
    #[serde(flatten)]
    pub limits: SessionLimits,
    /// Who sees to them.
    pub enforced_by: EnforcedBy,
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size is a number of bytes, or a number with K, M, G or T (times 1024), not `{0}`")]
pub struct BadSize(String);

/// Bytes from a text such as `2G`, `1.5 GiB`, `512m` or `1048576`.
///
/// # Errors
/// [`BadSize`].
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let bad = || {
        BadSize(
            text.chars()
                .take(40)
                .filter(|it| !it.is_control())
                .collect(),
        )
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|it: char| !it.is_ascii_digit() && it != '.');
    let (number, unit) = trimmed.split_at(digits.unwrap_or(trimmed.len()));
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // More digits than that are less than a byte.
    if whole.is_empty() || fraction.len() > 12 || (number.contains('.') && fraction.is_empty()) {
        return Err(bad());
    }
    let unit = 1_u128 << shift;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part: u128 = match fraction {
        "" => 0,
        digits => digits.parse().map_err(|_| bad())?,
    };
    u64::try_from(u128::from(whole) * unit + part * unit / scale).map_err(|_| bad())
}

/// A number of bytes for people: `2 GiB`, `1.5 MiB`, `100 bytes`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((name, shift)) = units.into_iter().find(|(_, shift)| bytes >= 1 << shift) else {
        return format!("{bytes} bytes");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        rest => format!("{}.{rest} {name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_the_usual_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("512MiB", 512 << 20),
            ("512 mb", 512 << 20),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("1T", 1 << 40),
            (" 7b ", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.",
            ".5G",
            "2X",
            "2GG",
            "1e9",
            "0x10",
            "1,5G",
            "2 G G",
            "99999999999T",
            "1.0000000000001G",
            "1.2.3",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_wins_and_zero_means_no_limit() {
        let defaults = SessionLimits {
            memory_bytes: Some(1 << 30),
            nofile: Some(100),
            ..SessionLimits::default()
        };
        let asked = SessionLimits {
            memory_bytes: Some(0),
            cpu_s: Some(5),
            ..SessionLimits::default()
        };
        let merged = asked.over(defaults);
        assert_eq!(merged.memory_bytes, None);
        assert_eq!(merged.nofile, Some(100));
        assert_eq!(merged.cpu_s, Some(5));
        assert!(asked.check().is_ok());
    }

    #[test]
    fn too_little_is_refused_by_name() {
        let few = SessionLimits {
            nofile: Some(10),
            ..SessionLimits::default()
        };
        let told = "the limit `nofile` is 10, and a session needs at least 64";
        assert_eq!(few.check().unwrap_err(), told);
        let much = SessionLimits {
            cpu_s: Some(u64::MAX),
            ..SessionLimits::default()
        };
        assert!(much.check().is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn whole_numbers_come_back(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
            prop_assert!(!size_text(bytes).is_empty());
        }
    }
}
