//! The cells of a session as its threads share them.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pythond_protocol::lane::{
    CellRecord, CellSpec, FinishedCell, HostEvent, HostStatus, INLINE_OUTPUT, Reached,
};
use pythond_protocol::limits::CellLimits;
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorReply};

use super::{Held, Outgoing, Shared};
use crate::cells::{Acceptance, Found, Moment, Offer, QueuedCell};
use crate::disk::SLOW;

impl Shared {
    /// Takes a cell, or finds the one that has its key. A new one is to be run
    /// or enqueued by the caller. `lane`: the tag of the cell lane that it came by,
    /// if it did.
    pub(crate) fn accept(
        &self,
        request: u64,
        kind: CellKind,
        lane: Option<u64>,
        how: &CellSpec,
        source: &str,
    ) -> Acceptance {
        let mut offer = Offer {
            request,
            kind,
            lane,
            how,
            source,
            age: self.age(),
            held: false,
        };
        let digest = offer.digest();
        let mut state = self.state();
        offer.held = state.held.is_some();
        let accepted = state.cells.accept(&offer, digest, Moment::now());
        if let Acceptance::New(id) = &accepted {
            self.outputs.open(id.as_u64());
            if let Some(journal) = &self.journal {
                journal.record(Reached::Accepted, *id, request, digest);
            }
            return accepted;
        }
        let unmet = state.cells.take_unmet();
        drop(state);
        // Those that wait behind it may run.
        self.queued.notify_all();
        for (id, request) in unmet {
            let error = ErrorReply::unknown_cell(&id.to_string());
            self.send(HostEvent::Refused { request, error }, Vec::new());
        }
        accepted
    }

    /// Cells come by the cell lane with this tag from now on.
    pub(crate) fn use_lane(&self, tag: u64) {
        self.state().cells.use_lane(tag);
    }

    /// Lets a cell wait for the main thread.
    pub(crate) fn enqueue(&self, cell: QueuedCell) {
        self.state().cells.enqueue(cell);
        self.queued.notify_one();
    }

    /// Lets a cell wait for the main thread if agents' cells are to wait; else gives
    /// it back.
    pub(crate) fn enqueue_if_held(&self, cell: QueuedCell) -> Option<QueuedCell> {
        let mut state = self.state();
        if state.held.is_none() {
            return Some(cell);
        }
        state.cells.enqueue(cell);
        None
    }

    /// The next waiting cell.
    pub(crate) fn next_queued(&self) -> Option<QueuedCell> {
        let mut state = self.state();
        if state.held.is_some() {
            return None;
        }
        state.cells.next_queued()
    }

    /// A waiting cell may run.
    pub(crate) fn has_queued(&self) -> bool {
        let state = self.state();
        state.held.is_none() && !state.cells.queue_is_empty()
    }

    /// Agents' new cells wait from now on, or run again. `terminal`: where that
    /// was asked for; a terminal lets go only what it holds. None if nothing
    /// changes; else how many cells wait, and the `fire` and `fork` cells whose
    /// turn it is.
    pub(crate) fn hold(
        &self,
        by: Option<String>,
        terminal: Option<u64>,
    ) -> Option<(u64, Vec<QueuedCell>, Vec<QueuedCell>)> {
        let mut state = self.state();
        let changes = match (&state.held, &by) {
            (None, None) => false,
            (Some(held), None) => terminal.is_none() || held.terminal == terminal,
            (held, Some(by)) => held
                .as_ref()
                .is_none_or(|held| held.by != *by || held.terminal != terminal),
        };
        if !changes {
            return None;
        }
        state.held = by.map(|by| Held { by, terminal });
        let waiting = u64::try_from(state.cells.queued().len()).unwrap_or(u64::MAX);
        let (fires, forks) = if state.held.is_none() {
            state.cells.take_held()
        } else {
            Default::default()
        };
        self.queued.notify_all();
        Some((waiting, fires, forks))
    }

    /// Who lets agents' new cells wait.
    pub(crate) fn held_by(&self) -> Option<String> {
        self.state().held.as_ref().map(|held| held.by.clone())
    }

    /// Lets a `fire` or `fork` cell wait if agents' cells are to wait; else gives
    /// it back.
    pub(crate) fn hold_back(&self, cell: QueuedCell) -> Option<QueuedCell> {
        let mut state = self.state();
        if state.held.is_none() {
            return Some(cell);
        }
        state.cells.hold_back(cell);
        None
    }

