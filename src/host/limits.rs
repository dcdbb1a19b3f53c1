//! What this session may use, and the little more that is kept for our own work
//! when a cell has used it up.
//!
//! The limit of memory is `RLIMIT_DATA` (getrlimit(2)): it counts what a process
//! has of its own, not the address space that libraries reserve. What counts is
//! the soft limit. The hard one is higher by [`RESERVE`]: whatever a cell has
//! filled, its end can be told, and the next cell is compiled and can let go.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use pyo3::prelude::*;
use pythond_private_fs::cgroup::Group;
use pythond_protocol::limits::{EnforcedBy, SessionLimits, size_text};
use pythond_protocol::outcome::ProcessEnd;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::time::ClockId;

/// Threads of ours, with those that serve for a moment.
const OUR_THREADS: u64 = 8;
/// Memory beyond the limit that only our own work takes, in bytes.
const RESERVE: u64 = 32 << 20;
/// How long a process that ignores SIGXCPU goes on, in seconds of its time.
const AFTER_SIGNAL: u64 = 5;

static LIMITS: OnceLock<SessionLimits> = OnceLock::new();
/// The limit of memory; 0 if there is none.
static MEMORY: AtomicU64 = AtomicU64::new(0);
/// How many of our own works go on that may take of the reserve.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// Puts the limits into force for this process and those that it starts.
///
/// # Errors
/// One line about the limit that cannot be kept.
pub(crate) fn apply(limits: SessionLimits) -> Result<Option<EnforcedBy>, String> {
    if limits.is_none() {
        return Ok(None);
    }
    let group = Group::own();
    let counts = |file: &str| group.as_ref().is_some_and(|group| group.has(file));
    if let Some(most) = limits.procs
        && !counts("pids.max")
    {
        if rustix::process::geteuid().is_root() {
            return Err("cannot limit `procs`: there is no control group".to_owned());
        }
        set("procs", Resource::Nproc, most, most)?;
    }
    if limits.cpu_weight.is_some() && !counts("cpu.weight") {
        return Err("cannot limit `cpu_weight`: there is no control group".to_owned());
    }
    if let Some(most) = limits.nofile {
        set("nofile", Resource::Nofile, most, most)?;
    }
    if let Some(most) = limits.cpu_s {
        // A process that started cold has used some for its imports.
        let used = rustix::time::clock_gettime(ClockId::ProcessCPUTime).tv_sec;
        let most = most.saturating_add(u64::try_from(used).unwrap_or(0));
        set(
            "cpu_s",
            Resource::Cpu,
            most,
            most.saturating_add(AFTER_SIGNAL),
        )?;
    }
    if let Some(most) = limits.memory_bytes {
        set(
            "memory_bytes",
            Resource::Data,
            most,
            most.saturating_add(RESERVE),
        )?;
        MEMORY.store(most, SeqCst);
    }
    LIMITS.get_or_init(|| limits);
    Ok(Some(match group {
        Some(_) => EnforcedBy::Cgroup,
        None => EnforcedBy::Rlimit,
    }))
}

/// What the control group of a session is to have, if it needs one: controller,
/// file, value.
pub(crate) fn of_group(limits: &SessionLimits) -> Vec<(&'static str, &'static str, u64)> {
    let procs = limits.procs.map(|most| most.saturating_add(OUR_THREADS));
    // More than a process of it may have: what exceeds that gets an exception.
    let memory = limits.memory_bytes.map(|most| most.saturating_add(RESERVE));
    let all = [
        ("pids", "pids.max", procs),
        ("memory", "memory.max", memory),
        ("cpu", "cpu.weight", limits.cpu_weight),
    ];
    all.into_iter()
        .filter_map(|(controller, file, value)| Some((controller, file, value?)))
        .collect()
}

/// How a process ended, in words, if its control group says that a limit was
/// exceeded.
pub(crate) fn exceeded_by_group(
    limits: &SessionLimits,
    group: &Group,
    end: &ProcessEnd,
) -> Option<String> {
    let killed =
        matches!(end, ProcessEnd::Signaled { signal, .. } if *signal == Signal::KILL.as_raw());
    if let Some(most) = limits.memory_bytes
        && killed
        && group.count("memory.events", "oom_kill ") > 0
    {
        return Some(format!("killed: exceeded --memory {}", size_text(most)));
    }
    let well = matches!(end, ProcessEnd::Exited { status: 0 });
    let most = limits.procs.filter(|_| !well && !killed)?;
    (group.count("pids.events", "max ") > 0)
        .then(|| format!("{}, exceeded --procs {most}", end.describe()))
}

