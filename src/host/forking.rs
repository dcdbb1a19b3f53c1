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

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{fork, streams, sys};

/// Read until a thread is attached, written to while somebody forks.
static ATTACHING: RwLock<()> = RwLock::new(());

thread_local! {
    /// Of the thread that forks, in the child too.
    static ALONE: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
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
    Python::attach(|py| {
        drop(attaching);
        work(py)
    })
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
    if let Ok(alone) = ATTACHING.try_write() {
        ALONE.set(Some(alone));
        return;
    }
    // They wait for the interpreter's lock.
    py.detach(|| {
        let alone = ATTACHING.write().unwrap_or_else(PoisonError::into_inner);
        ALONE.set(Some(alone));
    });
}

#[pyfunction]
fn in_parent() {
    ALONE.take();
}

#[pyfunction]
fn in_child() {
    ALONE.take();
    streams::set_forked(true);
    fork::tell_of_child();
}
