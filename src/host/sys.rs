//! The host's only `unsafe`, besides the launcher's: what the kernel, the C
//! library and CPython offer without a safe wrapper.
#![expect(unsafe_code, reason = "this module is where the host keeps it")]

mod allocator;
mod beside;
mod copy;
mod cut_call;
pub(crate) mod readline;
mod shared_map;

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict};

pub(crate) use beside::{
    PrivateMap, QUIETS, duplicate, fork_beside, keep_only, loaded_libraries, unmap,
};
pub(crate) use copy::{dump_signal, end_copy, fork_to_dump, remember_dump_action};
pub(crate) use cut_call::cut_call;
pub(crate) use shared_map::SharedMap;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The process that forked; the child's process id.
    Parent(i32),
    /// The new process.
    Child,
}

/// Forks a process that holds Python, with CPython's own preparations.
///
/// The caller is attached to Python and is the only thread of its process.
pub(crate) fn fork_python(_py: Python<'_>) -> io::Result<Fork> {
    // SAFETY: the caller is attached, as the token proves.
    unsafe { pyo3::ffi::PyOS_BeforeFork() };
    // SAFETY: the process has one thread (zygote.rs checks it before), so the
    // child may do whatever the parent may. No safe wrapper exists.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: attached, in the child, exactly once after `BeforeFork`.
        unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
        return Ok(Fork::Child);
    }
    let error = io::Error::last_os_error();
    // SAFETY: attached, in the parent, exactly once after `BeforeFork`.
    unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
    if pid < 0 {
        Err(error)
    } else {
        Ok(Fork::Parent(pid))
    }
}

/// Runs a code object in a namespace, without a frame of anybody's around it.
pub(crate) fn evaluate<'py>(
    code: &Bound<'py, PyCode>,
    globals: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, as the bound objects prove; a code object and a dict
    // as globals and locals. pyo3's own way looks at `__main__` first, which a
    // cell may have replaced.
    let value =
        unsafe { pyo3::ffi::PyEval_EvalCode(code.as_ptr(), globals.as_ptr(), globals.as_ptr()) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(code.py(), value) }
}

/// Names the process for `ps` and `top`, which show 15 bytes. Called on the main
/// thread.
pub(crate) fn name_process(name: &str) {
    let short: String = name
        .chars()
        .filter(|c| c.is_ascii_graphic())
        .take(15)
        .collect();
    if let Ok(name) = std::ffi::CString::new(short) {
        // A name is a convenience.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Ends the process at once, without exit handlers.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions. std's `exit` would run handlers
    // that belong to the parent of a fork.
    unsafe { libc::_exit(status) }
}

/// Makes the C library's `stdout` unbuffered, so that what C code prints
/// arrives in the order it was printed.
pub(crate) fn unbuffer_c_stdout() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: a plain load of the C library's variable, set before `main`.
    let stream = unsafe { stdout };
    // SAFETY: `stream` is the open standard stream; a null buffer is allowed
    // for `_IONBF`. No safe wrapper exists.
    unsafe { libc::setvbuf(stream, std::ptr::null_mut(), libc::_IONBF, 0) };
}

/// Gives the calling thread a descriptor table of its own.
pub(crate) fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: CLONE_FILES only copies the table; the caller re-reads nothing
    // from it by number that another thread owns. rustix marks it unsafe too.
    let status = unsafe { libc::unshare(libc::CLONE_FILES) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes a number in the calling thread's descriptor table whose owner lives in
/// a thread with a table of its own.
pub(crate) fn close_in_this_table(descriptor: i32) {
    // SAFETY: `unshare_descriptors` has parted the tables, so the owner's number
    // stays open and nothing else in this table has this one.
    unsafe { libc::close(descriptor) };
}

/// A child that has ended and is not reaped yet: `rustix` does not tell which.
pub(crate) fn dead_child() -> Option<i32> {
    // SAFETY: all-zero bytes are a valid `siginfo_t`.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `found` is writable and of the right type.
    let status = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut found, look) };
    // SAFETY: filled in for a child, else still zero (waitid(2)).
    let pid = unsafe { found.si_pid() };
    (status == 0 && pid > 0).then_some(pid)
}

/// A thread that can be woken by a signal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadId(libc::pthread_t);

impl ThreadId {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        // SAFETY: `pthread_self` has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// As `threading.get_ident()` has it.
    pub(crate) fn ident(self) -> u64 {
        self.0
    }

