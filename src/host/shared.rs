//! What the main thread and the I/O thread of a session host share.
//!
//! Every lock here is held briefly and never while waiting for Python.

mod output;
mod table;
mod waking;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pythond_protocol::CellId;
use pythond_protocol::lane::{HostEvent, HostInfo, HostedSession, LINK_VERSION};
use pythond_protocol::outcome::CellKind;

use crate::cells::Cells;
use crate::clock::since_boot;
use crate::disk::Disk;
use crate::journal::Journal;
use crate::outputs::Outputs;
use crate::recorder::Recorder;
use crate::spawner::Spawner;
use crate::sys::ThreadId;
use crate::terminal::Terminal;

pub(crate) use output::Capture;

static SHARED: OnceLock<Shared> = OnceLock::new();

/// A session host's state outside Python.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Process id of the host itself; a fork that a cell made has another.
    pub(crate) pid: i32,
    pub(crate) outputs: Outputs,
    pub(crate) recorder: Recorder,
    pub(crate) disk: Arc<Disk>,
    pub(crate) capture: Capture,
    /// Starts the threads that run Python beside the main thread.
    pub(crate) spawner: Spawner,
    pub(crate) terminal: Terminal,
    journal: Option<Arc<Journal>>,
    hosted: OnceLock<HostedSession>,
    /// The runtime directory, and the name of its socket there.
    place: OnceLock<(String, String)>,
    /// When it became this session, after the machine came up.
    assigned: OnceLock<Duration>,
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
        let disk = Arc::new(Disk::default());
        SHARED.get_or_init(|| Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            outputs: Outputs::new(Arc::clone(&disk)),
            recorder: Recorder::default(),
            disk,
            capture,
            terminal,
            journal,
            hosted: OnceLock::new(),
            place: OnceLock::new(),
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
            session.unfinished_humans = state.cells.unfinished_of(CellKind::Human);
            session.unfinished_forks = state.cells.unfinished_of(CellKind::Fork);
            session.queued = state.cells.queued();
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

    /// Where the session's files are.
    pub(crate) fn directory(&self) -> Option<&str> {
        self.hosted
            .get()
            .map(|hosted| hosted.spec.directory.as_str())
    }

    /// How long it is this session.
    fn age(&self) -> Duration {
        let assigned = self.assigned.get();
        assigned.map_or(Duration::ZERO, |at| since_boot().saturating_sub(*at))
    }

    /// The session's name.
    pub(crate) fn session_name(&self) -> String {
        let hosted = self.hosted.get();
        hosted.map_or_else(String::new, |hosted| hosted.spec.session.to_string())
    }

    /// Says where its socket is: the runtime directory, and the name there.
    pub(crate) fn set_place(&self, directory: String, socket: String) {
        self.place.get_or_init(|| (directory, socket));
    }

    /// Where its socket is, once it is a session.
    pub(crate) fn place(&self) -> Option<&(String, String)> {
        self.place.get()
    }

    /// Says which session this is. Once.
    pub(crate) fn assign(&self, hosted: HostedSession) {
        self.assigned.get_or_init(since_boot);
        self.hosted.get_or_init(|| hosted);
        self.wake_io();
    }

    /// The name of this session belongs to another process.
    pub(crate) fn set_name_in_use(&self) {
        self.name_in_use.store(true, SeqCst);
    }

    /// True if the name of this session belongs to another process.
    pub(crate) fn is_name_in_use(&self) -> bool {
        self.name_in_use.load(SeqCst)
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
