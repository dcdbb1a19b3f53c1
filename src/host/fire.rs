//! `fire` cells: each on a thread of its own, beside whatever else runs.

mod interrupter;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::prelude::*;
use pythond_protocol::CellId;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::outcome::{CellKind, CellStatus};

use crate::cell::{self, Ending, FILE_PREFIX, Shown};
use crate::cells::{Moment, QueuedCell};
use crate::changes::count_public;
use crate::forking::attach;
use crate::helpers::{self, Helpers};
use crate::shared::Shared;
use crate::spawner::Job;
use crate::{children, ends, limits, session, streams, sys};

/// The `fire` cells that are not finished and do not wait for their turn.
static LIVE: Mutex<BTreeMap<u64, Live>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Live {
    /// Its thread, once it runs.
    thread: Option<Thread>,
    /// Its event loop and its task there, while it awaits.
    awaits: Option<(Py<PyAny>, Py<PyAny>)>,
    /// The lock of the condition that it waits for.
    waits: Option<Py<PyAny>>,
    interrupted: bool,
    /// Since when what left it is put into words.
    describing: Option<Instant>,
}

/// A thread that runs a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    /// `threading.get_ident()`.
    pub(crate) ident: u64,
    /// The kernel's id.
    pub(crate) id: i32,
}

fn live() -> MutexGuard<'static, BTreeMap<u64, Live>> {
    // Every change under the lock is one step.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of the cells that run.
pub(crate) fn threads() -> Vec<(CellId, Thread)> {
    let live = live();
    let found = live.iter().filter_map(|(cell, live)| {
        let cell = CellId::from_u64(*cell)?;
        live.thread.map(|thread| (cell, thread))
    });
    found.collect()
}

/// The thread of one cell, if it runs.
pub(crate) fn thread_of(cell: CellId) -> Option<Thread> {
    live().get(&cell.as_u64()).and_then(|live| live.thread)
}

/// True for a `fire` cell that runs.
pub(crate) fn is_live(cell: u64) -> bool {
    // A lock may be held for ever in a process that a cell forked.
    !streams::forked() && live().contains_key(&cell)
}

/// Notes which lock a cell waits on. False if that cell is none of ours.
pub(crate) fn set_waits(cell: u64, lock: Option<Py<PyAny>>) -> bool {
    if streams::forked() {
        return false;
    }
    // Python objects are let go of without the lock: that may run any code.
    let before = live()
        .get_mut(&cell)
        .map(|live| std::mem::replace(&mut live.waits, lock));
    before.is_some()
}

/// Starts cells whose turn it is.
pub(crate) fn start(shared: &'static Shared, cells: Vec<QueuedCell>) {
    if cells.is_empty() {
        return;
    }
    for cell in &cells {
        live().insert(cell.id.as_u64(), Live::default());
        shared.begins(cell.id);
    }
    let mut starting = starting();
    starting.waiting.extend(cells);
    if !starting.at_work {
        starting.at_work = true;
        shared.spawner.hand(Start { shared });
    }
}

/// Cells whose threads are to be made, one after the other: each needs the
/// interpreter, which may be long in coming.
#[derive(Debug, Default)]
struct Starting {
    waiting: VecDeque<QueuedCell>,
    at_work: bool,
}

static STARTING: Mutex<Starting> = Mutex::new(Starting {
    waiting: VecDeque::new(),
    at_work: false,
});

fn starting() -> MutexGuard<'static, Starting> {
    // Every change under the lock is one step.
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next cell to start; without one the work is done.
fn next_to_start() -> Option<QueuedCell> {
    let mut starting = starting();
    let next = starting.waiting.pop_front();
    starting.at_work = next.is_some();
    next
}

/// Starts the Python threads of cells.
struct Start {
    shared: &'static Shared,
}

