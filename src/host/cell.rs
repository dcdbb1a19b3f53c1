//! One cell: source, compiled, run in the namespace, to its end.
//!
//! Knows nothing of lanes or descriptors.

use std::collections::HashMap;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict, PyString};
use pythond_protocol::CellId;
use pythond_protocol::lane::FinishedCell;
use pythond_protocol::outcome::{CellKind, CellStatus, ExceptionInfo};
use pythond_protocol::output_log::{self, Stream};

use crate::helpers::{self, Helpers};
use crate::recorder::{OUTPUT_SHOWN, Record};
use crate::shared::{QueuedCell, Shared};
use crate::{interrupt, streams};

/// First part of the file names of cells, as tracebacks show them.
pub(crate) const FILE_PREFIX: &str = "<cell ";
/// How `sys` sets and gets what sees every call.
const TRACERS: [(&str, &str); 2] = [("settrace", "gettrace"), ("setprofile", "getprofile")];
/// Set on code that must be awaited (`inspect.CO_COROUTINE`).
const CO_COROUTINE: u32 = 0x80;

/// The namespace that persists, and what guards it.
#[derive(Debug)]
pub(crate) struct Namespace {
    globals: Py<PyDict>,
    stdout: Py<PyAny>,
    stderr: Py<PyAny>,
    stdin: Py<PyAny>,
    /// Number of cells so far, for their file names.
    count: u64,
    /// Trace and profile function that a cell has set; they are set back while
    /// cells run, and only then.
    tracers: [Option<Py<PyAny>>; 2],
    /// Size of the builtins when they were last seen to be whole.
    builtins_seen: usize,
    /// Size of the namespace and its public names when they were last counted.
    counted: (usize, u64),
}

/// A cell that has ended, and what is recorded of it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) finished: FinishedCell,
    pub(crate) public_names: u64,
}

impl Namespace {
    /// Makes the namespace and the standard streams.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let session = helpers::get(py).session.bind(py);
        let stream = |stream: Stream, name: &str| -> PyResult<Py<PyAny>> {
            let sink = Bound::new(py, streams::Sink::new(stream))?;
            Ok(session.call_method1("text_stream", (sink, name))?.unbind())
        };
        let namespace = Self {
            globals: session
                .call_method0("namespace")?
                .cast_into::<PyDict>()?
                .unbind(),
            stdout: stream(Stream::Stdout, "<stdout>")?,
            stderr: stream(Stream::Stderr, "<stderr>")?,
            stdin: session.call_method0("NoTerminal")?.unbind(),
            count: 0,
            tracers: [None, None],
            builtins_seen: 0,
            counted: (0, 0),
        };
        namespace.put_streams(py)?;
        let sys = helpers::get(py).sys.bind(py);
        for (name, stream) in [
            ("__stdout__", &namespace.stdout),
            ("__stderr__", &namespace.stderr),
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
        describe(py, helpers, &error);
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
        let sys = helpers::get(py).sys.bind(py);
        sys.setattr(pyo3::intern!(py, "stdout"), &self.stdout)?;
        sys.setattr(pyo3::intern!(py, "stderr"), &self.stderr)?;
        sys.setattr(pyo3::intern!(py, "stdin"), &self.stdin)
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
        let session = helpers.session.bind(py);
        for (stream, which) in [
            (&mut self.stdout, Stream::Stdout),
            (&mut self.stderr, Stream::Stderr),
        ] {
            let usable = helpers.usable.call1(py, (&*stream,));
            if !matches!(usable.and_then(|usable| usable.extract(py)), Ok(true)) {
                let sink = Bound::new(py, streams::Sink::new(which))?;
                *stream = session
                    .call_method1("text_stream", (sink, "<stream>"))?
                    .unbind();
            }
        }
        self.put_streams(py)
    }

