//! The namespace that persists, and what guards it while cells of the main
//! thread run in it.

use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythond_protocol::CellId;
use pythond_protocol::lane::FinishedCell;
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::Stream;

use crate::cell::{self, Code, Ending, FILE_PREFIX, Shown};
use crate::cells::{Moment, QueuedCell};
use crate::changes::{Names, count_public};
use crate::helpers::{self, Helpers};
use crate::shared::Shared;
use crate::text_stream::TextStream;
use crate::{children, interrupt, limits, streams};

/// How `sys` sets and gets what sees every call.
const TRACERS: [(&str, &str); 2] = [("settrace", "gettrace"), ("setprofile", "getprofile")];

/// The namespace that persists, and what guards it.
#[derive(Debug)]
pub(crate) struct Namespace {
    globals: Py<PyDict>,
    stdout: TextStream,
    stderr: TextStream,
    stdin: Py<PyAny>,
    /// Trace and profile function that a cell has set; they are set back while
    /// cells run, and only then.
    tracers: [Option<Py<PyAny>>; 2],
    /// Size of the builtins when they were last seen to be whole.
    builtins_seen: usize,
    /// Size of the namespace when its public names were last counted.
    counted: usize,
    /// The last cell ended with `SystemExit`.
    exits: bool,
    /// Standard input while a cell of the person's runs, once there was one.
    terminal: Option<Py<PyAny>>,
}

