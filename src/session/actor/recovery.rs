//! When the lanes of a session break, and when its host is gone.

use std::sync::{Arc, PoisonError};

use pythond_protocol::lane::{CellFate, HostCommand, HostEnd, HostedSession, Lane};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::link::{Link, recover};
use super::{Session, answer};
use crate::exits::HostExit;
use crate::host_process::{Lanes, is_alive};
use crate::litter;
use crate::session::death;
use crate::session::fate::{self, Sent};
use crate::session::handle::{EndReason, Last, LastOutput, Resent, RunAnswer, View, Waiter};
use crate::session::state::{Cell, Phase, Resume};
use crate::tombstones;

impl Session {
    pub(super) fn broken(&mut self, why: &str) {
        // One lane may show the end before the other one was read to its own.
        self.take_last_words();
        self.why_broken = why.to_owned();
        let (dir, socket) = (Arc::clone(&self.dir), self.socket.clone());
        let id = self.shared.hosted.spec.session_id.clone();
        self.link = Link::Recovering(Box::pin(recover(dir, socket, id, self.shared.process)));
    }

    pub(super) fn recovered(&mut self, lanes: Box<Lanes>, hosted: &HostedSession) {
        let name = &self.shared.hosted.spec.session;
        self.log.note(&format!(
            "session {name}: {}; new lanes are open",
            self.why_broken
        ));
        self.link = Link::Up(lanes);
        self.set_held(hosted.held_by.clone());
        self.expected = None;
        self.awaited.clear();
        for cell in &hosted.unfinished {
            // It came or began while nobody listened.
            if !self.board.knows(*cell) {
                self.board.inherit(*cell);
            }
        }
        for step in self.board.resume(hosted.next_cell) {
            match step {
                Resume::Await { request, cell } => {
                    self.await_cell(request, cell);
                }
                Resume::Send { request } => {
                    if self.board.send_again(request).is_some() {
                        self.send_cell(request);
                    }
                }
                Resume::Lost { request } => {
                    let Some(cell) = self.board.remove(request) else {
                        continue;
                    };
                    let error = ErrorReply::new(
                        ErrorCode::SessionUnreachable,
                        "the way to the session broke while this cell was on it",
                    )
                    .with_hint("nobody can know whether it ran; look before you send it again");
                    answer(cell.waiter, RunAnswer::Lost(error));
                }
            }
        }
        for cell in self.watch.resume(hosted) {
            if self.awaited.values().any(|awaited| *awaited == cell) {
                continue;
            }
            // Its end was told while nobody listened.
            let request = self.board.next_request();
            self.await_cell(request, cell);
        }
        // Those on their way when the lanes broke are asked again, under their
        // numbers: most change nothing in a host, and an interrupt it knows.
        let asks = self.asks.iter();
        let asks: Vec<_> = asks
            .map(|(request, (question, _))| (*request, question.clone()))
            .collect();
        for (request, question) in asks {
            self.control(&question.into_command(request), b"");
        }
        if self.phase == Phase::Ending {
            self.control(&HostCommand::Shutdown, b"");
        }
        self.publish_running();
    }

    /// The host does not know the end of a cell that it was asked for: it never
    /// came, and goes again, or its end is not kept.
    pub(super) fn not_found(&mut self, request: u64, cell: CellId, error: ErrorReply) {
        let never_came = error.code == ErrorCode::UnknownCell;
        if never_came && let Some(lane) = self.board.send_again(request) {
            let id = self.board.get(request).and_then(|cell| cell.id);
            if lane != Lane::Cell {
                // The host says which id it gets; it may be the same.
                self.awaited.insert(request, cell);
            } else if id != Some(cell) {
                self.watch.lost(cell);
            }
            self.send_cell(request);
            return;
        }
        self.watch.lost(cell);
        if let Some(cell) = self.board.remove(request) {
            let answered = match error.code {
                ErrorCode::Lost => RunAnswer::Lost(error),
                _ => RunAnswer::Refused(self.in_words(&cell, error)),
            };
            answer(cell.waiter, answered);
        }
    }