fn set(name: &str, resource: Resource, soft: u64, hard: u64) -> Result<(), String> {
    let highest = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Rlimit {
        current: Some(soft),
        maximum: Some(hard.min(highest)),
    };
    setrlimit(resource, limit).map_err(|errno| format!("cannot limit `{name}`: {errno}"))
}

/// Moves the soft limit of memory to the hard one, or back.
pub(crate) fn set_reserve(open: bool) -> bool {
    let most = MEMORY.load(SeqCst);
    if most == 0 {
        return false;
    }
    let maximum = getrlimit(Resource::Data).maximum;
    let current = if open { maximum } else { Some(most) };
    setrlimit(Resource::Data, Rlimit { current, maximum }).is_ok()
}

/// True while some work of ours may take of the reserve.
pub(crate) fn is_reserve_open() -> bool {
    OPEN.load(SeqCst) > 0
}

/// Our own work, which may take of the reserve until this is dropped.
#[derive(Debug)]
pub(crate) struct ReserveGuard(bool);

/// Lets our own work take of the reserve.
pub(crate) fn open_reserve() -> ReserveGuard {
    let limited = MEMORY.load(SeqCst) != 0;
    if limited && OPEN.fetch_add(1, SeqCst) == 0 {
        set_reserve(true);
    }
    ReserveGuard(limited)
}

impl Drop for ReserveGuard {
    fn drop(&mut self) {
        if self.0 && leave() {
            set_reserve(false);
        }
    }
}

/// One work less. True if it was the last.
fn leave() -> bool {
    // A child that a cell forked begins without any.
    let one_less = |count: u64| count.checked_sub(1);
    OPEN.fetch_update(SeqCst, SeqCst, one_less) == Ok(1)
}

/// Runs a cell's own code, in the midst of our work, without the reserve.
pub(crate) fn without_reserve<T>(code: impl FnOnce() -> T) -> T {
    if !is_reserve_open() {
        return code();
    }
    if leave() {
        set_reserve(false);
    }
    let value = code();
    if OPEN.fetch_add(1, SeqCst) == 0 {
        set_reserve(true);
    }
    value
}

/// This process is the child of a `fork` cell: none of our work goes on here.
pub(crate) fn begin_child() {
    if OPEN.swap(0, SeqCst) > 0 {
        set_reserve(false);
    }
}

/// What a traceback says beside an exception that a limit may have caused.
pub(crate) fn note_on(py: Python<'_>, error: &PyErr) -> Option<String> {
    let limits = LIMITS.get()?;
    if let Some(most) = limits.memory_bytes
        && error.is_instance_of::<pyo3::exceptions::PyMemoryError>(py)
    {
        let most = size_text(most);
        return Some(format!("this session may use {most} of memory (--memory)"));
    }
    let errno = || -> Option<i32> {
        error
            .is_instance_of::<pyo3::exceptions::PyOSError>(py)
            .then(|| error.value(py).getattr("errno").ok()?.extract().ok())?
    };
    let refused = errno() == Some(rustix::io::Errno::AGAIN.raw_os_error())
        || (error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py)
            && error.to_string().contains("can't start new thread"));
    if let Some(most) = limits.procs
        && refused
    {
        let note = format!("this session may have {most} processes and threads (--procs)");
        return Some(note);
    }
    let most = limits.nofile?;
    (errno() == Some(rustix::io::Errno::MFILE.raw_os_error()))
        .then(|| format!("this session may have {most} files open (--nofile)"))
}

/// How the child of a `fork` cell ended, in words, if it is a limit that it
/// exceeded.
pub(crate) fn exceeded_by_child(end: &ProcessEnd) -> Option<String> {
    let most = LIMITS.get()?.cpu_s?;
    let ProcessEnd::Signaled { signal, .. } = end else {
        return None;
    };
    (*signal == Signal::XCPU.as_raw()).then(|| exceeded_cpu(most))
}

/// What is said of a process that used all its processor time.
pub(crate) fn exceeded_cpu(most: u64) -> String {
    format!("killed: exceeded --cpu {most}")
}
