//! The host's only `unsafe`, besides the launcher's: what the kernel, the C
//! library and CPython offer without a safe wrapper.
#![expect(unsafe_code, reason = "this module is where the host keeps it")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict};

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

    /// Sends a signal to exactly this thread, which must not have ended.
    pub(crate) fn signal(self, signal: i32) {
        // SAFETY: both threads that are ever named here, main and I/O, live as
        // long as the process. `tgkill` through std does not exist.
        unsafe { libc::pthread_kill(self.0, signal) };
    }
}

/// The signal that wakes the I/O thread: real-time, used by nobody else.
pub(crate) fn wake_signal() -> i32 {
    libc::SIGRTMIN() + 7
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

/// A file mapped shared, seen as atomics, so that any process may read what
/// another left there.
#[derive(Debug)]
pub(crate) struct SharedMap {
    start: *mut u8,
    length: usize,
}

// SAFETY: the memory is only reached through atomics.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `length` bytes of a file that has at least as many.
    pub(crate) fn new(file: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice;
        // the file is ours alone (private_fs) and never made shorter.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// The 8-byte word that begins at byte `at`, a multiple of 8.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.length,
            "inside the map"
        );
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: aligned (maps begin at a page), mapped as long as `self`,
        // only ever reached as an atomic.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// Writes bytes at `at`. Other processes may read them once this one is
    /// dead; nobody does before.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "inside the map");
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: `bytes` cannot overlap the mapping, which no reference of
        // this process points into; writers are serialised by their caller.
        // Byte-wise atomics would make long outputs ten times slower.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// The bytes from `at` on.
    pub(crate) fn bytes(&self, at: usize, length: usize) -> &[AtomicU8] {
        assert!(at + length <= self.length, "inside the map");
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: mapped as long as `self`, `AtomicU8` has the layout of `u8`,
        // only ever reached as atomics.
        unsafe { std::slice::from_raw_parts(place.cast(), length) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrows it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
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

/// The call that is to be cut: thread, address of the instruction after it,
/// stack pointer, what it is to return. The thread is 0 when nothing is.
static CUT_THREAD: AtomicI32 = AtomicI32::new(0);
static CUT_INSTRUCTION: AtomicU64 = AtomicU64::new(0);
static CUT_STACK: AtomicU64 = AtomicU64::new(0);
static CUT_RESULT: AtomicI64 = AtomicI64::new(0);
static CUTTING: Mutex<()> = Mutex::new(());
/// How long a signalled thread may take to handle the signal.
const CUT_PATIENCE: Duration = Duration::from_millis(5);

fn cut_signal() -> i32 {
    libc::SIGRTMIN() + 8
}

/// Changes what an interrupted system call returns, if it is the one meant.
#[cfg(target_arch = "x86_64")]
extern "C" fn on_cut(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: `gettid` has no preconditions and is async-signal-safe.
    let me = unsafe { libc::gettid() };
    if CUT_THREAD.load(SeqCst) != me {
        return;
    }
    // SAFETY: the kernel hands a valid context to a handler with SA_SIGINFO,
    // and nothing else has it.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let at = |register: i32| usize::try_from(register).unwrap_or(0);
    let interrupted = registers[at(libc::REG_RAX)] == -i64::from(libc::EINTR);
    let same = registers[at(libc::REG_RIP)].cast_unsigned() == CUT_INSTRUCTION.load(SeqCst)
        && registers[at(libc::REG_RSP)].cast_unsigned() == CUT_STACK.load(SeqCst);
    if interrupted && same {
        registers[at(libc::REG_RAX)] = CUT_RESULT.load(SeqCst);
    }
    CUT_THREAD.store(0, SeqCst);
}

/// Makes the system call return in which a thread of this process waits, if it
/// still waits in it: `instruction` and `stack` are what `/proc` says of it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cut_call(thread: i32, instruction: u64, stack: u64, result: i64) {
    let _one = CUTTING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_cut as *const () as usize;
    // Without SA_RESTART the call has returned when the handler runs.
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is initialised, its handler is async-signal-safe; no
    // old action is asked for. Set each time: a cell may have changed it.
    let status = unsafe { libc::sigaction(cut_signal(), &raw const action, std::ptr::null_mut()) };
    if status != 0 {
        return;
    }
    CUT_INSTRUCTION.store(instruction, SeqCst);
    CUT_STACK.store(stack, SeqCst);
    CUT_RESULT.store(result, SeqCst);
    CUT_THREAD.store(thread, SeqCst);
    let (process, number) = (rustix::process::getpid(), libc::c_long::from(cut_signal()));
    // SAFETY: three integers; a thread that is gone is an error, not a hazard:
    // the number is looked up within this process only.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::c_long::from(process.as_raw_nonzero().get()),
            libc::c_long::from(thread),
            number,
        )
    };
    let deadline = Instant::now() + CUT_PATIENCE;
    while sent == 0 && CUT_THREAD.load(SeqCst) != 0 && Instant::now() < deadline {
        rustix::thread::sched_yield();
    }
    CUT_THREAD.store(0, SeqCst);
}

/// Elsewhere the registers are not known, and calls are not cut.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn cut_call(_thread: i32, _instruction: u64, _stack: u64, _result: i64) {}

/// The signal that `faulthandler` answers with a dump of all threads; only ever
/// sent to a copy of the process.
pub(crate) fn dump_signal() -> i32 {
    libc::SIGRTMIN() + 9
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