    /// Runs a cell to its end. Never fails: what goes wrong is the cell's end.
    pub(crate) fn run(&mut self, py: Python<'_>, shared: &Shared, cell: &QueuedCell) -> Ended {
        let helpers = helpers::get(py);
        let id = cell.id.as_u64();
        self.count += 1;
        let filename = format!("{FILE_PREFIX}{}>", self.count);
        let started_us = now_us();
        // In this order: what the journal names as running has its own log.
        shared.outputs.begin(id);
        shared.started(cell, started_us);
        if let Err(error) = self.repair(py, helpers) {
            explain(py, helpers, error);
        }
        let before = cell.changed.then(|| Names::of(self.globals.bind(py)));
        let clock = Instant::now();
        interrupt::begin(id);
        let outcome = self.execute(py, shared, helpers, cell, &filename);
        let duration = clock.elapsed();
        if streams::forked() {
            // The cell called `fork` and this is the child, at its end. Locks
            // may be held for ever by threads that do not exist here.
            end_fork(py, helpers, outcome.err());
        }
        let (status, exception, result) = match outcome {
            Ok(result) => (CellStatus::Done, None, result),
            Err(error) => {
                let interrupted = interrupt::was_interrupted(id)
                    && error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py);
                // The cell may have taken away what shows its own exception.
                let _ = self.repair(py, helpers);
                let info = describe(py, helpers, &error);
                drop(error);
                let status = if interrupted {
                    CellStatus::Interrupted
                } else {
                    CellStatus::Failed
                };
                (status, Some(info), None)
            }
        };
        interrupt::end(py);
        streams::set_main_cell(0);
        shared.drain();
        let extent = shared.outputs.extent(id);
        let changed = before
            .map(|before| before.changed(py, self.globals.bind(py)))
            .unwrap_or_default();
        let finished = FinishedCell {
            request: None,
            cell: cell.id,
            kind: CellKind::Run,
            status,
            exception,
            result,
            started_us,
            duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
            log_end: extent.log,
            output_bytes: extent.bytes,
            truncated: extent.truncated,
            changed,
            next_cell: CellId::from_parts(0, 0),
            not_recorded: shared.recorder.trouble(),
        };
        Ended {
            finished,
            public_names: self.public_names(py),
        }
    }

    /// Compiles and runs; returns where in stdout the shown value stands.
    fn execute(
        &mut self,
        py: Python<'_>,
        shared: &Shared,
        helpers: &Helpers,
        cell: &QueuedCell,
        filename: &str,
    ) -> PyResult<Option<(u64, u64)>> {
        let id = cell.id.as_u64();
        helpers
            .cell_variable
            .call_method1(py, pyo3::intern!(py, "set"), (id,))?;
        streams::set_main_cell(id);
        let source = PyString::new(py, &cell.source);
        // A cell may have broken `linecache`; tracebacks then lack their lines.
        if let Err(error) = helpers.remember_source.call1(py, (&source, filename))
            && error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py)
        {
            return Err(error);
        }
        let (statements, last): (Option<Bound<'_, PyCode>>, Option<Bound<'_, PyCode>>) = helpers
            .compile_cell
            .bind(py)
            .call1((&source, filename))?
            .extract()?;
        drop(source);
        let shows = last.is_some();
        let codes = statements.into_iter().chain(last).collect();
        self.resume_tracers(py, helpers);
        let value = self.evaluate(py, helpers, codes, id);
        self.pause_tracers(py, helpers);
        let value = value?;
        if !shows {
            return Ok(None);
        }
        if value.is_none() || streams::forked() {
            return Ok(None);
        }
        let shown = helpers.show.bind(py).call1((&value,))?;
        // `_` is the last shown value, as at the prompt.
        helpers
            .live_builtins
            .bind(py)
            .set_item(pyo3::intern!(py, "_"), value)?;
        if shown.is_none() {
            return Ok(None);
        }
        let mut text = encode(&shown)?;
        shared.drain();
        let start = shared.outputs.extent(id).stdout;
        let length = text.len() as u64;
        text.push(b'\n');
        shared.append(id, Stream::Stdout, &text);
        Ok(Some((start, length)))
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

    /// Runs the codes of a cell in order; the value of the last.
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        helpers: &Helpers,
        codes: Vec<Bound<'py, PyCode>>,
        id: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let awaits = codes.iter().any(|code| {
            let flags = code.getattr(pyo3::intern!(py, "co_flags"));
            flags
                .and_then(|flags| flags.extract::<u32>())
                .is_ok_and(|flags| flags & CO_COROUTINE != 0)
        });
        let globals = self.globals.bind(py);
        if !awaits {
            let mut value = py.None().into_bound(py);
            for code in codes {
                value = crate::sys::evaluate(&code, globals)?;
            }
            return Ok(value);
        }
        // Tasks of several cells take turns now: each carries its own context.
        streams::set_main_cell(0);
        interrupt::set_awaiting(true);
        let value = helpers.loop_run.bind(py).call1((codes, globals));
        interrupt::set_awaiting(false);
        streams::set_main_cell(id);
        value
    }

    /// Names that do not begin with `_`. Counted again only when the size of
    /// the namespace has changed.
    fn public_names(&mut self, py: Python<'_>) -> u64 {
        let globals = self.globals.bind(py);
        if self.counted.0 != globals.len() {
            let public = globals.keys().iter().filter(|name| is_public(name)).count();
            self.counted = (globals.len(), public as u64);
        }
        self.counted.1
    }
}

fn is_public(name: &Bound<'_, PyAny>) -> bool {
    name.cast::<PyString>()
        .is_ok_and(|name| !name.to_string_lossy().starts_with('_'))
}

/// Text as UTF-8 bytes; lone surrogates become visible escapes, as on our
/// streams.
fn encode(text: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match text.cast::<PyString>()?.to_str() {
        Ok(text) => Ok(text.as_bytes().to_vec()),
        Err(_) => text
            .call_method1("encode", ("utf-8", "backslashreplace"))?
            .extract(),
    }
}

