//! Names that every cell asks for, as Python's strings, made before the first
//! cell runs.
//!
//! Not `pyo3::intern!` at each place: that makes its string when it is first
//! asked for, under a lock, and lets go of the interpreter in between. A fork
//! that falls just there makes a child in which nobody ever opens the lock. The
//! same holds for `PyOnceLock`.

use pyo3::prelude::*;
use pyo3::types::{PyCode, PyString};

/// Python's strings for names.
#[derive(Debug)]
pub(crate) struct Interned {
    pub(crate) closed: Py<PyString>,
    pub(crate) co_flags: Py<PyString>,
    /// `__dict__`.
    pub(crate) dict: Py<PyString>,
    pub(crate) get: Py<PyString>,
    /// `_`, the last value shown.
    pub(crate) last: Py<PyString>,
    /// `__self__`.
    pub(crate) owner: Py<PyString>,
    pub(crate) set: Py<PyString>,
    pub(crate) stderr: Py<PyString>,
    pub(crate) stdin: Py<PyString>,
    pub(crate) stdout: Py<PyString>,
    pub(crate) write: Py<PyString>,
}

impl Interned {
    /// Makes them, and has pyo3 find the types that it would look for later, in
    /// the same way.
    pub(crate) fn new(py: Python<'_>) -> Self {
        py.get_type::<PyCode>();
        let string = |name| PyString::intern(py, name).unbind();
        Self {
            closed: string("closed"),
            co_flags: string("co_flags"),
            dict: string("__dict__"),
            get: string("get"),
            last: string("_"),
            owner: string("__self__"),
            set: string("set"),
            stderr: string("stderr"),
            stdin: string("stdin"),
            stdout: string("stdout"),
            write: string("write"),
        }
    }
}
