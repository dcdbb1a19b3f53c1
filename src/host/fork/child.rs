//! What happens in the child of a `fork` cell. Only the thread that forked is
//! there: nothing in here takes a lock that another thread could have held.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pythond_protocol::outcome::{CellKind, ExceptionInfo};
use pythond_protocol::output_log::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use super::channel::{self, Channel, Kind};
use super::{Request, Wires, hooks};
use crate::cell;
use crate::helpers::{self, Helpers};
use crate::text_stream::TextStream;
use crate::{limits, streams, sys};

/// How the cell ended, as the child says it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ChildEnd {
    pub(super) exception: Option<ExceptionInfo>,
    /// The exception is KeyboardInterrupt.
    pub(super) interrupted: bool,
    pub(super) skipped: std::collections::BTreeMap<String, String>,
    pub(super) mutated: Vec<String>,
    pub(super) unchecked: Vec<String>,
}

/// Is the child. `host` is the session's process.
pub(super) fn be(py: Python<'_>, request: &Request, wires: Wires, host: i32) -> ! {
    limits::begin_child();
    // It cannot fail: a forked process leads no group.
    let _ = rustix::process::setsid();
    let Wires {
        socket,
        stdout,
        stderr,
        right,
    } = wires;
    drop((socket.0, stdout.0, stderr.0));
    let redirected =
        rustix::stdio::dup2_stdout(&stdout.1).and_then(|()| rustix::stdio::dup2_stderr(&stderr.1));
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
    channel::open(socket.1, [stdout.1, stderr.1]);
    let Some(channel) = channel::channel().filter(|_| redirected.is_ok()) else {
        sys::exit_now(1)
    };
    streams::set_thread_cell(request.cell.id.as_u64());
    die_with(host);
    sys::name_process("py-fork");
    let helpers = helpers::get(py);
    let end = match enter(py, helpers, request, channel, right) {
        Ok(before) => run(py, helpers, request, channel, &before),
        Err(error) => failed(py, helpers, &error),
    };
    if channel::is_grandchild() {
        // The cell called `fork` and this is its child, past its end.
        sys::exit_now(0);
    }
    if let Ok(end) = serde_json::to_vec(&end) {
        py.detach(|| {
            channel.wait_for_pipes();
            // Nobody is left to tell if this fails: the session sees an end
            // without a word.
            let _ = channel.send(Kind::End, &end, &[]);
        });
    }
    sys::exit_now(0)
}

