//! One cell: source, compiled, run, shown, described. What run and fire cells
//! have in common.
//!
//! Knows nothing of lanes or descriptors.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict, PyString};
use pythond_protocol::CellId;
use pythond_protocol::lane::FinishedCell;
use pythond_protocol::outcome::{CellKind, CellStatus, ExceptionInfo};
use pythond_protocol::output_log::{self, Stream};

use crate::cells::Moment;
use crate::helpers::Helpers;
use crate::recorder::{OUTPUT_SHOWN, Record};
use crate::shared::Shared;
use crate::{helpers, limits, streams};

/// First part of the file names of cells, as tracebacks show them.
pub(crate) const FILE_PREFIX: &str = "<cell ";
/// Set on code that must be awaited (`inspect.CO_COROUTINE`).
const CO_COROUTINE: u32 = 0x80;

/// Where in stdout the shown value stands: start and length.
pub(crate) type Shown = Option<(u64, u64)>;

/// A compiled cell.
#[derive(Debug)]
pub(crate) struct Code<'py> {
    /// Statements, then the last expression.
    pub(crate) parts: Vec<Bound<'py, PyCode>>,
    /// The value of the last part is to be shown.
    shows: bool,
    /// Some of it has to be awaited.
    pub(crate) awaits: bool,
}

/// Compiles a cell and lets tracebacks find its lines.
pub(crate) fn compile<'py>(
    py: Python<'py>,
    helpers: &Helpers,
    kind: CellKind,
    source: &str,
    filename: &str,
) -> PyResult<Code<'py>> {
    let source = PyString::new(py, source);
    // A cell may have broken `linecache`; tracebacks then lack their lines.
    if let Err(error) = helpers.remember_source.call1(py, (&source, filename))
        && error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py)
    {
        return Err(error);
    }
    let compile = match kind {
        CellKind::Human => &helpers.compile_typed,
        _ => &helpers.compile_cell,
    };
    let (parts, shows): (Vec<Bound<'_, PyCode>>, bool) =
        compile.bind(py).call1((&source, filename))?.extract()?;
    let awaits = parts.iter().any(|code| {
        let flags = code.getattr(&helpers.names.co_flags);
        flags
            .and_then(|flags| flags.extract::<u32>())
            .is_ok_and(|flags| flags & CO_COROUTINE != 0)
    });
    Ok(Code {
        parts,
        shows,
        awaits,
    })
}

/// Runs code that need not be awaited; the value of its last part.
pub(crate) fn evaluate<'py>(
    py: Python<'py>,
    parts: Vec<Bound<'py, PyCode>>,
    globals: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    limits::without_reserve(|| {
        let mut value = py.None().into_bound(py);
        for code in parts {
            value = crate::sys::evaluate(&code, globals)?;
        }
        Ok(value)
    })
}

/// Writes the value of a last expression to the cell's stdout; those of the main
/// thread also make it `_`, as at the prompt.
pub(crate) fn show(
    py: Python<'_>,
    shared: &Shared,
    helpers: &Helpers,
    id: CellId,
    shows: bool,
    value: Bound<'_, PyAny>,
    kind: CellKind,
) -> PyResult<Shown> {
    if !shows || value.is_none() || streams::forked() {
        return Ok(None);
    }
    let show = match kind {
        CellKind::Human => &helpers.show_typed,
        _ => &helpers.show,
    };
    let shown = show.bind(py).call1((&value,))?;
    if matches!(kind, CellKind::Run | CellKind::Human) {
        helpers
            .live_builtins
            .bind(py)
            .set_item(&helpers.names.last, value)?;
    }
    if shown.is_none() {
        return Ok(None);
    }
    let mut text = encode(&shown)?;
    shared.drain(py);
    let start = shared.outputs.extent(id.as_u64()).stdout;
    let length = text.len() as u64;
    text.push(b'\n');
    streams::write(py, shared, id.as_u64(), Stream::Stdout, &text)?;
    Ok(Some((start, length)))
}

impl Code<'_> {
    /// The value of the last part is to be shown.
    pub(crate) fn shows(&self) -> bool {
        self.shows
    }
}

