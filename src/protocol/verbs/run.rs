//! `run NAME [--json]`, newline, code: run a cell and wait for it.

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use super::options::{before_code, existing_session};
use super::{ReplyFormat, Request};
use crate::error::ErrorReply;
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::{CellKind, CellStatus, ExceptionInfo};
use crate::{ErrorCode, Frame};

/// A cell to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRequest {
    /// Where.
    pub session: SessionName,
    /// Python source, exactly as sent.
    pub source: String,
}

pub(super) fn parse(
    frame: &Frame<'_>,
    kind: CellKind,
) -> (ReplyFormat, Result<Request, ErrorReply>) {
    let (name, mut options, inline) = match before_code(frame) {
        Ok(parts) => parts,
        Err(error) => return (ReplyFormat::Plain, Err(error)),
    };
    let had_options = !options.options.is_empty();
    let format = if options.take_flag("json") {
        ReplyFormat::Json
    } else {
        ReplyFormat::Plain
    };
    let source = match (inline, frame.body) {
        ("", None) if had_options => String::new(),
        ("", None) => {
            let verb = frame.verb;
            let error = ErrorReply::new(ErrorCode::Usage, format!("{verb} requires code"));
            return (format, Err(error));
        }
        ("", Some(body)) => body.to_owned(),
        (inline, None) => inline.to_owned(),
        // Clients of 0.4 send all but the last word of a command line in the
        // header.
        (inline, Some(body)) => format!("{inline} {body}"),
    };
    debug_assert_eq!(kind, CellKind::Run);
    let request = options
        .finish(0, "run <name> <code>")
        .and_then(|()| existing_session(name))
        .map(|session| Request::Run(RunRequest { session, source }));
    (format, request)
}

/// The structured answer to `run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// How it ended.
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
    /// Names that are new, bound to another object, or gone; by identity.
    pub changed: Vec<String>,
    /// Not recorded in the session's files, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_recorded: Option<String>,
}

/// The exception that ended a cell; `code` and `hint` are set if it was not
/// the cell's own doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
                data_b64: base64::engine::general_purpose::STANDARD.encode(&self.0),
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
