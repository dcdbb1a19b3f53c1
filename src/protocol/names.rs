//! Names that cross the wire, checked when they are made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Greatest length of a session name, in bytes (and characters: all are ASCII).
pub const MAX_SESSION_NAME: usize = 80;

/// Names that Windows reserves for devices. They are refused everywhere, so
/// that a session's directory can be copied to any system.
const DEVICE_NAMES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// The name of a session: 1 to 80 characters of `a-z 0-9 _ -`, no Windows
/// device name. Safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionName(String);

/// What names have, in words.
const ALLOWED: &str = "1 to 80 characters of a-z, 0-9, _ and -, and no device name of Windows";

/// A text that is no session name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session name is {ALLOWED}")]
pub struct InvalidSessionName;

/// A text that is neither a session's name nor REMOTE/SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSessionPath {
    /// What stands before the `/`, or all of a remote's name.
    #[error("a remote name is {ALLOWED}")]
    Remote,
    /// What stands after it, or all of a session's name.
    #[error("{InvalidSessionName}")]
    Session,
}

/// The name of a remote, which has the form of a session's.
///
/// # Errors
/// [`InvalidSessionPath::Remote`].
pub fn remote_name(text: &str) -> Result<SessionName, InvalidSessionPath> {
    text.parse().map_err(|_| InvalidSessionPath::Remote)
}

impl SessionName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionName {
    type Err = InvalidSessionName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length_ok = (1..=MAX_SESSION_NAME).contains(&text.len());
        let characters_ok = text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if length_ok && characters_ok && !is_device_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSessionName)
        }
    }
}

fn is_device_name(text: &str) -> bool {
    let numbered = |prefix: &str| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 1 && rest.as_bytes()[0].is_ascii_digit())
    };
    DEVICE_NAMES.contains(&text) || numbered("com") || numbered("lpt")
}

impl TryFrom<String> for SessionName {
    type Error = InvalidSessionName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionName> for String {
    fn from(name: SessionName) -> Self {
        name.0
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Which session: one of the daemon that is asked, or `REMOTE/SESSION`, one of a
/// remote daemon that it knows by a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionPath {
    /// The name of the remote daemon.
    pub remote: Option<SessionName>,
    /// The session there, or here. Alone it may also be a remote's name.
    pub session: SessionName,
}

impl FromStr for SessionPath {
    type Err = InvalidSessionPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (remote, session) = match text.split_once('/') {
            Some((remote, session)) => (Some(remote_name(remote)?), session),
            None => (None, text),
        };
        let session = session.parse().map_err(|_| InvalidSessionPath::Session)?;
        Ok(Self { remote, session })
    }
}

impl From<SessionName> for SessionPath {
    fn from(session: SessionName) -> Self {
        let remote = None;
        Self { remote, session }
    }
}

impl fmt::Display for SessionPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remote) = &self.remote {
            write!(formatter, "{remote}/")?;
        }
        self.session.fmt(formatter)
    }
}

/// Names one cell, that is one execution. Unique within a session for ever,
/// made by the host; 12 lower-case hex digits on the wire.
///
/// The upper 16 bits are the host process's salt, the lower 32 its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CellId(u64);

/// A text that is no cell id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cell id: 12 hex digits are expected")]
pub struct InvalidCellId;

impl CellId {
    /// The id of the cell `counter` of a host process with this `salt`.
    #[must_use]
    pub fn from_parts(salt: u16, counter: u32) -> Self {
        Self((u64::from(salt) << 32) | u64::from(counter))
    }

    /// The id of the cell of the same host process that is counted next.
    #[must_use]
    pub fn next(self) -> Self {
        let counters = u64::from(u32::MAX);
        Self(self.0 & !counters | (self.0 + 1) & counters)
    }

    /// The id as a number below 2^48, for records.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The id of a record; none if the number does not fit 48 bits.
    #[must_use]
    pub fn from_u64(number: u64) -> Option<Self> {
        (number < 1 << 48).then_some(Self(number))
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:012x}", self.0)
    }
}

impl FromStr for CellId {
    type Err = InvalidCellId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.len() == 12
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(InvalidCellId);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| InvalidCellId)
    }
}

impl TryFrom<String> for CellId {
    type Error = InvalidCellId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CellId> for String {
    fn from(id: CellId) -> Self {
        id.to_string()
    }
}

/// Tells sessions of one name apart over time: 16 lower-case hex digits, drawn
/// by the daemon when a session is created.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(String);

impl SessionId {
    /// An id from 8 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(bytes)))
    }

    /// That of a session whose daemon does not tell it: empty.
    #[must_use]
    pub fn unknown() -> Self {
        Self(String::new())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_names_follow_the_promise() {
        for good in [
            "work", "a", "0", "_", "-", "gpu-1_b", "com", "com10", "lpt", "console",
        ] {
            assert!(good.parse::<SessionName>().is_ok(), "{good}");
        }
        assert!("a".repeat(80).parse::<SessionName>().is_ok());
        for bad in [
            "", "Work", "a.b", "a/b", "..", "a b", "é", "con", "prn", "aux", "nul", "com1", "com0",
            "lpt9", "a\n", "\0",
        ] {
            assert!(bad.parse::<SessionName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(81).parse::<SessionName>().is_err());
    }

    #[test]
    fn cell_ids_are_twelve_hex_digits_both_ways() {
        let id = CellId::from_parts(0xab, 7);
        assert_eq!(id.to_string(), "00ab00000007");
        assert_eq!("00ab00000007".parse(), Ok(id));
        for bad in ["", "00ab0000000", "00AB00000007", "00ab000000077", "zz"] {
            assert_eq!(bad.parse::<CellId>(), Err(InvalidCellId), "{bad:?}");
        }
        assert_eq!(CellId::from_u64(1 << 48), None);
    }
}
