//! `run NAME`, `fire NAME` and `fork NAME`, newline, code: submit a cell.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::options::{Header, before_code, existing_session, seconds};
use super::{ReplyFormat, Request};
use crate::error::ErrorReply;
use crate::names::{CellId, SessionId, SessionName};
use crate::outcome::{CellKind, CellStatus};
use crate::{ErrorCode, Frame};

/// Longest `--id` and `--author`, in bytes.
pub const MAX_LABEL: usize = 128;

/// How the keys begin that programs of ours choose for cells that were given none.
const IMPLIED_KEYS: [&str; 2] = ["pysh-", "proxy-"];

/// Nobody typed this key: where keys mean nothing, nobody is promised anything.
#[must_use]
pub fn is_implied_key(key: &str) -> bool {
    IMPLIED_KEYS.iter().any(|begin| key.starts_with(begin))
}

/// A cell to submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmitRequest {
    /// Where.
    pub session: SessionName,
    /// `run`, `fire` or `fork`.
    pub kind: CellKind,
    /// Python source, exactly as sent.
    pub source: String,
    /// How.
    pub options: SubmitOptions,
}

/// The options of `run`, `fire` and `fork`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// `--stream`: output as events while it runs; the reply comes last.
    pub stream: bool,
    /// `--since=OFFSET`: with `--stream`, the client has the output before.
    pub since: Option<u64>,
    /// `--detach`: answer with the id at once.
    pub detach: bool,
    /// `--wait=S`: answer after this time at the latest; the cell goes on.
    pub wait: Option<Duration>,
    /// `--timeout=S`: interrupt the cell when it has run for this long.
    pub timeout: Option<Duration>,
    /// `--busy=fail`: refuse rather than queue.
    pub busy_fails: bool,
    /// `--cancel-on-disconnect`: interrupt the cell if the client goes away.
    pub cancel_on_disconnect: bool,
    /// `--queue` (`fire`): start after the `fire` cells before it.
    pub queue: bool,
    /// `--id=K`: the client's key; the same key is the same cell.
    pub key: Option<String>,
    /// `--resent=S`: the same was sent before, S seconds ago; it is not run in a
    /// session that is younger.
    pub resent: Option<Duration>,
    /// `--author=A`: who is said to have submitted it.
    pub author: Option<String>,
    /// `--max-result=BYTES` (`fork`): most bytes that may come back.
    pub max_result: Option<u64>,
}

impl SubmitOptions {
    fn take(header: &mut Header<'_>, kind: CellKind) -> Result<Self, ErrorReply> {
        let mut options = Self {
            timeout: seconds(header, "timeout")?,
            key: take_label(header, "id")?,
            resent: seconds(header, "resent")?,
            author: take_label(header, "author")?,
            ..Self::default()
        };
        if options.resent.is_some() && options.key.is_none() {
            let message = "`--resent` needs the `--id` that was sent before";
            return Err(ErrorReply::new(ErrorCode::Usage, message));
        }
        if kind == CellKind::Fork {
            options.max_result = match header.take_value("max-result")? {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| {
                    let message = "`--max-result` takes a number of bytes";
                    ErrorReply::new(ErrorCode::Usage, message)
                })?),
            };
            return Ok(options);
        }
        if kind == CellKind::Fire {
            options.queue = header.take_flag("queue");
            return Ok(options);
        }
        options.stream = header.take_flag("stream");
        options.since = match header.take_value("since")? {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ErrorReply::new(ErrorCode::Usage, "`--since` takes a number of bytes")
            })?),
        };
        if options.since.is_some() && !options.stream {
            let message = "`--since` needs `--stream`";
            return Err(ErrorReply::new(ErrorCode::Usage, message));
        }
        options.detach = header.take_flag("detach");
        options.wait = seconds(header, "wait")?;
        options.cancel_on_disconnect = header.take_flag("cancel-on-disconnect");
        options.busy_fails = match header.take_value("busy")? {
            None | Some("queue") => false,
            Some("fail") => true,
            Some(_) => {
                return Err(ErrorReply::new(
                    ErrorCode::Usage,
                    "`--busy` takes `fail` or `queue`",
                ));
            }
        };
        Ok(options)
    }

    /// Only one JSON object can answer these.
    fn need_json(&self) -> bool {
        self.stream || self.detach || self.wait.is_some()
    }
}

/// Takes an option out whose value is a client's own word.
pub(super) fn take_label(
    header: &mut Header<'_>,
    name: &str,
) -> Result<Option<String>, ErrorReply> {
    let Some(value) = header.take_value(name)? else {
        return Ok(None);
    };
    if value.is_empty() || value.len() > MAX_LABEL || value.contains(char::is_control) {
        return Err(ErrorReply::new(
            ErrorCode::Usage,
            format!("`--{name}` takes 1 to {MAX_LABEL} bytes without control characters"),
        ));
    }
    Ok(Some(value.to_owned()))
}

/// Takes `run`, `fire` or `fork` apart. The tag is known even if the rest is refused.
pub(super) fn parse<'a>(
    frame: &Frame<'a>,
    kind: CellKind,
) -> (ReplyFormat, Option<&'a str>, Result<Request, ErrorReply>) {
    let (name, mut header, inline) = match before_code(frame) {
        Ok(parts) => parts,
        Err(error) => return (ReplyFormat::Plain, None, Err(error)),
    };
    let had_options = !header.options.is_empty();
    let mut format = if header.take_flag("json") {
        ReplyFormat::Json
    } else {
        ReplyFormat::Plain
    };
    let tag = match super::request::take_tag(&mut header) {
        Ok(tag) => tag,
        Err(error) => return (ReplyFormat::Json, None, Err(error)),
    };
    if tag.is_some_and(|tag| tag.format == ReplyFormat::Json) {
        format = ReplyFormat::Json;
    }
    let tag = tag.map(|tag| tag.word);
    let options = match SubmitOptions::take(&mut header, kind) {
        Ok(options) => options,
        Err(error) => return (format, tag, Err(error)),
    };
    if options.need_json() {
        format = ReplyFormat::Json;
    }
    let source = match (inline, frame.body) {
        ("", None) if had_options => String::new(),
        ("", None) => {
            let verb = frame.verb;
            let error = ErrorReply::new(ErrorCode::Usage, format!("{verb} requires code"));
            return (format, tag, Err(error));
        }
        ("", Some(body)) => body.to_owned(),
        (inline, None) => inline.to_owned(),
        // Clients of 0.4 send all but the last word of a command line in the
        // header.
        (inline, Some(body)) => format!("{inline} {body}"),
    };
    let usage = match kind {
        CellKind::Fire => "fire <name> <code>",
        CellKind::Fork => "fork <name> <code>",
        _ => "run <name> <code>",
    };
    let request = header
        .finish(0, usage)
        .and_then(|()| existing_session(name))
        .map(|session| {
            Request::Submit(SubmitRequest {
                session,
                kind,
                source,
                options,
            })
        });
    (format, tag, request)
}

/// The structured answer to `fire` and `fork`. The plain wire has
/// `{"cell_id": …, "status": "fired"}`, or `"forked"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FireReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// The cell.
    pub cell_id: CellId,
    /// Kind of cell.
    pub kind: CellKind,
    /// `running`, or `queued` under `--queue`; an `--id` that was used before
    /// has the state of its cell.
    pub status: CellStatus,
    /// It was submitted earlier under the same `--id`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// Who lets agents' new cells wait, if this one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
}
