//! A session host as the daemon sees it: connect its lanes, end its process.
//!
//! Does not know what a cell means.

use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{
    Attach, HostEvent, HostInfo, LINK_VERSION, Lane, Message, TerminalCommand, TerminalEvent,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::lane_io::{ConnectError, LaneIo};

/// How long a host may take to answer hello.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a process that was sent SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// Name of a host's thread that serves its lanes, which a program that took the
/// host's place does not have.
const IO_THREAD: &str = "pythond-io";

/// Pause before a descriptor of a process is asked for again.
const PIDFD_PAUSE: Duration = Duration::from_millis(10);

/// The two lanes to a host.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Cells and their ends.
    pub(crate) cell: LaneIo,
    /// Everything that must not wait behind a cell.
    pub(crate) control: LaneIo,
}

/// Opens the control lane and asks who is there.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn open_control(
    dir: &PrivateDir,
    socket: &str,
) -> Result<(LaneIo, HostInfo), ConnectError> {
    within(async {
        let deadline = Instant::now() + HELLO_DEADLINE;
        let mut control = LaneIo::connect(dir, socket, Lane::Control, deadline).await?;
        let first = control
            .next::<HostEvent>()
            .await
            .map_err(ConnectError::Lost)?;
        let HostEvent::Welcome(info) = first.header else {
            return Err(ConnectError::Unexpected);
        };
        if info.version != LINK_VERSION && info.version + 1 != LINK_VERSION {
            return Err(ConnectError::Version(info.version));
        }
        Ok((control, *info))
    })
    .await
}

/// Opens the cell lane beside a control lane.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn open_cell(dir: &PrivateDir, socket: &str) -> Result<LaneIo, ConnectError> {
    within(async {
        let deadline = Instant::now() + HELLO_DEADLINE;
        let mut cell = LaneIo::connect(dir, socket, Lane::Cell, deadline).await?;
        let first = cell.next::<HostEvent>().await.map_err(ConnectError::Lost)?;
        match first.header {
            HostEvent::CellLaneReady => Ok(cell),
            _ => Err(ConnectError::Unexpected),
        }
    })
    .await
}

/// Opens the lane of a terminal and attaches; the host's first words.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn open_terminal(
    dir: &PrivateDir,
    socket: &str,
    how: Attach,
) -> Result<(LaneIo, Message<TerminalEvent>), ConnectError> {
    within(async {
        let deadline = Instant::now() + HELLO_DEADLINE;
        let mut lane = LaneIo::connect(dir, socket, Lane::Terminal, deadline).await?;
        lane.send(&TerminalCommand::Attach(how), b"")
            .map_err(|_| ConnectError::Unexpected)?;
        let first = lane.next().await.map_err(ConnectError::Lost)?;
        Ok((lane, first))
    })
    .await
}

async fn within<T>(work: impl Future<Output = Result<T, ConnectError>>) -> Result<T, ConnectError> {
    tokio::time::timeout(HELLO_DEADLINE, work)
        .await
        .unwrap_or(Err(ConnectError::Deadline(HELLO_DEADLINE)))
}

/// The process of a host, told apart from a later one of the same number by
/// its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostProcess {
    pid: i32,
    start_time: Option<u64>,
}

impl HostProcess {
    /// Remembers a process that is alive now.
    pub(crate) fn of(pid: i32) -> Self {
        Self {
            pid,
            start_time: proc_stat(pid).map(|stat| stat.start_time),
        }
    }

    /// One that ended before we saw it: nothing will be sent to its number.
    pub(crate) fn gone(pid: i32) -> Self {
        Self {
            pid,
            start_time: None,
        }
    }

    /// When it started, in ticks since the machine did; none if it is gone.
    pub(crate) fn start_time(self) -> Option<u64> {
        self.start_time
    }

    /// Its number.
    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    /// It exists, is stopped, and answers nothing until it is continued.
    pub(crate) fn is_stopped(self) -> bool {
        proc_stat(self.pid).is_some_and(|stat| {
            Some(stat.start_time) == self.start_time && matches!(stat.state, b'T' | b't')
        })
    }

    /// The name of the program that it has become, if it is alive.
    pub(crate) fn other_program(self) -> Option<String> {
        let alive = |stat: ProcStat| Some(stat.start_time) == self.start_time && stat.state != b'Z';
        proc_stat(self.pid).filter(|stat| alive(*stat))?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        // A host is named after its session, until a cell gives it another name.
        let name = name.trim_end();
        let is_host = name.starts_with("py:") || self.has_thread(IO_THREAD);
        (!is_host).then(|| name.escape_default().to_string())
    }