impl Job for Start {
    fn run(self: Box<Self>) {
        // Threads and child processes inherit the mask.
        sys::unblock_all_signals();
        while let Some(cell) = next_to_start() {
            Self::start(self.shared, cell);
        }
    }

    fn give_up(self: Box<Self>, why: &std::io::Error) {
        let message = format!("no thread can be started for this cell: {why}");
        while let Some(cell) = next_to_start() {
            refuse(self.shared, &cell, &message);
        }
    }
}

impl Start {
    fn start(shared: &'static Shared, cell: QueuedCell) {
        let id = cell.id;
        let entry = Entry {
            shared,
            cell: Mutex::new(Some(cell)),
        };
        let _reserve = limits::open_reserve();
        attach(|py| {
            let started = Bound::new(py, entry).and_then(|entry| {
                let started = helpers::get(py)
                    .start_thread
                    .bind(py)
                    .call1((format!("cell-{id}"), &entry));
                if started.is_err()
                    && let Some(cell) = entry.get().take()
                {
                    refuse(shared, &cell, "no thread can be started for this cell");
                }
                started.map(drop)
            });
            if let Err(error) = started {
                cell::explain(py, helpers::get(py), error);
            }
        });
    }
}

/// Ends a cell that cannot run.
fn refuse(shared: &'static Shared, cell: &QueuedCell, message: &str) {
    let end = cell::never_ran(
        shared,
        cell.id,
        CellKind::Fire,
        CellStatus::Failed,
        "RuntimeError",
        message,
    );
    let gone = live().remove(&cell.id.as_u64());
    drop(gone);
    ends::announce(shared, end);
}

/// What the thread of a cell calls.
#[pyclass(module = "pythond", frozen)]
#[derive(Debug)]
pub(crate) struct Entry {
    shared: &'static Shared,
    cell: Mutex<Option<QueuedCell>>,
}