    /// Sends a signal to exactly this thread, which must not have ended. False if
    /// the kernel does not take it (a limit of queued signals).
    pub(crate) fn signal(self, signal: i32) -> bool {
        // SAFETY: both threads that are ever named here, main and I/O, live as
        // long as the process. `tgkill` through std does not exist.
        unsafe { libc::pthread_kill(self.0, signal) == 0 }
    }
}

/// The signal that wakes the I/O thread. Nobody else uses it. No real-time one:
/// those are refused when any process of the user has too many of them queued.
pub(crate) fn wake_signal() -> i32 {
    libc::SIGSTKFLT
}

/// The signal that our handlers in other threads and in copies of the process
/// answer, chosen like [`wake_signal`].
fn call_signal() -> i32 {
    libc::SIGPWR
}

extern "C" fn nothing(_signal: i32) {}

/// Lets a signal interrupt system calls and do nothing else.
pub(crate) fn handle_by_nothing(signal: i32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: `action` is initialised, its handler is async-signal-safe; no
    // old action is asked for.
    let status = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts a signal back to its default action.
pub(crate) fn handle_by_default(signal: i32) {
    // SAFETY: SIG_DFL is a valid disposition for every signal we name.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Ignores a signal.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is a valid disposition for every signal we name.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Blocks every signal in the calling thread.
pub(crate) fn block_all_signals() {
    change_mask(libc::SIG_BLOCK, |set| {
        // SAFETY: `set` is a valid, exclusive signal set.
        unsafe { libc::sigfillset(set) };
    });
}

/// Blocks one signal in the calling thread.
pub(crate) fn block_signal(signal: i32) {
    change_mask(libc::SIG_BLOCK, |set| {
        // SAFETY: `set` is a valid, exclusive signal set.
        unsafe { libc::sigaddset(set, signal) };
    });
}

/// Unblocks a signal in the calling thread.
pub(crate) fn unblock_signal(signal: i32) {
    change_mask(libc::SIG_UNBLOCK, |set| {
        // SAFETY: `set` is a valid, exclusive signal set.
        unsafe { libc::sigaddset(set, signal) };
    });
}

/// Unblocks every signal in the calling thread.
pub(crate) fn unblock_all_signals() {
    change_mask(libc::SIG_UNBLOCK, |set| {
        // SAFETY: `set` is a valid, exclusive signal set.
        unsafe { libc::sigfillset(set) };
    });
}

fn change_mask(how: i32, fill: impl FnOnce(*mut libc::sigset_t)) {
    let mut set = empty_set();
    fill(&raw mut set);
    // SAFETY: `set` is initialised; no old mask is asked for.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid `sigset_t`.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid, exclusive signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}

/// Waits for descriptors, with one signal let through meanwhile.
///
/// Returns false if that signal came first. `timeout` none waits for ever.
pub(crate) fn wait_with_signal(
    descriptors: &mut [libc::pollfd],
    timeout: Option<std::time::Duration>,
    signal: i32,
) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid `sigset_t`.
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `mask` is a valid, exclusive signal set.
    unsafe { libc::sigfillset(&raw mut mask) };
    // SAFETY: as above.
    unsafe { libc::sigdelset(&raw mut mask, signal) };
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(descriptors.len()).unwrap_or(0);
    // SAFETY: the slice and its length belong together, limit and mask outlive
    // the call. rustix's `ppoll` takes no mask.
    let ready = unsafe { libc::ppoll(descriptors.as_mut_ptr(), count, limit, &raw const mask) };
    if ready >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        error => Err(error),
    }
}

/// Does what `poll` does, where that refuses because the set is greater than the
/// limit of open files (poll(2), EINVAL). No signal ends it.
///
/// # Errors
/// What epoll_wait(2) says. What cannot be watched is left out.
pub(crate) fn poll_by_epoll(
    epoll: impl std::os::fd::AsFd,
    set: &mut [libc::pollfd],
    limit: std::time::Duration,
) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let epoll = epoll.as_fd().as_raw_fd();
    let control = |operation: i32, entry: &libc::pollfd, index: usize| {
        let mut event = libc::epoll_event {
            // The flags of both calls are the same numbers (epoll_ctl(2)).
            events: u32::from(entry.events.cast_unsigned()),
            u64: index as u64,
        };
        // SAFETY: `event` outlives the call; a number that is no descriptor is
        // refused. rustix asks for owned descriptors, and a set has numbers.
        unsafe { libc::epoll_ctl(epoll, operation, entry.fd, &raw mut event) }
    };
    for (index, entry) in set.iter_mut().enumerate() {
        entry.revents = 0;
        control(libc::EPOLL_CTL_ADD, entry, index);
    }
    let mut came = [libc::epoll_event { events: 0, u64: 0 }; 32];
    let most = i32::try_from(came.len()).unwrap_or(1);
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array and its length belong together and outlive the call.
    let count = unsafe { libc::epoll_wait(epoll, came.as_mut_ptr(), most, millis) };
    let failed = io::Error::last_os_error();
    for (index, entry) in set.iter().enumerate() {
        control(libc::EPOLL_CTL_DEL, entry, index);
    }
    let Ok(count) = usize::try_from(count) else {
        return Err(failed);
    };
    for event in came.iter().take(count) {
        let (index, events) = (event.u64, event.events);
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| set.get_mut(index));
        if let Some(entry) = entry {
            entry.revents = i16::try_from(events & 0x7fff).unwrap_or(0);
        }
    }
    Ok(())
}

