//! `run NAME`, `fire NAME` and `fork NAME`: a cell, and as much of its end as was asked for.

use std::sync::Arc;
use std::time::Duration;

use pythond_protocol::lane::{CellSpec, HostEvent};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::out::StreamEvent;
use pythond_protocol::verbs::submit::{FireReply, SubmitOptions, SubmitRequest};
use pythond_protocol::{CellId, ErrorCode, ErrorReply, Fate};
use serde_json::json;
use tokio::time::Instant;

use super::output::OutputReader;
use super::{Caller, Context, Reply, cell_reply};
use crate::session::{
    Accepted, LastOutput, Question, Resent, RunAnswer, SessionHandle, Submission, Submit,
};

/// How long a cell may take to end after its time-out until its client is told
/// that it has not.
const TIMEOUT_GRACE: Duration = Duration::from_millis(500);

/// Submits a cell; the request came at the time `received`.
pub(super) async fn handle(
    context: &Arc<Context>,
    caller: &Caller,
    request: SubmitRequest,
    received: std::time::Instant,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let SubmitRequest {
        kind,
        source,
        options,
        ..
    } = request;
    let how = CellSpec {
        changed: kind == CellKind::Run && format == ReplyFormat::Json,
        queue: options.queue,
        key: options.key.clone(),
        timeout_ms: options
            .timeout
            .map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        author: options
            .author
            .clone()
            .unwrap_or_else(|| caller.author.clone()),
        max_result: options.max_result.or(context.limits.fork_result),
        resent_ms: None,
        busy_fails: false,
    };
    let submit = Submit {
        kind,
        source,
        how,
        busy_fails: options.busy_fails,
        resent: options.resent.map(|ago| Resent { ago, at: received }),
    };
    let submission = session.submit(submit).await?;
    if matches!(kind, CellKind::Fire | CellKind::Fork) {
        return begun(&session, submission, kind, format).await;
    }
    run(context, caller, session, submission, &options, format).await
}

/// The id of a submitted cell; else why it has none.
async fn accepted(
    session: &SessionHandle,
    submission: &mut Submission,
) -> Result<Accepted, RunAnswer> {
    match session.accepted(&mut submission.accepted).await {
        Ok(Some(accepted)) => Ok(accepted),
        Ok(None) => Err(session.end_of(&mut submission.end).await),
        Err(error) => Err(RunAnswer::Refused(error)),
    }
}

/// Who lets a cell wait, if somebody does.
fn held_by(session: &SessionHandle, status: CellStatus) -> Option<String> {
    session.held_by().filter(|_| status == CellStatus::Queued)
}

/// The answer to `fire` and `fork`: which cell it is.
async fn begun(
    session: &SessionHandle,
    mut submission: Submission,
    kind: CellKind,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let Accepted {
        cell,
        existing,
        status,
    } = match accepted(session, &mut submission).await {
        Ok(accepted) => accepted,
        Err(RunAnswer::Refused(error) | RunAnswer::Lost(error) | RunAnswer::Died(_, error, _)) => {
            return Err(error);
        }
        Err(RunAnswer::Finished(..)) => return Err(super::ask::unexpected()),
    };
    let spec = &session.hosted().spec;
    Ok(match format {
        ReplyFormat::Plain => {
            let word = if kind == CellKind::Fork {
                "forked"
            } else {
                "fired"
            };
            Reply::spaced_json(&json!({ "cell_id": cell, "status": word }))
        }
        ReplyFormat::Json => Reply::json(&FireReply {
            ok: true,
            session: spec.session.clone(),
            session_id: spec.session_id.clone(),
            generation: spec.generation,
            cell_id: cell,
            kind,
            status,
            existing,
            held_by: held_by(session, status),
        }),
    })
}

