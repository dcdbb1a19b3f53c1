//! A word to the person while an answer does not come. It only wakes and tells.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// What is told when the time is up.
#[derive(Debug)]
pub(super) struct Late {
    timer: OwnedFd,
    pub(super) words: String,
}

impl Late {
    /// To be told after this time, which is not 0; none if the system gives no timer.
    pub(super) fn after(time: Duration, words: String) -> Option<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .ok()?;
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: time.try_into().ok()?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).ok()?;
        Some(Self { timer, words })
    }

    /// The time is up.
    pub(super) fn is_due(&self) -> bool {
        rustix::io::read(&self.timer, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Late {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn it_is_due_once() {
        let late = Late::after(Duration::from_millis(1), String::new()).unwrap();
        let mut descriptors = [PollFd::new(&late, PollFlags::IN)];
        poll(&mut descriptors, None).unwrap();
        assert!(late.is_due());
        assert!(!late.is_due());
    }
}
