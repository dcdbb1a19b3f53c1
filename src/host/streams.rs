//! `sys.stdout` and `sys.stderr` of a session, and whose bytes they carry.
//!
//! A real `io.TextIOWrapper` (`text_stream.rs`) stands over a [`Sink`]; a write
//! reaches the cell that the writing thread or task belongs to, never a pipe,
//! and so never blocks.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pythond_protocol::output_log::Stream;

use crate::shared::Shared;
use crate::{children, fork, helpers};

/// Set in a process that session code forked: it shares memory with nobody and
/// writes to the session's descriptors instead.
static FORKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The cell whose synchronous code runs on this thread; 0 on threads that
    /// are not a cell's own.
    static THREAD_CELL: Cell<u64> = const { Cell::new(0) };
}

/// Sets whose synchronous code this thread runs; 0 while it awaits.
pub(crate) fn set_thread_cell(cell: u64) {
    THREAD_CELL.set(cell);
}

/// The cell whose synchronous code this thread runs; 0 for none.
pub(crate) fn thread_cell() -> u64 {
    THREAD_CELL.get()
}

/// Longest piece that is added at once, so that readers can follow a long write.
const PIECE: usize = 4 << 20;

/// Where the first piece ends: not inside a character.
fn piece_end(bytes: &[u8]) -> usize {
    let end = bytes.len().min(PIECE);
    let inside = |at: &usize| bytes.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    (end.saturating_sub(3)..=end)
        .rev()
        .find(|at| !inside(at))
        .filter(|at| *at > 0)
        .unwrap_or(end)
}

/// Adds output of a cell, no faster than those who read it live can follow.
pub(crate) fn append(
    py: Python<'_>,
    shared: &Shared,
    cell: u64,
    stream: Stream,
    bytes: &[u8],
) -> PyResult<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece;
        (piece, rest) = rest.split_at(piece_end(rest));
        let mut ahead = shared.append(cell, stream, piece);
        while ahead {
            ahead = py.detach(|| shared.wait_for_readers(cell));
            py.check_signals()?;
        }
    }
    Ok(())
}

/// Adds output of a cell; what the person's own cell writes goes to their
/// terminal as well.
pub(crate) fn write(
    py: Python<'_>,
    shared: &Shared,
    cell: u64,
    stream: Stream,
    bytes: &[u8],
) -> PyResult<()> {
    // Recorded first: a terminal may take its time.
    append(py, shared, cell, stream, bytes)?;
    if shared.terminal.is_persons(cell) {
        // Another thread may change the object that the bytes are in.
        let bytes = bytes.to_vec();
        py.detach(|| shared.terminal.write_through(&bytes));
    }
    Ok(())
}

/// True in a process that session code forked.
pub(crate) fn forked() -> bool {
    FORKED.load(Relaxed)
}

/// Says whether this process is a fork made by session code.
pub(crate) fn set_forked(value: bool) {
    FORKED.store(value, Relaxed);
}

/// The cell that the calling thread or task belongs to; 0 for none.
fn current_cell(py: Python<'_>) -> u64 {
    let helpers = helpers::get(py);
    match THREAD_CELL.get() {
        0 => helpers
            .cell_variable
            .call_method0(py, &helpers.names.get)
            .and_then(|cell| cell.extract(py))
            .unwrap_or(0),
        cell => cell,
    }
}

/// The binary end of one standard stream.
#[pyclass(module = "pythond", frozen)]
#[derive(Debug)]
pub(crate) struct Sink {
    stream: Stream,
}

impl Sink {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream }
    }

    fn descriptor(&self) -> i32 {
        self.stream as i32
    }

    /// Writes all bytes.
    pub(crate) fn put(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        match Shared::get() {
            Some(shared) if !forked() => {
                let cell = current_cell(py);
                shared.drain(py);
                write(py, shared, cell, self.stream, bytes)
            }
            _ if fork::write(py, self.stream, bytes) => Ok(()),
            _ => {
                write_descriptor(py, self.stream, bytes);
                Ok(())
            }
        }
    }
}

#[pymethods]
impl Sink {
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let converted;
        let bytes = match data.cast::<PyBytes>() {
            Ok(bytes) => bytes,
            Err(_) => {
                // Reading other buffers directly is not in the stable ABI of 3.10.
                converted = py
                    .get_type::<PyBytes>()
                    .call1((data,))?
                    .cast_into::<PyBytes>()?;
                &converted
            }
        };
        let bytes = bytes.as_bytes();
        self.put(py, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&self) {}

    fn close(&self) {}

    fn fileno(&self) -> i32 {
        self.descriptor()
    }

    fn isatty(&self, py: Python<'_>) -> bool {
        at_terminal(py)
    }

    fn readable(&self) -> bool {
        false
    }

    fn writable(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        false
    }

    #[getter]
    fn closed(&self) -> bool {
        false
    }