async fn run(
    context: &Arc<Context>,
    caller: &Caller,
    session: SessionHandle,
    mut submission: Submission,
    options: &SubmitOptions,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let needs_id = options.stream
        || options.detach
        || options.wait.is_some()
        || options.timeout.is_some()
        || options.cancel_on_disconnect
        || options.key.is_some();
    if !needs_id {
        let answer = session.end_of(&mut submission.end).await;
        return ended(context, &session, answer, format, Given::default()).await;
    }
    let accepted = match accepted(&session, &mut submission).await {
        Ok(accepted) => accepted,
        Err(answer) => return ended(context, &session, answer, format, Given::default()).await,
    };
    let id = accepted.cell;
    let given = Given {
        existing: accepted.existing,
        streamed: false,
    };
    if options.detach {
        return unfinished(context, &session, accepted, given, format).await;
    }
    let guard = options
        .cancel_on_disconnect
        .then(|| CancelGuard::new(context, &session, id));
    let mut watch = Patience::new(options);
    let waited = if options.stream {
        let since = options.since.unwrap_or_default();
        let reader = OutputReader::new(&session, id, None, since);
        stream(caller, reader, accepted, &mut submission, &mut watch).await
    } else {
        wait(&session, id, &mut submission, &mut watch).await
    };
    if let Some(guard) = guard {
        guard.disarm();
    }
    match waited {
        Waited::Ended(answer, streamed) => {
            let given = Given { streamed, ..given };
            ended(context, &session, answer, format, given).await
        }
        Waited::TimeIsUp(streamed) => {
            let given = Given { streamed, ..given };
            unfinished(context, &session, accepted, given, format).await
        }
    }
}

/// What the client has or knows already.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    existing: bool,
    streamed: bool,
}

enum Waited {
    /// The cell ended; true if its output was sent.
    Ended(RunAnswer, bool),
    /// The client does not want to wait longer.
    TimeIsUp(bool),
}

async fn wait(
    session: &SessionHandle,
    id: CellId,
    submission: &mut Submission,
    patience: &mut Patience,
) -> Waited {
    tokio::select! {
        biased;
        answer = session.end_of(&mut submission.end) => Waited::Ended(answer, false),
        () = patience.is_over(session, id) => Waited::TimeIsUp(false),
    }
}

/// Sends output as it comes, until the cell has ended and all of it is sent.
async fn stream(
    caller: &Caller,
    mut reader: OutputReader<'_>,
    accepted: Accepted,
    submission: &mut Submission,
    patience: &mut Patience,
) -> Waited {
    let (session, id) = (reader.session(), accepted.cell);
    let event = StreamEvent::Accepted {
        cell_id: id,
        status: accepted.status,
        held_by: held_by(session, accepted.status),
    };
    caller.event(&event).await;
    loop {
        tokio::select! {
            biased;
            answer = session.end_of(&mut submission.end) => {
                let sent = send_rest(caller, &mut reader, &answer).await;
                return Waited::Ended(answer, sent);
            }
            chunk = reader.follow() => match chunk {
                Ok(chunk) => caller.output(id, None, &chunk).await,
                // The end says what happened.
                Err(_) => {
                    let answer = session.end_of(&mut submission.end).await;
                    let sent = send_rest(caller, &mut reader, &answer).await;
                    return Waited::Ended(answer, sent);
                }
            },
            () = patience.is_over(session, id) => return Waited::TimeIsUp(true),
        }
    }
}

/// Sends what a cell that has ended wrote since.
/// False if there was none, and the reply has to bring what there is.
async fn send_rest(caller: &Caller, reader: &mut OutputReader<'_>, answer: &RunAnswer) -> bool {
    let (total, log) = match answer {
        RunAnswer::Finished(finished, log) => (finished.output_bytes, log.as_slice()),
        // The last words of a session that died come with its death.
        RunAnswer::Died(_, _, LastOutput { log, lost }) => {
            if let Some(chunk) = reader.rest_of_dead(log, *lost) {
                caller.output(reader.cell(), None, &chunk).await;
            }
            return true;
        }
        RunAnswer::Lost(_) | RunAnswer::Refused(_) => return false,
    };
    if let Some(chunk) = reader.take_inline(log) {
        caller.output(reader.cell(), None, &chunk).await;
    }
    while reader.position() < total {
        match reader.read().await {
            Ok(chunk) if chunk.next > reader.before() => {
                caller.output(reader.cell(), None, &chunk).await;
            }
            // Nothing more is kept.
            _ => break,
        }
    }
    true
}

/// When the client does not want to wait any longer.
struct Patience {
    wait: Option<Instant>,
    timeout: Option<Duration>,
    look: Option<Instant>,
}

impl Patience {
    fn new(options: &SubmitOptions) -> Self {
        let now = Instant::now();
        let look = options.timeout.map(|span| span + TIMEOUT_GRACE);
        Self {
            wait: options.wait.and_then(|span| now.checked_add(span)),
            timeout: options.timeout,
            look: look.and_then(|span| now.checked_add(span)),
        }
    }

