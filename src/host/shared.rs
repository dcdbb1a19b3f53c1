//! What the main thread and the I/O thread of a session host share.
//!
//! Every lock here is held briefly and never while waiting for Python.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::Python;
use pythond_protocol::CellId;
use pythond_protocol::lane::{
    CellRecord, CellSpec, FinishedCell, HostEvent, HostInfo, HostStatus, HostedSession,
    INLINE_OUTPUT, LINK_VERSION,
};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::output_log::Stream;
use rustix::event::epoll;

use crate::cells::{Acceptance, Cells, Found, Moment, QueuedCell};
use crate::journal::{Event, Journal};
use crate::outputs::{Outputs, Written};
use crate::recorder::Recorder;
use crate::spawner::Spawner;
use crate::sys::{ThreadId, handle_by_nothing, wake_signal};
use crate::terminal::Terminal;

static SHARED: OnceLock<Shared> = OnceLock::new();

/// How long a writer waits before it looks again whether its readers came near.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A session host's state outside Python.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Process id of the host itself; a fork that a cell made has another.
    pub(crate) pid: i32,
    pub(crate) outputs: Outputs,
    pub(crate) recorder: Recorder,
    pub(crate) capture: Capture,
    /// Starts the threads that run Python beside the main thread.
    pub(crate) spawner: Spawner,
    pub(crate) terminal: Terminal,
    journal: Option<Arc<Journal>>,
    hosted: OnceLock<HostedSession>,
    /// When it became this session.
    assigned: OnceLock<Instant>,
    state: Mutex<State>,
    /// Public names in the namespace when they were last counted.
    vars: AtomicU64,
    /// Number of the last cell, for the file names that tracebacks show.
    file_number: AtomicU64,
    queued: Condvar,
    outbox: Mutex<Vec<(HostEvent, Vec<u8>)>>,
    /// The I/O thread was woken and has not looked yet.
    woken: AtomicBool,
    /// Output came or a cell ended that somebody waits for.
    news: AtomicBool,
    /// The I/O thread wants to know when a cell ends.
    watch_ends: AtomicBool,
    /// The I/O thread reads the cell lane because the main thread cannot.
    io_reads_cells: AtomicBool,
    shutting_down: AtomicBool,
    /// Another live process holds the session's directory.
    name_in_use: AtomicBool,
    /// Why this process cannot be its session.
    refused: OnceLock<String>,
    io_thread: OnceLock<ThreadId>,
    io_thread_id: AtomicI32,
}

/// Both ends of the pipes behind descriptors 1 and 2. The numbers are the same
/// in the descriptor tables of both threads.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) stdout_read: OwnedFd,
    pub(crate) stderr_read: OwnedFd,
    pub(crate) stdout_write: OwnedFd,
    pub(crate) stderr_write: OwnedFd,
    /// Knows whether there is something to read from them.
    pub(crate) filled: OwnedFd,
}

impl Capture {
    /// False if there may be something to read.
    ///
    /// Costs no more than the bare system call: whoever fills a pipe puts it on
    /// the list that this looks at, before its `write` returns (epoll(7)). Not
    /// for two threads at once, of which the kernel may tell one that there is
    /// nothing while it looks for the other; so it takes the interpreter's lock.
    fn is_empty(&self, _lock: Python<'_>) -> bool {
        let mut events = [MaybeUninit::uninit()];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let found = epoll::wait(&self.filled, &mut events, Some(&now));
        matches!(found, Ok((found, _)) if found.is_empty())
    }
}

#[derive(Debug)]
struct State {
    cells: Cells,
    /// The cell of the main thread.
    main: Option<CellId>,
    /// When cells are to be interrupted by their time-outs.
    deadlines: Vec<(Instant, CellId)>,
    /// Who lets agents' new cells wait.
    held: Option<Held>,
}

/// Somebody lets agents' new cells wait.
#[derive(Clone, Debug)]
struct Held {
    by: String,
    /// The terminal that it was done at; with that one it ends.
    terminal: Option<u64>,
}

/// A message for the control lane.
pub(crate) type Outgoing = (HostEvent, Vec<u8>);

