//! A cell put into the words of a reply, plain or structured.

use std::sync::Arc;

use pythond_protocol::lane::{CellRecord, FinishedCell};
use pythond_protocol::outcome::{CellKind, CellStatus, ExceptionInfo};
use pythond_protocol::output_log::{self, Demuxed, Stream};
use pythond_protocol::verbs::cell::{CellError, CellReply, CellSummary, Text};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::large_reply::{LARGE, LargeReply};
use super::output::OutputReader;
use super::{Context, Reply};
use crate::session::{LastOutput, SessionHandle};

/// Greatest plain reply, in bytes.
const MAX_PLAIN: usize = 16 << 20;
/// Room for the mark in the middle of a reply that is cut, in bytes.
const MARK: usize = 64;
/// Longest shown value that a streamed reply repeats, in bytes.
const MAX_STREAMED_RESULT: u64 = 64 << 10;

/// A cell that has ended, and what is here of its output.
#[derive(Debug)]
pub(super) struct Finished {
    end: FinishedCell,
    /// The beginning of its output.
    log: Vec<u8>,
    existing: bool,
    streamed: bool,
}

impl Finished {
    pub(super) fn new(end: FinishedCell, log: Vec<u8>) -> Self {
        Self {
            end,
            log,
            existing: false,
            streamed: false,
        }
    }

    /// `existing`: it was submitted earlier; `streamed`: its output was sent.
    pub(super) fn given(self, existing: bool, streamed: bool) -> Self {
        Self {
            existing,
            streamed,
            ..self
        }
    }

    /// The reply of the plain wire.
    pub(super) async fn plain(self, session: &SessionHandle) -> Result<Reply, ErrorReply> {
        let text = self.plain_text(session).await?;
        let ok = self.end.status == CellStatus::Done;
        if ok {
            Ok(Reply::ok(text))
        } else {
            Ok(Reply {
                ok,
                ..Reply::ok(format!("ERR execution failed\n{text}"))
            })
        }
    }

    /// What it wrote and its traceback, head and tail if it is too long.
    pub(super) async fn plain_text(&self, session: &SessionHandle) -> Result<String, ErrorReply> {
        let end = &self.end;
        let traceback = end.exception.as_ref().map_or("", plain_traceback);
        let total = end.output_bytes;
        let most = (MAX_PLAIN - MARK) as u64;
        let (mut bytes, mut missing) = (Vec::new(), 0);
        if total <= most {
            missing = collect(session, end.cell, &self.log, 0, total, &mut bytes).await?;
        } else {
            // Only what is shown is read.
            let half = most / 2;
            missing += collect(session, end.cell, &self.log, 0, half, &mut bytes).await?;
            let mut tail = Vec::new();
            missing += collect(session, end.cell, b"", total - half, total, &mut tail).await?;
            trim_end(&mut bytes);
            trim_start(&mut tail);
            let left_out = total - (bytes.len() + tail.len()) as u64 - missing;
            bytes.extend_from_slice(format!("\n[... {left_out} bytes left out ...]\n").as_bytes());
            bytes.append(&mut tail);
        }
        let mut text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        if missing > 0 {
            text.push_str(&format!("\n[{missing} bytes of output were not kept]\n"));
        }
        text.push_str(traceback);
        text.truncate(text.trim_end_matches('\n').len());
        Ok(text)
    }

    /// The structured reply.
    pub(super) async fn structured(
        mut self,
        context: &Arc<Context>,
        session: &SessionHandle,
    ) -> Result<Reply, ErrorReply> {
        let ok = self.end.status == CellStatus::Done;
        let kept = self.end.output_bytes.saturating_sub(self.end.truncated);
        if !self.streamed && kept > LARGE {
            let (cell, total) = (self.end.cell, self.end.output_bytes);
            // Everything else is as if the output had been sent.
            self.streamed = true;
            let result = self.end.result.take();
            let mut reply = self.reply(context, session).await?;
            reply.streamed = false;
            let large = LargeReply {
                session: session.clone(),
                cell,
                reply,
                result,
                total,
            };
            return Ok(large.start(context));
        }
        let reply = self.reply(context, session).await?;
        Ok(Reply {
            ok,
            ..Reply::json(&reply)
        })
    }

