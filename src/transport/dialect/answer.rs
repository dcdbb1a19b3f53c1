//! From what a daemon of 0.4 answers to our answer, or to the next question.

use std::time::Instant;

use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::attach::AttachReply;
use pythond_protocol::verbs::cell::Text;
use pythond_protocol::verbs::complete::CompleteReply;
use pythond_protocol::verbs::kill::KillReply;
use pythond_protocol::verbs::list::SessionState;
use pythond_protocol::verbs::new::{NewReply, StartKind};
use pythond_protocol::verbs::out::{OutReply, OutRequest, StreamEvent};
use pythond_protocol::verbs::resize::ResizeReply;
use pythond_protocol::verbs::stop::StopReply;
use pythond_protocol::verbs::vars::{Variable, VarsReply};
use pythond_protocol::verbs::wait::WaitReply;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, SessionId, SessionName};
use serde::{Deserialize, Serialize};

use super::ending::{Ending, Polled};
use super::reply::{
    cell, info, interrupted, its_python, kind, status, status_reply, submitted, summary,
};
use super::{Exchange, PAUSES, Quiet, Stage, Step, Waiting, listing, marked, refusal};

/// How a failed cell's answer begins.
const FAILED: &str = "ERR execution failed\n";

impl Exchange {
    /// What follows from an answer to what was asked last.
    #[must_use]
    pub fn answered(&mut self, text: &str) -> Step {
        let stage = std::mem::replace(&mut self.stage, Stage::Help);
        match self.follow(stage, text) {
            Ok(step) => step,
            Err(error) => self.refuse(&error),
        }
    }

    fn follow(&mut self, stage: Stage, text: &str) -> Result<Step, ErrorReply> {
        let plain = self.format == ReplyFormat::Plain;
        match stage {
            // An answer in its own words is what was asked for.
            Stage::Run
            | Stage::Submit(_)
            | Stage::Poll
            | Stage::Kill
            | Stage::Interrupt
            | Stage::Stop
            | Stage::Help
            | Stage::List
            | Stage::New { .. }
            | Stage::Status { .. }
            | Stage::Vars
            | Stage::Complete
            | Stage::Attach { .. }
            | Stage::Resize { .. }
                if plain =>
            {
                Ok(Step::Answer(vec![text.to_owned()]))
            }
            Stage::Run => self.ran(text),
            Stage::Info => {
                let first = text.lines().next().unwrap_or_default();
                let version = first.split_whitespace().nth(1).unwrap_or("0.4");
                self.stage = Stage::InfoList(version.to_owned());
                Ok(Step::Ask("ls".to_owned()))
            }
            Stage::InfoList(version) => Ok(info(version, text)),
            Stage::List => Ok(answer(&listing::list(text))),
            Stage::Help => Ok(answer(&serde_json::json!({ "ok": true, "help": text }))),
            stage => {
                let session = self.session.clone().map(String::from).unwrap_or_default();
                match refusal::refusal(text, &session) {
                    Some(error) => Err(error),
                    None => self.follow_accepted(stage, text),
                }
            }
        }
    }

