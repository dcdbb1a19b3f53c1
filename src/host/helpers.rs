//! The Python helpers, compiled into private modules with a private copy of the
//! builtins: cells that delete builtins do not reach them.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule};

use crate::interned::Interned;

/// Handles of the helpers' functions.
#[derive(Debug)]
pub(crate) struct Helpers {
    pub(crate) compile_cell: Py<PyAny>,
    pub(crate) remember_source: Py<PyAny>,
    pub(crate) show: Py<PyAny>,
    pub(crate) show_typed: Py<PyAny>,
    pub(crate) replay_form: Py<PyAny>,
    pub(crate) describe: Py<PyAny>,
    pub(crate) explain_uncaught: Py<PyAny>,
    pub(crate) loop_run: Py<PyAny>,
    pub(crate) loop_run_beside: Py<PyAny>,
    pub(crate) loop_cancel_beside: Py<PyAny>,
    pub(crate) as_interrupt: Py<PyAny>,
    pub(crate) start_thread: Py<PyAny>,
    pub(crate) stacks: Py<PyAny>,
    pub(crate) place: Py<PyAny>,
    loop_interrupt: Py<PyAny>,
    pub(crate) loop_has_work: Py<PyAny>,
    pub(crate) loop_serve: Py<PyAny>,
    pub(crate) install_find_source: Py<PyAny>,
    pub(crate) install_create_task: Py<PyAny>,
    pub(crate) session: Py<PyModule>,
    pub(crate) prompt: Py<PyModule>,
    pub(crate) compile_typed: Py<PyAny>,
    pub(crate) fork: Py<PyModule>,
    pub(crate) fork_values: Py<PyModule>,
    fork_compare: Py<PyModule>,
    fork_trial: Py<PyModule>,
    pub(crate) variables: Py<PyAny>,
    pub(crate) completions: Py<PyAny>,
    pub(crate) sys: Py<PyModule>,
    /// The builtins that cells see.
    pub(crate) live_builtins: Py<PyDict>,
    /// A copy of the builtins as they were at the start.
    pub(crate) builtins: Py<PyDict>,
    /// Which cell the current context belongs to; 0 for none.
    pub(crate) cell_variable: Py<PyAny>,
    /// CPython's own `print`.
    pub(crate) print: Py<PyAny>,
    /// `io.TextIOWrapper`, before cells can change the module.
    pub(crate) text_io: Py<PyAny>,
    pub(crate) names: Interned,
}

static HELPERS: OnceLock<Helpers> = OnceLock::new();

