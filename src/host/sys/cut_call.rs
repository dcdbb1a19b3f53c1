//! Makes a system call return in which another thread of this process waits.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The call that is to be cut: thread, address of the instruction after it,
/// stack pointer, what it is to return. The thread is 0 when nothing is.
static CUT_THREAD: AtomicI32 = AtomicI32::new(0);
/// The call was cut.
static CUT_DONE: AtomicBool = AtomicBool::new(false);
static CUT_INSTRUCTION: AtomicU64 = AtomicU64::new(0);
static CUT_STACK: AtomicU64 = AtomicU64::new(0);
static CUT_RESULT: AtomicI64 = AtomicI64::new(0);
static CUTTING: Mutex<()> = Mutex::new(());
/// How long a signalled thread may take to handle the signal.
const CUT_PATIENCE: Duration = Duration::from_millis(5);

fn cut_signal() -> i32 {
    super::call_signal()
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
        CUT_DONE.store(true, SeqCst);
    }
    CUT_THREAD.store(0, SeqCst);
}

/// Makes the system call return in which a thread of this process waits, if it
/// still waits in it; true if so. `instruction` and `stack` are what `/proc` says of it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cut_call(thread: i32, instruction: u64, stack: u64, result: i64) -> bool {
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
        return true;
    }
    CUT_DONE.store(false, SeqCst);
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
    CUT_DONE.load(SeqCst)
}

/// Elsewhere the registers are not known, and calls are not cut.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn cut_call(_thread: i32, _instruction: u64, _stack: u64, _result: i64) -> bool {
    true
}