    /// What the host still wrote before it died.
    pub(super) fn take_last_words(&mut self) {
        loop {
            let Link::Up(lanes) = &mut self.link else {
                return;
            };
            let next = lanes
                .cell
                .take_arrived()
                .or_else(|| lanes.control.take_arrived());
            let Some(message) = next else { return };
            self.host_event(message);
        }
    }

    pub(super) fn die(&mut self, exit: Option<HostExit>) {
        self.phase = Phase::Dead;
        let (end, log) = match exit {
            Some(HostExit { end, log }) => (Some(end), log),
            None => (None, Vec::new()),
        };
        let mut tombstone = death::tombstone(end.as_deref(), self.told, self.board.current());
        let lost = end.as_ref().map_or(0, |end| end.log_lost);
        let mut output = Some(LastOutput { log, lost });
        self.leave_word(end.as_deref());
        if end.is_none() && !is_alive(self.shared.hosted.zygote_pid) {
            // Nobody else removes them.
            litter::remove_of_host(&self.dir, &self.socket);
        }
        let last = end.as_deref().map(Last::of).unwrap_or_default();
        let fates = &last.fates;
        let mut cells = self.board.drain();
        for (request, cell) in &mut cells {
            // It died before it could say that it had accepted it.
            let ours = |fate: &&CellFate| fate.request == *request && fate.cell >= self.first_new;
            cell.id = cell.id.or(fates.iter().find(ours).map(|fate| fate.cell));
        }
        // What was handed to the cell lane may not have arrived.
        let known = |id: &CellId| fates.is_empty() || fates.iter().any(|fate| fate.cell == *id);
        tombstone.cell_id = tombstone.cell_id.filter(known);
        self.watch.closed(self.told, &tombstone);
        {
            let mut view = self
                .shared
                .view
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *view = View {
                running: false,
                death: Some(tombstone.clone()),
                last: last.clone(),
                told: self.told,
                held_by: None,
            };
        }
        self.shared.dead.cancel();
        let name = &self.shared.hosted.spec.session;
        for (_, cell) in cells {
            if cell.id.is_none() && cell.how.key.is_some() {
                let sent = Sent {
                    kind: cell.kind,
                    source: &cell.source,
                    how: &cell.how,
                    resent: cell.waiter.resent.map(Resent::age),
                };
                let told = fate::answer(name, &tombstone, &last, sent);
                answer(cell.waiter, told);
                continue;
            }
            let Cell { id, waiter, .. } = cell;
            let ran_last = id.is_some() && id == tombstone.cell_id;
            let output = if ran_last { output.take() } else { None };
            let error = death::died_with(name, &tombstone, &last, id);
            answer(
                waiter,
                RunAnswer::Died(id, error, output.unwrap_or_default()),
            );
        }
        for (_, (question, reply)) in self.asks.drain() {
            let error = death::died_with(name, &tombstone, &last, question.cell());
            let _ = reply.send(Err(error));
        }
    }

    /// Tells whoever sent a cell after the death.
    pub(super) fn answer_of_dead(&self, sent: Sent<'_>, waiter: Waiter) {
        let view = self.shared.view.lock();
        let view = view.unwrap_or_else(PoisonError::into_inner).clone();
        let name = &self.shared.hosted.spec.session;
        let stone = view
            .death
            .unwrap_or_else(|| death::tombstone(None, self.told, None));
        answer(waiter, fate::answer(name, &stone, &view.last, sent));
    }

    /// Sees to what later daemons are told.
    fn leave_word(&self, end: Option<&HostEnd>) {
        match (end, self.told) {
            (_, Some(EndReason::Killed | EndReason::Replaced | EndReason::Stopped)) => {
                tombstones::forget(&self.dir, &self.socket);
            }
            (Some(end), Some(told @ (EndReason::Interrupted | EndReason::Exited))) => {
                tombstones::correct(&self.dir, end, told.cause());
            }
            (Some(end), None) => {
                // Its zygote wrote down what it saw; here more may be known.
                if let Some(cause) = &end.cause {
                    tombstones::correct(&self.dir, end, cause);
                }
            }
            (None, _) => {
                tombstones::unreported(&self.dir, &self.socket);
            }
        }
    }
}