/// Ends this process and its group as soon as the session's is gone.
fn die_with(host: i32) {
    let process = rustix::process::getppid().filter(|pid| pid.as_raw_nonzero().get() == host);
    let watched =
        process.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(watched) = watched.filter(|_| rustix::process::getppid() == process) else {
        sys::exit_now(1)
    };
    let number = watched.as_raw_fd();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let watch = move || {
        sys::block_all_signals();
        let apart = sys::unshare_descriptors().is_ok();
        if apart {
            sys::keep_only(&[watched.as_fd()]);
        }
        // The starter waits for exactly this message.
        let _ = ready.send(apart);
        loop {
            let mut set = [PollFd::new(&watched, PollFlags::IN)];
            let came = poll(&mut set, None);
            if came.is_ok() && set[0].revents().contains(PollFlags::IN) {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process_group(me, Signal::KILL);
                sys::exit_now(1);
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("pythond-watch".to_owned())
        .stack_size(64 << 10)
        .spawn(watch);
    // Without a thread for it the zygote still ends us.
    if started.is_ok() && is_ready.recv() == Ok(true) {
        // The thread has it in a table of its own, where no cell can close it.
        sys::close_in_this_table(number);
    }
}

/// Makes the process one that runs a cell of its own.
fn enter(
    py: Python<'_>,
    helpers: &Helpers,
    request: &Request,
    channel: &Channel,
    right: OwnedFd,
) -> PyResult<Py<PyAny>> {
    let fork = helpers.fork.bind(py);
    let stdout = TextStream::new(py, Stream::Stdout)?;
    let stderr = TextStream::new(py, Stream::Stderr)?;
    fork.call_method1("enter", (stdout.get(), stderr.get()))?;
    if request.probe {
        fork.call_method0("multiply")?;
        if !hooks::takes(&right) {
            sys::exit_now(0)
        }
    }
    drop(right);
    let _ = channel.send(Kind::Ready, b"", &[]);
    sys::unblock_all_signals();
    let globals = request.globals.bind(py);
    fork.call_method1("unlock_generators", (globals,))?;
    let values = helpers.fork_values.bind(py);
    let before = values.call_method1("Before", (globals, request.known.bind(py)))?;
    Ok(before.unbind())
}

/// Runs the cell and sends back what it made.
fn run(
    py: Python<'_>,
    helpers: &Helpers,
    request: &Request,
    channel: &'static Channel,
    before: &Py<PyAny>,
) -> ChildEnd {
    if let Err(error) = execute(py, helpers, request, channel) {
        if channel::is_grandchild() {
            cell::end_fork(py, helpers, Some(error));
        }
        return failed(py, helpers, &error);
    }
    if channel::is_grandchild() {
        return ChildEnd::default();
    }
    match collect(py, helpers, request, before) {
        Ok((skipped, mutated, unchecked)) => ChildEnd {
            skipped,
            mutated,
            unchecked,
            ..ChildEnd::default()
        },
        Err(error) => failed(py, helpers, &error),
    }
}

fn failed(py: Python<'_>, helpers: &Helpers, error: &PyErr) -> ChildEnd {
    let values = helpers.fork_values.bind(py);
    let too_large = values
        .getattr("TooLarge")
        .is_ok_and(|kind| error.is_instance(py, &kind));
    let mut exception = cell::describe(py, helpers, error);
    if too_large {
        "ResultTooLarge".clone_into(&mut exception.kind);
        exception.traceback = format!("ResultTooLarge: {}\n", exception.message);
    }
    ChildEnd {
        exception: Some(exception),
        interrupted: error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py),
        ..ChildEnd::default()
    }
}

fn execute(
    py: Python<'_>,
    helpers: &Helpers,
    request: &Request,
    channel: &'static Channel,
) -> PyResult<()> {
    helpers
        .cell_variable
        .call_method1(py, "set", (request.cell.id.as_u64(),))?;
    let code = cell::compile(
        py,
        helpers,
        CellKind::Fork,
        &request.cell.source,
        &request.filename,
    )?;
    let globals: &Bound<'_, PyDict> = request.globals.bind(py);
    let shows = code.shows();
    let value = if code.awaits {
        let begun = Bound::new(py, Begun)?;
        helpers
            .loop_run_beside
            .bind(py)
            .call1((code.parts, globals, begun))?
    } else {
        cell::evaluate(py, code.parts, globals)?
    };
    if channel::is_grandchild() || !shows || value.is_none() {
        return Ok(());
    }
    let shown = helpers.show.bind(py).call1((&value,))?;
    if shown.is_none() {
        return Ok(());
    }
    let mut text = cell::encode(&shown)?;
    text.push(b'\n');
    py.detach(|| {
        channel.wait_for_pipes();
        // An end without a word says that the channel is gone.
        let _ = channel.send(Kind::Shown, &text, &[]);
    });
    Ok(())
}

/// Is told the loop and the task of a cell that awaits, which nobody here needs.
#[pyclass(module = "pythond", frozen)]
#[derive(Debug)]
struct Begun;

#[pymethods]
impl Begun {
    fn __call__(&self, _loop: Py<PyAny>, _task: Py<PyAny>) {}
}

type Collected = (
    std::collections::BTreeMap<String, String>,
    Vec<String>,
    Vec<String>,
);

fn collect(
    py: Python<'_>,
    helpers: &Helpers,
    request: &Request,
    before: &Py<PyAny>,
) -> PyResult<Collected> {
    let values = helpers.fork_values.bind(py);
    let send = pyo3::wrap_pyfunction!(send_value, values)?;
    values
        .call_method1("collect", (before, request.most, send))?
        .extract()
}

/// Sends a new value.
#[pyfunction]
fn send_value(
    py: Python<'_>,
    header: &Bound<'_, PyBytes>,
    pickle: &Bound<'_, PyBytes>,
    descriptors: Vec<i32>,
) -> PyResult<()> {
    let gone =
        || pyo3::exceptions::PyOSError::new_err("the cell closed the way back to its session");
    let channel = channel::channel().ok_or_else(gone)?;
    let owned: Vec<OwnedFd> = descriptors
        .into_iter()
        .map(sys::duplicate)
        .collect::<std::io::Result<_>>()?;
    let borrowed: Vec<BorrowedFd<'_>> = owned.iter().map(|it| it.as_fd()).collect();
    let (header, pickle) = (header.as_bytes(), pickle.as_bytes());
    let length = u32::try_from(header.len()).map_err(|_| gone())?;
    let mut bytes = Vec::with_capacity(4 + header.len() + pickle.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(pickle);
    py.detach(|| channel.send(Kind::Value, &bytes, &borrowed))
        .map_err(|_| gone())
}

/// What a write of Python's to one of our streams is in this process. False if
/// it is none of a `fork` cell, or the cell closed the channel.
pub(crate) fn write(py: Python<'_>, stream: Stream, bytes: &[u8]) -> bool {
    channel::channel().is_some_and(|channel| channel.output(py, stream, bytes))
}