    /// Lets a `fire` cell wait for those before it; returns those whose turn it
    /// is.
    pub(crate) fn enqueue_beside(&self, cell: QueuedCell) -> Vec<QueuedCell> {
        let mut state = self.state();
        state.cells.enqueue_beside(cell);
        if state.held.is_some() {
            return Vec::new();
        }
        state.cells.due_beside()
    }

    /// The `fire` cells whose turn it is now.
    pub(crate) fn due_beside(&self) -> Vec<QueuedCell> {
        let mut state = self.state();
        if state.held.is_some() {
            return Vec::new();
        }
        state.cells.due_beside()
    }

    /// Takes a waiting cell back.
    pub(crate) fn dequeue(&self, cell: CellId) -> Option<QueuedCell> {
        self.state().cells.dequeue(cell)
    }

    /// Waits for a cell or the end, without descriptors.
    pub(crate) fn wait_for_queue(&self, longest: Option<Duration>) {
        let state = self.state();
        let nothing = state.held.is_some() || state.cells.queue_is_empty();
        if nothing && !self.shutting_down() {
            // A spurious wake-up only makes the caller look again.
            match longest {
                Some(longest) => drop(self.queued.wait_timeout(state, longest)),
                None => drop(self.queued.wait(state)),
            }
        }
    }

    /// A number for the file name of the next cell.
    pub(crate) fn next_file_number(&self) -> u64 {
        self.file_number.fetch_add(1, SeqCst) + 1
    }

    /// A cell does not wait any more: its thread is being made.
    pub(crate) fn begins(&self, id: CellId) {
        self.state().cells.begins(id);
    }

    /// A cell starts to run.
    pub(crate) fn started(&self, id: CellId, kind: CellKind, now: Moment) {
        let mut state = self.state();
        let deadline = state.cells.started(id, now);
        let main = matches!(kind, CellKind::Run | CellKind::Human);
        if main {
            state.main = Some(id);
        }
        if let Some(journal) = &self.journal {
            journal.record(Reached::Started, id, now.us.cast_unsigned(), None);
            if main {
                journal.set_running(Some(id));
            }
        }
        if let Some(deadline) = deadline {
            state.deadlines.push((deadline, id));
            drop(state);
            self.wake_io();
        }
    }

    /// A cell has ended. Returns the requests that wait for it, beside the one
    /// that submitted it.
    pub(crate) fn ended(&self, end: &mut FinishedCell) -> Vec<u64> {
        let mut state = self.state();
        let main = state.main == Some(end.cell);
        if main {
            state.main = None;
        }
        state.deadlines.retain(|(_, cell)| *cell != end.cell);
        let waiting = state.cells.ended(end);
        if let Some(journal) = &self.journal {
            let ended_us = end
                .started_us
                .saturating_add(i64::try_from(end.duration_ns / 1000).unwrap_or(i64::MAX));
            journal.record(Reached::Finished, end.cell, ended_us.cast_unsigned(), None);
            if main {
                journal.set_running(None);
            }
        }
        waiting
    }

    /// The session's files and budgets take note that a cell has ended and was
    /// told.
    pub(crate) fn retire(&self, end: &FinishedCell) {
        let text = end.exception.as_ref().map_or(0, |exception| {
            exception.kind.len() + exception.message.len() + exception.traceback.len()
        });
        let gone = self.outputs.retire(end.cell.as_u64(), text);
        if !gone.is_empty() {
            let gone = gone.into_iter().filter_map(CellId::from_u64);
            self.state().cells.forget(gone);
        }
        if self.watch_ends.load(SeqCst) {
            self.tell_news();
        }
    }

    /// Looks for the end of a cell; who asks is told later if it is not there.
    pub(crate) fn find(&self, cell: CellId, request: u64) -> Found {
        self.state().cells.find(cell, request)
    }

    /// Whoever asked for a cell's end does not wait any more.
    pub(crate) fn forget_asker(&self, request: u64) {
        self.state().cells.forget_asker(request);
    }

    /// The message that tells a cell's end, with the beginning of its output.
    pub(crate) fn finished_message(&self, end: Box<FinishedCell>) -> Outgoing {
        let body = if end.output_bytes == 0 {
            Vec::new()
        } else {
            self.inline_output(end.cell)
        };
        (HostEvent::Finished(end), body)
    }

