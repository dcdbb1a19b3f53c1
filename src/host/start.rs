//! From a fresh interpreter to a zygote or a cold session host.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use pyo3::prelude::*;
use pythond_private_fs::PrivateDir;
use serde::Deserialize;

use crate::namespace::Namespace;
use crate::parked::{Parked, Ready};
use crate::{assignment, forking, helpers, print, session, streams, sys, waiter, zygote};

/// What the launcher found out and was told, as one JSON argument.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Launch {
    /// `zygote` or `host`.
    pub(crate) role: String,
    /// The launcher's own path, to start cold hosts with.
    pub(crate) launcher: String,
    /// The interpreter as it was given.
    pub(crate) python: String,
    /// Directory of sockets and journals.
    #[serde(default)]
    pub(crate) runtime_dir: String,
    /// Tells environments apart.
    #[serde(default)]
    pub(crate) key: String,
    /// Why hosts start cold and nothing is forked.
    #[serde(default)]
    pub(crate) cold: Option<String>,
    /// Modules to import before the first session.
    #[serde(default)]
    pub(crate) preload: Vec<String>,
}

/// Enters the role that the launcher asks for.
pub(crate) fn main(py: Python<'_>, arguments: &[String]) -> PyResult<()> {
    let launch: Launch = arguments
        .first()
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| pyo3::exceptions::PyValueError::new_err("started without its launcher"))?;
    // Descriptor 0 is the socket that whoever started us talks through.
    let socket = take_stdin()?;
    match launch.role.as_str() {
        "zygote" => zygote::main(py, launch, socket),
        _ => cold_host(py, &launch, socket),
    }
}

/// Prepares an interpreter for sessions: helpers, preloaded modules, hooks.
///
/// # Errors
/// A sentence about the module that cannot be imported.
pub(crate) fn prepare(py: Python<'_>, preload: &[String]) -> PyResult<Namespace> {
    forking::install(py)?;
    let helpers = helpers::load(py)?;
    let session = helpers.session.bind(py);
    session.call_method0("single_threaded_math")?;
    session.call_method0("import_conveniences")?;
    helpers::load_cloudpickle(py)?;
    let preloaded = session.call_method1("preload", (preload,));
    session.call_method0("end_single_threaded_math")?;
    preloaded?;
    helpers
        .install_find_source
        .call1(py, (crate::cell::FILE_PREFIX,))?;
    helpers.install_create_task.call0(py)?;
    streams::follow_threads(py)?;
    waiter::install(py)?;
    py.import("faulthandler")?;
    // The launcher's runtime has handlers for stack overflow that swallow a
    // SIGSEGV or SIGBUS which a process sends itself.
    sys::handle_by_default(rustix::process::Signal::SEGV.as_raw());
    sys::handle_by_default(rustix::process::Signal::BUS.as_raw());
    sys::unbuffer_c_stdout();
    if let Some(input) = helpers.builtins.bind(py).get_item("input")? {
        streams::keep_input(&input);
    }
    let input = pyo3::wrap_pyfunction!(streams::input, session)?;
    helpers.live_builtins.bind(py).set_item("input", &input)?;
    helpers.builtins.bind(py).set_item("input", &input)?;
    print::install(py)?;
    let namespace = Namespace::new(py)?;
    namespace.warm_up(py)?;
    session.call_method0("settle")?;
    Ok(namespace)
}

/// A session host that could not be forked from its zygote.
fn cold_host(py: Python<'_>, launch: &Launch, socket: OwnedFd) -> PyResult<()> {
    // It cannot fail: a process that was just executed leads no group.
    let _ = rustix::process::setsid();
    let Some([listener, stdout_read, stderr_read]) = assignment::receive_descriptors(&socket)
    else {
        return Ok(());
    };
    let Some(assignment) = assignment::receive(&socket) else {
        return Ok(());
    };
    drop(socket);
    let namespace = prepare(py, &launch.preload)?;
    let directory =
        PrivateDir::open(PathBuf::from(&assignment.runtime_dir)).map_err(std::io::Error::other)?;
    let parked = Parked {
        listener,
        stdout_read,
        stderr_read,
    };
    let ready = Ready::prepare(py, parked, namespace, &directory, &assignment.name)?;
    session::serve(py, ready, assignment)
}

/// Takes descriptor 0 away and leaves an empty one there.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}