    fn has_thread(self, name: &str) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        threads.into_iter().flatten().flatten().any(|thread| {
            std::fs::read_to_string(thread.path().join("comm"))
                .is_ok_and(|found| found.trim_end() == name)
        })
    }

    /// Nothing of it is left but its number.
    pub(crate) fn is_gone(self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.start_time.is_some()) else {
            return true;
        };
        if rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return true;
        }
        // What cannot be read says nothing.
        proc_stat(self.pid)
            .is_some_and(|stat| Some(stat.start_time) != self.start_time || stat.state == b'Z')
    }

    /// A descriptor of this very process; none if it is gone.
    fn pidfd(self) -> Option<AsyncFd<std::os::fd::OwnedFd>> {
        let pid = Pid::from_raw(self.pid)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        // The descriptor is taken first: what it names cannot change any more
        // while the start time is compared.
        let stat = proc_stat(self.pid)?;
        if Some(stat.start_time) != self.start_time || stat.state == b'Z' {
            return None;
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd gives what that asks for"
        )]
        AsyncFd::with_interest(fd, tokio::io::Interest::READABLE).ok()
    }

    /// Waits for the process to end after it was asked to: `grace`, SIGTERM,
    /// `grace`, SIGKILL to its group; at last SIGKILL to whatever is left of
    /// the group. True if it is gone.
    ///
    /// `hurry` cuts both graces short.
    pub(crate) async fn end(
        self,
        grace: Duration,
        hurry: &tokio_util::sync::CancellationToken,
    ) -> bool {
        let tries = async {
            loop {
                match self.pidfd() {
                    Some(pidfd) => return Some(pidfd),
                    None if self.is_gone() => return None,
                    // No descriptor is free just now.
                    None => tokio::time::sleep(PIDFD_PAUSE).await,
                }
            }
        };
        let Ok(Some(pidfd)) = tokio::time::timeout(grace, tries).await else {
            self.kill_group();
            return true;
        };
        let mut gone = false;
        for signal in [None, Some(Signal::TERM)] {
            if let Some(signal) = signal {
                let _ = rustix::process::pidfd_send_signal(pidfd.get_ref(), signal);
            }
            tokio::select! {
                () = wait_for_end(&pidfd) => gone = true,
                () = tokio::time::sleep(grace) => {}
                () = hurry.cancelled() => {}
            }
            if gone {
                break;
            }
        }
        if !gone {
            self.kill_group();
            // A host that left its group must go as well.
            let _ = rustix::process::pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
            gone = tokio::time::timeout(KILL_DEADLINE, wait_for_end(&pidfd))
                .await
                .is_ok();
        }
        self.kill_group();
        gone
    }

    /// SIGKILL to the process group that the host leads. The kernel gives the
    /// number to nobody else while the group has members (setpgid(2)); one
    /// that is empty and was taken over shows by its start time.
    fn kill_group(self) {
        // Never seen alive, so nothing says that the number was ever its.
        let Some(ours) = self.start_time else { return };
        let taken_over = proc_stat(self.pid).is_some_and(|stat| ours != stat.start_time);
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 1 && !taken_over) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

/// A process of this number runs; one that nobody has reaped yet does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    proc_stat(pid).is_some_and(|stat| stat.state != b'Z')
}

async fn wait_for_end(pidfd: &AsyncFd<std::os::fd::OwnedFd>) {
    // Readable means ended (pidfd_open(2)). An event may have been consumed by
    // an earlier wait, so the descriptor itself is asked too.
    loop {
        let mut fds = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        if matches!(
            rustix::event::poll(&mut fds, Some(&Timespec::default())),
            Ok(1)
        ) {
            return;
        }
        match pidfd.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => return,
        }
    }
}

/// What /proc says of a process (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcStat {
    state: u8,
    start_time: u64,
}

fn proc_stat(pid: i32) -> Option<ProcStat> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything, so fields are counted from the
/// last `)`.
fn parse_stat(stat: &[u8]) -> Option<ProcStat> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(ProcStat { state, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_its_state() {
        let stat = b"7 (a) Z 1) T 1 7 7 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 4242 99";
        assert_eq!(
            parse_stat(stat),
            Some(ProcStat {
                state: b'T',
                start_time: 4242
            })
        );
        assert_eq!(parse_stat(b"7 (a"), None);
    }

    #[test]
    fn our_own_process_is_found_and_runs() {
        let me = HostProcess::of(i32::try_from(std::process::id()).unwrap());
        assert!(me.start_time.is_some());
        assert!(!me.is_stopped());
    }
}
