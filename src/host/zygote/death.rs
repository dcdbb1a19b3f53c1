//! How hosts end: reaped, their group ended, their last words collected.

use std::os::fd::OwnedFd;

use pythond_protocol::CellId;
use pythond_protocol::lane::{
    CellFate, HostEnd, HostedSession, LIVING, Reached, TOMBSTONE, ZygoteEvent,
};
use pythond_protocol::limits::size_text;
use pythond_protocol::outcome::ProcessEnd;
use pythond_protocol::output_log::{self, Stream};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::{Host, Spare, Zygote};
use crate::assignment;
use crate::clock::since_boot;
use crate::journal::Journal;
use crate::{limits, sys};

/// Most bytes of what a daemon writes down of a session.
const MOST_WRITTEN_DOWN: u64 = 1 << 20;
/// Ends of hosts that a new daemon is told of.
const REMEMBERED_ENDS: usize = 256;
/// A second of processor time in what the kernel shows to programs.
const TICKS: u64 = 100;
/// What is said by who finds no memory and cannot go on: our own allocator's
/// user, Python, C++, libraries.
const OUT_OF_MEMORY: [&str; 5] = [
    "memory allocation of",
    "MemoryError",
    "bad_alloc",
    "Cannot allocate memory",
    "out of memory",
];
/// Spares in a row that die before they come up, after which none is forked.
const MOST_STILLBORN: u32 = 3;
/// Most bytes of a dead host's standard error that are told.
const LAST_STDERR: usize = 4096;

impl Zygote {
    /// The next child that has ended. What it left in its process group is
    /// ended first: until the child is reaped, the group's number is its own.
    /// Each is looked at once, as hundreds may end together.
    fn next_dead(&mut self) -> Option<(Pid, WaitStatus)> {
        let pid = sys::dead_child()?;
        let child = Pid::from_raw(pid)?;
        if self.hosts.contains_key(&pid) {
            // Nobody is left in most groups.
            let _ = rustix::process::kill_process_group(child, Signal::KILL);
            self.end_forks(pid);
            if let Some(host) = self.hosts.get_mut(&pid) {
                host.cpu_ticks = cpu_ticks(pid);
            }
        }
        rustix::process::waitpid(Some(child), WaitOptions::NOHANG)
            .ok()
            .flatten()
    }

