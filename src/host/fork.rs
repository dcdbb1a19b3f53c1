//! `fork` cells: each in a child process that begins as a copy of the session,
//! and whose new names come back.
//!
//! A thread of its own forks as soon as the interpreter's lock is free and then
//! watches the child, with a descriptor table of its own. In the child nothing
//! is done that needs a lock of ours.

mod channel;
mod child;
mod hooks;
mod merge;
mod watch;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythond_protocol::CellId;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::outcome::{CellKind, CellStatus};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};

use channel::Kind;
pub(crate) use child::write;
pub(crate) use hooks::{is_about_to, is_child, is_done};

use crate::cell::{self, FILE_PREFIX};
use crate::cells::{Moment, QueuedCell};
use crate::forking::attach;
use crate::journal::FORKS;
use crate::parked::out_of_the_way;
use crate::shared::Shared;
use crate::spawner::Job;
use crate::sys::{self, Fork};
use crate::{ends, helpers, session};

/// Most `fork` cells that run in one session.
pub(crate) const MOST: usize = FORKS;
/// Most bytes that may come back, unless somebody says otherwise.
const MOST_BACK: u64 = 2 << 30;
/// Stack of the thread that forks: it is the main thread of the child.
const STACK: usize = 16 << 20;
/// How long a fork is put off while other threads import: what is half imported
/// when it happens, a child cannot import.
const IMPORT_PATIENCE: Duration = Duration::from_millis(500);
/// How often a child that does not come up is replaced by another.
const ATTEMPTS: usize = 8;

/// The `fork` cells that are not finished.
static LIVE: Mutex<BTreeMap<u64, Live>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct Live {
    /// Its place in the journal.
    slot: usize,
    /// It is forked, or about to be: it cannot be taken back any more.
    begun: bool,
    /// The child, from the fork until it is reaped.
    child: Option<Pid>,
    told: Option<Told>,
}

/// What a cell was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Its process is interrupted.
    Stop,
    /// Its processes are killed.
    Kill,
}

fn live() -> MutexGuard<'static, BTreeMap<u64, Live>> {
    // Every change under the lock is one step.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the child needs to know.
struct Request {
    cell: QueuedCell,
    filename: String,
    /// Most bytes that may come back.
    most: u64,
    globals: Py<PyDict>,
    /// The session's classes and functions, by identity.
    known: Py<PyDict>,
    /// Use what may be locked for good before the cell runs.
    probe: bool,
}

/// Both ends of what connects child and session: the session's, the child's.
#[derive(Debug)]
struct Wires {
    socket: (OwnedFd, OwnedFd),
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
    /// The right to begin, see `hooks`.
    right: OwnedFd,
}

impl Wires {
    fn new() -> std::io::Result<Self> {
        let aside =
            |(one, other)| Ok::<_, std::io::Error>((out_of_the_way(one)?, out_of_the_way(other)?));
        let (mine, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket: aside((mine, theirs))?,
            stdout: aside(pipe_with(PipeFlags::CLOEXEC)?)?,
            stderr: aside(pipe_with(PipeFlags::CLOEXEC)?)?,
            right: out_of_the_way(hooks::right()?)?,
        })
    }
}

/// Starts a cell that was accepted.
pub(crate) fn start(shared: &'static Shared, cell: QueuedCell) {
    let (id, most) = (cell.id, cell.most_back);
    {
        let mut live = live();
        let taken = |slot: &usize| live.values().any(|it| it.slot == *slot);
        // There are as many as cells are accepted.
        let slot = (0..FORKS).find(|slot| !taken(slot)).unwrap_or(0);
        let entry = Live {
            slot,
            begun: false,
            child: None,
            told: None,
        };
        live.insert(id.as_u64(), entry);
    }
    shared.begins(id);
    shared.spawner.hand(Start {
        shared,
        cell,
        most: most.unwrap_or(MOST_BACK),
        attempt: 1,
    });
}

struct Start {
    shared: &'static Shared,
    cell: QueuedCell,
    most: u64,
    attempt: usize,
}

impl Job for Start {
    fn run(self: Box<Self>) {
        let Self {
            shared,
            cell,
            most,
            attempt,
        } = *self;
        let id = cell.id;
        let filename = format!("{FILE_PREFIX}{}>", shared.next_file_number());
        let source = cell.source.clone();
        match begin(shared, &cell, &filename, most, attempt < ATTEMPTS) {
            Ok(watch) => match watch.run_to_the_end(source) {
                watch::Watched::Ended => {}
                // It never came up: what it needs was locked when it was made.
                // This thread has lost the session's descriptors.
                watch::Watched::Again => shared.spawner.hand(Self {
                    shared,
                    cell,
                    most,
                    attempt: attempt + 1,
                }),
            },
            Err(Some(refused)) => refuse(shared, id, &refused),
            // It was taken back, and everybody knows.
            Err(None) => {}
        }
    }

