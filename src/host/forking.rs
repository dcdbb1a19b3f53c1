//! What keeps threads that attach to the interpreter and threads that fork out of
//! each other's way.
//!
//! A thread that the interpreter does not know is entered into its list of threads
//! when it attaches, under a lock of CPython that it takes before it has the
//! interpreter's. A fork at that moment makes a child in which nobody ever opens that
//! lock; CPython up to 3.11 waits for it there before it makes it anew, and 3.12 goes
//! through a list that is half changed. So no thread of ours attaches while somebody
//! forks, be it a `fork` cell or code of a cell's. Threads of other libraries that
//! attach by themselves are not kept out: a child of a `fork` cell that stands still
//! because of them is replaced (`fork/watch.rs`).
//!
//! CPython 3.13 takes that lock itself before a fork, and a thread that starts another
//! waits for it while it has the interpreter. So nothing of Python may run from there
//! to the fork: what is to be asked last is asked in the hook, the last before it.

use std::cell::{Cell, RefCell};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{fork, streams, sys};

/// Read until a thread is attached, written to while somebody forks.
static ATTACHING: RwLock<()> = RwLock::new(());

thread_local! {
    /// Of the thread that forks, in the child too.
    static ALONE: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
    /// How many forks of this thread are under way: code that CPython runs on the way
    /// to one may fork too.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Attaches, other than on the main thread, and does something.
#[expect(
    clippy::disallowed_methods,
    reason = "this is what to use in its place"
)]
pub(crate) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    if sys::is_known_to_python() {
        return Python::attach(work);
    }
    let attaching = ATTACHING.read().unwrap_or_else(PoisonError::into_inner);
    let _entered = sys::enter_python();
    // What is done first when it is attached may run anybody's code.
    drop(attaching);
    Python::attach(work)
}

/// Has every fork that CPython prepares go through this module.
///
/// To be called before any module is imported that does so too: what is registered
/// first comes next to the fork, on both sides of it.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let hooks = PyDict::new(py);
    hooks.set_item("before", pyo3::wrap_pyfunction!(before, py)?)?;
    hooks.set_item("after_in_parent", pyo3::wrap_pyfunction!(in_parent, py)?)?;
    hooks.set_item("after_in_child", pyo3::wrap_pyfunction!(in_child, py)?)?;
    let register = py.import("os")?.getattr("register_at_fork")?;
    register.call((), Some(&hooks))?;
    Ok(())
}

/// Waits for those that are attaching, and keeps others from it.
#[pyfunction]
fn before(py: Python<'_>) {
    DEPTH.set(DEPTH.get() + 1);
    if DEPTH.get() > 1 {
        return;
    }
    if let Ok(alone) = ATTACHING.try_write() {
        ALONE.set(Some(alone));
    } else {
        // They wait for the interpreter's lock.
        py.detach(|| {
            let alone = ATTACHING.write().unwrap_or_else(PoisonError::into_inner);
            ALONE.set(Some(alone));
        });
    }
    fork::is_about_to(py);
}

#[pyfunction]
fn in_parent(py: Python<'_>) {
    if is_over() {
        fork::is_done(py);
    }
}

#[pyfunction]
fn in_child(py: Python<'_>) {
    streams::set_forked(true);
    if is_over() {
        fork::is_child(py);
    }
}

/// A fork of this thread is over. True if it was none that another made.
fn is_over() -> bool {
    let depth = DEPTH.get().saturating_sub(1);
    DEPTH.set(depth);
    if depth == 0 {
        ALONE.take();
    }
    depth == 0
}