impl Entry {
    fn take(&self) -> Option<QueuedCell> {
        self.cell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for Entry {
    /// A thread that ends before it calls its entry (a tracer of the user's
    /// raised in it) leaves a cell that nobody would ever end.
    fn drop(&mut self) {
        if let Some(cell) = self.take() {
            refuse(
                self.shared,
                &cell,
                "the thread of this cell ended before it ran",
            );
        }
    }
}

#[pymethods]
impl Entry {
    fn __call__(&self, py: Python<'_>) {
        if let Some(cell) = self.take() {
            run(py, self.shared, cell);
        }
    }

    fn __repr__(&self) -> &'static str {
        "<cell>"
    }
}

/// Runs a cell to its end, on its thread.
fn run(py: Python<'_>, shared: &'static Shared, cell: QueuedCell) {
    let _reserve = limits::open_reserve();
    let helpers = helpers::get(py);
    let id = cell.id.as_u64();
    let thread = Thread {
        ident: sys::thread_ident(),
        id: sys::thread_id(),
    };
    let early = live().get_mut(&id).is_none_or(|live| {
        live.thread = Some(thread);
        live.interrupted
    });
    if early {
        let gone = live().remove(&id);
        drop(gone);
        let end = cell::never_ran(
            shared,
            cell.id,
            CellKind::Fire,
            CellStatus::Interrupted,
            "KeyboardInterrupt",
            "interrupted before it ran",
        );
        ends::announce(shared, end);
        return;
    }
    let started = Moment::now();
    shared.started(cell.id, CellKind::Fire, started);
    let event = HostEvent::Started {
        cell: cell.id,
        kind: CellKind::Fire,
    };
    shared.send(event, Vec::new());
    shared.introduce(cell.id, CellKind::Fire, &cell.source);
    let mut value = execute(py, shared, helpers, &cell);
    let duration = started.instant.elapsed();
    if streams::forked() {
        cell::end_fork(py, helpers, value.err());
    }
    // What was set and not raised yet would hit our own words about the cell.
    sys::clear_async_exception(py, thread.ident);
    let interrupted = live().get_mut(&id).is_some_and(|live| {
        live.describing = Some(Instant::now());
        live.interrupted
    });
    if interrupted && let Err(error) = value {
        value = Err(as_interrupt(py, helpers, error));
    }
    let outcome = cell::outcome(py, helpers, value, interrupted);
    // From here on no interrupt reaches this thread: whoever sets one holds the
    // interpreter's lock and looks whether the cell lives, and so do we.
    let gone = live().remove(&id);
    drop(gone);
    sys::clear_async_exception(py, thread.ident);
    streams::set_thread_cell(0);
    let ending = Ending {
        id: cell.id,
        kind: CellKind::Fire,
        outcome,
        started,
        duration,
        changed: Vec::new(),
    };
    shared.drain(py);
    children::leave_thread();
    py.detach(|| shared.outputs.wait_for_disk(id));
    let end = ending.finished(shared);
    shared.conclude(&end);
    if let Some(globals) = session::globals(py) {
        shared.set_vars(count_public(globals));
    }
    let record = cell::record_of(py, shared, cell.source, &end);
    py.detach(|| {
        shared.recorder.push(record, &shared.disk);
        shared.disk.write_records_soon();
        ends::announce(shared, end);
    });
}

fn execute(
    py: Python<'_>,
    shared: &'static Shared,
    helpers: &Helpers,
    cell: &QueuedCell,
) -> PyResult<Shown> {
    let id = cell.id.as_u64();
    helpers
        .cell_variable
        .call_method1(py, &helpers.names.set, (id,))?;
    streams::set_thread_cell(id);
    let filename = format!("{FILE_PREFIX}{}>", shared.next_file_number());
    let code = cell::compile(py, helpers, CellKind::Fire, &cell.source, &filename)?;
    let globals = session::globals(py)
        .ok_or_else(|| pyo3::exceptions::PyRuntimeError::new_err("the session has no namespace"))?;
    let shows = code.shows();
    let value = if code.awaits {
        // Tasks of the loop that other cells started there print as their own.
        streams::set_thread_cell(0);
        let begun = Bound::new(py, Begun { cell: id })?;
        let value = limits::without_reserve(|| {
            helpers
                .loop_run_beside
                .bind(py)
                .call1((code.parts, globals, begun))
        });
        if !streams::forked() {
            let before = live().get_mut(&id).and_then(|live| live.awaits.take());
            // Without the lock: this may run any code.
            drop(before);
        }
        streams::set_thread_cell(id);
        value?
    } else {
        cell::evaluate(py, code.parts, globals)?
    };
    cell::show(py, shared, helpers, cell.id, shows, value, CellKind::Fire)
}

/// Learns the loop and the task of a cell that awaits.
#[pyclass(module = "pythond", frozen)]
#[derive(Debug)]
struct Begun {
    cell: u64,
}

#[pymethods]
impl Begun {
    fn __call__(&self, event_loop: Py<PyAny>, task: Py<PyAny>) {
        if let Some(live) = live().get_mut(&self.cell) {
            live.awaits = Some((event_loop, task));
        }
    }
}

/// An interrupt of ours cuts system calls short; what they then raise is the
/// interrupt.
fn as_interrupt(py: Python<'_>, helpers: &Helpers, error: PyErr) -> PyErr {
    // The exception that was set may be raised in here first; then it is gone.
    for _ in 0..2 {
        let value = error.clone_ref(py).into_value(py);
        if let Ok(value) = helpers.as_interrupt.bind(py).call1((value,)) {
            return PyErr::from_value(value);
        }
    }
    error
}

/// Interrupts a cell that runs or is about to. False if there is none.
pub(crate) fn interrupt(shared: &'static Shared, cell: CellId) -> bool {
    let known = live().get_mut(&cell.as_u64()).is_some_and(|live| {
        live.interrupted = true;
        true
    });
    if known {
        interrupter::aim_at(shared, cell);
    }
    known
}
