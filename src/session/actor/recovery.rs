//! When the lanes of a session break, and when its host is gone.

use std::sync::{Arc, PoisonError};

use pythond_protocol::lane::{HostCommand, HostedSession};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::{ErrorCode, ErrorReply};

use super::link::{Link, recover};
use super::{Session, answer};
use crate::exits::HostExit;
use crate::host_process::{Lanes, is_alive};
use crate::litter;
use crate::session::death;
use crate::session::handle::{LastOutput, RunAnswer, View};
use crate::session::state::{Cell, Phase, Resume};

impl Session {
    pub(super) fn broken(&mut self, why: &str) {
        // One lane may show the end before the other one was read to its own.
        self.take_last_words();
        self.why_broken = why.to_owned();
        let (dir, socket) = (Arc::clone(&self.dir), self.socket.clone());
        let id = self.shared.hosted.spec.session_id.clone();
        self.link = Link::Recovering(Box::pin(recover(dir, socket, id)));
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
        for step in self.board.resume(hosted.next_cell) {
            match step {
                Resume::Await { request, cell } => {
                    self.resending.insert(request);
                    self.control(&HostCommand::Await { request, cell }, b"");
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
            // Its end was told while nobody listened.
            let request = self.board.next_request();
            self.control(&HostCommand::Await { request, cell }, b"");
        }
        // Questions change nothing in a host, and an interrupt that arrives twice
        // is one: those on their way when the lanes broke are asked again.
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
        if exit.is_none() && !is_alive(self.shared.hosted.zygote_pid) {
            // Nobody else removes them.
            litter::remove_of_host(&self.dir, &self.socket);
        }
        let tombstone = death::tombstone(exit.as_ref(), self.told, self.board.current());
        let running = tombstone.cell_id;
        let mut output = exit.map(|exit| LastOutput {
            log: exit.log,
            lost: exit.log_lost,
        });
        let error = death::died(&self.shared.hosted.spec.session, &tombstone);
        let unheard_of = running.filter(|id| !self.watch.running(None).contains(id));
        self.watch.closed(self.told, &tombstone);
        {
            let mut view = self
                .shared
                .view
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *view = View {
                running: false,
                death: Some(tombstone),
                told: self.told,
                held_by: None,
            };
        }
        self.shared.dead.cancel();
        let mut cells = self.board.drain();
        // It died before it could say that it had accepted the cell that ran.
        if let Some(ran) = unheard_of
            && cells.iter().all(|cell| cell.id != running)
            && let Some(first) = cells
                .iter_mut()
                .find(|cell| cell.kind == CellKind::Run && cell.id.is_none() && cell.sent)
        {
            first.id = Some(ran);
        }
        for Cell { id, waiter, .. } in cells {
            let output = if id == running { output.take() } else { None };
            let output = output.unwrap_or_default();
            answer(waiter, RunAnswer::Died(id, error.clone(), output));
        }
        for (_, (_, reply)) in self.asks.drain() {
            let _ = reply.send(Err(error.clone()));
        }
    }
}
