//! Cells that wait for their turn.

use pythond_protocol::CellId;
use pythond_protocol::outcome::CellKind;

use super::{Cells, QueuedCell};

impl Cells {
    /// Lets a cell wait for the main thread, in the order of the ids.
    pub(crate) fn enqueue(&mut self, cell: QueuedCell) {
        match self.queue.front() {
            Some(first) if first.id > cell.id => self.queue.push_front(cell),
            _ => self.queue.push_back(cell),
        }
    }

    /// The next cell for the main thread; none while one that comes before is
    /// on its way.
    pub(crate) fn next_queued(&mut self) -> Option<QueuedCell> {
        if self.reserved.is_some() {
            return None;
        }
        self.queue.pop_front()
    }

    /// No cell waits that the main thread may take.
    pub(crate) fn queue_is_empty(&self) -> bool {
        self.queue.is_empty() || self.reserved.is_some()
    }

    /// Lets a `fire` cell wait for those before it.
    pub(crate) fn enqueue_beside(&mut self, cell: QueuedCell) {
        self.beside.push_back(cell);
    }

    /// Lets a `fire` or `fork` cell wait until agents' cells may run again.
    pub(crate) fn hold_back(&mut self, cell: QueuedCell) {
        self.held.push_back(cell);
    }

    /// Agents' cells may run again: those beside the main thread whose turn it
    /// is, `fork` cells last.
    pub(crate) fn take_held(&mut self) -> (Vec<QueuedCell>, Vec<QueuedCell>) {
        let held: Vec<_> = std::mem::take(&mut self.held).into();
        let is_fork = |cell: &QueuedCell| {
            let record = self.records.get(&cell.id);
            record.is_some_and(|record| record.kind == CellKind::Fork)
        };
        let (forks, mut fires): (Vec<_>, Vec<_>) = held.into_iter().partition(is_fork);
        fires.extend(self.due_beside());
        (fires, forks)
    }

    /// The `fire` cells whose turn it is.
    pub(crate) fn due_beside(&mut self) -> Vec<QueuedCell> {
        let mut due = Vec::new();
        while let Some(first) = self.beside.front() {
            let earlier = self
                .records
                .range(..first.id)
                .any(|(_, record)| record.kind == CellKind::Fire && record.end.is_none());
            if earlier {
                break;
            }
            due.extend(self.beside.pop_front());
        }
        due
    }

    /// Takes a waiting cell back.
    pub(crate) fn dequeue(&mut self, id: CellId) -> Option<QueuedCell> {
        for queue in [&mut self.queue, &mut self.beside, &mut self.held] {
            if let Some(at) = queue.iter().position(|cell| cell.id == id) {
                return queue.remove(at);
            }
        }
        None
    }
}