    /// The same for what is no refusal.
    fn follow_accepted(&mut self, stage: Stage, text: &str) -> Result<Step, ErrorReply> {
        if let Stage::Stop = stage {
            return Ok(answer(&StopReply {
                ok: true,
                sessions: 0,
                kept: false,
            }));
        }
        let session = self.session.clone().ok_or_else(unexpected)?;
        match stage {
            Stage::Submit(kind) => submitted(session, kind, text),
            Stage::Poll => {
                let polled = polled(text)?;
                if polled.is_idle() {
                    return Ok(answer(&serde_json::json!({ "ok": true, "status": "idle" })));
                }
                let kind = kind(&polled);
                let mut reply = cell(session, kind, polled.cell_id, polled.ending());
                reply.merge = polled.merge();
                Ok(answer(&reply))
            }
            Stage::Wait(waiting) => self.waited(session, waiting, text),
            Stage::Out(request, pause) => self.output(*request, pause, text),
            Stage::Kill => Ok(answer(&KillReply {
                ok: true,
                killed: vec![session],
                failed: Vec::new(),
            })),
            Stage::Interrupt => Ok(answer(&interrupted(session, text))),
            Stage::LookBeforeNew(options) => {
                let found = listing::list(text);
                let mut same = found.sessions.iter().filter(|it| it.session == session);
                let replaced = same.any(|it| it.state != SessionState::Dead);
                let is_remote = found.remotes.iter().any(|it| it.name == session);
                if is_remote || replaced && !options.replace {
                    let message = format!("a session named `{session}` is alive already");
                    return Err(ErrorReply::new(ErrorCode::SessionExists, message)
                        .with_hint("`--replace` ends it first"));
                }
                self.stage = Stage::New { replaced };
                Ok(Step::Ask(format!("new {session}")))
            }
            Stage::New { replaced } => Ok(answer(&NewReply {
                ok: true,
                pid: listing::pid(text),
                session,
                session_id: SessionId::unknown(),
                generation: 0,
                python: its_python(),
                start: StartKind::Cold,
                cold_reason: None,
                replaced,
            })),
            Stage::LookBefore(quiet) => self.looked(session, quiet, text),
            Stage::StatusList => self.listed(session, text),
            Stage::Status { pid } => status(session, pid, text),
            Stage::Vars => {
                #[derive(Deserialize)]
                struct Names {
                    vars: Vec<String>,
                }
                let Names { vars } = read(text)?;
                let variable = |name| Variable {
                    name,
                    kind: String::new(),
                    size_bytes: None,
                    length: None,
                };
                Ok(answer(&VarsReply {
                    ok: true,
                    session,
                    vars: vars.into_iter().map(variable).collect(),
                }))
            }
            Stage::Complete => {
                #[derive(Deserialize)]
                struct Matches {
                    matches: Vec<String>,
                }
                let Matches { matches } = read(text)?;
                Ok(answer(&CompleteReply {
                    ok: true,
                    session,
                    matches,
                }))
            }
            Stage::Attach { rows, cols } => Ok(answer(&AttachReply {
                ok: true,
                session,
                session_id: SessionId::unknown(),
                generation: 0,
                rows,
                cols,
                read_only: false,
                held: false,
                attached: 1,
                host: String::new(),
                taken: None,
                resumed: None,
            })),
            Stage::Resize { rows, cols } => Ok(answer(&ResizeReply {
                ok: true,
                session,
                rows,
                cols,
            })),
            Stage::Run
            | Stage::Stop
            | Stage::Help
            | Stage::List
            | Stage::Info
            | Stage::InfoList(_) => Err(unexpected()),
        }
    }

    fn ran(&self, text: &str) -> Result<Step, ErrorReply> {
        let session = self.session.clone().ok_or_else(unexpected)?;
        let ending = match text.strip_prefix(FAILED) {
            Some(text) => Ending::failed(text),
            None => match refusal::of_run(text, session.as_str()) {
                Some(error) => return Err(error),
                None => Ending::done(text),
            },
        };
        Ok(answer(&cell(session, CellKind::Run, None, ending)))
    }

    fn waited(
        &mut self,
        session: SessionName,
        mut waiting: Waiting,
        text: &str,
    ) -> Result<Step, ErrorReply> {
        let polled = polled(text)?;
        let again = |id: CellId| format!("poll {session} {id}");
        let id = waiting.left.last().copied().ok_or_else(unexpected)?;
        let time_is_up = waiting.until.is_some_and(|until| Instant::now() >= until);
        if polled.is_running() && !time_is_up {
            let most = waiting
                .until
                .map(|until| until.saturating_duration_since(Instant::now()));
            let pause = waiting.pause.min(most.unwrap_or(waiting.pause));
            waiting.pause = (waiting.pause * 2).min(PAUSES.1);
            let text = again(id);
            self.stage = Stage::Wait(waiting);
            return Ok(Step::AskLater(pause, text));
        }
        waiting.left.pop();
        waiting.seen.push(summary(id, &polled));
        if let Some(next) = waiting.left.last() {
            let text = again(*next);
            self.stage = Stage::Wait(waiting);
            return Ok(Step::Ask(text));
        }
        let cells = waiting.seen;
        Ok(answer(&WaitReply {
            ok: cells.iter().all(|it| it.status == CellStatus::Done),
            timed_out: cells.iter().any(|it| it.status == CellStatus::Running),
            session,
            cells,
        }))
    }

