//! The child processes of a cell's thread, so that an interrupt reaches them as
//! Ctrl-C at a terminal would, and those of other cells not.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// Most processes that one interrupt reaches.
const MOST: usize = 1000;

/// Children of the main thread that other cells left running.
static LEFT_BEHIND: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// True if this process has children; cheap.
fn any() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(
        rustix::process::waitid(WaitId::All, options),
        Err(Errno::CHILD)
    )
}

fn left_behind() -> MutexGuard<'static, BTreeSet<i32>> {
    // Every change under the lock is complete before anything can panic.
    LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cell of the main thread ended: what it leaves running is no other cell's.
pub(crate) fn leave_behind() {
    if !any() {
        left_behind().clear();
        return;
    }
    let main = rustix::process::getpid().as_raw_nonzero().get();
    let mut left = left_behind();
    // What an ending thread leaves is the main thread's a moment later.
    left.retain(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    left.extend(children_of("self", main));
}

/// A thread ends: the kernel makes its children the main thread's, but they are
/// not those of the cell that runs there.
pub(crate) fn leave_thread() {
    if any() {
        let own = children_of("self", crate::sys::thread_id());
        left_behind().extend(own);
    }
}

/// Children that a thread of a process started (proc(5)).
fn children_of(process: &str, thread: i32) -> Vec<i32> {
    let path = format!("/proc/{process}/task/{thread}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The processes that belong to what runs on a thread: its children and theirs,
/// as long as they stay in our process group.
fn family(thread: i32) -> Vec<i32> {
    let main = rustix::process::getpid();
    let left = if thread == main.as_raw_nonzero().get() {
        left_behind().clone()
    } else {
        BTreeSet::new()
    };
    let group = rustix::process::getpgrp();
    let mut found = Vec::new();
    let mut next: Vec<i32> = children_of("self", thread);
    next.retain(|pid| !left.contains(pid));
    while let Some(pid) = next.pop() {
        let same_group = Pid::from_raw(pid)
            .and_then(|pid| rustix::process::getpgid(Some(pid)).ok())
            .is_some_and(|its| its == group);
        if !same_group || found.len() >= MOST {
            continue;
        }
        found.push(pid);
        let process = pid.to_string();
        let threads = std::fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            if let Some(thread) = thread.file_name().to_str().and_then(|id| id.parse().ok()) {
                next.extend(children_of(&process, thread));
            }
        }
    }
    found
}

/// Processes that are known for good: their numbers may be used again, these
/// handles not.
#[derive(Debug, Default)]
pub(crate) struct Family(Vec<(i32, OwnedFd)>);

impl Family {
    /// What belongs to a thread now.
    pub(crate) fn of(thread: i32) -> Self {
        let group = rustix::process::getpgrp();
        let known = |pid: i32| {
            let process = Pid::from_raw(pid)?;
            let handle = rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()?;
            // A look afterwards shows that the number was still its own.
            (rustix::process::getpgid(Some(process)) == Ok(group)).then_some((pid, handle))
        };
        Self(family(thread).into_iter().filter_map(known).collect())
    }

    /// Sends them a signal. Returns those that it reached.
    pub(crate) fn signal(&self, signal: Signal) -> Vec<i32> {
        let reached = self
            .0
            .iter()
            .filter(|(_, process)| rustix::process::pidfd_send_signal(process, signal).is_ok());
        reached.map(|(pid, _)| *pid).collect()
    }
}
