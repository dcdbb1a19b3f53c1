//! Interrupt the cell with this id, and no other.
//!
//! The I/O thread aims at a cell and signals the main thread until the handler
//! has seen it; the handler raises only if the cell that runs is the one aimed
//! at, and once. A signal of nobody's (`os.kill(os.getpid(), SIGINT)`) raises
//! as it does in any Python.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use rustix::process::Signal;

use crate::sys::ThreadId;

/// The running cell's id plus one; 0 while none runs.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The cell aimed at, in the same form.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// The aim that the handler has seen.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// A cell that is to be interrupted as soon as it runs, in the same form.
static AT_START: AtomicU64 = AtomicU64::new(0);
/// The last cell that an aim of ours has hit.
static HIT: AtomicU64 = AtomicU64::new(0);
/// A cell has set a handler of its own for SIGINT.
static FOREIGN: AtomicBool = AtomicBool::new(false);
/// The running cell waits in the event loop.
static AWAITING: AtomicBool = AtomicBool::new(false);
/// Held while a signal is sent and while a cell ends, so that none is sent to
/// a cell that has ended.
static AIM: Mutex<()> = Mutex::new(());
static MAIN: OnceLock<ThreadId> = OnceLock::new();

/// The prompt runs code of the user's, to complete a name.
static COMPLETING: AtomicBool = AtomicBool::new(false);
/// That is to be interrupted.
static STOP_COMPLETING: AtomicBool = AtomicBool::new(false);

/// Does something at the prompt that the interrupt key may end.
pub(crate) fn while_completing<T>(work: impl FnOnce() -> T) -> T {
    COMPLETING.store(true, SeqCst);
    let done = work();
    COMPLETING.store(false, SeqCst);
    STOP_COMPLETING.store(false, SeqCst);
    done
}

/// The interrupt key was typed. Called by the I/O thread.
pub(crate) fn stop_completing() {
    if COMPLETING.load(SeqCst) {
        STOP_COMPLETING.store(true, SeqCst);
        signal_main();
    }
}

/// How long an exception may be put into words before that can be interrupted.
pub(crate) const DESCRIBING: Duration = Duration::from_millis(50);
/// Since when the exception of the running cell is put into words, in
/// nanoseconds since the first use plus one; 0 while none is.
static DESCRIBING_SINCE: AtomicU64 = AtomicU64::new(0);

fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let span = START.get_or_init(Instant::now).elapsed();
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// What left the running cell is being put into words, or was. An interrupt that
/// comes meanwhile finds a cell that is ending; only words that take long, as
/// the user's own `__str__` may, are cut short.
pub(crate) fn set_describing(describing: bool) {
    DESCRIBING_SINCE.store(if describing { clock() + 1 } else { 0 }, SeqCst);
}

fn has_just_ended() -> bool {
    match DESCRIBING_SINCE.load(SeqCst) {
        0 => false,
        since => u128::from(clock().saturating_sub(since - 1)) < DESCRIBING.as_nanos(),
    }
}

/// Remembers the main thread. Called on it, once.
pub(crate) fn set_main_thread() {
    MAIN.get_or_init(ThreadId::current);
}

/// `threading.get_ident()` of the main thread.
pub(crate) fn main_ident() -> u64 {
    MAIN.get().map_or(0, |main| main.ident())
}

/// A cell begins. Called on the main thread.
pub(crate) fn begin(cell: u64) {
    RUNNING.store(cell + 1, SeqCst);
    if AT_START.load(SeqCst) == cell + 1 {
        AT_START.store(0, SeqCst);
        aim_at(cell);
    }
}

/// Aims at a cell that is on its way. Called by the I/O thread.
pub(crate) fn aim_at_start(cell: u64) {
    AT_START.store(cell + 1, SeqCst);
    // It may have begun between the caller's look and this.
    if RUNNING.load(SeqCst) == cell + 1 {
        aim_at(cell);
    }
}

/// The running cell ended. Afterwards no interrupt of it can hit what follows.
pub(crate) fn end(py: Python<'_>) {
    let ended = {
        let _aim = AIM.lock().unwrap_or_else(PoisonError::into_inner);
        RUNNING.swap(0, SeqCst)
    };
    if TARGET.load(SeqCst) == ended && ended != 0 {
        // A signal that was sent is delivered at the latest when this system
        // call returns; the handler then finds no running cell and drops it.
        rustix::thread::sched_yield();
        while py.check_signals().is_err() {}
        TARGET.store(0, SeqCst);
    }
}

/// True if the running cell was interrupted through us.
pub(crate) fn was_interrupted(cell: u64) -> bool {
    HIT.load(SeqCst) == cell + 1
}

/// The running cell enters or leaves the event loop.
pub(crate) fn set_awaiting(awaiting: bool) {
    AWAITING.store(awaiting, SeqCst);
}

/// Aims at a cell and sends the first signal. Called by the I/O thread.
///
/// Returns false if that cell does not run.
pub(crate) fn aim_at(cell: u64) -> bool {
    let _aim = AIM.lock().unwrap_or_else(PoisonError::into_inner);
    if RUNNING.load(SeqCst) != cell + 1 {
        return false;
    }
    // An aim at the same cell that is still pending is one interrupt, not two.
    if TARGET.swap(cell + 1, SeqCst) == cell + 1 && SEEN.load(SeqCst) == cell + 1 {
        SEEN.store(0, SeqCst);
    }
    if FOREIGN.load(SeqCst) {
        // That handler cannot say that it has seen the signal; it gets one for
        // each interrupt.
        SEEN.store(cell + 1, SeqCst);
        HIT.store(cell + 1, SeqCst);
    }
    signal_main();
    true
}

/// Says whether Python's handler of SIGINT is another than ours.
#[pyfunction]
pub(crate) fn set_foreign(foreign: bool) {
    FOREIGN.store(foreign, SeqCst);
}

/// Signals again if the handler has not seen the aim. Returns true while that
/// has to be repeated. Called by the I/O thread.
pub(crate) fn repeat() -> bool {
    let _aim = AIM.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGET.load(SeqCst);
    let pending = target != 0 && RUNNING.load(SeqCst) == target && SEEN.load(SeqCst) != target;
    if pending {
        signal_main();
    }
    pending
}

fn signal_main() {
    if let Some(main) = MAIN.get() {
        main.signal(Signal::INT.as_raw());
    }
}

/// The Python-level handler of SIGINT.
#[pyfunction]
pub(crate) fn on_interrupt(
    py: Python<'_>,
    _signal: Bound<'_, PyAny>,
    _frame: Bound<'_, PyAny>,
) -> PyResult<()> {
    let (target, running) = (TARGET.load(SeqCst), RUNNING.load(SeqCst));
    let raises = match (target, running) {
        (_, 0) => STOP_COMPLETING.swap(false, SeqCst) && COMPLETING.load(SeqCst),
        (0, _) => true,
        (target, running) => target == running && SEEN.swap(target, SeqCst) != target,
    };
    if !raises || has_just_ended() {
        return Ok(());
    }
    if target == running {
        HIT.store(running, SeqCst);
    }
    if AWAITING.load(SeqCst) && !crate::helpers::get(py).loop_interrupt(py)? {
        return Ok(());
    }
    Err(PyKeyboardInterrupt::new_err(()))
}
