//! The lock that `threading.Condition` waits on, so that an interrupt reaches a
//! `fire` cell there: in `queue.get`, `Event.wait`, `Future.result` and all else
//! that is made of conditions.
//!
//! A lock cannot be cut short as a system call can: who believes to hold it and
//! does not breaks what it protects. But nothing is protected by this one: it
//! only wakes its waiter, and so may we.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::{fire, helpers, streams};

/// Stands in for the lock of one wait.
#[pyclass(module = "_thread", name = "lock", frozen)]
#[derive(Debug)]
struct Waiter {
    lock: Py<PyAny>,
}

#[pymethods]
impl Waiter {
    #[pyo3(signature = (*args, **kwargs))]
    fn acquire(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let cell = streams::thread_cell();
        let known = cell != 0 && fire::set_waits(cell, Some(self.lock.clone_ref(py)));
        let acquired = self.lock.call_method(py, "acquire", args, kwargs);
        if known {
            fire::set_waits(cell, None);
        }
        acquired
    }

    fn release(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.lock.call_method0(py, "release")
    }

    fn locked(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.lock.call_method0(py, "locked")
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.lock.call_method0(py, "acquire")
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.lock.call_method0(py, "release").map(drop)
    }
}

/// Makes locks for waits.
#[pyclass(module = "_thread", frozen)]
#[derive(Debug)]
struct MakeWaiter {
    make_lock: Py<PyAny>,
}

#[pymethods]
impl MakeWaiter {
    fn __call__(&self, py: Python<'_>) -> PyResult<Waiter> {
        Ok(Waiter {
            lock: self.make_lock.call0(py)?,
        })
    }
}

/// True on the thread of a `fire` cell.
#[pyfunction]
fn on_cell_thread() -> bool {
    let cell = streams::thread_cell();
    cell != 0 && fire::is_live(cell)
}

/// Lets conditions wait on our locks, and `Thread.join` in turns.
/// `threading.Lock` is not touched.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let threading = py.import("threading")?;
    let name = "_allocate_lock";
    // A Python that has no such name keeps its own locks.
    if let Ok(make_lock) = threading.getattr(name) {
        let make_lock = make_lock.unbind();
        threading.setattr(name, Bound::new(py, MakeWaiter { make_lock })?)?;
    }
    let session = helpers::get(py).session.bind(py);
    let on_cell_thread = pyo3::wrap_pyfunction!(on_cell_thread, session)?;
    session.call_method1("join_in_turns", (on_cell_thread,))?;
    Ok(())
}