    /// Ends what the `fork` cells of a dead host left: it is ours now, so that
    /// its numbers are its own until we reap it.
    fn end_forks(&self, host: i32) {
        let name = self.hosts.get(&host).map(|host| &host.name);
        let journal =
            name.and_then(|name| Journal::open(&self.directory, &format!("{name}.journal")).ok());
        let forks = journal.map(|journal| journal.take_forks());
        for pid in forks.into_iter().flatten().filter_map(Pid::from_raw) {
            if rustix::process::kill_process_group(pid, Signal::KILL).is_err() {
                // It had no time to lead a group.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Takes in every child that has ended, ours and those we inherited.
    pub(super) fn reap(&mut self) {
        while let Some((pid, status)) = self.next_dead() {
            let pid = pid.as_raw_nonzero().get();
            if let Some(at) = self.spares.iter().position(|spare| spare.pid == pid) {
                if let Some(spare) = self.spares.remove(at) {
                    self.remove_files(&spare.host.name);
                    self.spare_died(&spare, status);
                }
                continue;
            }
            if let Some(at) = self.dying.iter().position(|spare| spare.pid == pid) {
                let spare = self.dying.swap_remove(at);
                self.spare_died(&spare, status);
                continue;
            }
            let Some(host) = self.hosts.remove(&pid) else {
                continue;
            };
            let mut end = process_end(status);
            if let ProcessEnd::Signaled {
                signal,
                out_of_memory,
            } = &mut end
            {
                *out_of_memory = *signal == Signal::KILL.as_raw() && oom_kills() > host.oom_kills;
            }
            self.report(pid, host, end);
        }
        self.empty_groups.retain(|group| !group.remove());
    }

    /// Where every process that is forked dies before it comes up, for example
    /// by what a preloaded module runs after a fork, hosts start cold.
    fn spare_died(&mut self, spare: &Spare, status: WaitStatus) {
        if assignment::was_ready(&spare.socket) {
            self.stillborn = 0;
            return;
        }
        self.stillborn += 1;
        if self.stillborn >= MOST_STILLBORN {
            let end = process_end(status);
            self.cannot_fork.get_or_insert(format!(
                "processes that are forked from it end at once: {}",
                end.describe()
            ));
        }
    }

    fn report(&mut self, pid: i32, host: Host, end: ProcessEnd) {
        let journal = Journal::open(&self.directory, &format!("{}.journal", host.name)).ok();
        let mut last = journal
            .as_ref()
            .map(Journal::last_stderr)
            .unwrap_or_default();
        let cell: Option<CellId> = journal.as_ref().and_then(Journal::running);
        let unread_stderr = unread(&host.stderr_read);
        // The log that is there belongs to the cell that ran last; only if it
        // still ran are these its last words.
        let (log, log_lost) = match journal.as_ref().filter(|_| cell.is_some()) {
            None => (Vec::new(), 0),
            Some(journal) => {
                let (mut log, lost) = journal.last_output();
                output_log::append(&mut log, Stream::Stdout, &unread(&host.stdout_read));
                output_log::append(&mut log, Stream::Stderr, &unread_stderr);
                (log, lost)
            }
        };
        last.extend(unread_stderr);
        let last = &last[last.len().saturating_sub(LAST_STDERR)..];
        let last_stderr = String::from_utf8_lossy(last).into_owned();
        let (fates, fates_are_all) = journal.as_ref().map(Journal::fates).unwrap_or_default();
        let age = u64::try_from(host.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let died_ns = u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX);
        let hosted = self.written_down(&host.name);
        // A daemon takes its word back before it tells a session to end.
        let ordered = hosted.is_none() && end == (ProcessEnd::Exited { status: 0 });
        let end = HostEnd {
            pid,
            socket: format!("{}.sock", host.name),
            cause: exceeded(&host, &end, &last_stderr),
            end,
            last_stderr,
            // Nothing on the main thread: it may be clear all the same.
            cell: cell.or_else(|| the_only_one(&fates)),
            session: host.session,
            log_lost,
            died_at: jiff::Timestamp::now().to_string(),
            died_ns,
            fates,
            fates_are_all,
            born_ns: died_ns.saturating_sub(age),
            ordered,
            start_time: 0,
            hosted,
        };
        if let Some(group) = host.group {
            // What it left running keeps the group alive.
            self.empty_groups.push(group);
        }
        let written = self.write_tombstone(&host.name, &end);
        self.remove_files(&host.name);
        let event = ZygoteEvent::Exited(Box::new(end));
        for connection in &mut self.connections {
            if connection.greeted {
                // A daemon that is gone leaves it to the next one.
                let _ = connection.lane.send(&event, &log);
            }
        }
        if written {
            self.written.push_back(host.name);
        } else {
            self.ended.push_back((event, log));
        }
        if self.written.len() > REMEMBERED_ENDS {
            self.written.pop_front();
        }
        if self.ended.len() > REMEMBERED_ENDS {
            self.ended.pop_front();
        }
    }

    /// What was written down of hosts that ended, and not taken away since.
    pub(super) fn written_ends(&self) -> impl Iterator<Item = HostEnd> {
        self.written.iter().filter_map(|name| {
            let name = format!("{name}.{TOMBSTONE}");
            let content = self.directory.read_file(&name, MOST_WRITTEN_DOWN).ok()?;
            serde_json::from_slice(&content).ok()
        })
    }

    /// What a daemon wrote down of a session that lives.
    fn written_down(&self, name: &str) -> Option<Box<HostedSession>> {
        let name = format!("{name}.{LIVING}");
        let content = self.directory.read_file(&name, MOST_WRITTEN_DOWN).ok()?;
        serde_json::from_slice::<HostEnd>(&content).ok()?.hosted
    }

    /// Leaves word of a session's end for every later daemon, until one takes it
    /// away. False if that cannot be.
    fn write_tombstone(&self, name: &str, end: &HostEnd) -> bool {
        if end.session.is_none() || end.ordered {
            return true;
        }
        let name = format!("{name}.{TOMBSTONE}");
        serde_json::to_vec(end)
            .is_ok_and(|content| self.directory.write_whole_unsynced(&name, &content).is_ok())
    }
}

/// The cell that ran beside the main thread, if it was one.
fn the_only_one(fates: &[CellFate]) -> Option<CellId> {
    let mut running = fates.iter().filter(|it| it.reached == Reached::Started);
    match (running.next(), running.next()) {
        (Some(only), None) => Some(only.cell),
        _ => None,
    }
}

/// How a child ended that was reaped.
fn process_end(status: WaitStatus) -> ProcessEnd {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => ProcessEnd::Exited { status },
        (None, Some(signal)) => ProcessEnd::Signaled {
            signal,
            out_of_memory: false,
        },
        (None, None) => ProcessEnd::Unknown,
    }
}

/// The cause of an end, if it is a limit that was exceeded.
fn exceeded(host: &Host, end: &ProcessEnd, last_stderr: &str) -> Option<String> {
    let signal = match end {
        ProcessEnd::Signaled { signal, .. } => Some(*signal),
        _ => None,
    };
    if let Some(group) = &host.group
        && let Some(why) = limits::exceeded_by_group(&host.limits, group, end)
    {
        return Some(why);
    }
    let by_time = [Signal::XCPU, Signal::KILL].map(|it| Some(it.as_raw()));
    if let Some(most) = host.limits.cpu_s
        && by_time.contains(&signal)
        // What is shown may be behind what the limit counts.
        && host.cpu_ticks + TICKS / 2 >= most.saturating_mul(TICKS)
    {
        return Some(limits::exceeded_cpu(most));
    }
    let most = host.limits.memory_bytes?;
    let well = matches!(end, ProcessEnd::Exited { status: 0 });
    let said = OUT_OF_MEMORY
        .iter()
        .any(|words| last_stderr.contains(words));
    (said && !well).then(|| {
        let how = end.describe();
        format!("{how}, probably out of memory (limit {})", size_text(most))
    })
}

/// Processor time that a process has used which is not reaped yet, in hundredths
/// of a second (proc(5)).
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let words = stat.rsplit_once(')').map_or("", |(_, words)| words);
    let ticks = words.split_whitespace().skip(11).take(2);
    ticks.filter_map(|it| it.parse::<u64>().ok()).sum()
}

/// What is left in a pipe, at most 64 KiB.
fn unread(pipe: &OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    if rustix::io::ioctl_fionbio(pipe, true).is_err() {
        return bytes;
    }
    while bytes.len() < 64 << 10 {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    bytes
}

/// How often the kernel killed for memory in our group (cgroups(7), v2).
pub(super) fn oom_kills() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let groups = read("/proc/self/cgroup");
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return 0;
    };
    read(&format!("/sys/fs/cgroup{group}/memory.events"))
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}