/// How the code of a cell ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    status: CellStatus,
    exception: Option<ExceptionInfo>,
    result: Shown,
}

impl Outcome {
    /// An outcome that was told by another process.
    pub(crate) fn new(status: CellStatus, exception: Option<ExceptionInfo>, result: Shown) -> Self {
        Self {
            status,
            exception,
            result,
        }
    }
}

/// Puts what left a cell into words. `interrupted`: it was told to stop. May run
/// the user's code, `__str__` and the like.
pub(crate) fn outcome(
    py: Python<'_>,
    helpers: &Helpers,
    value: PyResult<Shown>,
    interrupted: bool,
) -> Outcome {
    match value {
        Ok(result) => Outcome {
            status: CellStatus::Done,
            exception: None,
            result,
        },
        Err(error) => {
            let stopped =
                interrupted && error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py);
            let mut exception = describe(py, helpers, &error);
            if let Some(note) = limits::note_on(py, &error) {
                exception.traceback.push_str(&format!("note: {note}\n"));
            }
            Outcome {
                status: if stopped {
                    CellStatus::Interrupted
                } else {
                    CellStatus::Failed
                },
                exception: Some(exception),
                result: None,
            }
        }
    }
}

/// What is told of a cell's end beside its outcome.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) id: CellId,
    pub(crate) kind: CellKind,
    pub(crate) outcome: Outcome,
    pub(crate) started: Moment,
    pub(crate) duration: Duration,
    pub(crate) changed: Vec<String>,
}

impl Ending {
    /// The message, but for what the table of cells adds.
    pub(crate) fn finished(self, shared: &Shared) -> FinishedCell {
        let extent = shared.outputs.extent(self.id.as_u64());
        FinishedCell {
            request: None,
            cell: self.id,
            kind: self.kind,
            status: self.outcome.status,
            exception: self.outcome.exception,
            result: self.outcome.result,
            started_us: self.started.us,
            duration_ns: u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX),
            output_bytes: extent.bytes,
            truncated: extent.truncated,
            timed_out: false,
            changed: self.changed,
            next_cell: CellId::from_parts(0, 0),
            not_recorded: shared
                .trouble()
                .or_else(|| shared.outputs.trouble_of(self.id.as_u64())),
            merge: None,
        }
    }
}

/// The end of a cell that never ran.
pub(crate) fn never_ran(
    shared: &Shared,
    id: CellId,
    kind: CellKind,
    status: CellStatus,
    type_name: &str,
    message: &str,
) -> FinishedCell {
    let exception = ExceptionInfo {
        kind: type_name.to_owned(),
        message: message.to_owned(),
        traceback: format!("{type_name}: {message}\n"),
    };
    let ending = Ending {
        id,
        kind,
        outcome: Outcome {
            status,
            exception: Some(exception),
            result: None,
        },
        started: Moment::now(),
        duration: Duration::ZERO,
        changed: Vec::new(),
    };
    ending.finished(shared)
}

/// Text as UTF-8 bytes; lone surrogates become visible escapes, as on our
/// streams.
pub(crate) fn encode(text: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match text.cast::<PyString>()?.to_str() {
        Ok(text) => Ok(text.as_bytes().to_vec()),
        Err(_) => text
            .call_method1("encode", ("utf-8", "backslashreplace"))?
            .extract(),
    }
}

pub(crate) fn describe(py: Python<'_>, helpers: &Helpers, error: &PyErr) -> ExceptionInfo {
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
pub(crate) fn end_fork(py: Python<'_>, helpers: &Helpers, error: Option<PyErr>) -> ! {
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

/// What is recorded of a cell in the session's files.
pub(crate) fn record_of(
    py: Python<'_>,
    shared: &Shared,
    source: String,
    end: &FinishedCell,
) -> Record {
    let ok = end.status == CellStatus::Done;
    let replay = (ok && !source.trim().is_empty())
        .then(|| replay_form(py, &source))
        .flatten();
    let piece = shared.outputs.beginning(end.cell.as_u64(), OUTPUT_SHOWN);
    let log = piece.unwrap_or_default().records;
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
        source,
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
