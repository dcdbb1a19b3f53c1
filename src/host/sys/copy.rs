//! A copy of this process that says where its threads are.

use std::io;
use std::sync::OnceLock;

use super::{empty_set, exit_now};

/// The signal that `faulthandler` answers with a dump of all threads; only ever
/// sent to a copy of the process.
pub(crate) fn dump_signal() -> i32 {
    super::call_signal()
}

/// What `faulthandler` set up for [`dump_signal`]: a cell may have changed it
/// since.
static DUMP_ACTION: OnceLock<libc::sigaction> = OnceLock::new();

/// Remembers the action of [`dump_signal`].
pub(crate) fn remember_dump_action() {
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is valid and exclusive; null changes nothing.
    let status = unsafe { libc::sigaction(dump_signal(), std::ptr::null(), &raw mut action) };
    if status == 0 {
        DUMP_ACTION.get_or_init(|| action);
    }
}

/// Forks a copy of this process that writes where its threads are to `pipe` and
/// ends. `target` is the descriptor that `faulthandler` was told.
///
/// The raw call: handlers of libraries that run around `fork` could wait for
/// locks. The copy sends no SIGCHLD, so no `wait` of session code meets it.
pub(crate) fn fork_to_dump(pipe: i32, target: i32) -> io::Result<i32> {
    let action = DUMP_ACTION
        .get()
        .ok_or_else(|| io::Error::other("this Python's faulthandler is not set up"))?;
    let signal = dump_signal();
    // SAFETY: all arguments are zero: a new process with a copy of the memory
    // and no signal at its end.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if pid == 0 {
        dump_and_exit(action, signal, pipe, target);
    }
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In the copy: only what is async-signal-safe.
fn dump_and_exit(action: &libc::sigaction, signal: i32, pipe: i32, target: i32) -> ! {
    // SAFETY: two open descriptors of this process, which nobody shares.
    unsafe { libc::dup2(pipe, target) };
    // SAFETY: an action that `sigaction` gave us.
    unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
    let mut set = empty_set();
    // SAFETY: `set` is a valid, exclusive signal set.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: `set` is initialised; no old mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: no arguments. What the C library remembers is the original's.
    let process = unsafe { libc::syscall(libc::SYS_getpid) };
    // SAFETY: as above.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    // SAFETY: three integers that name this very thread.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            process,
            thread,
            libc::c_long::from(signal),
        )
    };
    exit_now(0)
}

/// Ends a copy that [`fork_to_dump`] made, if it has not ended, and reaps it.
pub(crate) fn end_copy(pid: i32) {
    // SAFETY: a child that was not reaped yet, so the number is its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: as above; no status is asked for. `__WALL` finds a child without
    // SIGCHLD.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
}