    fn output(
        &mut self,
        request: OutRequest,
        pause: std::time::Duration,
        text: &str,
    ) -> Result<Step, ErrorReply> {
        let polled = polled(text)?;
        if polled.is_running() && request.follow {
            let text = format!("poll {} {}", request.session, request.cell);
            self.stage = Stage::Out(Box::new(request), (pause * 2).min(PAUSES.1));
            return Ok(Step::AskLater(pause, text));
        }
        let Ending {
            status,
            output,
            exception,
        } = polled.ending();
        let traceback = exception.map_or_else(String::new, |it| it.traceback);
        let written = output + &traceback;
        let written = written.as_bytes();
        let start = usize::try_from(request.since)
            .unwrap_or(usize::MAX)
            .min(written.len());
        let most = usize::try_from(request.most).unwrap_or(usize::MAX);
        let end = match request.events {
            true => written.len(),
            false => written.len().min(start.saturating_add(most)),
        };
        let piece = &written[start..end];
        if self.format == ReplyFormat::Plain {
            return Ok(Step::Answer(vec![
                String::from_utf8_lossy(piece).into_owned(),
            ]));
        }
        let mut answers = Vec::new();
        if request.events && !piece.is_empty() {
            answers.push(marked(&StreamEvent::Output {
                cell_id: request.cell,
                stream: 1,
                offset: start as u64,
                data: Text(piece.to_vec()),
            }));
        }
        answers.push(marked(&OutReply {
            ok: true,
            session: request.session,
            cell_id: request.cell,
            status,
            offset: start as u64,
            next: end as u64,
            missing: 0,
            ended: status != CellStatus::Running && end == written.len(),
            stdout: Text(if request.events {
                Vec::new()
            } else {
                piece.to_vec()
            }),
            stderr: Text(Vec::new()),
            order: Vec::new(),
        }));
        Ok(Step::Answer(answers))
    }

    fn looked(
        &mut self,
        session: SessionName,
        quiet: Quiet,
        text: &str,
    ) -> Result<Step, ErrorReply> {
        let polled = polled(text)?;
        let running = polled.cell_id.filter(|_| polled.is_running());
        let (stage, text) = match (quiet, running) {
            (Quiet::Status { pid }, Some(id)) => {
                let reply = status_reply(session, pid, SessionState::Running, vec![id], 0, 1);
                return Ok(answer(&reply));
            }
            (Quiet::Vars | Quiet::Complete(_), Some(id)) => {
                let message = format!(
                    "cell {id} runs: pythond 0.4 would wait for it, and give the session up \
                     after 30 s"
                );
                return Err(ErrorReply::new(ErrorCode::Busy, message)
                    .with_hint(format!("try again after `pysh wait {session} {id}`")));
            }
            (Quiet::Status { pid }, None) => (Stage::Status { pid }, format!("status {session}")),
            (Quiet::Vars, None) => (Stage::Vars, format!("vars {session}")),
            (Quiet::Complete(text), None) => {
                (Stage::Complete, format!("complete {session}\n{text}"))
            }
        };
        self.stage = stage;
        Ok(Step::Ask(text))
    }

    fn listed(&mut self, session: SessionName, text: &str) -> Result<Step, ErrorReply> {
        let found = listing::list(text).sessions;
        let Some(found) = found.iter().find(|it| it.session == session) else {
            return Err(ErrorReply::no_session(session.as_str()));
        };
        if found.state == SessionState::Dead {
            let reply = status_reply(session, found.pid, SessionState::Dead, Vec::new(), 0, 0);
            return Ok(answer(&reply));
        }
        let asked = format!("poll {session}");
        self.stage = Stage::LookBefore(Quiet::Status { pid: found.pid });
        Ok(Step::Ask(asked))
    }
}

pub(super) fn answer(value: &impl Serialize) -> Step {
    Step::Answer(vec![marked(value)])
}

fn unexpected() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Internal,
        "the daemon there gave an answer that pythond 0.4 does not give",
    )
}

pub(super) fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ErrorReply> {
    serde_json::from_str(text).map_err(|_| unexpected())
}

fn polled(text: &str) -> Result<Polled, ErrorReply> {
    let polled = Polled::of(text).ok_or_else(unexpected)?;
    match polled.unknown() {
        Some(error) => Err(error),
        None => Ok(polled),
    }
}