/// The helpers. Loaded by [`load`] before anything else asks.
pub(crate) fn get(_py: Python<'_>) -> &'static Helpers {
    // The cell outlives every use: it is never taken out.
    HELPERS
        .get()
        .expect("helpers are loaded when the library starts")
}

/// Compiles and runs the helpers' files.
pub(crate) fn load(py: Python<'_>) -> PyResult<&'static Helpers> {
    if let Some(helpers) = HELPERS.get() {
        return Ok(helpers);
    }
    let live_builtins = py.import("builtins")?.dict();
    let builtins = live_builtins.copy()?;
    let module = |name: &str, source: &str| private_module(py, &builtins, name, source);
    let cell = module("cell", include_str!("python/cell.py"))?;
    let describe = module("describe", include_str!("python/describe.py"))?;
    let event_loop = module("event_loop", include_str!("python/event_loop.py"))?;
    let find_source = module("find_source", include_str!("python/find_source.py"))?;
    let session = module("session", include_str!("python/session.py"))?;
    let prompt = module("prompt", include_str!("python/prompt.py"))?;
    let look = module("look", include_str!("python/look.py"))?;
    let fork = module("fork", include_str!("python/fork.py"))?;
    let fork_values = module("fork_values", include_str!("python/fork_values.py"))?;
    let fork_trial = module("fork_trial", include_str!("python/fork_trial.py"))?;
    let fork_compare = module("fork_compare", include_str!("python/fork_compare.py"))?;
    let default = PyDict::new(py);
    default.set_item("default", 0)?;
    let variable = py
        .import("contextvars")?
        .getattr("ContextVar")?
        .call(("pythond_cell",), Some(&default))?;
    let get = |module: &Bound<'_, PyModule>, name: &str| module.getattr(name).map(Bound::unbind);
    let helpers = Helpers {
        compile_cell: get(&cell, "compile_cell")?,
        remember_source: get(&cell, "remember_source")?,
        show: get(&cell, "show")?,
        show_typed: get(&cell, "show_typed")?,
        replay_form: get(&cell, "replay_form")?,
        describe: get(&describe, "describe")?,
        explain_uncaught: get(&describe, "explain_uncaught")?,
        loop_run: get(&event_loop, "run")?,
        loop_run_beside: get(&event_loop, "run_beside")?,
        loop_cancel_beside: get(&event_loop, "cancel_beside")?,
        as_interrupt: get(&describe, "as_interrupt")?,
        start_thread: get(&session, "start_thread")?,
        stacks: get(&look, "stacks")?,
        place: get(&look, "place")?,
        loop_interrupt: get(&event_loop, "interrupt")?,
        loop_has_work: get(&event_loop, "has_work")?,
        loop_serve: get(&event_loop, "serve")?,
        install_find_source: get(&find_source, "install")?,
        install_create_task: get(&event_loop, "install")?,
        variables: get(&look, "variables")?,
        completions: get(&look, "completions")?,
        compile_typed: get(&cell, "compile_typed")?,
        prompt: prompt.unbind(),
        session: session.unbind(),
        fork: fork.unbind(),
        fork_values: fork_values.unbind(),
        fork_compare: fork_compare.unbind(),
        fork_trial: fork_trial.unbind(),
        sys: py.import("sys")?.unbind(),
        print: live_builtins.as_any().get_item("print")?.unbind(),
        text_io: py.import("_io")?.getattr("TextIOWrapper")?.unbind(),
        live_builtins: live_builtins.unbind(),
        builtins: builtins.unbind(),
        cell_variable: variable.unbind(),
        names: Interned::new(py),
    };
    Ok(HELPERS.get_or_init(|| helpers))
}

fn private_module<'py>(
    py: Python<'py>,
    builtins: &Bound<'py, PyDict>,
    name: &str,
    source: &str,
) -> PyResult<Bound<'py, PyModule>> {
    let module = PyModule::new(py, &format!("pythond.{name}"))?;
    let globals = module.dict();
    globals.set_item("__builtins__", builtins)?;
    let code = builtins
        .get_item("compile")?
        .expect("every Python has compile")
        .call1((source, format!("<pythond>/{name}.py"), "exec", 0, true))?;
    builtins
        .get_item("exec")?
        .expect("every Python has exec")
        .call1((code, &globals))?;
    Ok(module)
}

/// Loads the cloudpickle that we carry, under a name that nothing else has: the
/// environment's own is neither needed nor disturbed.
pub(crate) fn load_cloudpickle(py: Python<'_>) -> PyResult<()> {
    let module = PyModule::new(py, "_pythond_cloudpickle")?;
    let globals = module.dict();
    let builtins = py.import("builtins")?;
    // Functions that come back have the session's builtins.
    globals.set_item("__builtins__", &builtins)?;
    let source = include_str!("python/vendor/cloudpickle/cloudpickle.py");
    let code = builtins.call_method1(
        "compile",
        (source, "<pythond>/cloudpickle.py", "exec", 0, true),
    )?;
    builtins.call_method1("exec", (code, &globals))?;
    let helpers = get(py);
    let fork = helpers.fork.bind(py);
    let words = fork.getattr("words")?;
    let (compare, trial) = (helpers.fork_compare.bind(py), helpers.fork_trial.bind(py));
    fork.call_method1("install", (&module,))?;
    trial.call_method1("install", (&words,))?;
    helpers
        .fork_values
        .call_method1(py, "install", (module, compare, trial, words))
        .map(drop)
}

impl Helpers {
    /// What an interrupt does while a cell awaits: true to raise.
    pub(crate) fn loop_interrupt(&self, py: Python<'_>) -> PyResult<bool> {
        self.loop_interrupt.call0(py)?.extract(py)
    }

    /// True if the session's event loop has something to do between cells.
    pub(crate) fn loop_has_work(&self, py: Python<'_>) -> bool {
        // A loop that a cell has damaged has nothing that we could run.
        self.loop_has_work
            .call0(py)
            .and_then(|found| found.extract(py))
            .unwrap_or(false)
    }
}
