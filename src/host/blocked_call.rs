//! Cuts a system call short in which a thread of ours waits, so that the
//! exception that was set for it is seen.
//!
//! A signal alone does not do it: CPython takes an interrupted call up again on
//! every thread but the main one. So the signal's handler changes what the call
//! returns: the waits for a time or for readiness say that time is up, the
//! others fail with `ECANCELED`. It does so only if the thread is in exactly the
//! call that was looked at.

use crate::sys;

/// A system call that a thread waits in, from `/proc` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    number: i64,
    stack: u64,
    instruction: u64,
}

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Running,
    Waiting(Waiting),
    Unknown,
}

fn place(thread: i32) -> Place {
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")) else {
        return Place::Unknown;
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    match words[..] {
        ["running"] => Place::Running,
        [number, .., stack, instruction] => match (number.parse(), hex(stack), hex(instruction)) {
            (Ok(number), Some(stack), Some(instruction)) => Place::Waiting(Waiting {
                number,
                stack,
                instruction,
            }),
            _ => Place::Unknown,
        },
        _ => Place::Unknown,
    }
}

/// What a cut call returns. None for calls that must not be cut: a lock that was
/// not taken would be believed to be.
fn cut_result(number: i64) -> Option<i64> {
    const TIME_IS_UP: &[i64] = &[
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_select,
        libc::SYS_pselect6,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
    ];
    const FAILS: &[i64] = &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_wait4,
        libc::SYS_waitid,
        libc::SYS_flock,
        libc::SYS_fcntl,
        libc::SYS_msgrcv,
        libc::SYS_semop,
    ];
    if TIME_IS_UP.contains(&number) {
        Some(0)
    } else if FAILS.contains(&number) {
        Some(-i64::from(libc::ECANCELED))
    } else {
        None
    }
}

/// Cuts the call in which a thread waits. False if it does not wait: it may be
/// about to. The caller holds the interpreter's lock, so it runs no Python.
pub(crate) fn cut(thread: i32) -> bool {
    match place(thread) {
        Place::Waiting(call) => match cut_result(call.number) {
            Some(result) => sys::cut_call(thread, call.instruction, call.stack, result),
            None => true,
        },
        // On its way into a call, out of one, or computing.
        Place::Running => false,
        Place::Unknown => true,
    }
}
