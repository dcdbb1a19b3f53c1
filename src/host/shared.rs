//! What the main thread and the I/O thread of a session host share.
//!
//! Every lock here is held briefly and never while waiting for Python.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use pythond_protocol::CellId;
use pythond_protocol::lane::{
    FinishedCell, HostEvent, HostInfo, HostStatus, HostedSession, LINK_VERSION,
};
use pythond_protocol::output_log::Stream;
use rustix::event::{PollFd, PollFlags, poll};

use crate::journal::{Event, Journal};
use crate::output::Outputs;
use crate::recorder::Recorder;
use crate::sys::{ThreadId, handle_by_nothing, wake_signal};

static SHARED: OnceLock<Shared> = OnceLock::new();

/// Finished cells whose end can still be asked for.
const KEPT_ENDS: usize = 1000;

/// A session host's state outside Python.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Process id of the host itself; a fork that a cell made has another.
    pub(crate) pid: i32,
    pub(crate) outputs: Outputs,
    pub(crate) recorder: Recorder,
    pub(crate) capture: Capture,
    journal: Option<Arc<Journal>>,
    hosted: OnceLock<HostedSession>,
    state: Mutex<State>,
    queued: Condvar,
    outbox: Mutex<Vec<(HostEvent, Vec<u8>)>>,
    /// The I/O thread reads the cell lane because the main thread cannot.
    io_reads_cells: AtomicBool,
    shutting_down: AtomicBool,
    /// Another live process holds the session's directory.
    name_in_use: AtomicBool,
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
}

/// A cell that waits for its turn.
#[derive(Debug)]
pub(crate) struct QueuedCell {
    pub(crate) id: CellId,
    /// The daemon's number for it; none once that daemon is gone.
    pub(crate) request: Option<u64>,
    pub(crate) changed: bool,
    pub(crate) source: String,
}

#[derive(Debug)]
struct State {
    salt: u16,
    counter: u32,
    queue: VecDeque<QueuedCell>,
    running: Option<(CellId, Option<u64>)>,
    vars: u64,
    finished: VecDeque<FinishedCell>,
    /// Who asked for the end of which cell.
    waiting: Vec<(CellId, u64)>,
}

/// What came of asking for a cell's end.
#[derive(Debug)]
pub(crate) enum Found {
    /// It has ended.
    Ended(Box<FinishedCell>),
    /// It has not; the asker will be told.
    Later,
    /// No such cell is known.
    Unknown,
}

impl Shared {
    /// Sets up the one session of this process, before it is known which.
    pub(crate) fn install(
        salt: u16,
        capture: Capture,
        journal: Option<Arc<Journal>>,
    ) -> &'static Self {
        SHARED.get_or_init(|| Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            outputs: Outputs::default(),
            recorder: Recorder::default(),
            capture,
            journal,
            hosted: OnceLock::new(),
            state: Mutex::new(State {
                salt,
                counter: 0,
                queue: VecDeque::new(),
                running: None,
                vars: 0,
                finished: VecDeque::new(),
                waiting: Vec::new(),
            }),
            queued: Condvar::new(),
            outbox: Mutex::default(),
            io_reads_cells: AtomicBool::new(false),
            shutting_down: AtomicBool::new(false),
            name_in_use: AtomicBool::new(false),
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
        state.waiting.clear();
        if let Some((_, request)) = &mut state.running {
            *request = None;
        }
        for cell in &mut state.queue {
            cell.request = None;
        }
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let mut session = self.hosted.get().cloned();
        if let Some(session) = &mut session {
            let running = state.running.iter().map(|(cell, _)| *cell);
            session.unfinished = running
                .chain(state.queue.iter().map(|cell| cell.id))
                .collect();
            session.next_cell = state.next_id();
            session.not_recorded = self.recorder.trouble();
        }
        HostInfo {
            version: LINK_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.pid,
            session,
            name_in_use: self.name_in_use.load(SeqCst),
        }
    }

    /// Accepts a cell that is run at once.
    pub(crate) fn accept(&self, request: u64, changed: bool, source: String) -> QueuedCell {
        let id = self.state().take_id();
        self.note(Event::Accepted, id);
        QueuedCell {
            id,
            request: Some(request),
            changed,
            source,
        }
    }

    /// Accepts a cell that waits for its turn.
    pub(crate) fn enqueue(&self, request: u64, changed: bool, source: String) -> CellId {
        let mut state = self.state();
        let id = state.take_id();
        state.queue.push_back(QueuedCell {
            id,
            request: Some(request),
            changed,
            source,
        });
        drop(state);
        self.queued.notify_one();
        id
    }

    /// The next waiting cell.
    pub(crate) fn next_queued(&self) -> Option<QueuedCell> {
        let cell = self.state().queue.pop_front();
        if let Some(cell) = &cell {
            self.note(Event::Accepted, cell.id);
        }
        cell
    }

