//! `run NAME`: a cell, its output, and how it ended.

use std::sync::Arc;

use pythond_protocol::lane::FinishedCell;
use pythond_protocol::outcome::{CellKind, CellStatus, ExceptionInfo};
use pythond_protocol::output_log::{self, Demuxed};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::run::{CellError, CellReply, RunRequest, Text};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::{Context, Reply};
use crate::session::{LastOutput, RunAnswer, SessionHandle};

/// Greatest plain reply, in bytes.
const MAX_PLAIN: usize = 16 << 20;
/// Room for the mark in the middle of a reply that is cut, in bytes.
const MARK: usize = 64;

pub(super) async fn handle(
    context: &Arc<Context>,
    request: RunRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let changed = format == ReplyFormat::Json;
    let (cell, status, error, output) = match session.run(request.source, changed).await {
        RunAnswer::Finished(finished, log) => {
            return match format {
                ReplyFormat::Plain => plain(&finished, &log),
                ReplyFormat::Json => structured(context, &session, *finished, &log),
            };
        }
        RunAnswer::Refused(error) => return Err(error),
        RunAnswer::Died(cell, error, output) => (cell, CellStatus::Killed, error, output),
        RunAnswer::Lost(error) => (None, CellStatus::Lost, error, LastOutput::default()),
    };
    match format {
        ReplyFormat::Plain => plain_without_outcome(&error, &output),
        ReplyFormat::Json => {
            let reply = without_outcome(context, &session, cell, status, error, &output)?;
            Ok(Reply {
                ok: false,
                ..Reply::json(&reply)
            })
        }
    }
}

fn damaged() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Internal,
        "the session host sent a damaged output log",
    )
}

fn plain(finished: &FinishedCell, log: &[u8]) -> Result<Reply, ErrorReply> {
    let bytes = output_log::merged(log).map_err(|_| damaged())?;
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    if finished.truncated > 0 {
        text.push_str(&format!(
            "\n[{} bytes of output were not kept]\n",
            finished.truncated
        ));
    }
    let ok = finished.status == CellStatus::Done;
    if let Some(exception) = &finished.exception {
        text.push_str(plain_traceback(exception));
    }
    text.truncate(text.trim_end_matches('\n').len());
    let text = cut(text);
    if ok {
        Ok(Reply::ok(text))
    } else {
        Ok(Reply {
            text: format!("ERR execution failed\n{text}"),
            ok,
        })
    }
}

/// `exit(n)` has no traceback.
fn plain_traceback(exception: &ExceptionInfo) -> &str {
    if exception.traceback.is_empty() {
        &exception.message
    } else {
        &exception.traceback
    }
}

/// Head, mark and tail of a text that is too long, with the exact number of
/// bytes between them.
fn cut(text: String) -> String {
    if text.len() <= MAX_PLAIN {
        return text;
    }
    let boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    let half = (MAX_PLAIN - MARK) / 2;
    let head = boundary(half - 4);
    let tail = boundary(text.len() - half);
    format!(
        "{}\n[... {} bytes left out ...]\n{}",
        &text[..head],
        tail - head,
        &text[tail..]
    )
}

fn structured(
    context: &Context,
    session: &SessionHandle,
    finished: FinishedCell,
    log: &[u8],
) -> Result<Reply, ErrorReply> {
    let Demuxed { stdout, stderr } = Demuxed::from_log(log).map_err(|_| damaged())?;
    let result = finished
        .result
        .and_then(|(start, length)| shown_value(&stdout, start, length));
    let ok = finished.status == CellStatus::Done;
    let spec = &session.hosted().spec;
    let started = jiff::Timestamp::from_microsecond(finished.started_us).ok();
    let reply = CellReply {
        session: spec.session.clone(),
        session_id: spec.session_id.clone(),
        generation: spec.generation,
        cell_id: Some(finished.cell),
        kind: finished.kind,
        status: finished.status,
        ok,
        order: order(log)?,
        stdout: Text(stdout),
        stderr: Text(stderr),
        result,
        error: finished.exception.map(|exception| CellError {
            exception,
            code: None,
            hint: None,
        }),
        started_at: started.map(|started| format!("{started:.6}")),
        duration_ms: milliseconds(finished.duration_ns),
        output_bytes: finished.output_bytes,
        truncated: finished.truncated,
        host: context.host.clone(),
        changed: finished.changed,
        not_recorded: finished.not_recorded,
    };
    Ok(Reply {
        ok,
        ..Reply::json(&reply)
    })
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

/// The order of arrival as runs; empty if it is all of stdout, then all of
/// stderr.
fn order(log: &[u8]) -> Result<Vec<(u8, u64)>, ErrorReply> {
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
fn without_outcome(
    context: &Context,
    session: &SessionHandle,
    cell: Option<CellId>,
    status: CellStatus,
    error: ErrorReply,
    output: &LastOutput,
) -> Result<CellReply, ErrorReply> {
    let Demuxed { stdout, stderr } = Demuxed::from_log(&output.log).map_err(|_| damaged())?;
    let spec = &session.hosted().spec;
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
        session: spec.session.clone(),
        session_id: spec.session_id.clone(),
        generation: spec.generation,
        cell_id: cell,
        kind: CellKind::Run,
        status,
        ok: false,
        output_bytes: (stdout.len() + stderr.len()) as u64 + output.lost,
        truncated: output.lost,
        order: order(&output.log)?,
        stdout: Text(stdout),
        stderr: Text(stderr),
        result: None,
        error: Some(CellError {
            exception,
            code: Some(error.code),
            hint: error.hint,
        }),
        started_at: None,
        duration_ms: 0.0,
        host: context.host.clone(),
        changed: Vec::new(),
        not_recorded: None,
    })
}

