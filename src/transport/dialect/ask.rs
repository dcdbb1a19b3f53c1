//! From a request of ours to the first thing that a daemon of 0.4 is asked.

use std::time::Instant;

use pythond_protocol::outcome::CellKind;
use pythond_protocol::verbs::attach::AttachRequest;
use pythond_protocol::verbs::interrupt::InterruptRequest;
use pythond_protocol::verbs::kill::KillRequest;
use pythond_protocol::verbs::new::NewRequest;
use pythond_protocol::verbs::out::OutRequest;
use pythond_protocol::verbs::poll::PolledCell;
use pythond_protocol::verbs::stop::StopRequest;
use pythond_protocol::verbs::submit::{SubmitOptions, SubmitRequest, is_implied_key};
use pythond_protocol::verbs::wait::WaitRequest;
use pythond_protocol::verbs::{Request, word};
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};

use super::{Exchange, PAUSES, Quiet, Stage, Waiting, may_have_run};

/// Refuses what 0.4 does not have.
pub(crate) fn lacks(what: &str) -> ErrorReply {
    ErrorReply::new(
        ErrorCode::NotAvailable,
        format!("the daemon there is pythond 0.4, which has no {what}"),
    )
}

/// Refuses the first of these that was asked for.
fn lacks_any<const N: usize>(asked: [(bool, &str); N]) -> Result<(), ErrorReply> {
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(lacks(what)),
        None => Ok(()),
    }
}

impl Exchange {
    /// What is asked first.
    ///
    /// # Errors
    /// What 0.4 cannot do is not asked for.
    pub(super) fn ask(&mut self, request: Request) -> Result<String, ErrorReply> {
        let (session, stage, text) = match request {
            Request::Help => (None, Stage::Help, "help".to_owned()),
            Request::Info => (None, Stage::Info, "help".to_owned()),
            Request::List => (None, Stage::List, "ls".to_owned()),
            Request::Stop(StopRequest::EndSessions) => (None, Stage::Stop, "stop".to_owned()),
            Request::Stop(StopRequest::KeepSessions) => return Err(lacks("`--keep-sessions`")),
            Request::Stop(StopRequest::Restart) => return Err(lacks("`restart`")),
            Request::New(request) => new(request)?,
            Request::Submit(request) => submit(request)?,
            Request::Poll(request) => {
                let id = match request.cell {
                    Some(PolledCell::Unknown(id)) => return Err(ErrorReply::unknown_cell(&id)),
                    Some(PolledCell::Id(id)) => format!(" {id}"),
                    None => String::new(),
                };
                let text = format!("poll {}{id}", request.session);
                (Some(request.session), Stage::Poll, text)
            }
            Request::Wait(request) => wait(request)?,
            Request::Out(request) => out(request)?,
            Request::Kill(KillRequest::One(session)) => {
                let text = format!("kill {session}");
                (Some(session), Stage::Kill, text)
            }
            Request::Kill(KillRequest::All) => return Err(lacks("`kill --all`")),
            Request::Status(request) => (Some(request.session), Stage::StatusList, "ls".to_owned()),
            Request::Vars(request) => quiet(request.session, Quiet::Vars),
            Request::Complete(request) => quiet(request.session, Quiet::Complete(request.text)),
            Request::Interrupt(request) => interrupt(request)?,
            Request::Attach(request) => attach(request)?,
            Request::Resize(request) => {
                let (session, rows, cols) = (request.session, request.size.rows, request.size.cols);
                let text = format!("resize {session} {rows} {cols}");
                (Some(session), Stage::Resize { rows, cols }, text)
            }
            Request::Cells(_) => return Err(lacks("`cells`")),
            Request::Stack(_) => return Err(lacks("`stack`")),
            Request::Events(_) => return Err(lacks("`events`")),
            Request::Cancel(_) => return Err(lacks("`cancel`")),
            Request::Pair(_) => return Err(lacks("`pair`")),
            Request::Hold(_) => return Err(lacks("`hold` and `release`")),
            Request::Connect(_) | Request::Disconnect(_) => {
                return Err(ErrorReply::new(
                    ErrorCode::NotAvailable,
                    "the daemon there is pythond 0.4, and what it is connected to is not ours to \
                     change",
                )
                .with_hint("connect from a daemon of this version"));
            }
        };
        (self.session, self.stage) = (session, stage);
        Ok(text)
    }
}

