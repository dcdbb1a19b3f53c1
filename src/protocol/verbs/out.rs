//! `out NAME ID`: a cell's output, from any offset, now or as it comes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::cell::Text;
use super::options::{Header, cell_id, existing_session};
use crate::names::{CellId, SessionName};
use crate::outcome::CellStatus;
use crate::output_log::Stream;
use crate::{ErrorCode, ErrorReply};

/// Most bytes of output in one answer, and the default.
pub const MAX_BYTES: u64 = 4 << 20;

/// Which output. Clients say where as a [`crate::SessionPath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutRequest<Session = SessionName> {
    /// Where.
    pub session: Session,
    /// Whose.
    pub cell: CellId,
    /// Where to begin, in raw bytes of both streams in the order of arrival,
    /// or of the one stream.
    pub since: u64,
    /// Only this one.
    pub stream: Option<Stream>,
    /// As events, to the end of what is there.
    pub events: bool,
    /// As events, until the cell has ended.
    pub follow: bool,
    /// Most bytes in one answer.
    pub most: u64,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<OutRequest, ErrorReply> {
    let follow = header.take_flag("follow");
    let stream = match (header.take_flag("stdout"), header.take_flag("stderr")) {
        (true, false) => Some(Stream::Stdout),
        (false, true) => Some(Stream::Stderr),
        _ => None,
    };
    let events = header.take_flag("stream") || follow;
    let number = |header: &mut Header<'_>, name: &str| -> Result<Option<u64>, ErrorReply> {
        let Some(value) = header.take_value(name)? else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| {
            ErrorReply::new(
                ErrorCode::Usage,
                format!("`--{name}` takes a number of bytes"),
            )
        })
    };
    let since = number(header, "since")?.unwrap_or(0);
    let most = number(header, "max")?
        .unwrap_or(MAX_BYTES)
        .clamp(1, MAX_BYTES);
    let usage = "out <name> <cell_id>";
    header.finish(2, usage)?;
    let [name, id] = header.arguments[..] else {
        return Err(ErrorReply::usage(usage));
    };
    Ok(OutRequest {
        session: existing_session(name)?,
        cell: cell_id(id)?,
        since,
        stream,
        events,
        follow,
        most,
    })
}

/// The structured answer to `out`; after events, what they added up to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// The cell.
    pub cell_id: CellId,
    /// Where the cell is in its life.
    pub status: CellStatus,
    /// Where the output below begins.
    pub offset: u64,
    /// Where the next begins: the `--since` to go on with.
    pub next: u64,
    /// Bytes between the offset that was asked for and `offset` that are not
    /// kept any more.
    pub missing: u64,
    /// Nothing follows `next`: the cell has ended and this was all.
    pub ended: bool,
    /// What was written to standard output; empty after events.
    pub stdout: Text,
    /// What was written to standard error; empty after events.
    pub stderr: Text,
    /// Both streams in the order of arrival as `[stream, bytes]` runs; only if
    /// they alternate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<(u8, u64)>,
}

/// What `run --stream` and `out --stream` send before their reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum StreamEvent {
    /// The cell has an id.
    Accepted {
        /// The cell.
        cell_id: CellId,
        /// `queued` or `running`; where `--id` was used before, its cell's.
        status: CellStatus,
        /// Who lets agents' new cells wait, if this one does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_by: Option<String>,
    },
    /// A piece of output.
    Output {
        /// The cell.
        cell_id: CellId,
        /// 1 is standard output, 2 standard error.
        stream: u8,
        /// Where it begins, in raw bytes of both streams, or of the one stream
        /// that was asked for.
        offset: u64,
        /// The bytes.
        data: Text,
    },
    /// Output that was asked for and is not kept any more.
    Gap {
        /// The cell.
        cell_id: CellId,
        /// Where it would have begun.
        offset: u64,
        /// How many bytes.
        missing: u64,
    },
}

impl StreamEvent {
    /// Where the next event begins; none if this one is no output.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        match self {
            Self::Accepted { .. } => None,
            Self::Output { offset, data, .. } => {
                offset.checked_add(u64::try_from(data.0.len()).ok()?)
            }
            Self::Gap {
                offset, missing, ..
            } => offset.checked_add(*missing),
        }
    }

    /// What of it is at this offset or behind; none if nothing is. For whoever is
    /// told again what was told before.
    #[must_use]
    pub fn from(&self, start: u64) -> Option<Cow<'_, Self>> {
        if self.end().is_some_and(|end| end <= start) {
            return None;
        }
        let mut rest = Cow::Borrowed(self);
        if let Self::Output { offset, .. } | Self::Gap { offset, .. } = self
            && *offset < start
        {
            match rest.to_mut() {
                Self::Output { offset, data, .. } => {
                    let seen = usize::try_from(start - *offset).unwrap_or(usize::MAX);
                    data.0.drain(..seen.min(data.0.len()));
                    *offset = start;
                }
                Self::Gap {
                    offset, missing, ..
                } => {
                    *missing -= start - *offset;
                    *offset = start;
                }
                Self::Accepted { .. } => {}
            }
        }
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(offset: u64, data: &str) -> StreamEvent {
        StreamEvent::Output {
            cell_id: CellId::from_parts(0, 1),
            stream: 1,
            offset,
            data: Text(data.as_bytes().to_vec()),
        }
    }

    fn gap(offset: u64, missing: u64) -> StreamEvent {
        StreamEvent::Gap {
            cell_id: CellId::from_parts(0, 1),
            offset,
            missing,
        }
    }

    #[test]
    fn what_was_told_before_is_left_out() {
        let rest = |event: StreamEvent, start| event.from(start).map(Cow::into_owned);
        for start in 0..=7 {
            assert_eq!(rest(output(7, "abc"), start), Some(output(7, "abc")));
            assert_eq!(rest(gap(7, 3), start), Some(gap(7, 3)));
        }
        assert_eq!(rest(output(7, "abc"), 9), Some(output(9, "c")));
        assert_eq!(rest(gap(7, 3), 9), Some(gap(9, 1)));
        for start in [10, 11, u64::MAX] {
            assert_eq!(rest(output(7, "abc"), start), None);
            assert_eq!(rest(gap(7, 3), start), None);
        }
    }
}
