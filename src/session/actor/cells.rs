//! Cells on their way to the host, and what becomes of them.

use std::sync::{Arc, PoisonError};

use pythond_protocol::lane::{FinishedCell, HostCommand, HostEvent, Lane};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::link::Link;
use super::{Session, answer};
use crate::session::death;
use crate::session::handle::{Accepted, LastOutput, Resent, RunAnswer, Submit, Waiter};
use crate::session::question::Question;
use crate::session::state::{Cell, MAX_QUEUED_BYTES, Phase};

impl Session {
    pub(super) fn submit(&mut self, submit: Submit, waiter: Waiter) {
        let Submit {
            kind,
            source,
            mut how,
            busy_fails,
            resent,
        } = submit;
        how.resent_ms = resent.map(milliseconds);
        if let Some((key, cell)) = how.key.as_ref().and_then(|key| {
            let cell = self.board.keyed_on_cell_lane(key)?;
            Some((key, cell))
        }) && let Some(id) = cell.id
        {
            if (cell.kind, &*cell.source) != (kind, &source) {
                let error = ErrorReply::id_reused(key, id);
                return answer(waiter, RunAnswer::Refused(error));
            }
            let source = Arc::clone(&cell.source);
            let request = self.board.join(id, source, kind, how, waiter);
            return self.join(request, id);
        }
        if busy_fails && resent.is_some() {
            // It may be the very one that the session is busy with. A host of an
            // earlier version lets it wait.
            how.busy_fails = true;
        } else if busy_fails && (!self.board.is_idle() || self.board.is_held()) {
            answer(waiter, RunAnswer::Refused(self.busy()));
            return;
        }
        if kind == CellKind::Fork && !self.shared.hosted.forks {
            let name = &self.shared.hosted.spec.session;
            let message = format!("the process of session `{name}` is older and knows no `fork`");
            let error = ErrorReply::new(ErrorCode::NotAvailable, message)
                .with_hint("use `fire`, or create the session again");
            answer(waiter, RunAnswer::Refused(error));
            return;
        }
        match self.board.add(source, kind, how, waiter) {
            Ok((request, _)) => self.send_cell(request),
            Err(waiter) => {
                let error = ErrorReply::new(
                    ErrorCode::Limit,
                    format!(
                        "more than {} MiB of code wait in this session",
                        MAX_QUEUED_BYTES >> 20
                    ),
                )
                .with_hint("wait for cells to finish, then send it again");
                answer(waiter, RunAnswer::Refused(error));
            }
        }
    }

    /// Somebody else waits for a cell that went by the cell lane.
    fn join(&mut self, request: u64, cell: CellId) {
        self.expect_cell_of_lane();
        self.await_cell(request, cell);
        let accepted = Accepted {
            cell,
            existing: true,
            status: CellStatus::Running,
        };
        self.tell_accepted(request, accepted);
    }

    /// The refusal of a cell that is not to wait.
    fn busy(&self) -> ErrorReply {
        let name = &self.shared.hosted.spec.session;
        let view = self.shared.view.lock();
        let held_by = view.unwrap_or_else(PoisonError::into_inner).held_by.clone();
        let message = match held_by {
            Some(by) => format!("session `{name}` is held by {by}"),
            None => format!("session `{name}` is busy"),
        };
        ErrorReply::new(ErrorCode::Busy, message)
            .with_hint("send it without `--busy=fail` to let it wait for its turn")
    }

    /// The host's refusal of a cell.
    pub(super) fn in_words(&self, cell: &Cell<Waiter>, error: ErrorReply) -> ErrorReply {
        match cell.how.busy_fails && error.code == ErrorCode::Busy {
            true => self.busy(),
            false => error,
        }
    }

    /// Sends a cell of the board by its lane. While there is no link it waits
    /// on the board; `recovered` sends it.
    pub(super) fn send_cell(&mut self, request: u64) {
        let Link::Up(lanes) = &mut self.link else {
            return;
        };
        let before = self.board.on_cell_lane();
        let Some(cell) = self.board.get(request) else {
            return;
        };
        let after = before.filter(|_| cell.lane == Lane::Control);
        let lane = match cell.lane {
            Lane::Cell => &mut lanes.cell,
            Lane::Control | Lane::Terminal => &mut lanes.control,
        };
        let mut how = cell.how.clone();
        how.resent_ms = cell.waiter.resent.map(milliseconds);
        let command = match cell.kind {
            CellKind::Run => HostCommand::Run {
                request,
                how,
                after,
            },
            CellKind::Fork => HostCommand::Fork { request, how },
            _ => HostCommand::Fire { request, how },
        };
        let sent = lane.send(&command, cell.source.as_bytes());
        // On the cell lane it runs at once, under the id that is next.
        let runs = cell.id.filter(|_| cell.lane == Lane::Cell);
        self.board.mark_sent(request);
        if let Some(cell) = runs
            && sent.is_ok()
        {
            self.watch.started(cell, CellKind::Run);
            self.publish_running();
            let accepted = Accepted {
                cell,
                existing: false,
                status: CellStatus::Running,
            };
            self.tell_accepted(request, accepted);
        }
        if let Err(error) = sent {
            let error = ErrorReply::new(ErrorCode::Limit, error.to_string());
            if let Some(cell) = self.board.remove(request) {
                answer(cell.waiter, RunAnswer::Refused(error));
            }
        }
    }