    /// Returns when time is up: `--wait` is over, or the cell's time-out did not
    /// end it.
    async fn is_over(&mut self, session: &SessionHandle, id: CellId) {
        loop {
            let next = [self.wait, self.look].into_iter().flatten().min();
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
            let now = Instant::now();
            if self.wait.is_some_and(|end| end <= now) {
                return;
            }
            let looked = session.ask(Question::Look(Some(id))).await;
            let Ok(HostEvent::Cell {
                record: Some(record),
                ..
            }) = looked
            else {
                // A host that does not answer will not end the cell either.
                return;
            };
            if record.timed_out {
                return;
            }
            // It waits for its turn, or began late.
            let ran = Duration::from_nanos(record.duration_ns);
            let left = self.timeout.unwrap_or_default().saturating_sub(ran);
            self.look = Instant::now().checked_add(left + TIMEOUT_GRACE);
        }
    }
}

/// Interrupts a cell if its client goes away.
struct CancelGuard {
    context: Arc<Context>,
    session: SessionHandle,
    cell: Option<CellId>,
}

impl CancelGuard {
    fn new(context: &Arc<Context>, session: &SessionHandle, cell: CellId) -> Self {
        Self {
            context: Arc::clone(context),
            session: session.clone(),
            cell: Some(cell),
        }
    }

    fn disarm(mut self) {
        self.cell = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(cell) = self.cell {
            let session = self.session.clone();
            self.context.hosts.tracker.spawn(async move {
                // A session that cannot be asked has its own way to end.
                let _ = session.ask(Question::interrupt(vec![cell], false)).await;
            });
        }
    }
}

/// The answer about a cell that has ended.
async fn ended(
    context: &Arc<Context>,
    session: &SessionHandle,
    answer: RunAnswer,
    format: ReplyFormat,
    given: Given,
) -> Result<Reply, ErrorReply> {
    let (cell, status, error, output) = match answer {
        RunAnswer::Finished(finished, log) => {
            let cell =
                cell_reply::Finished::new(*finished, log).given(given.existing, given.streamed);
            return match format {
                ReplyFormat::Plain => cell.plain(session).await,
                ReplyFormat::Json => cell.structured(context, session).await,
            };
        }
        RunAnswer::Refused(error) => return Err(error),
        RunAnswer::Died(cell, error, output) => {
            let status = match error.fate {
                Some(Fate::HadEnded) => CellStatus::Lost,
                _ => CellStatus::Killed,
            };
            (cell, status, error, output)
        }
        RunAnswer::Lost(error) => (None, CellStatus::Lost, error, LastOutput::default()),
    };
    match format {
        ReplyFormat::Plain => cell_reply::plain_without_outcome(&error, &output),
        ReplyFormat::Json => {
            let mut reply =
                cell_reply::without_outcome(context, session, cell, status, error, &output)?;
            reply.existing = given.existing;
            if given.streamed {
                reply.streamed = true;
                reply.order.clear();
                reply.stdout.0.clear();
                reply.stderr.0.clear();
            }
            Ok(Reply {
                ok: false,
                ..Reply::json(&reply)
            })
        }
    }
}

/// The answer about a cell that goes on.
async fn unfinished(
    context: &Arc<Context>,
    session: &SessionHandle,
    accepted: Accepted,
    given: Given,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let id = accepted.cell;
    if format == ReplyFormat::Plain {
        let message = format!("cell {id} was told to stop after its time-out and has not ended");
        let hint = "see where it is with `stack`, or end it with `int` and `--kill`";
        return Err(ErrorReply::new(ErrorCode::Busy, message).with_hint(hint));
    }
    let (record, end) = match session.ask(Question::Look(Some(id))).await {
        Ok(HostEvent::Cell {
            record: Some(record),
            end,
            ..
        }) => (*record, end),
        Ok(_) => return Err(super::ask::unexpected()),
        // It is on its way to a host that does not answer now.
        Err(error) if error.code == ErrorCode::SessionUnreachable => {
            (cell_reply::barely_known(id, accepted.status), None)
        }
        Err(error) => return Err(error),
    };
    if let Some(end) = end {
        let cell =
            cell_reply::Finished::new(*end, Vec::new()).given(given.existing, given.streamed);
        return cell.structured(context, session).await;
    }
    let reply = cell_reply::unfinished(context, session, record, given.existing, given.streamed);
    Ok(Reply::json(&reply))
}
