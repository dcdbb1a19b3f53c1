//! A process before it is a session: does everything that does not depend on
//! which session it will be, so that little is left to do when it is asked for.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use pyo3::prelude::*;
use pythond_private_fs::PrivateDir;
use rustix::event::epoll;

use crate::journal::Journal;
use crate::namespace::Namespace;
use crate::shared::{Capture, Shared};
use crate::terminal::{self, Follower, Terminal};
use crate::{handoff, helpers, interrupt, io_thread, streams, sys};

/// Lowest number of a descriptor of ours: out of the way of what cells open
/// and of the ranges they close.
const OWN_DESCRIPTORS: i32 = 900;

/// What a new process is given.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) listener: OwnedFd,
    pub(crate) stdout_read: OwnedFd,
    pub(crate) stderr_read: OwnedFd,
}

/// A process that only has to be told which session it is.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) shared: &'static Shared,
    pub(crate) namespace: Namespace,
    pub(crate) handoff: OwnedFd,
}

impl Ready {
    /// Does what can be done before the assignment. Standard output and error
    /// are the write ends of the pipes already.
    pub(crate) fn prepare(
        py: Python<'_>,
        parked: Parked,
        namespace: Namespace,
        directory: &PrivateDir,
        name: &str,
    ) -> PyResult<Self> {
        sys::name_process("pythond-spare");
        // While there is one thread: growing the table of descriptors later
        // would have to wait for all others to notice.
        let listener = out_of_the_way(parked.listener)?;
        let stdout_read = nonblocking(out_of_the_way(parked.stdout_read)?)?;
        let stderr_read = nonblocking(out_of_the_way(parked.stderr_read)?)?;
        let capture = Capture {
            filled: watched(&[&stdout_read, &stderr_read])?,
            stdout_read,
            stderr_read,
            stdout_write: out_of_the_way_copy(rustix::stdio::stdout())?,
            stderr_write: out_of_the_way_copy(rustix::stdio::stderr())?,
        };
        // Without a terminal a session still runs; nobody can attach to it.
        let (leader, follower) = terminal::open().ok().unzip();
        let follower = follower.map(out_of_the_way_both).transpose()?;
        let (mine, theirs) = handoff::pair().map_err(std::io::Error::from)?;
        let (mine, theirs) = (out_of_the_way(mine)?, out_of_the_way(theirs)?);
        // Without a journal a session still runs; only its last words are lost.
        let journal = Journal::create(directory, &format!("{name}.journal"))
            .ok()
            .map(Arc::new);
        let mut salt = [0; 2];
        getrandom::fill(&mut salt).map_err(std::io::Error::from)?;
        let shared = Shared::install(
            u16::from_ne_bytes(salt),
            capture,
            journal.clone(),
            Terminal::new(follower),
        );
        if let Some(journal) = journal {
            shared.outputs.keep_end_in(journal);
        }
        interrupt::set_main_thread();
        install_hooks(py, shared)?;
        helpers::get(py)
            .session
            .bind(py)
            .call_method0("be_another_process")?;
        // Before the I/O thread gets a descriptor table of its own.
        shared.spawner.start()?;
        io_thread::start(shared, listener, theirs, leader)?;
        Ok(Self {
            shared,
            namespace,
            handoff: mine,
        })
    }
}

/// Signals, threads and forks of session code.
fn install_hooks(py: Python<'_>, shared: &Shared) -> PyResult<()> {
    // The last words of a crash name the line that ran.
    let descriptor = shared.capture.stderr_write.as_raw_fd();
    py.import("faulthandler")?
        .call_method1("enable", (descriptor,))?;
    // Where the threads are can be read from a copy of the process.
    let all = pyo3::types::PyDict::new(py);
    all.set_item("file", descriptor)?;
    all.set_item("all_threads", true)?;
    py.import("faulthandler")?
        .call_method("register", (sys::dump_signal(),), Some(&all))?;
    sys::remember_dump_action();
    let session = helpers::get(py).session.bind(py);
    let handler = pyo3::wrap_pyfunction!(interrupt::on_interrupt, session)?;
    let tell = pyo3::wrap_pyfunction!(interrupt::set_foreign, session)?;
    session.call_method1("watch_interrupt_handler", (handler, tell))?;
    sys::ignore(rustix::process::Signal::HUP.as_raw());
    streams::set_forked(false);
    Ok(())
}

/// A descriptor with a number that cells are unlikely to meet.
pub(crate) fn out_of_the_way(descriptor: OwnedFd) -> std::io::Result<OwnedFd> {
    out_of_the_way_copy(&descriptor)
}

fn out_of_the_way_both(follower: Follower) -> std::io::Result<Follower> {
    Ok(Follower {
        terminal: out_of_the_way(follower.terminal)?,
        side: out_of_the_way(follower.side)?,
    })
}

fn out_of_the_way_copy(descriptor: impl AsFd) -> std::io::Result<OwnedFd> {
    let descriptor = descriptor.as_fd();
    // A low limit of descriptors leaves only the lower numbers.
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, OWN_DESCRIPTORS)
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(descriptor, 3))?)
}

/// An epoll instance (epoll(7)) that knows when something can be read.
fn watched(pipes: &[&OwnedFd]) -> std::io::Result<OwnedFd> {
    let filled = out_of_the_way(epoll::create(epoll::CreateFlags::CLOEXEC)?)?;
    for pipe in pipes {
        epoll::add(
            &filled,
            pipe,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
    }
    Ok(filled)
}

fn nonblocking(descriptor: OwnedFd) -> std::io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    Ok(descriptor)
}
