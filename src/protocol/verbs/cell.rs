//! A cell as clients see it: the structured answer to `run` and `poll`, one
//! line of `cells`.

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::{CellKind, CellStatus, ExceptionInfo, MergeReport};
use crate::{ErrorCode, Fate};

/// The structured answer to `run` and `poll`: a cell as it is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CellReply {
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session: changes when its state is new.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The cell. None if it was never accepted.
    pub cell_id: Option<CellId>,
    /// Kind of cell.
    pub kind: CellKind,
    /// Where it is in its life.
    pub status: CellStatus,
    /// True exactly if `status` is `done`.
    pub ok: bool,
    /// What was written to standard output, the shown value included.
    pub stdout: Text,
    /// What was written to standard error.
    pub stderr: Text,
    /// Both streams in the order of arrival as `[stream, bytes]` runs;
    /// only if they alternate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<(u8, u64)>,
    /// The value of the last expression as it is shown; none for `None` and
    /// for statements.
    pub result: Option<String>,
    /// The exception, or what happened to the session.
    pub error: Option<CellError>,
    /// When it started: RFC 3339, UTC, microseconds.
    pub started_at: Option<String>,
    /// How long it ran, in milliseconds.
    pub duration_ms: f64,
    /// Bytes of output, of both streams, that the cell had written when it
    /// ended.
    pub output_bytes: u64,
    /// Bytes of output that were not kept; 0 if all is here.
    pub truncated: u64,
    /// Name of the machine.
    pub host: String,
    /// Names that are new, bound to another object, or gone; by identity. Of
    /// `run` cells only: what runs beside others cannot tell its names from
    /// theirs.
    pub changed: Vec<String>,
    /// Not recorded in the session's files, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_recorded: Option<String>,
    /// Place in the queue, 1 for the next, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// It was interrupted and has not ended yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupt_pending: bool,
    /// Its `--timeout` interrupted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// It was submitted earlier under the same `--id`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// Its output was sent as events before; `stdout` and `stderr` are empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streamed: bool,
    /// What came back from the child process, of a `fork` cell that has ended.
    #[serde(flatten)]
    pub merge: Option<MergeReport>,
}

/// Bytes in the form of `data_b64`.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// One cell in a listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CellSummary {
    /// The cell.
    pub cell_id: CellId,
    /// Kind of cell.
    pub kind: CellKind,
    /// Who submitted it: what `--author` said, else `unix:UID`.
    pub author: String,
    /// Where it is in its life.
    pub status: CellStatus,
    /// Place in its queue, 1 for the next, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// When it was accepted: RFC 3339, UTC, microseconds.
    pub accepted_at: String,
    /// When it started; none while it waits.
    pub started_at: Option<String>,
    /// How long it has run, in milliseconds.
    pub duration_ms: f64,
    /// Bytes of output so far, of both streams.
    pub output_bytes: u64,
    /// Bytes at the beginning of the output that are not kept any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated: u64,
    /// It was interrupted and has not ended yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupt_pending: bool,
    /// Its `--timeout` interrupted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The client's `--id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The first line of its source that says something, as far as it is shown.
    #[cfg_attr(feature = "schema", schemars(length(max = PREVIEW)))]
    pub code: String,
    /// What came back from the child process, in answer to `wait` of a `fork`
    /// cell that has ended.
    #[serde(flatten)]
    pub merge: Option<MergeReport>,
}

/// Characters of a cell's source in a listing.
pub const PREVIEW: usize = 80;

/// For `skip_serializing_if`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The exception that ended a cell; `code` and `hint` are set if it was not
/// the cell's own doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CellError {
    /// The exception.
    #[serde(flatten)]
    pub exception: ExceptionInfo,
    /// For programs, if the session failed rather than the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How far the cell came, if its session died and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fate: Option<Fate>,
}

/// Bytes of a stream: text where they are UTF-8, else base64 beside a text
/// with replacement characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextOnWire {
    Utf8(String),
    Binary { text: String, data_b64: String },
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => TextOnWire::Binary {
                text: String::from_utf8_lossy(&self.0).into_owned(),
                data_b64: base64(&self.0),
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextOnWire::deserialize(deserializer)? {
            TextOnWire::Utf8(text) => Ok(Self(text.into_bytes())),
            TextOnWire::Binary { data_b64, .. } => base64::engine::general_purpose::STANDARD
                .decode(data_b64)
                .map(Self)
                .map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_utf8_survive_json() {
        for bytes in [&b"plain"[..], b"", b"\xff\x00half", "é".as_bytes()] {
            let text = Text(bytes.to_vec());
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text, "{json}");
        }
        assert_eq!(
            serde_json::to_string(&Text(b"a".to_vec())).unwrap(),
            "\"a\""
        );
    }
}