    #[getter]
    fn mode(&self) -> &'static str {
        "wb"
    }

    #[getter]
    fn name(&self) -> &'static str {
        match self.stream {
            Stream::Stdout => "<stdout>",
            Stream::Stderr => "<stderr>",
        }
    }
}

/// Writes all bytes to descriptor 1 or 2 of this process; errors end it, as
/// there is nowhere to tell them.
fn write_descriptor(py: Python<'_>, stream: Stream, bytes: &[u8]) {
    let owned = bytes.to_vec();
    py.detach(move || {
        let descriptor: BorrowedFd<'_> = match stream {
            Stream::Stdout => rustix::stdio::stdout(),
            Stream::Stderr => rustix::stdio::stderr(),
        };
        let mut rest = owned.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(descriptor, rest) {
                Ok(count) => rest = &rest[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    });
}

/// True for the cell of the person's that runs: it has a terminal.
#[pyfunction]
pub(crate) fn at_terminal(py: Python<'_>) -> bool {
    let shared = Shared::get().filter(|_| !forked());
    shared.is_some_and(|shared| shared.terminal.is_persons(current_cell(py)))
}

static INPUT: OnceLock<Py<PyAny>> = OnceLock::new();

/// Remembers Python's own `input`.
pub(crate) fn keep_input(input: &Bound<'_, PyAny>) {
    let _ = INPUT.set(input.clone().unbind());
}

/// `input` of a session: Python's own for the person at the terminal; for all
/// others says at once that there is nobody, instead of waiting.
#[pyfunction]
#[pyo3(signature = (prompt = None, /))]
pub(crate) fn input<'py>(
    py: Python<'py>,
    prompt: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    if at_terminal(py)
        && let Some(input) = INPUT.get()
    {
        return match prompt {
            Some(prompt) => input.bind(py).call1((prompt,)),
            None => input.bind(py).call0(),
        };
    }
    if let Some(prompt) = prompt {
        let stdout = helpers::get(py).sys.bind(py).getattr("stdout")?;
        stdout.call_method1("write", (prompt.str()?,))?;
    }
    Err(pyo3::exceptions::PyEOFError::new_err(
        "this session has no terminal to read from: `input()` cannot wait for an answer here; \
         put the value into the code instead",
    ))
}

/// A thread's function together with the cell that started it.
#[pyclass(module = "pythond", frozen)]
#[derive(Debug)]
pub(crate) struct ThreadEntry {
    cell: u64,
    function: Py<PyAny>,
}

#[pymethods]
impl ThreadEntry {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        helpers::get(py)
            .cell_variable
            .call_method1(py, "set", (self.cell,))?;
        let result = self.function.call(py, args, kwargs);
        let running = Shared::get().and_then(Shared::running_main);
        if !forked() && running.is_none_or(|running| running.as_u64() != self.cell) {
            children::leave_thread();
        }
        result
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.function.bind(py).repr()?.to_string())
    }
}

/// Stands in for a function of `_thread` that starts a thread, so that what the
/// thread prints belongs to the cell that started it. No Python frame of ours
/// appears in any traceback.
#[pyclass(module = "_thread", frozen)]
#[derive(Debug)]
pub(crate) struct ThreadStarter {
    original: Py<PyAny>,
}

impl ThreadStarter {
    pub(crate) fn new(original: Py<PyAny>) -> Self {
        Self { original }
    }
}

#[pymethods]
impl ThreadStarter {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let mut arguments: Vec<Py<PyAny>> = args.iter().map(Bound::unbind).collect();
        let cell = current_cell(py);
        if let Some(first) = arguments.first_mut()
            && cell != 0
            && first.bind(py).is_callable()
        {
            let function = first.clone_ref(py);
            *first = Bound::new(py, ThreadEntry { cell, function })?
                .into_any()
                .unbind();
        }
        self.original.call(py, PyTuple::new(py, arguments)?, kwargs)
    }

    #[getter]
    fn __doc__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.original.getattr(py, "__doc__")
    }

    #[getter]
    fn __name__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.original.getattr(py, "__name__")
    }
}

/// Puts [`ThreadStarter`] before every way that CPython has to start a thread.
pub(crate) fn follow_threads(py: Python<'_>) -> PyResult<()> {
    let low = py.import("_thread")?;
    let high = py.import("threading")?;
    for name in ["start_new_thread", "start_new", "start_joinable_thread"] {
        if let Ok(original) = low.getattr(name) {
            low.setattr(name, Bound::new(py, ThreadStarter::new(original.unbind()))?)?;
        }
    }
    for (name, source) in [
        ("_start_new_thread", "start_new_thread"),
        ("_start_joinable_thread", "start_joinable_thread"),
    ] {
        if high.hasattr(name)? {
            high.setattr(name, low.getattr(source)?)?;
        }
    }
    Ok(())
}