    /// As much of the beginning of a cell's output as travels with its end.
    /// Nothing if that beginning is not kept.
    pub(crate) fn inline_output(&self, cell: CellId) -> Vec<u8> {
        match self.outputs.beginning(cell.as_u64(), INLINE_OUTPUT) {
            Some(piece) if piece.missing == 0 => piece.records,
            _ => Vec::new(),
        }
    }

    /// What kind of cell it is and where it is in its life.
    pub(crate) fn state_of(&self, cell: CellId) -> Option<(CellKind, CellStatus)> {
        self.state().cells.state_of(cell)
    }

    /// True if this cell has ended.
    pub(crate) fn has_ended(&self, cell: CellId) -> bool {
        self.state().cells.has_ended(cell)
    }

    /// What is known of a cell, and its end if it has ended. None means the
    /// newest that runs beside the main thread.
    pub(crate) fn look(&self, cell: Option<CellId>) -> Option<(CellRecord, Option<FinishedCell>)> {
        let state = self.state();
        let id = cell.or_else(|| state.cells.newest_beside())?;
        let mut record = state.cells.record(id, Moment::now())?;
        let end = state.cells.end_of(id).cloned();
        drop(state);
        self.count_output(&mut record);
        Some((record, end))
    }

    /// What is known of all cells, by age, and how many are not remembered.
    pub(crate) fn look_at_all(&self) -> (Vec<CellRecord>, u64) {
        let state = self.state();
        let mut records = state.cells.all(Moment::now());
        let forgotten = state.cells.forgotten();
        drop(state);
        for record in &mut records {
            self.count_output(record);
        }
        (records, forgotten)
    }

    fn count_output(&self, record: &mut CellRecord) {
        let extent = self.outputs.extent(record.cell.as_u64());
        (record.output_bytes, record.truncated) = (extent.bytes, extent.truncated);
    }

    /// A cell was told to stop.
    pub(crate) fn note_interrupt(&self, cell: CellId, by_timeout: bool) {
        self.state().cells.interrupted(cell, by_timeout);
    }

    /// When the next cell's time is up.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let state = self.state();
        state.deadlines.iter().map(|(deadline, _)| *deadline).min()
    }

    /// The cells whose time is up.
    pub(crate) fn take_timed_out(&self, now: Instant) -> Vec<CellId> {
        let mut state = self.state();
        let mut due = Vec::new();
        state.deadlines.retain(|(deadline, cell)| {
            let later = *deadline > now;
            if !later {
                due.push(*cell);
            }
            later
        });
        due
    }

    /// How many cells there may be.
    pub(crate) fn keep_cells_within(&self, limits: CellLimits) {
        self.state().cells.keep_within(limits);
    }

    /// Why something cannot be written down, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let told = self.recorder.trouble().or_else(|| self.outputs.trouble());
        told.or_else(|| self.disk.is_stalled().then(|| SLOW.to_owned()))
    }

    /// What was published last.
    pub(crate) fn status(&self) -> HostStatus {
        let state = self.state();
        HostStatus {
            running: state.cells.running(),
            queued: state.cells.queued(),
            vars: self.vars.load(SeqCst),
            cells: state.cells.count(),
            not_recorded: self.trouble(),
            held_by: state.held.as_ref().map(|held| held.by.clone()),
            attached: self.terminal.attached(),
            kept: Some(Box::new(self.outputs.kept(state.cells.forgotten()))),
        }
    }

    /// Public names in the namespace.
    pub(crate) fn set_vars(&self, count: u64) {
        self.vars.store(count, SeqCst);
    }

    /// The cell that went by the cell lane before one of the control lane.
    pub(crate) fn reserve(&self, id: CellId) {
        self.state().cells.reserve(id);
    }

    /// A cell that the main thread has not read yet has this id.
    pub(crate) fn is_expected(&self, id: CellId) -> bool {
        self.state().cells.is_expected(id)
    }

    /// The cell that runs on the main thread.
    pub(crate) fn running_main(&self) -> Option<CellId> {
        self.state().main
    }

    /// All cells that run.
    pub(crate) fn running(&self) -> Vec<CellId> {
        self.state().cells.running()
    }

    /// This process is the child of a `fork` cell.
    pub(crate) fn note_fork(&self, slot: usize) {
        if let Some(journal) = &self.journal {
            journal.note_fork(slot, rustix::process::getpid().as_raw_nonzero().get());
        }
    }

    /// The child of a `fork` cell is gone.
    pub(crate) fn forget_fork(&self, slot: usize) {
        if let Some(journal) = &self.journal {
            journal.note_fork(slot, 0);
        }
    }
}