impl Namespace {
    /// Makes the namespace and the standard streams.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let session = helpers::get(py).session.bind(py);
        let namespace = Self {
            globals: session
                .call_method0("namespace")?
                .cast_into::<PyDict>()?
                .unbind(),
            stdout: TextStream::new(py, Stream::Stdout)?,
            stderr: TextStream::new(py, Stream::Stderr)?,
            stdin: session.call_method0("NoTerminal")?.unbind(),
            tracers: [None, None],
            builtins_seen: 0,
            counted: 0,
            exits: false,
            terminal: None,
        };
        namespace.put_streams(py)?;
        let sys = helpers::get(py).sys.bind(py);
        for (name, stream) in [
            ("__stdout__", namespace.stdout.get()),
            ("__stderr__", namespace.stderr.get()),
            ("__stdin__", &namespace.stdin),
        ] {
            sys.setattr(name, stream)?;
        }
        Ok(namespace)
    }

    /// Goes once through what every cell needs, so that it is paid for before
    /// the first fork: in time, and in pages that the children share.
    pub(crate) fn warm_up(&self, py: Python<'_>) -> PyResult<()> {
        let helpers = helpers::get(py);
        for source in ["1 + 1", "if 1:\n    pass"] {
            helpers.compile_cell.call1(py, (source, "<warm>"))?;
        }
        let error = PyErr::new::<pyo3::exceptions::PyValueError, _>("warm");
        cell::describe(py, helpers, &error);
        helpers.show.call1(py, (0,))?;
        helpers.loop_has_work(py);
        Names::of(self.globals.bind(py)).changed(py, self.globals.bind(py));
        Ok(())
    }

    /// The namespace's dict.
    pub(crate) fn globals(&self) -> &Py<PyDict> {
        &self.globals
    }

    fn put_streams(&self, py: Python<'_>) -> PyResult<()> {
        let helpers = helpers::get(py);
        let (sys, names) = (helpers.sys.bind(py), &helpers.names);
        sys.setattr(&names.stdout, self.stdout.get())?;
        sys.setattr(&names.stderr, self.stderr.get())?;
        sys.setattr(&names.stdin, &self.stdin)
    }

    /// The last cell ended with `SystemExit`.
    pub(crate) fn exits(&self) -> bool {
        self.exits
    }

    /// Lets a cell of the person's read from the terminal.
    fn put_terminal(&mut self, py: Python<'_>) {
        let helpers = helpers::get(py);
        let made = match &self.terminal {
            Some(terminal) => Ok(terminal.clone_ref(py)),
            None => pyo3::wrap_pyfunction!(streams::at_terminal, helpers.session.bind(py))
                .and_then(|at_terminal| {
                    let input = helpers.prompt.getattr(py, "TerminalInput")?;
                    input.call1(py, (&self.stdin, at_terminal))
                }),
        };
        let put = made.and_then(|terminal| {
            helpers.sys.bind(py).setattr("stdin", &terminal)?;
            self.terminal = Some(terminal);
            Ok(())
        });
        if let Err(error) = put {
            cell::explain(py, helpers, error);
        }
    }

    /// Repairs what an earlier cell took away: builtins, the standard streams.
    fn repair(&mut self, py: Python<'_>, helpers: &Helpers) -> PyResult<()> {
        let current = helpers.live_builtins.bind(py);
        if current.len() != self.builtins_seen {
            for (name, value) in helpers.builtins.bind(py) {
                if !current.contains(&name)? {
                    current.set_item(name, value)?;
                }
            }
            self.builtins_seen = current.len();
        }
        self.stdout.repair(py, Stream::Stdout)?;
        self.stderr.repair(py, Stream::Stderr)?;
        self.put_streams(py)
    }

    /// Repairs the streams and builtins for a cell that runs beside others.
    pub(crate) fn repair_for_others(&mut self, py: Python<'_>) {
        let helpers = helpers::get(py);
        if let Err(error) = self.repair(py, helpers) {
            cell::explain(py, helpers, error);
        }
    }

    /// Runs a cell to its end. Never fails: what goes wrong is the cell's end.
    pub(crate) fn run(
        &mut self,
        py: Python<'_>,
        shared: &Shared,
        kind: CellKind,
        cell: &QueuedCell,
    ) -> FinishedCell {
        let _reserve = limits::open_reserve();
        let helpers = helpers::get(py);
        let id = cell.id.as_u64();
        let filename = format!("{FILE_PREFIX}{}>", shared.next_file_number());
        let started = Moment::now();
        // In this order: what the journal names as running has its own log.
        shared.outputs.begin_main(id);
        shared.started(cell.id, kind, started);
        self.repair_for_others(py);
        if kind == CellKind::Human {
            self.put_terminal(py);
        }
        let before = cell.changed.then(|| Names::of(self.globals.bind(py)));
        interrupt::begin(id);
        let value = self.execute(py, shared, helpers, kind, cell, &filename);
        let duration = started.instant.elapsed();
        if streams::forked() {
            // The cell called `fork` and this is the child, at its end. Locks
            // may be held for ever by threads that do not exist here.
            cell::end_fork(py, helpers, value.err());
        }
        self.exits = matches!(&value, Err(error) if error.is_instance_of::<PySystemExit>(py));
        let interrupted = interrupt::was_interrupted(id);
        interrupt::set_describing(true);
        if value.is_err() {
            // The cell may have taken away what shows its own exception.
            let _ = self.repair(py, helpers);
        }
        let outcome = cell::outcome(py, helpers, value, interrupted);
        interrupt::end(py);
        interrupt::set_describing(false);
        streams::set_thread_cell(0);
        shared.drain(py);
        children::leave_behind();
        let changed = before
            .map(|before| before.changed(py, self.globals.bind(py)))
            .unwrap_or_default();
        let ending = Ending {
            id: cell.id,
            kind,
            outcome,
            started,
            duration,
            changed,
        };
        py.detach(|| shared.outputs.wait_for_disk(id));
        let finished = ending.finished(shared);
        // What runs beside or comes next finds the session's own streams.
        let _ = self.put_streams(py);
        self.publish_names(py, shared);
        finished
    }

    fn execute(
        &mut self,
        py: Python<'_>,
        shared: &Shared,
        helpers: &Helpers,
        kind: CellKind,
        cell: &QueuedCell,
        filename: &str,
    ) -> PyResult<Shown> {
        let id = cell.id;
        helpers
            .cell_variable
            .call_method1(py, &helpers.names.set, (id.as_u64(),))?;
        streams::set_thread_cell(id.as_u64());
        let code = cell::compile(py, helpers, kind, &cell.source, filename)?;
        let shows = code.shows();
        self.resume_tracers(py, helpers);
        let value = self.evaluate(py, helpers, code, id);
        self.pause_tracers(py, helpers);
        cell::show(py, shared, helpers, id, shows, value?, kind)
    }

    fn resume_tracers(&mut self, py: Python<'_>, helpers: &Helpers) {
        for (tracer, (set, _)) in self.tracers.iter_mut().zip(TRACERS) {
            if let Some(tracer) = tracer.take() {
                // Setting back what was set cannot fail.
                let _ = helpers.sys.bind(py).call_method1(set, (tracer,));
            }
        }
    }

    fn pause_tracers(&mut self, py: Python<'_>, helpers: &Helpers) {
        let sys = helpers.sys.bind(py);
        for (tracer, (set, get)) in self.tracers.iter_mut().zip(TRACERS) {
            if let Ok(current) = sys.call_method0(get)
                && !current.is_none()
            {
                // A cell that replaced these functions keeps its tracer.
                let _ = sys.call_method1(set, (py.None(),));
                *tracer = Some(current.unbind());
            }
        }
    }

    /// Runs the code of a cell; the value of its last part.
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        helpers: &Helpers,
        code: Code<'py>,
        id: CellId,
    ) -> PyResult<Bound<'py, PyAny>> {
        let globals = self.globals.bind(py);
        if !code.awaits {
            return cell::evaluate(py, code.parts, globals);
        }
        // Tasks of several cells take turns now: each carries its own context.
        streams::set_thread_cell(0);
        interrupt::set_awaiting(true);
        let value =
            limits::without_reserve(|| helpers.loop_run.bind(py).call1((code.parts, globals)));
        interrupt::set_awaiting(false);
        streams::set_thread_cell(id.as_u64());
        value
    }

    /// Counts the public names again if the size of the namespace has changed.
    fn publish_names(&mut self, py: Python<'_>, shared: &Shared) {
        let globals = self.globals.bind(py);
        if self.counted != globals.len() {
            self.counted = globals.len();
            shared.set_vars(count_public(globals));
        }
    }
}