    /// Waits for a cell or the end, without descriptors.
    pub(crate) fn wait_for_queue(&self, longest: Option<std::time::Duration>) {
        let state = self.state();
        if state.queue.is_empty() && !self.shutting_down() {
            // A spurious wake-up only makes the caller look again.
            match longest {
                Some(longest) => drop(self.queued.wait_timeout(state, longest)),
                None => drop(self.queued.wait(state)),
            }
        }
    }

    /// A cell starts to run.
    pub(crate) fn started(&self, cell: &QueuedCell, time_us: i64) {
        self.state().running = Some((cell.id, cell.request));
        if let Some(journal) = &self.journal {
            journal.record(Event::Started, cell.id, time_us);
        }
    }

    /// A cell has ended. Returns the requests that wait for it.
    pub(crate) fn ended(&self, end: &mut FinishedCell, vars: u64) -> Vec<u64> {
        let mut state = self.state();
        if let Some((_, request)) = state.running.take_if(|(cell, _)| *cell == end.cell) {
            end.request = request;
        }
        state.vars = vars;
        end.next_cell = state.next_id();
        let mut waiting = Vec::new();
        state.waiting.retain(|(cell, request)| {
            let other = *cell != end.cell;
            if !other {
                waiting.push(*request);
            }
            other
        });
        state.finished.push_back(end.clone());
        if state.finished.len() > KEPT_ENDS {
            state.finished.pop_front();
        }
        drop(state);
        if let Some(journal) = &self.journal {
            let ended_us = end
                .started_us
                .saturating_add(i64::try_from(end.duration_ns / 1000).unwrap_or(i64::MAX));
            journal.record(Event::Finished, end.cell, ended_us);
        }
        waiting
    }

    /// Looks for the end of a cell.
    pub(crate) fn find(&self, cell: CellId, request: u64) -> Found {
        let mut state = self.state();
        if let Some(end) = state.finished.iter().rev().find(|end| end.cell == cell) {
            let mut end = end.clone();
            end.request = Some(request);
            end.next_cell = state.next_id();
            return Found::Ended(Box::new(end));
        }
        let known = state
            .running
            .as_ref()
            .is_some_and(|(running, _)| *running == cell)
            || state.queue.iter().any(|queued| queued.id == cell);
        if known {
            state.waiting.push((cell, request));
            return Found::Later;
        }
        Found::Unknown
    }

    /// True if this cell has ended.
    pub(crate) fn has_ended(&self, cell: CellId) -> bool {
        self.state()
            .finished
            .iter()
            .rev()
            .any(|end| end.cell == cell)
    }

    /// What was published last.
    pub(crate) fn status(&self) -> HostStatus {
        let state = self.state();
        HostStatus {
            running: state.running.iter().map(|(cell, _)| *cell).collect(),
            queued: state.queue.iter().map(|cell| cell.id).collect(),
            vars: state.vars,
            cells: u64::from(state.counter),
            not_recorded: self.recorder.trouble(),
        }
    }

    /// The cell that runs on the main thread.
    pub(crate) fn running(&self) -> Option<CellId> {
        self.state().running.as_ref().map(|(cell, _)| *cell)
    }

    fn note(&self, event: Event, cell: CellId) {
        if let Some(journal) = &self.journal {
            journal.record(event, cell, 0);
        }
    }

    /// Adds Python-level output.
    pub(crate) fn append(&self, cell: u64, stream: Stream, data: &[u8]) {
        self.outputs.append(cell, stream, data);
    }

    /// Takes in what was written to descriptors 1 and 2 so far.
    pub(crate) fn drain(&self) {
        let (out, err) = (&self.capture.stdout_read, &self.capture.stderr_read);
        let mut ready = [
            PollFd::new(out, PollFlags::IN),
            PollFd::new(err, PollFlags::IN),
        ];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if matches!(poll(&mut ready, Some(&now)), Ok(0) | Err(_)) {
            return;
        }
        self.outputs.drain(|stream, buffer| {
            let descriptor = match stream {
                Stream::Stdout => out.as_fd(),
                Stream::Stderr => err.as_fd(),
            };
            // Empty, closed by a cell, or broken: nothing to take in.
            rustix::io::read(descriptor, buffer).unwrap_or(0)
        });
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

    /// Makes the I/O thread look around. By signal: a cell may have closed
    /// every descriptor of the main thread.
    pub(crate) fn wake_io(&self) {
        if let Some(thread) = self.io_thread.get() {
            // A cell may have put every signal back to its default action,
            // which for this one is the end of the process.
            let _ = handle_by_nothing(wake_signal());
            thread.signal(wake_signal());
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

    /// Says which session this is. Once.
    pub(crate) fn assign(&self, hosted: HostedSession) {
        self.hosted.get_or_init(|| hosted);
        self.wake_io();
    }

    /// The name of this session belongs to another process.
    pub(crate) fn set_name_in_use(&self) {
        self.name_in_use.store(true, SeqCst);
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

impl State {
    fn next_id(&self) -> CellId {
        CellId::from_parts(self.salt, self.counter.wrapping_add(1))
    }

    fn take_id(&mut self) -> CellId {
        let id = self.next_id();
        self.counter = self.counter.wrapping_add(1);
        id
    }
}