    async fn reply(
        self,
        context: &Context,
        session: &SessionHandle,
    ) -> Result<CellReply, ErrorReply> {
        let Self {
            end,
            mut log,
            existing,
            streamed,
        } = self;
        let (mut missing, mut stdout_missing) = (0, false);
        if !streamed {
            let mut reader = OutputReader::new(session, end.cell, None, raw_length(&log)?);
            while reader.position() < end.output_bytes {
                match reader.read().await {
                    Ok(chunk) if chunk.next > reader.before() => {
                        missing += chunk.missing;
                        stdout_missing |= chunk.missing > 0;
                        log.extend_from_slice(&chunk.records);
                    }
                    // What the host no longer has is said, never passed over.
                    _ => {
                        missing += end.output_bytes - reader.position();
                        stdout_missing = true;
                        break;
                    }
                }
            }
        }
        let result = match end.result {
            Some((start, length)) if streamed || stdout_missing => {
                shown_later(session, end.cell, &log, start, length).await
            }
            Some((start, length)) => {
                let stdout = &Demuxed::from_log(&log).map_err(|_| damaged())?.stdout;
                shown_value(stdout, start, length)
            }
            None => None,
        };
        if streamed {
            log.clear();
        }
        let Demuxed { stdout, stderr } = Demuxed::from_log(&log).map_err(|_| damaged())?;
        let started = jiff::Timestamp::from_microsecond(end.started_us).ok();
        Ok(CellReply {
            order: order(&log)?,
            stdout: Text(stdout),
            stderr: Text(stderr),
            result,
            error: end.exception.map(|exception| CellError {
                exception,
                code: None,
                hint: None,
                fate: None,
            }),
            started_at: started.map(time),
            duration_ms: milliseconds(end.duration_ns),
            output_bytes: end.output_bytes,
            truncated: if streamed { end.truncated } else { missing },
            changed: end.changed,
            not_recorded: end.not_recorded,
            timed_out: end.timed_out,
            existing,
            streamed,
            merge: end.merge.map(|merge| *merge),
            ..empty(context, session, Some(end.cell), end.kind, end.status)
        })
    }
}

/// A reply that says only which cell.
fn empty(
    context: &Context,
    session: &SessionHandle,
    cell_id: Option<CellId>,
    kind: CellKind,
    status: CellStatus,
) -> CellReply {
    let spec = &session.hosted().spec;
    CellReply {
        session: spec.session.clone(),
        session_id: spec.session_id.clone(),
        generation: spec.generation,
        cell_id,
        kind,
        status,
        ok: status == CellStatus::Done,
        stdout: Text(Vec::new()),
        stderr: Text(Vec::new()),
        order: Vec::new(),
        result: None,
        error: None,
        started_at: None,
        duration_ms: 0.0,
        output_bytes: 0,
        truncated: 0,
        host: context.host.clone(),
        changed: Vec::new(),
        not_recorded: None,
        queue_position: None,
        interrupt_pending: false,
        timed_out: false,
        existing: false,
        streamed: false,
        merge: None,
    }
}

/// A cell of which only this is known.
pub(super) fn barely_known(cell: CellId, status: CellStatus) -> CellRecord {
    CellRecord {
        cell,
        kind: CellKind::Run,
        author: String::new(),
        status,
        queue_position: None,
        accepted_us: 0,
        started_us: None,
        duration_ns: 0,
        output_bytes: 0,
        truncated: 0,
        interrupt_pending: false,
        timed_out: false,
        key: None,
        code: String::new(),
    }
}

/// The reply about a cell that goes on.
pub(super) fn unfinished(
    context: &Context,
    session: &SessionHandle,
    record: CellRecord,
    existing: bool,
    streamed: bool,
) -> CellReply {
    let started = record
        .started_us
        .and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    CellReply {
        started_at: started.map(time),
        duration_ms: milliseconds(record.duration_ns),
        output_bytes: record.output_bytes,
        truncated: record.truncated,
        queue_position: record.queue_position,
        interrupt_pending: record.interrupt_pending,
        timed_out: record.timed_out,
        existing,
        streamed,
        ..empty(
            context,
            session,
            Some(record.cell),
            record.kind,
            record.status,
        )
    }
}

/// The same with the output so far.
pub(super) async fn unfinished_with_output(
    context: &Context,
    session: &SessionHandle,
    record: CellRecord,
) -> Result<CellReply, ErrorReply> {
    let (cell, total) = (record.cell, record.output_bytes);
    let mut reply = unfinished(context, session, record, false, false);
    let mut reader = OutputReader::new(session, cell, None, 0);
    let mut log = Vec::new();
    while reader.position() < total {
        let chunk = reader.read().await?;
        if chunk.next <= reader.before() {
            break;
        }
        log.extend_from_slice(&chunk.records);
    }
    let Demuxed { stdout, stderr } = Demuxed::from_log(&log).map_err(|_| damaged())?;
    reply.order = order(&log)?;
    (reply.stdout, reply.stderr) = (Text(stdout), Text(stderr));
    Ok(reply)
}