fn describe(py: Python<'_>, helpers: &Helpers, error: &PyErr) -> ExceptionInfo {
    let value = error.clone_ref(py).into_value(py);
    let texts = helpers.describe.bind(py).call1((value,)).and_then(|texts| {
        let [kind, message, traceback]: [Bound<'_, PyAny>; 3] = texts.extract()?;
        let text = |text: &Bound<'_, PyAny>| -> PyResult<String> {
            Ok(String::from_utf8_lossy(&encode(text)?).into_owned())
        };
        Ok(ExceptionInfo {
            kind: text(&kind)?,
            message: text(&message)?,
            traceback: text(&traceback)?,
        })
    });
    texts.unwrap_or_else(|_| {
        let kind = error
            .get_type(py)
            .name()
            .map_or_else(|_| "Exception".to_owned(), |name| name.to_string());
        let traceback = format!("{kind}\n(its traceback cannot be shown)\n");
        ExceptionInfo {
            kind,
            message: String::new(),
            traceback,
        }
    })
}

/// Tells the session's standard error of an exception that no cell owns.
pub(crate) fn explain(py: Python<'_>, helpers: &Helpers, error: PyErr) {
    // There is nothing left to tell if even this raises.
    let _ = helpers.explain_uncaught.call1(py, (error.into_value(py),));
}

/// Ends a process that a cell forked and that ran past the end of the cell,
/// with the status and the words that a program would have had.
fn end_fork(py: Python<'_>, helpers: &Helpers, error: Option<PyErr>) -> ! {
    let status = match error {
        None => 0,
        Some(error) => {
            let exception = describe(py, helpers, &error);
            // Nobody is left to tell if this fails.
            let _ = rustix::io::write(rustix::stdio::stderr(), exception.traceback.as_bytes());
            let code = exception
                .message
                .strip_prefix("exit(")
                .and_then(|rest| rest.strip_suffix(')'));
            code.and_then(|code| code.parse().ok()).unwrap_or(1)
        }
    };
    crate::sys::exit_now(status)
}

/// The names of a namespace at one moment, by identity. Holds the names, not
/// their values: a snapshot must not keep anything alive.
#[derive(Debug)]
struct Names(Vec<(Py<PyAny>, usize)>);

impl Names {
    fn of(globals: &Bound<'_, PyDict>) -> Self {
        Self(
            globals
                .iter()
                .map(|(name, value)| (name.unbind(), value.as_ptr() as usize))
                .collect(),
        )
    }

    /// Names that are new, bound to another object, or gone.
    fn changed(&self, py: Python<'_>, globals: &Bound<'_, PyDict>) -> Vec<String> {
        let now = Self::of(globals);
        let same = now.0.len() == self.0.len()
            && now
                .0
                .iter()
                .zip(&self.0)
                .all(|(new, old)| new.0.is(&old.0) && new.1 == old.1);
        if same {
            return Vec::new();
        }
        let mut before: HashMap<String, usize> = self
            .0
            .iter()
            .map(|(name, value)| (text_of(name.bind(py)), *value))
            .collect();
        let mut changed = Vec::new();
        for (name, value) in &now.0 {
            let name = text_of(name.bind(py));
            if before.remove(&name) != Some(*value) && !name.starts_with("__") {
                changed.push(name);
            }
        }
        let mut gone: Vec<String> = before
            .into_keys()
            .filter(|name| !name.starts_with("__"))
            .collect();
        gone.sort_unstable();
        changed.append(&mut gone);
        changed
    }
}

fn text_of(name: &Bound<'_, PyAny>) -> String {
    name.cast::<PyString>()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Microseconds since 1970, UTC.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// What is recorded of a cell in the session's files.
pub(crate) fn record_of(
    py: Python<'_>,
    shared: &Shared,
    cell: QueuedCell,
    end: &FinishedCell,
) -> Record {
    let ok = end.status == CellStatus::Done;
    let replay = (ok && !cell.source.trim().is_empty())
        .then(|| replay_form(py, &cell.source))
        .flatten();
    let (log, _) = shared
        .outputs
        .read(end.cell.as_u64(), 0, OUTPUT_SHOWN)
        .unwrap_or_default();
    let mut output =
        String::from_utf8_lossy(&output_log::merged(&log).unwrap_or_default()).into_owned();
    if let Some(exception) = &end.exception {
        let text = if exception.traceback.is_empty() {
            &exception.message
        } else {
            &exception.traceback
        };
        if !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        output.push_str(text);
    }
    let time = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    Record {
        time,
        source: cell.source,
        replay,
        output,
        ok,
    }
}

/// The form in which a source stands in `history.py`. Most stand as they are;
/// only what may not parse in a file is looked at.
fn replay_form(py: Python<'_>, source: &str) -> Option<String> {
    let suspicious = ["await", "async", "__future__"]
        .iter()
        .any(|word| source.contains(word))
        || source.starts_with(char::is_whitespace);
    if !suspicious {
        return Some(source.to_owned());
    }
    helpers::get(py)
        .replay_form
        .call1(py, (source,))
        .and_then(|form| form.extract(py))
        .ok()
}
