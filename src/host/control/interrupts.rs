//! Cells that are told to stop, and what came of it.

use std::time::{Duration, Instant};

use pythond_protocol::CellId;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::interrupt::{InterruptOutcome, InterruptedCell};
use rustix::process::Signal;

use super::{Control, unknown_cell};
use crate::children::Family;
use crate::shared::{Outgoing, Shared};
use crate::{cell, ends, fire, fork, interrupt, stack};

/// How long an interrupt may take until it is told as pending.
const INTERRUPT_PATIENCE: Duration = Duration::from_millis(50);

/// Interrupts that are remembered: more than a daemon has on their way.
const MOST_INTERRUPTED: usize = 256;

/// An interrupt that was carried out. A daemon whose lanes broke asks again: that
/// is the same one, which the cell may have dealt with already.
#[derive(Debug)]
pub(super) struct Interrupted {
    request: u64,
    cells: Vec<InterruptedCell>,
}

/// Cells that were told to stop, and who wants to know what came of it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) request: u64,
    pub(super) cells: Vec<InterruptedCell>,
    pub(super) deadline: Instant,
}

impl Control {
    pub(super) fn interrupt(
        &mut self,
        request: u64,
        mut cells: Vec<CellId>,
        soft: bool,
        unnamed: bool,
    ) -> Option<Outgoing> {
        let again = self.interrupted.iter().find(|it| it.request == request);
        if let Some(Interrupted { cells, .. }) = again {
            let cells = cells.clone();
            self.tell_what_comes(request, cells);
            return None;
        }
        // One that the main thread has not read yet is known by its number. In this
        // order: what is not expected any more when it is asked has been accepted.
        let shared = self.shared;
        let unknown =
            |cell: &&CellId| !shared.is_expected(**cell) && shared.state_of(**cell).is_none();
        if cells.is_empty() {
            cells = shared.running();
        } else if unnamed {
            cells.retain(|cell| !unknown(&cell));
        } else if let Some(cell) = cells.iter().find(unknown) {
            return Some((unknown_cell(request, *cell), Vec::new()));
        }
        let cells: Vec<_> = cells
            .into_iter()
            .filter_map(|cell| self.tell(cell, false, soft))
            .collect();
        if self.interrupted.len() == MOST_INTERRUPTED {
            self.interrupted.pop_front();
        }
        self.interrupted.push_back(Interrupted {
            request,
            cells: cells.clone(),
        });
        self.tell_what_comes(request, cells);
        None
    }

    /// Answers an interrupt once its cells have ended, or in a while.
    fn tell_what_comes(&mut self, request: u64, cells: Vec<InterruptedCell>) {
        // In this order: an end that comes now is told.
        self.shared.watch_ends(true);
        self.told.push(Told {
            request,
            cells,
            deadline: Instant::now() + INTERRUPT_PATIENCE,
        });
        self.watch();
        // Those who asked earlier may get their answers here as well.
        for (event, body) in self.tell_what_came() {
            self.shared.send(event, body);
        }
    }

    /// Tells one cell to stop; `fork` cells are killed unless `soft`. None if it
    /// has ended.
    pub(super) fn tell(
        &mut self,
        cell: CellId,
        by_timeout: bool,
        soft: bool,
    ) -> Option<InterruptedCell> {
        let shared = self.shared;
        // The one that is on its way: see `interrupt`.
        let state = shared.state_of(cell);
        let (kind, status) = state.unwrap_or((CellKind::Run, CellStatus::Running));
        if !matches!(status, CellStatus::Queued | CellStatus::Running) {
            return None;
        }
        let mut told = InterruptedCell {
            cell_id: cell,
            kind,
            outcome: InterruptOutcome::Pending,
            stack: None,
        };
        if shared.dequeue(cell).is_some() || (kind == CellKind::Fork && fork::take_back(cell)) {
            told.outcome = InterruptOutcome::Dequeued;
            let status = CellStatus::Interrupted;
            let message = "interrupted before it ran";
            let end = cell::never_ran(shared, cell, kind, status, "KeyboardInterrupt", message);
            ends::announce(shared, end);
            return Some(told);
        }
        shared.note_interrupt(cell, by_timeout);
        if kind == CellKind::Fire {
            fire::interrupt(shared, cell);
        } else if kind == CellKind::Fork {
            fork::stop(cell, soft);
        } else {
            if !interrupt::aim_at(cell.as_u64()) {
                interrupt::aim_at_start(cell.as_u64());
            }
            self.repeating = true;
            if let Some(thread) = self.thread_of(cell) {
                Family::of(thread).signal(Signal::INT);
            }
        }
        Some(told)
    }

    /// Tells one cell to stop; nobody waits to hear what came of it.
    pub(crate) fn interrupt_one(&mut self, cell: CellId) {
        // While the main thread waits in the C library's `system`, the key is
        // for the program that it started.
        if crate::sys::is_ignored(Signal::INT.as_raw()) {
            if let Some(thread) = self.thread_of(cell) {
                Family::of(thread).signal(Signal::INT);
            }
            return;
        }
        self.tell(cell, false, true);
        self.watch();
    }

    /// The kernel's id of the thread that a cell runs on.
    pub(super) fn thread_of(&self, cell: CellId) -> Option<i32> {
        if self.shared.running_main() == Some(cell) {
            return Some(self.shared.pid);
        }
        fire::thread_of(cell).map(|thread| thread.id)
    }

    /// Interrupts whatever runs on the main thread.
    pub(crate) fn interrupt_main(&mut self) {
        let running = self.shared.running_main();
        self.repeating |= running.is_some_and(|cell| interrupt::aim_at(cell.as_u64()));
    }

    /// Answers interrupts whose cells have ended, and has those looked at whose
    /// cells have not in time.
    pub(super) fn tell_what_came(&mut self) -> Vec<Outgoing> {
        let (shared, now) = (self.shared, Instant::now());
        let mut outgoing = Vec::new();
        self.told.retain_mut(|told| {
            mark_ended(shared, &mut told.cells);
            let pending = |cell: &InterruptedCell| cell.outcome == InterruptOutcome::Pending;
            let (request, mut cells) = (told.request, std::mem::take(&mut told.cells));
            if !cells.iter().any(pending) {
                outgoing.push((HostEvent::Interrupted { request, cells }, Vec::new()));
                return false;
            }
            if told.deadline > now {
                told.cells = cells;
                return true;
            }
            stack::look(shared, move |found| {
                mark_ended(shared, &mut cells);
                let stacks = found.map_or_else(|_| Vec::new(), |(_, stacks)| stacks);
                for cell in cells.iter_mut().filter(|cell| pending(cell)) {
                    let its = stacks.iter().find(|it| it.cell_id == Some(cell.cell_id));
                    cell.stack = its.cloned();
                }
                shared.send(HostEvent::Interrupted { request, cells }, Vec::new());
            });
            false
        });
        outgoing
    }
}

fn mark_ended(shared: &Shared, cells: &mut [InterruptedCell]) {
    for cell in cells {
        if cell.outcome == InterruptOutcome::Pending && shared.has_ended(cell.cell_id) {
            cell.outcome = InterruptOutcome::Ended;
        }
    }
}