/// The plain refusal, then what the cell had written.
fn plain_without_outcome(error: &ErrorReply, output: &LastOutput) -> Result<Reply, ErrorReply> {
    let bytes = output_log::merged(&output.log).map_err(|_| damaged())?;
    let mut text = format!("{}\n{}", error.to_plain(), String::from_utf8_lossy(&bytes));
    text.truncate(text.trim_end_matches('\n').len());
    Ok(Reply { text, ok: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use output_log::Stream::{Stderr, Stdout};

    fn finished(status: CellStatus, exception: Option<(&str, &str)>) -> FinishedCell {
        FinishedCell {
            request: Some(1),
            cell: CellId::from_parts(1, 1),
            kind: CellKind::Run,
            status,
            exception: exception.map(|(message, traceback)| ExceptionInfo {
                kind: "ValueError".to_owned(),
                message: message.to_owned(),
                traceback: traceback.to_owned(),
            }),
            result: None,
            started_us: 0,
            duration_ns: 0,
            log_end: 0,
            output_bytes: 0,
            truncated: 0,
            changed: Vec::new(),
            next_cell: CellId::from_parts(1, 2),
            not_recorded: None,
        }
    }

    fn log(writes: &[(output_log::Stream, &[u8])]) -> Vec<u8> {
        let mut log = Vec::new();
        for (stream, data) in writes {
            output_log::append(&mut log, *stream, data);
        }
        log
    }

    #[test]
    fn plain_replies_are_those_of_0_4() {
        let done = finished(CellStatus::Done, None);
        let check = |writes: &[(output_log::Stream, &[u8])], expected: &str| {
            assert_eq!(plain(&done, &log(writes)).unwrap().text, expected);
        };
        check(&[], "");
        check(&[(Stdout, b"43\n")], "43");
        check(&[(Stdout, b"a\n\n"), (Stderr, b"b\n\n\n")], "a\n\nb");
        check(&[(Stdout, b"\xff")], "\u{fffd}");
        // A character may be cut by the end of a write.
        check(&[(Stdout, b"\xc3"), (Stdout, b"\xa9\n")], "\u{e9}");
    }

    #[test]
    fn a_failed_cell_says_so_first_and_shows_what_it_wrote() {
        let writes = log(&[(Stdout, b"before\n")]);
        let raised = finished(
            CellStatus::Failed,
            Some(("bad", "Traceback ...\nValueError: bad\n")),
        );
        let reply = plain(&raised, &writes).unwrap();
        assert_eq!(
            reply.text,
            "ERR execution failed\nbefore\nTraceback ...\nValueError: bad"
        );
        assert!(!reply.ok);
        let exited = finished(CellStatus::Failed, Some(("exit(3)", "")));
        assert_eq!(
            plain(&exited, b"").unwrap().text,
            "ERR execution failed\nexit(3)"
        );
    }

    #[test]
    fn what_is_cut_is_counted_exactly() {
        let text = "x".repeat(MAX_PLAIN + 5);
        let shown = cut(text.clone());
        assert!(shown.len() <= MAX_PLAIN);
        let kept = shown.matches('x').count();
        let mark = format!("\n[... {} bytes left out ...]\n", text.len() - kept);
        assert!(shown.contains(&mark));
        let exact = "y".repeat(MAX_PLAIN);
        assert_eq!(cut(exact.clone()), exact);
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
}