/// The line of a listing.
pub(super) fn summary(record: CellRecord) -> CellSummary {
    let at = |us| jiff::Timestamp::from_microsecond(us).ok().map(time);
    CellSummary {
        cell_id: record.cell,
        kind: record.kind,
        author: record.author,
        status: record.status,
        queue_position: record.queue_position,
        accepted_at: at(record.accepted_us).unwrap_or_default(),
        started_at: record.started_us.and_then(at),
        duration_ms: milliseconds(record.duration_ns),
        output_bytes: record.output_bytes,
        truncated: record.truncated,
        interrupt_pending: record.interrupt_pending,
        timed_out: record.timed_out,
        id: record.key,
        code: record.code,
        merge: None,
    }
}

/// The same of a cell that only its end tells of.
pub(super) fn summary_of_end(end: &FinishedCell) -> CellSummary {
    let started = jiff::Timestamp::from_microsecond(end.started_us).ok();
    let started = started.map(time);
    CellSummary {
        cell_id: end.cell,
        kind: end.kind,
        author: String::new(),
        status: end.status,
        queue_position: None,
        accepted_at: started.clone().unwrap_or_default(),
        started_at: started,
        duration_ms: milliseconds(end.duration_ns),
        output_bytes: end.output_bytes,
        truncated: end.truncated,
        interrupt_pending: false,
        timed_out: end.timed_out,
        id: None,
        code: String::new(),
        merge: end.merge.as_deref().cloned(),
    }
}

fn time(moment: jiff::Timestamp) -> String {
    format!("{moment:.6}")
}

fn damaged() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Internal,
        "the session host sent a damaged output log",
    )
}

fn raw_length(log: &[u8]) -> Result<u64, ErrorReply> {
    let mut length = 0;
    for record in output_log::records(log) {
        length += record.map_err(|_| damaged())?.1.len() as u64;
    }
    Ok(length)
}

/// Collects raw output from `from` up to `to`; what is here already is not asked
/// for. Returns how many bytes are not kept.
async fn collect(
    session: &SessionHandle,
    cell: CellId,
    log: &[u8],
    from: u64,
    to: u64,
    bytes: &mut Vec<u8>,
) -> Result<u64, ErrorReply> {
    let mut position = from;
    if from == 0 {
        let here = output_log::merged(log).map_err(|_| damaged())?;
        let wanted = usize::try_from(to).unwrap_or(usize::MAX).min(here.len());
        bytes.extend_from_slice(&here[..wanted]);
        position = wanted as u64;
    }
    let mut missing = 0;
    let mut reader = OutputReader::new(session, cell, None, position);
    while reader.position() < to {
        let want = usize::try_from(to - reader.position()).unwrap_or(usize::MAX);
        match reader.read_at_most(want).await {
            Ok(chunk) if chunk.next > reader.before() => {
                missing += chunk.missing.min(to - reader.before());
                let piece = output_log::merged(&chunk.records).map_err(|_| damaged())?;
                let room = usize::try_from(to.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            _ => {
                missing += to - reader.position();
                break;
            }
        }
    }
    Ok(missing)
}

/// Takes half a character off the end of bytes that are cut there.
fn trim_end(bytes: &mut Vec<u8>) {
    let tail = bytes.len().saturating_sub(4);
    if let Err(error) = std::str::from_utf8(&bytes[tail..])
        && error.error_len().is_none()
    {
        bytes.truncate(tail + error.valid_up_to());
    }
}

/// The same at the beginning.
fn trim_start(bytes: &mut Vec<u8>) {
    let inside = |byte: &&u8| **byte & 0xc0 == 0x80;
    let half = bytes.iter().take(3).take_while(inside).count();
    bytes.drain(..half);
}

/// `exit(n)` has no traceback.
fn plain_traceback(exception: &ExceptionInfo) -> &str {
    if exception.traceback.is_empty() {
        &exception.message
    } else {
        &exception.traceback
    }
}

/// Whole microseconds, so that the number stays short and exact.
fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds / 1000) as f64 / 1000.0
}

fn shown_value(stdout: &[u8], start: u64, length: u64) -> Option<String> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let shown = stdout.get(start..end)?;
    Some(String::from_utf8_lossy(shown).into_owned())
}