impl Shared {
    /// Sets up the one session of this process, before it is known which.
    pub(crate) fn install(
        salt: u16,
        capture: Capture,
        journal: Option<Arc<Journal>>,
        terminal: Terminal,
    ) -> &'static Self {
        SHARED.get_or_init(|| Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            outputs: Outputs::default(),
            recorder: Recorder::default(),
            capture,
            terminal,
            journal,
            hosted: OnceLock::new(),
            assigned: OnceLock::new(),
            state: Mutex::new(State {
                cells: Cells::new(salt),
                main: None,
                deadlines: Vec::new(),
                held: None,
            }),
            spawner: Spawner::default(),
            vars: AtomicU64::new(0),
            file_number: AtomicU64::new(0),
            woken: AtomicBool::new(false),
            news: AtomicBool::new(false),
            watch_ends: AtomicBool::new(false),
            queued: Condvar::new(),
            outbox: Mutex::default(),
            io_reads_cells: AtomicBool::new(false),
            shutting_down: AtomicBool::new(false),
            name_in_use: AtomicBool::new(false),
            refused: OnceLock::new(),
            io_thread: OnceLock::new(),
            io_thread_id: AtomicI32::new(0),
        })
    }

    /// The session of this process, once it is one.
    pub(crate) fn get() -> Option<&'static Self> {
        SHARED.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a daemon is told when it connects. Cells keep running; answers that
    /// an earlier connection waited for are to be asked for again.
    pub(crate) fn welcome(&self) -> HostInfo {
        let mut state = self.state();
        state.cells.forget_requests();
        self.queued.notify_one();
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let mut session = self.hosted.get().cloned();
        if let Some(session) = &mut session {
            (session.unfinished, session.unfinished_beside) = state.cells.unfinished();
            session.unfinished_forks = state.cells.unfinished_forks();
            session.queued = state.cells.queued();
            session.age_ms = self.age_ms();
            session.next_cell = state.cells.next_id();
            session.not_recorded = self.trouble();
            session.held_by = state.held.as_ref().map(|held| held.by.clone());
        }
        HostInfo {
            version: LINK_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.pid,
            session,
            name_in_use: self.name_in_use.load(SeqCst),
            refused: self.refused.get().cloned(),
        }
    }

    /// Takes a cell, or finds the one that has its key. A new one is to be run
    /// or enqueued by the caller. `direct`: it came by the cell lane.
    pub(crate) fn accept(
        &self,
        request: u64,
        kind: CellKind,
        direct: bool,
        how: &CellSpec,
        source: &str,
    ) -> Acceptance {
        let mut state = self.state();
        let now = Moment::now();
        let accepted = state.cells.accept(request, kind, direct, how, source, now);
        if let Acceptance::New(id) = &accepted {
            self.outputs.open(id.as_u64());
            self.note(Event::Accepted, *id);
        }
        accepted
    }

    /// Lets a cell wait for the main thread.
    pub(crate) fn enqueue(&self, cell: QueuedCell) {
        self.state().cells.enqueue(cell);
        self.queued.notify_one();
    }

    /// The next waiting cell.
    pub(crate) fn next_queued(&self) -> Option<QueuedCell> {
        let mut state = self.state();
        if state.held.is_some() {
            return None;
        }
        state.cells.next_queued()
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
        if matches!(kind, CellKind::Run | CellKind::Human) {
            state.main = Some(id);
            if let Some(journal) = &self.journal {
                journal.record(Event::Started, id, now.us);
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
        if let Some(journal) = &self.journal
            && main
        {
            let ended_us = end
                .started_us
                .saturating_add(i64::try_from(end.duration_ns / 1000).unwrap_or(i64::MAX));
            journal.record(Event::Finished, end.cell, ended_us);
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
        let piece = self.outputs.read(cell.as_u64(), None, 0, INLINE_OUTPUT);
        match piece {
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
        self.state().cells.end_of(cell).is_some()
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

    /// Why something cannot be written down, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.recorder.trouble().or_else(|| self.outputs.trouble())
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

    fn note(&self, event: Event, cell: CellId) {
        if let Some(journal) = &self.journal {
            journal.record(event, cell, 0);
        }
    }

    /// Adds Python-level output. True if a reader is so far behind that the
    /// writer has to wait for it.
    pub(crate) fn append(&self, cell: u64, stream: Stream, data: &[u8]) -> bool {
        let written = self.outputs.append(cell, stream, data);
        self.tell_written(written);
        if self.terminal.is_wanted() {
            self.show(cell, data);
        }
        written.too_fast
    }

    /// Shows the person which cell of an agent's begins.
    pub(crate) fn introduce(&self, cell: CellId, kind: CellKind, source: &str) {
        let word = match kind {
            CellKind::Fire => "fire",
            CellKind::Fork => "fork",
            _ => "run",
        };
        if self.terminal.introduce(cell.as_u64(), word, source) {
            self.wake_io();
        }
    }

    /// Shows the person how a cell of an agent's ended.
    pub(crate) fn conclude(&self, end: &FinishedCell) {
        let error = end.exception.as_ref().map(|exception| {
            if exception.traceback.is_empty() {
                exception.message.as_str()
            } else {
                exception.traceback.as_str()
            }
        });
        if self.terminal.conclude(end.cell.as_u64(), error) {
            self.wake_io();
        }
    }

    /// Shows the person what a cell wrote that is not theirs.
    fn show(&self, cell: u64, data: &[u8]) {
        if self.terminal.is_persons(cell) {
            return;
        }
        let main = self.running_main().map(CellId::as_u64);
        if self.terminal.output(cell, main != Some(cell), data) {
            self.wake_io();
        }
    }

    fn tell_written(&self, written: Written) {
        if written.awaited {
            self.tell_news();
        }
    }

    /// Waits a little for the readers of a cell. True if that was not enough.
    pub(crate) fn wait_for_readers(&self, cell: u64) -> bool {
        self.outputs.wait_for_readers(cell, LOOK_AGAIN)
    }

    /// Takes in what was written to descriptors 1 and 2 so far, so that what
    /// Python writes next comes after it.
    pub(crate) fn drain(&self, py: Python<'_>) {
        if !self.capture.is_empty(py) {
            self.take_in();
        }
    }

    /// Reads descriptors 1 and 2. True if a reader is so far behind that the
    /// rest has to wait.
    pub(crate) fn take_in(&self) -> bool {
        let (out, err) = (&self.capture.stdout_read, &self.capture.stderr_read);
        let shown = self.terminal.is_wanted();
        let mut copy = Vec::new();
        let written = self.outputs.drain(|stream, buffer| {
            let descriptor = match stream {
                Stream::Stdout => out.as_fd(),
                Stream::Stderr => err.as_fd(),
            };
            // Empty, closed by a cell, or broken: nothing to take in.
            let count = rustix::io::read(descriptor, &mut *buffer).unwrap_or(0);
            if shown {
                copy.extend_from_slice(&buffer[..count]);
            }
            count
        });
        if !copy.is_empty() {
            self.show(self.running_main().map_or(0, CellId::as_u64), &copy);
        }
        self.tell_written(written);
        written.too_fast
    }

    /// Something came that a reader or an asker waits for.
    pub(crate) fn tell_news(&self) {
        self.news.store(true, SeqCst);
        self.wake_io();
    }

    /// Takes the sign that [`Self::tell_news`] left.
    pub(crate) fn take_news(&self) -> bool {
        self.news.swap(false, SeqCst)
    }

    /// Whether the I/O thread wants to know when a cell ends.
    pub(crate) fn watch_ends(&self, watch: bool) {
        self.watch_ends.store(watch, SeqCst);
    }

    /// Hands the I/O thread something for the control lane.
    pub(crate) fn send(&self, event: HostEvent, body: Vec<u8>) {
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((event, body));
        self.wake_io();
    }

    /// Takes what waits for the control lane.
    pub(crate) fn take_outbox(&self) -> Vec<(HostEvent, Vec<u8>)> {
        std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names the calling thread as the I/O thread.
    pub(crate) fn set_io_thread(&self) {
        self.io_thread.get_or_init(ThreadId::current);
        self.io_thread_id
            .store(rustix::thread::gettid().as_raw_nonzero().get(), SeqCst);
    }

    /// The kernel's id of the I/O thread, for its directory under `/proc`.
    pub(crate) fn io_thread_id(&self) -> i32 {
        self.io_thread_id.load(SeqCst)
    }

    /// The I/O thread looks around now: whoever has something from now on has
    /// to wake it again.
    pub(crate) fn io_is_awake(&self) {
        self.woken.store(false, SeqCst);
    }

    /// Makes the I/O thread look around. By signal: a cell may have closed
    /// every descriptor of the main thread.
    pub(crate) fn wake_io(&self) {
        if self.woken.swap(true, SeqCst) {
            return;
        }
        if let Some(thread) = self.io_thread.get() {
            // A cell may have put every signal back to its default action,
            // which for this one is the end of the process.
            let _ = handle_by_nothing(wake_signal());
            if !thread.signal(wake_signal()) {
                // It was not woken: the next one tries again.
                self.woken.store(false, SeqCst);
            }
        }
    }

    /// True if the I/O thread reads the cell lane.
    pub(crate) fn io_reads_cells(&self) -> bool {
        self.io_reads_cells.load(SeqCst)
    }

    /// The main thread lost its descriptors: the I/O thread takes over.
    pub(crate) fn let_io_read_cells(&self) {
        self.io_reads_cells.store(true, SeqCst);
        self.wake_io();
    }

    /// Where the session's files are.
    pub(crate) fn directory(&self) -> Option<&str> {
        self.hosted
            .get()
            .map(|hosted| hosted.spec.directory.as_str())
    }

    fn age_ms(&self) -> u64 {
        let age = self.assigned.get().map(Instant::elapsed);
        u64::try_from(age.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }

    /// The session's name.
    pub(crate) fn session_name(&self) -> String {
        let hosted = self.hosted.get();
        hosted.map_or_else(String::new, |hosted| hosted.spec.session.to_string())
    }

    /// Says which session this is. Once.
    pub(crate) fn assign(&self, hosted: HostedSession) {
        self.assigned.get_or_init(Instant::now);
        self.hosted.get_or_init(|| hosted);
        self.wake_io();
    }

    /// The name of this session belongs to another process.
    pub(crate) fn set_name_in_use(&self) {
        self.name_in_use.store(true, SeqCst);
    }

    /// This process cannot be its session. Before it is assigned.
    pub(crate) fn refuse(&self, why: String) {
        self.refused.get_or_init(|| why);
    }

    /// True once the session is to end.
    pub(crate) fn shutting_down(&self) -> bool {
        self.shutting_down.load(SeqCst)
    }

    /// The session is to end.
    pub(crate) fn shut_down(&self) {
        self.shutting_down.store(true, SeqCst);
        let _state = self.state();
        self.queued.notify_all();
    }
}
