//! What is told of cells.

use std::collections::HashMap;

use pythond_protocol::CellId;
use pythond_protocol::lane::CellRecord;
use pythond_protocol::outcome::{CellKind, CellStatus};

use super::{Cells, Moment, Record};

impl Cells {
    fn with_status(&self, status: CellStatus) -> impl Iterator<Item = (&CellId, &Record)> {
        let found = move |(_, record): &(&CellId, &Record)| record.status == status;
        self.records.iter().filter(found)
    }

    /// Cells that run, by age.
    pub(crate) fn running(&self) -> Vec<CellId> {
        self.with_status(CellStatus::Running)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Cells that wait: for the main thread, then for `fire` cells.
    pub(crate) fn queued(&self) -> Vec<CellId> {
        let queues = self.queue.iter().chain(&self.beside).chain(&self.held);
        queues.map(|cell| cell.id).collect()
    }

    /// Cells that are not finished: those of the main thread in order, and all
    /// others.
    pub(crate) fn unfinished(&self) -> (Vec<CellId>, Vec<CellId>) {
        let unfinished = self
            .records
            .iter()
            .filter(|(_, record)| record.end.is_none());
        let (main, beside): (Vec<_>, Vec<_>) = unfinished
            .map(|(id, record)| (*id, record.kind))
            .partition(|(_, kind)| matches!(kind, CellKind::Run | CellKind::Human));
        let ids = |cells: Vec<(CellId, CellKind)>| cells.into_iter().map(|(id, _)| id).collect();
        (ids(main), ids(beside))
    }

    /// The cells of one kind that are not finished.
    pub(crate) fn unfinished_of(&self, kind: CellKind) -> Vec<CellId> {
        let records = self.records.iter();
        let found = records.filter(|(_, record)| record.kind == kind && record.end.is_none());
        found.map(|(id, _)| *id).collect()
    }

    /// The newest cell that runs beside the main thread.
    pub(crate) fn newest_beside(&self) -> Option<CellId> {
        let mut newest_first = self.records.iter().rev();
        let found =
            newest_first.find(|(_, record)| matches!(record.kind, CellKind::Fire | CellKind::Fork));
        found.map(|(id, _)| *id)
    }

    /// What is known of one cell, its output apart.
    pub(crate) fn record(&self, id: CellId, now: Moment) -> Option<CellRecord> {
        if self.is_expected(id) {
            return Some(on_its_way(id, now));
        }
        let places = [&self.queue, &self.beside, &self.held].into_iter();
        let mut places = places.map(|queue| queue.iter().position(|cell| cell.id == id));
        let place = places.find_map(|place| place);
        self.described(id, place, now)
    }

    /// The same of all cells, by age.
    pub(crate) fn all(&self, now: Moment) -> Vec<CellRecord> {
        let queues = [&self.queue, &self.beside, &self.held].into_iter();
        let places: HashMap<CellId, usize> = queues
            .flat_map(|queue| queue.iter().enumerate())
            .map(|(place, cell)| (cell.id, place))
            .collect();
        let mut ids: Vec<_> = self.records.iter().collect();
        ids.sort_by_key(|(_, record)| record.accepted.instant);
        ids.into_iter()
            .filter_map(|(id, _)| self.described(*id, places.get(id).copied(), now))
            .collect()
    }

    fn described(&self, id: CellId, place: Option<usize>, now: Moment) -> Option<CellRecord> {
        let record = self.records.get(&id)?;
        let duration = match (&record.end, record.started) {
            (Some(end), _) => end.duration_ns,
            (None, Some(started)) => {
                let span = now.instant.saturating_duration_since(started.instant);
                u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
            }
            (None, None) => 0,
        };
        Some(CellRecord {
            cell: id,
            kind: record.kind,
            author: record.author.clone(),
            status: record.status,
            queue_position: place.and_then(|place| u64::try_from(place + 1).ok()),
            accepted_us: record.accepted.us,
            started_us: record.started.map(|started| started.us),
            duration_ns: duration,
            output_bytes: 0,
            truncated: 0,
            interrupt_pending: record.interrupted && record.end.is_none(),
            timed_out: record.timed_out,
            key: record.key.clone(),
            code: record.code.clone(),
        })
    }
}

/// A cell that the main thread has not read yet.
fn on_its_way(id: CellId, now: Moment) -> CellRecord {
    CellRecord {
        cell: id,
        kind: CellKind::Run,
        author: String::new(),
        status: CellStatus::Queued,
        queue_position: None,
        accepted_us: now.us,
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