/// The shown value of a cell whose whole output is not here; none if it is long
/// or not kept.
async fn shown_later(
    session: &SessionHandle,
    cell: CellId,
    log: &[u8],
    start: u64,
    length: u64,
) -> Option<String> {
    if length > MAX_STREAMED_RESULT {
        return None;
    }
    let stdout = Demuxed::from_log(log).ok()?.stdout;
    if let Some(shown) = shown_value(&stdout, start, length) {
        return Some(shown);
    }
    let mut reader = OutputReader::new(session, cell, Some(Stream::Stdout), start);
    let want = usize::try_from(length).ok()?;
    let chunk = reader.read_at_most(want).await.ok()?;
    let bytes = output_log::merged(&chunk.records).ok()?;
    let whole = chunk.offset == start && bytes.len() == want;
    whole.then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The order of arrival as runs; empty if it is all of stdout, then all of
/// stderr.
pub(super) fn order(log: &[u8]) -> Result<Vec<(u8, u64)>, ErrorReply> {
    let mut runs: Vec<(u8, u64)> = Vec::new();
    for record in output_log::records(log) {
        let (stream, data) = record.map_err(|_| damaged())?;
        match runs.last_mut() {
            Some((last, bytes)) if *last == stream as u8 => *bytes += data.len() as u64,
            _ => runs.push((stream as u8, data.len() as u64)),
        }
    }
    let plain = matches!(runs.as_slice(), [] | [_] | [(1, _), (2, _)]);
    Ok(if plain { Vec::new() } else { runs })
}

/// The reply of a cell that nobody saw end.
pub(super) fn without_outcome(
    context: &Context,
    session: &SessionHandle,
    cell: Option<CellId>,
    status: CellStatus,
    error: ErrorReply,
    output: &LastOutput,
) -> Result<CellReply, ErrorReply> {
    let Demuxed { stdout, stderr } = Demuxed::from_log(&output.log).map_err(|_| damaged())?;
    let kind = match status {
        CellStatus::Lost => "CellLost",
        _ => "SessionDied",
    };
    let exception = ExceptionInfo {
        kind: kind.to_owned(),
        message: error.message,
        traceback: String::new(),
    };
    Ok(CellReply {
        output_bytes: (stdout.len() + stderr.len()) as u64 + output.lost,
        truncated: output.lost,
        order: order(&output.log)?,
        stdout: Text(stdout),
        stderr: Text(stderr),
        error: Some(CellError {
            exception,
            code: Some(error.code),
            hint: error.hint,
            fate: error.fate,
        }),
        ..empty(context, session, cell, CellKind::Run, status)
    })
}

/// The plain refusal, then what the cell had written.
pub(super) fn plain_without_outcome(
    error: &ErrorReply,
    output: &LastOutput,
) -> Result<Reply, ErrorReply> {
    let bytes = output_log::merged(&output.log).map_err(|_| damaged())?;
    let mut text = format!("{}\n{}", error.to_plain(), String::from_utf8_lossy(&bytes));
    text.truncate(text.trim_end_matches('\n').len());
    Ok(Reply {
        ok: false,
        ..Reply::ok(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use output_log::Stream::{Stderr, Stdout};

    fn log(writes: &[(output_log::Stream, &[u8])]) -> Vec<u8> {
        let mut log = Vec::new();
        for (stream, data) in writes {
            output_log::append(&mut log, *stream, data);
        }
        log
    }

    #[test]
    fn order_is_given_only_where_it_says_something() {
        let check = |writes: &[(output_log::Stream, &[u8])], expected: &[(u8, u64)]| {
            assert_eq!(order(&log(writes)).unwrap(), expected);
        };
        check(&[(Stdout, b"a"), (Stdout, b"b"), (Stderr, b"c")], &[]);
        check(&[(Stderr, b"a"), (Stdout, b"bc")], &[(2, 1), (1, 2)]);
        check(
            &[(Stdout, b"a"), (Stderr, b"b"), (Stdout, b"c")],
            &[(1, 1), (2, 1), (1, 1)],
        );
    }

    #[test]
    fn the_shown_value_is_cut_out_of_stdout() {
        assert_eq!(shown_value(b"hi\n43\n", 3, 2).as_deref(), Some("43"));
        assert_eq!(shown_value(b"hi", 1, 9), None);
        assert_eq!(shown_value(b"hi", u64::MAX, 2), None);
    }

    #[test]
    fn cut_text_loses_no_whole_character() {
        let mut head = "aé€".as_bytes()[..5].to_vec();
        trim_end(&mut head);
        assert_eq!(head, "aé".as_bytes());
        let mut tail = "€b".as_bytes()[1..].to_vec();
        trim_start(&mut tail);
        assert_eq!(tail, b"b");
    }
}