    fn give_up(self: Box<Self>, why: &std::io::Error) {
        let refused = Refused {
            status: CellStatus::Failed,
            kind: "RuntimeError",
            message: format!("no thread can be started for this cell: {why}"),
        };
        refuse(self.shared, self.cell.id, &refused);
    }

    fn stack_size(&self) -> usize {
        STACK
    }
}

/// Why a cell does not run.
struct Refused {
    status: CellStatus,
    kind: &'static str,
    message: String,
}

impl Refused {
    fn new(message: String) -> Self {
        Self {
            status: CellStatus::Failed,
            kind: "RuntimeError",
            message,
        }
    }
}

/// Ends a cell that does not run.
fn refuse(shared: &'static Shared, id: CellId, refused: &Refused) {
    let Refused {
        status,
        kind,
        message,
    } = refused;
    let end = cell::never_ran(shared, id, CellKind::Fork, *status, kind, message);
    live().remove(&id.as_u64());
    ends::announce(shared, end);
}

/// Some thread imports a module.
fn someone_imports(py: Python<'_>) -> bool {
    let fork = helpers::get(py).fork.bind(py);
    let free = fork.call_method0("import_locks_are_free");
    !free.and_then(|free| free.extract::<bool>()).unwrap_or(true)
}

/// Forks, as soon as nobody imports. Returns in the session only.
fn begin(
    shared: &'static Shared,
    cell: &QueuedCell,
    filename: &str,
    most: u64,
    may_try_again: bool,
) -> Result<watch::Watch, Option<Refused>> {
    let until = Instant::now() + IMPORT_PATIENCE;
    loop {
        let patient = Instant::now() < until;
        if !patient || !attach(someone_imports) {
            let begun = try_to_begin(shared, cell, filename, most, may_try_again, patient)?;
            if let Some(watch) = begun {
                return Ok(watch);
            }
        }
        if !live().contains_key(&cell.id.as_u64()) {
            return Err(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Forks, unless somebody imports and we are patient.
fn try_to_begin(
    shared: &'static Shared,
    cell: &QueuedCell,
    filename: &str,
    most: u64,
    may_try_again: bool,
    patient: bool,
) -> Result<Option<watch::Watch>, Option<Refused>> {
    let id = cell.id;
    let key = id.as_u64();
    attach(|py| {
        let begins = live().get_mut(&key).map(|live| {
            live.begun = true;
            live.told.is_none()
        });
        if !begins.ok_or(None)? {
            return Err(Some(Refused {
                status: CellStatus::Interrupted,
                kind: "KeyboardInterrupt",
                message: "interrupted before it ran".to_owned(),
            }));
        }
        let refuse = |why: String| Some(Refused::new(why));
        if shared.shutting_down() {
            return Err(refuse("the session is being ended".to_owned()));
        }
        let failed = |error: PyErr| refuse(format!("this session cannot be forked: {error}"));
        let fork = helpers::get(py).fork.bind(py);
        let libraries = sys::loaded_libraries();
        // The main thread and this one are always there.
        let threads = fork.call_method0("threads");
        let beside = threads.and_then(|it| it.extract::<usize>()).unwrap_or(3) > 2
            || shared.running_main().is_some();
        let blas = beside && libraries.iter().any(|path| path.contains("blas"));
        let probe = blas && may_try_again;
        let awaited = may_try_again.then_some(if probe { Kind::Ready } else { Kind::Begun });
        let loud = blas && !sys::QUIETS;
        let (refusal, mut warnings): (Option<String>, Vec<String>) = fork
            .call_method1("obstacles", (libraries,))
            .and_then(|found| found.extract())
            .map_err(failed)?;
        if let Some(refusal) = refusal {
            return Err(refuse(format!("this session cannot be forked: {refusal}")));
        }
        if loud {
            let warning = "on this processor a fork while another thread is in OpenBLAS may hang";
            warnings.push(warning.to_owned());
        }
        let globals = session::globals(py)
            .ok_or_else(|| refuse("the session has no namespace".to_owned()))?;
        let known: Py<PyDict> = fork
            .call_method1("remember", (globals,))
            .and_then(|known| known.extract().map_err(PyErr::from))
            .map_err(failed)?;
        let request = Request {
            cell: QueuedCell {
                source: cell.source.clone(),
                ..*cell
            },
            filename: filename.to_owned(),
            most,
            globals: globals.clone().unbind(),
            known: known.clone_ref(py),
            probe,
        };
        let slot = live().get(&key).map_or(0, |live| live.slot);
        let mut too_early = false;
        hooks::announce();
        // Nothing of Python runs in here, see `forking.rs`.
        let prepare = || {
            too_early = patient && hooks::someone_imports();
            if too_early {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            // From here on this thread has a table of its own; that of the
            // session keeps nothing of what it opens.
            sys::unshare_descriptors()?;
            let wires = Wires::new()?;
            if awaited == Some(Kind::Begun) {
                hooks::remember_child_end(&wires.socket.1, &wires.right)?;
            }
            Ok(wires)
        };
        let started = Moment::now();
        let (side, wires) = match sys::fork_beside(py, prepare) {
            Ok(forked) => forked,
            Err(_) if too_early => return Ok(None),
            Err(error) => {
                return Err(refuse(format!("no child process could be made: {error}")));
            }
        };
        match side {
            Fork::Child => {
                shared.note_fork(slot);
                child::be(py, &request, wires, shared.pid)
            }
            Fork::Parent(pid) => {
                let pid = Pid::from_raw(pid).expect("a child's number is positive");
                Ok(Some(watch::Watch::new(
                    shared, id, pid, wires, started, known, warnings, awaited,
                )))
            }
        }
    })
}

/// The child is there: whoever tells the cell to stop reaches it from now on.
fn has_child(cell: CellId, child: Pid) {
    let mut live = live();
    if let Some(live) = live.get_mut(&cell.as_u64()) {
        live.child = Some(child);
        if let Some(told) = live.told {
            send(child, told);
        }
    }
}

/// The child is about to be reaped: its number may belong to another soon.
fn has_no_child(shared: &Shared, cell: CellId) {
    let mut live = live();
    if let Some(live) = live.get_mut(&cell.as_u64()) {
        live.child = None;
        shared.forget_fork(live.slot);
    }
}

fn told(cell: CellId) -> Option<Told> {
    live().get(&cell.as_u64()).and_then(|live| live.told)
}

/// A child may not lead its group yet.
fn send(child: Pid, told: Told) {
    let signal = match told {
        Told::Stop => Signal::INT,
        Told::Kill => Signal::KILL,
    };
    if rustix::process::kill_process_group(child, signal).is_err() {
        let _ = rustix::process::kill_process(child, signal);
    }
}

/// Takes a cell back that still waits for the interpreter's lock. True if it
/// will not run; its end is for the caller to tell.
pub(crate) fn take_back(cell: CellId) -> bool {
    let mut live = live();
    let waits = live.get(&cell.as_u64()).is_some_and(|live| !live.begun);
    if waits {
        live.remove(&cell.as_u64());
    }
    waits
}

/// Tells a cell to stop: kills its processes, or interrupts them. False if there
/// is none.
pub(crate) fn stop(cell: CellId, soft: bool) -> bool {
    let mut live = live();
    let Some(live) = live.get_mut(&cell.as_u64()) else {
        return false;
    };
    let told = if soft && live.told != Some(Told::Kill) {
        Told::Stop
    } else {
        Told::Kill
    };
    live.told = Some(told);
    if let Some(child) = live.child {
        send(child, told);
    }
    true
}

/// Kills the processes of a cell; that of its child, if it is one of ours.
pub(crate) fn kill(cell: CellId) -> Option<i32> {
    let child = live().get(&cell.as_u64())?.child;
    stop(cell, false);
    child.map(|child| child.as_raw_nonzero().get())
}

/// The session ends, and all children with it.
pub(crate) fn end_all() {
    for live in live().values_mut() {
        live.told = Some(Told::Kill);
        if let Some(child) = live.child {
            send(child, Told::Kill);
        }
    }
}

/// The process of a cell, for whoever looks at it.
fn handle_of(child: Pid) -> Option<OwnedFd> {
    rustix::process::pidfd_open(child, PidfdFlags::empty()).ok()
}

/// Tells the daemon that a cell runs.
fn tell_start(shared: &'static Shared, cell: CellId, started: Moment, source: &str) {
    shared.started(cell, CellKind::Fork, started);
    shared.introduce(cell, CellKind::Fork, source);
    let event = HostEvent::Started {
        cell,
        kind: CellKind::Fork,
    };
    shared.send(event, Vec::new());
}