    /// Tells the submitter the id of its cell.
    pub(super) fn tell_accepted(&mut self, request: u64, accepted: Accepted) {
        let Some(cell) = self.board.accepted(request, accepted.cell) else {
            return;
        };
        let waiter = cell.waiter.accepted.take();
        let beside = cell.kind != CellKind::Run;
        if beside {
            // Its end is asked for by whoever wants to know it.
            self.board.remove(request);
        }
        if let Some(waiter) = waiter {
            let _ = waiter.send(accepted);
        }
    }

    pub(super) fn accepted(&mut self, request: u64, accepted: Accepted) {
        let kind = self.board.get(request).map(|cell| cell.kind);
        if !accepted.existing
            && let Some(kind) = kind
        {
            self.watch.accepted(accepted.cell, kind, accepted.status);
        }
        if accepted.existing
            && let Some(spent) = self.board.is_not_new(request)
        {
            self.watch.lost(spent);
        }
        // It was told under another id, and sent again.
        if let Some(before) = self.awaited.remove(&request)
            && before != accepted.cell
        {
            self.watch.lost(before);
        }
        self.publish_running();
        self.tell_accepted(request, accepted);
    }

    pub(super) fn finished(&mut self, finished: Box<FinishedCell>, log: Vec<u8>) {
        self.watch.finished(&finished);
        let was_awaited = finished
            .request
            .map(|request| self.awaited.remove(&request));
        if let Some(Some(before)) = was_awaited
            && before != finished.cell
        {
            self.watch.lost(before);
        }
        // A copy for somebody who asked; the cell's own message may come later.
        let asked = finished
            .request
            .and_then(|request| self.asks.remove(&request));
        if let Some((_, reply)) = asked {
            self.publish_running();
            let answer = match self.ended_with_session(&finished) {
                Some(error) => Err(error),
                None => Ok((HostEvent::Finished(finished), log)),
            };
            let _ = reply.send(answer);
            return;
        }
        let found = self.board.finished(&finished);
        self.publish_running();
        if let Some((request, cell)) = found {
            self.awaited.remove(&request);
            self.answer_finished(cell.waiter, finished, log);
        }
    }

    /// Nobody asked to interrupt the cell: the session was ended.
    pub(super) fn ended_with_session(&self, finished: &FinishedCell) -> Option<ErrorReply> {
        if self.phase != Phase::Ending || finished.status != CellStatus::Interrupted {
            return None;
        }
        let tombstone = death::tombstone(None, self.told, Some(finished.cell));
        let name = &self.shared.hosted.spec.session;
        Some(death::died(name, &tombstone))
    }

    pub(super) fn answer_finished(
        &self,
        waiter: Waiter,
        finished: Box<FinishedCell>,
        log: Vec<u8>,
    ) {
        if let Some(error) = self.ended_with_session(&finished) {
            let output = LastOutput {
                log,
                lost: finished.truncated,
            };
            answer(waiter, RunAnswer::Died(Some(finished.cell), error, output));
            return;
        }
        answer(waiter, RunAnswer::Finished(finished, log));
    }

    pub(super) fn refused(&mut self, request: u64, error: ErrorReply) {
        if let Some((question, reply)) = self.asks.remove(&request) {
            let error = match question {
                // Who asks for any cell is told alike of all that are not kept.
                Question::Await(cell) if error.code == ErrorCode::Lost => {
                    ErrorReply::unknown_cell(&cell.to_string())
                }
                _ => error,
            };
            let _ = reply.send(Err(error));
        } else if let Some(before) = self.awaited.remove(&request) {
            self.not_found(request, before, error);
        } else {
            if let Some(spent) = self.board.is_not_new(request) {
                self.watch.lost(spent);
            }
            if let Some(cell) = self.board.remove(request) {
                let error = self.in_words(&cell, error);
                answer(cell.waiter, RunAnswer::Refused(error));
            }
        }
        self.publish_running();
    }
}

fn milliseconds(resent: Resent) -> u64 {
    u64::try_from(resent.age().as_millis()).unwrap_or(u64::MAX)
}
