//! What a session's task tells those who follow events: which cells wait, run,
//! have ended; and that the session is gone. Each once.

use std::collections::BTreeMap;
use std::sync::Arc;

use pythond_protocol::CellId;
use pythond_protocol::lane::{FinishedCell, HostedSession};
use pythond_protocol::outcome::{CellKind, CellStatus, ProcessEnd};
use pythond_protocol::verbs::events::{CellEvent, Event};
use pythond_protocol::verbs::status::Tombstone;

use super::handle::EndReason;
use crate::events::{CellMoment, EventLog};

/// The cells of a session that are not finished, as far as is known.
#[derive(Debug)]
pub(super) struct Watch {
    events: Arc<EventLog>,
    /// Names of the session; what is the cell's own is filled in later.
    names: Arc<CellEvent>,
    unfinished: BTreeMap<CellId, (CellKind, CellStatus)>,
}

impl Watch {
    pub(super) fn new(events: Arc<EventLog>, hosted: &HostedSession) -> Self {
        let spec = &hosted.spec;
        Self {
            events,
            names: Arc::new(CellEvent {
                session: spec.session.clone(),
                session_id: spec.session_id.clone(),
                generation: spec.generation,
                cell_id: CellId::from_parts(0, 0),
                kind: CellKind::Run,
                status: CellStatus::Running,
                duration_ms: None,
                output_bytes: None,
            }),
            unfinished: states(hosted),
        }
    }

    /// Takes what the host says of its cells, and tells what has become of them
    /// meanwhile; those that it does not name any more.
    pub(super) fn resume(&mut self, hosted: &HostedSession) -> Vec<CellId> {
        let now = states(hosted);
        let gone = self
            .unfinished
            .keys()
            .filter(|cell| !now.contains_key(cell));
        let gone = gone.copied().collect();
        for (cell, (kind, status)) in now {
            // A host of an earlier version does not tell a person's cells apart.
            let known = self.unfinished.get(&cell);
            let kind = known.map_or(kind, |(kind, _)| *kind);
            if status == CellStatus::Running {
                self.started(cell, kind);
            } else {
                self.accepted(cell, kind, status);
            }
        }
        gone
    }

    /// Some cell runs or waits.
    pub(super) fn something_runs(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Cells that run; `current` is the one of the main thread, if it is known.
    pub(super) fn running(&self, current: Option<CellId>) -> Vec<CellId> {
        let running = self.unfinished.iter();
        let mut running: Vec<_> = running
            .filter(|(_, (_, status))| *status == CellStatus::Running)
            .map(|(cell, _)| *cell)
            .collect();
        if let Some(current) = current
            && !running.contains(&current)
        {
            running.push(current);
        }
        running
    }

    fn tell(&self, cell_id: CellId, kind: CellKind, status: CellStatus, end: Option<(u64, u64)>) {
        let moment = CellMoment {
            cell_id,
            kind,
            status,
            end,
        };
        self.events.publish_cell(&self.names, moment);
    }

    /// The host has a cell.
    pub(super) fn accepted(&mut self, cell: CellId, kind: CellKind, status: CellStatus) {
        if self.unfinished.contains_key(&cell) {
            return;
        }
        if status == CellStatus::Running {
            return self.started(cell, kind);
        }
        self.unfinished.insert(cell, (kind, status));
        self.tell(cell, kind, status, None);
    }

    /// A cell runs.
    pub(super) fn started(&mut self, cell: CellId, kind: CellKind) {
        let state = (kind, CellStatus::Running);
        if self.unfinished.insert(cell, state) != Some(state) {
            self.tell(cell, kind, CellStatus::Running, None);
        }
    }

    /// A cell has ended.
    pub(super) fn finished(&mut self, end: &FinishedCell) {
        if self.unfinished.remove(&end.cell).is_some() {
            let ended = Some((end.duration_ns, end.output_bytes));
            self.tell(end.cell, end.kind, end.status, ended);
        }
    }

    /// Nobody can know how a cell ended, or whether it ever came.
    pub(super) fn lost(&mut self, cell: CellId) {
        if let Some((kind, _)) = self.unfinished.remove(&cell) {
            self.tell(cell, kind, CellStatus::Lost, None);
        }
    }

    /// The session is gone, and its cells with it.
    pub(super) fn closed(&mut self, told: Option<EndReason>, tombstone: &Tombstone) {
        for (cell, (kind, _)) in std::mem::take(&mut self.unfinished) {
            self.tell(cell, kind, CellStatus::Killed, None);
        }
        let reason = match (told, &tombstone.end) {
            (Some(reason), _) => reason.word(),
            (None, ProcessEnd::Exited { .. }) => "exited",
            (None, _) => "died",
        };
        self.events.publish(Event::SessionClosed {
            session: self.names.session.clone(),
            session_id: self.names.session_id.clone(),
            generation: self.names.generation,
            reason: reason.to_owned(),
            cause: tombstone.cause.clone(),
        });
    }
}

/// The cells of a session that are not finished, as its host tells.
fn states(hosted: &HostedSession) -> BTreeMap<CellId, (CellKind, CellStatus)> {
    let main = hosted.unfinished.iter().map(|cell| {
        let human = hosted.unfinished_humans.contains(cell);
        let kind = if human {
            CellKind::Human
        } else {
            CellKind::Run
        };
        (*cell, kind)
    });
    let beside = hosted.unfinished_beside.iter().map(|cell| {
        let fork = hosted.unfinished_forks.contains(cell);
        let kind = if fork { CellKind::Fork } else { CellKind::Fire };
        (*cell, kind)
    });
    let all = main.chain(beside).map(|(cell, kind)| {
        let waits = hosted.queued.contains(&cell);
        let status = if waits {
            CellStatus::Queued
        } else {
            CellStatus::Running
        };
        (cell, (kind, status))
    });
    all.collect()
}