type First = (Option<SessionName>, Stage, String);

fn new(request: NewRequest) -> Result<First, ErrorReply> {
    // What nobody typed follows from where the client is.
    let options = request.options.for_elsewhere();
    lacks_any([
        (options.python.is_some(), "choice of a Python"),
        (options.cwd.is_some(), "`--cwd`"),
        (!options.env.is_empty(), "`--env`"),
        (!options.preload.is_empty(), "`--preload`"),
        (!options.limits.is_none(), "limits of sessions"),
    ])?;
    let stage = Stage::LookBeforeNew(options);
    Ok((Some(request.session), stage, "ls".to_owned()))
}

fn submit(request: SubmitRequest) -> Result<First, ErrorReply> {
    let SubmitRequest {
        session,
        kind,
        source,
        options,
    } = request;
    // Output comes with the answer then, and nobody is told of the author.
    let SubmitOptions {
        stream: _,
        since: _,
        author: _,
        detach,
        wait,
        timeout,
        busy_fails,
        cancel_on_disconnect,
        queue,
        key,
        resent,
        max_result,
    } = options;
    if resent.is_some() {
        return Err(may_have_run());
    }
    lacks_any([
        (detach, "`--detach`"),
        (wait.is_some(), "`--wait`"),
        (timeout.is_some(), "`--timeout`"),
        (busy_fails, "`--busy=fail`"),
        (cancel_on_disconnect, "`--cancel-on-disconnect`"),
        (queue, "`--queue`"),
        (max_result.is_some(), "`--max-result`"),
        (
            key.is_some_and(|key| !is_implied_key(&key)),
            "`--id`: a cell that is sent twice runs twice",
        ),
    ])?;
    let stage = match kind {
        CellKind::Run | CellKind::Human => Stage::Run,
        CellKind::Fire | CellKind::Fork => Stage::Submit(kind),
    };
    // No code at all is an error there.
    let source = if source.is_empty() { "\n" } else { &source };
    let text = format!("{} {session}\n{source}", word(&kind));
    Ok((Some(session), stage, text))
}

fn wait(request: WaitRequest) -> Result<First, ErrorReply> {
    let WaitRequest {
        session,
        mut cells,
        timeout,
    } = request;
    cells.reverse();
    let Some(first) = cells.last() else {
        return Err(lacks("list of its cells").with_hint("say which: `pysh wait NAME ID`"));
    };
    let text = format!("poll {session} {first}");
    let waiting = Waiting {
        left: cells,
        seen: Vec::new(),
        until: timeout.and_then(|most| Instant::now().checked_add(most)),
        pause: PAUSES.0,
    };
    Ok((Some(session), Stage::Wait(waiting), text))
}

fn out(request: OutRequest) -> Result<First, ErrorReply> {
    if request.stream.is_some() {
        return Err(lacks(
            "`--stdout` and `--stderr`: it does not tell them apart",
        ));
    }
    let session = request.session.clone();
    let text = format!("poll {session} {}", request.cell);
    Ok((Some(session), Stage::Out(Box::new(request), PAUSES.0), text))
}

fn quiet(session: SessionName, then: Quiet) -> First {
    let text = format!("poll {session}");
    (Some(session), Stage::LookBefore(then), text)
}

fn interrupt(request: InterruptRequest) -> Result<First, ErrorReply> {
    lacks_any([
        (
            !request.cells.is_empty(),
            "interrupt of one cell: `int NAME` is for all that run, `run` cells excepted",
        ),
        (request.kill, "`int --kill`"),
        (request.soft, "`int --soft`"),
    ])?;
    let text = format!("int {}", request.session);
    Ok((Some(request.session), Stage::Interrupt, text))
}

fn attach(request: AttachRequest) -> Result<First, ErrorReply> {
    lacks_any([(request.read_only, "`--read-only`")])?;
    let size = request.size.map_or((24, 80), |size| (size.rows, size.cols));
    let (rows, cols) = size;
    let session = request.session;
    let text = match request.size {
        Some(_) => format!("attach {session} {rows} {cols}"),
        None => format!("attach {session}"),
    };
    Ok((Some(session), Stage::Attach { rows, cols }, text))
}
