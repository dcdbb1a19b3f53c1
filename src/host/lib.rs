//! The process that holds a live CPython: zygotes, and the session hosts that
//! come from them. The only crate that names Python objects.
//!
//! Loaded by [the launcher](../pythond_host/index.html) into the interpreter
//! of an environment; knows no WebSocket, no TLS, no other session.
#![deny(unsafe_code)]

mod append;
mod assignment;
mod blocked_call;
mod cell;
mod cell_log;
mod cells;
mod changes;
mod children;
mod clock;
mod control;
mod disk;
mod ends;
mod files;
mod fire;
mod fork;
mod forking;
mod handoff;
mod helpers;
mod interned;
mod interrupt;
mod io_thread;
mod journal;
mod lane_socket;
mod limits;
mod namespace;
mod outputs;
mod parked;
mod print;
mod prompt;
mod recorder;
mod records;
mod service;
mod session;
mod shared;
mod spawner;
mod stack;
mod start;
mod streams;
mod sys;
mod terminal;
mod text_stream;
mod waiter;
mod zygote;

use pyo3::prelude::*;

/// Enters the role that the launcher asks for; returns only to end the process.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<String>) -> PyResult<()> {
    start::main(py, &arguments)
}

/// The module that the launcher's boot script loads.
#[pymodule]
fn pythond_host(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(pyo3::wrap_pyfunction!(main, module)?)
}