/// `threading.get_ident()` of the calling thread.
pub(crate) fn thread_ident() -> u64 {
    ThreadId::current().ident()
}

/// The kernel's id of the calling thread.
pub(crate) fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Sets KeyboardInterrupt for a thread; it is raised before the next bytecode
/// that the thread runs.
pub(crate) fn set_async_interrupt(py: Python<'_>, ident: u64) {
    let interrupt = py.get_type::<pyo3::exceptions::PyKeyboardInterrupt>();
    // SAFETY: attached, as the token proves; a live exception class.
    unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(as_c_long(ident), interrupt.as_ptr()) };
}

/// Takes an exception back that [`set_async_interrupt`] set and that was not
/// raised yet.
pub(crate) fn clear_async_exception(_py: Python<'_>, ident: u64) {
    // SAFETY: attached, as the token proves; null clears (C-API documentation).
    unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(as_c_long(ident), std::ptr::null_mut()) };
}

fn as_c_long(ident: u64) -> libc::c_long {
    ident.cast_signed()
}

/// The descriptor that `owner` keeps open under this number.
pub(crate) fn borrow_descriptor<T: ?Sized>(number: i32, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner, which is borrowed for as long as the result lives, keeps
    // the descriptor open.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Does something while this thread does not hear a signal.
pub(crate) fn with_signal_blocked<T>(signal: i32, work: impl FnOnce() -> T) -> T {
    let mask = |set: *mut libc::sigset_t| {
        // SAFETY: the set was initialised; the signal has a valid number.
        unsafe { libc::sigaddset(set, signal) };
    };
    change_mask(libc::SIG_BLOCK, mask);
    let done = work();
    change_mask(libc::SIG_UNBLOCK, mask);
    done
}

/// True while the process ignores this signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero bytes are a valid action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the result is written to the action.
    let status = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    status == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Puts a descriptor under a number that is not open. False if it is taken.
pub(crate) fn put_at(descriptor: OwnedFd, number: i32) -> bool {
    // SAFETY: asks about a number, open or not.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } != -1 {
        return false;
    }
    // SAFETY: the source is open, and nobody has the target.
    unsafe { libc::dup3(descriptor.as_raw_fd(), number, libc::O_CLOEXEC) == number }
}

/// Gives up the controlling terminal of the process's session.
pub(crate) fn leave_terminal(terminal: &OwnedFd) {
    // SAFETY: the descriptor is open; the request has no argument.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
}

/// As long as it lives this thread, which the interpreter did not know, is attached.
#[derive(Debug)]
pub(crate) struct Entered(pyo3::ffi::PyGILState_STATE, PhantomData<*mut ()>);

/// Attaches a thread, and does nothing else: no object that somebody let go of
/// meanwhile is ended.
pub(crate) fn enter_python() -> Entered {
    // SAFETY: the interpreter is there; `Entered` undoes it on this thread, as it
    // cannot be sent to another.
    Entered(unsafe { pyo3::ffi::PyGILState_Ensure() }, PhantomData)
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: once for its `Ensure`, on the same thread, attached.
        unsafe { pyo3::ffi::PyGILState_Release(self.0) };
    }
}

/// This thread is in the interpreter's list of threads, attached or not.
pub(crate) fn is_known_to_python() -> bool {
    // SAFETY: any thread may ask once the interpreter is there, and it is before ours.
    unsafe { !pyo3::ffi::PyGILState_GetThisThreadState().is_null() }
}
