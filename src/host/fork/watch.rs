//! The session's side of a `fork` cell: output as it comes, the child's end, and
//! what follows from it. Never attached to Python for long.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythond_protocol::CellId;
use pythond_protocol::outcome::{CellKind, CellStatus, ExceptionInfo, MergeReport, ProcessEnd};
use pythond_protocol::output_log::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::channel::{Frame, Frames, Kind};
use super::child::ChildEnd;
use super::hooks;
use super::merge::{self, Incoming};
use super::{Told, Wires, handle_of, has_child, has_no_child, live, tell_start, told};
use crate::cell::{Ending, Outcome, Shown};
use crate::cells::Moment;
use crate::forking::attach;
use crate::shared::Shared;
use crate::{ends, limits, sys};

/// How long a child may take until it is about to run its cell, if it may be
/// replaced by another.
const COMING_UP: Duration = Duration::from_secs(3);
/// Most bytes that are read from a pipe after the child's end: somebody who left
/// its group may go on writing.
const LAST_BYTES: usize = 64 << 20;

/// What came of watching.
pub(super) enum Watched {
    /// The cell has ended, and everybody knows.
    Ended,
    /// The child did not come up; the cell has not run.
    Again,
}

/// What is written to descriptor 1 or 2.
struct Pipe {
    stream: Stream,
    end: OwnedFd,
    /// Somebody can still write to it.
    open: bool,
}

impl Pipe {
    fn new(stream: Stream, end: OwnedFd) -> Self {
        // Read only where there is something; a fault shows there.
        let _ = rustix::io::ioctl_fionbio(&end, true);
        Self {
            stream,
            end,
            open: true,
        }
    }
}

/// A child that runs a cell.
pub(super) struct Watch {
    shared: &'static Shared,
    cell: CellId,
    child: Pid,
    frames: Frames,
    pipes: [Pipe; 2],
    started: Moment,
    known: Py<PyDict>,
    warnings: Vec<String>,
    /// What it says when it begins; None as soon as it did, or if it is not waited for.
    awaited: Option<Kind>,
    /// The right to begin, as long as it may be taken back from the child.
    right: Option<OwnedFd>,
    shown: Shown,
    incoming: Vec<Incoming>,
    end: Option<ChildEnd>,
    /// A word of the child's that cannot be used, and why.
    damage: Option<String>,
    source: String,
}

impl Watch {
    #[expect(
        clippy::too_many_arguments,
        reason = "made in one place, of what a fork leaves"
    )]
    pub(super) fn new(
        shared: &'static Shared,
        cell: CellId,
        child: Pid,
        wires: Wires,
        started: Moment,
        known: Py<PyDict>,
        warnings: Vec<String>,
        awaited: Option<Kind>,
    ) -> Self {
        // The child's ends go with `wires`.
        Self {
            shared,
            cell,
            child,
            frames: Frames::new(wires.socket.0),
            pipes: [
                Pipe::new(Stream::Stdout, wires.stdout.0),
                Pipe::new(Stream::Stderr, wires.stderr.0),
            ],
            started,
            known,
            warnings,
            awaited,
            right: awaited.is_some().then_some(wires.right),
            shown: None,
            incoming: Vec::new(),
            end: None,
            damage: None,
            source: String::new(),
        }
    }

    /// Watches until the cell has ended, and tells of it.
    pub(super) fn run_to_the_end(mut self, source: String) -> Watched {
        self.source = source;
        has_child(self.cell, self.child);
        let handle = handle_of(self.child);
        {
            let mut keep = vec![
                self.frames.socket.as_fd(),
                self.pipes[0].end.as_fd(),
                self.pipes[1].end.as_fd(),
            ];
            keep.extend(handle.iter().chain(&self.right).map(|it| it.as_fd()));
            sys::keep_only(&keep);
        }
        if self.awaited.is_none() {
            tell_start(self.shared, self.cell, self.started, &self.source);
        }
        let came_up = self.follow(handle.as_ref());
        // What it started and left in its group ends with it; until it is reaped
        // the group's number is its own.
        let _ = rustix::process::kill_process_group(self.child, Signal::KILL);
        self.take_rest();
        has_no_child(self.shared, self.cell);
        let how = reap(self.child);
        if !came_up && told(self.cell).is_none() {
            attach(|_| drop(self));
            return Watched::Again;
        }
        if self.awaited.is_some() {
            // It was ended, or died, before it said a word.
            tell_start(self.shared, self.cell, self.started, &self.source);
        }
        let source = std::mem::take(&mut self.source);
        self.conclude(came_up, how, source);
        Watched::Ended
    }

    /// Takes in what the child says until it is gone. False if it did not come
    /// up in time, and is gone therefore.
    fn follow(&mut self, handle: Option<&OwnedFd>) -> bool {
        let until = Instant::now() + COMING_UP;
        loop {
            let mut set = Vec::with_capacity(4);
            if !self.frames.ended {
                set.push(PollFd::new(&self.frames.socket, PollFlags::IN));
            }
            for pipe in self.pipes.iter().filter(|pipe| pipe.open) {
                set.push(PollFd::new(&pipe.end, PollFlags::IN));
            }
            if let Some(handle) = handle {
                set.push(PollFd::new(handle, PollFlags::IN));
            }
            let wait = self.wait(until, handle.is_none());
            let _ = poll(&mut set, wait.as_ref());
            drop(set);
            self.take_what_came(handle);
            for pipe in &mut self.pipes {
                pipe.open = pipe.open && !is_closed(&pipe.end);
            }
            let gone = match handle {
                Some(handle) => is_readable(handle),
                None => has_ended(self.child),
            };
            if gone {
                return true;
            }
            if self.right.is_some() && Instant::now() >= until && self.takes_it_back() {
                let _ = rustix::process::kill_process(self.child, Signal::KILL);
                let _ = rustix::process::kill_process_group(self.child, Signal::KILL);
                wait_for_end(self.child);
                return false;
            }
        }
    }

    /// The child has not begun in time, and will not any more. False if it begins at
    /// the last moment.
    fn takes_it_back(&mut self) -> bool {
        self.right.take().is_some_and(|right| hooks::takes(&right))
    }

    fn wait(&self, until: Instant, often: bool) -> Option<rustix::event::Timespec> {
        let mut wait = None;
        if self.right.is_some() {
            wait = Some(until.saturating_duration_since(Instant::now()));
        }
        if often {
            let look = Duration::from_millis(5);
            wait = Some(wait.map_or(look, |wait| wait.min(look)));
        }
        wait.map(|wait| rustix::event::Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        })
    }

    /// Frames first, then what the pipes had before: see `channel`.
    fn take_what_came(&mut self, handle: Option<&OwnedFd>) -> bool {
        let waiting = self.pipes.each_ref().map(|pipe| {
            let count = rustix::io::ioctl_fionread(&pipe.end).unwrap_or(0);
            usize::try_from(count).unwrap_or(usize::MAX)
        });
        let mut came = false;
        while self.frames.receive() {
            while let Some(frame) = self.frames.next() {
                self.take(frame, handle);
                came = true;
            }
        }
        for (index, waiting) in waiting.into_iter().enumerate() {
            let mut left = waiting;
            let mut buffer = vec![0; left.min(64 << 10)];
            while left > 0 {
                let most = left.min(buffer.len());
                let Pipe { stream, end, .. } = &self.pipes[index];
                let stream = *stream;
                let Ok(count @ 1..) = rustix::io::read(end, &mut buffer[..most]) else {
                    break;
                };
                self.append(stream, &buffer[..count], handle);
                left -= count;
                came = true;
            }
        }
        came
    }

    /// What is left when the child is gone.
    fn take_rest(&mut self) {
        let mut rounds = LAST_BYTES / (64 << 10);
        while self.take_what_came(None) && rounds > 0 {
            rounds -= 1;
        }
    }

    fn append(&self, stream: Stream, bytes: &[u8], handle: Option<&OwnedFd>) {
        let mut ahead = self.shared.append(self.cell.as_u64(), stream, bytes);
        // A child that is gone waits for nobody.
        while ahead && handle.is_some_and(|handle| !is_readable(handle)) {
            ahead = self.shared.wait_for_readers(self.cell.as_u64());
        }
    }

    fn take(&mut self, frame: Frame, handle: Option<&OwnedFd>) {
        match frame.kind {
            Kind::Stdout => self.append(Stream::Stdout, &frame.bytes, handle),
            Kind::Stderr => self.append(Stream::Stderr, &frame.bytes, handle),
            Kind::Begun | Kind::Ready => {
                if self.awaited == Some(frame.kind) {
                    self.awaited = None;
                    self.right = None;
                    tell_start(self.shared, self.cell, self.started, &self.source);
                }
            }
            Kind::Shown => {
                let before = self.shared.outputs.extent(self.cell.as_u64()).stdout;
                let length = (frame.bytes.len() as u64).saturating_sub(1);
                self.shown = Some((before, length));
                self.append(Stream::Stdout, &frame.bytes, handle);
            }
            Kind::Value => match Incoming::read(frame.bytes, &mut self.frames.descriptors) {
                Ok(value) => self.incoming.push(value),
                Err(why) => self.damage = Some(why),
            },
            Kind::End => match serde_json::from_slice(&frame.bytes) {
                Ok(end) => self.end = Some(end),
                Err(error) => self.damage = Some(error.to_string()),
            },
        }
    }

    /// Tells how the cell ended; merges what came back first.
    fn conclude(self, came_up: bool, how: ProcessEnd, source: String) {
        let Self {
            shared,
            cell,
            started,
            known,
            warnings,
            shown,
            incoming,
            end,
            damage,
            ..
        } = self;
        let duration = started.instant.elapsed();
        let mut report = MergeReport {
            warnings,
            ..MergeReport::default()
        };
        let (outcome, values) = match (end, damage) {
            (Some(end), None) => {
                report.skipped = end.skipped;
                report.mutated = end.mutated;
                report.unchecked = end.unchecked;
                match end.exception {
                    None => (Outcome::new(CellStatus::Done, None, shown), incoming),
                    Some(exception) => {
                        let stopped = end.interrupted && told(cell) == Some(Told::Stop);
                        let status = if stopped {
                            CellStatus::Interrupted
                        } else {
                            CellStatus::Failed
                        };
                        (Outcome::new(status, Some(exception), None), Vec::new())
                    }
                }
            }
            (_, Some(damage)) => {
                let message = format!("what came back from the child is damaged: {damage}");
                (raised(CellStatus::Failed, message), Vec::new())
            }
            (None, None) if !came_up && told(cell) == Some(Told::Stop) => {
                let message = "interrupted before it ran".to_owned();
                let kind = "KeyboardInterrupt";
                (ended_by(kind, CellStatus::Interrupted, message), Vec::new())
            }
            (None, None) => (without_a_word(cell, &how), Vec::new()),
        };
        let ending = Ending {
            id: cell,
            kind: CellKind::Fork,
            outcome,
            started,
            duration,
            changed: Vec::new(),
        };
        merge::conclude(shared, ending, known, values, report, source);
    }
}

const NOW: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The end of a child that did not say how its cell ended.
fn without_a_word(cell: CellId, how: &ProcessEnd) -> Outcome {
    let killed = told(cell) == Some(Told::Kill);
    match how {
        ProcessEnd::Signaled { signal, .. } if killed && *signal == Signal::KILL.as_raw() => {
            let message = "the child process was killed, as it was asked for".to_owned();
            raised(CellStatus::Killed, message)
        }
        ProcessEnd::Signaled { .. } => {
            let cause = limits::exceeded_by_child(how).unwrap_or_else(|| how.describe());
            let message = format!("the child process was {cause}");
            raised(CellStatus::Killed, message)
        }
        ProcessEnd::Exited { .. } => {
            let message = format!(
                "the child process {} before its cell had ended",
                how.describe()
            );
            raised(CellStatus::Failed, message)
        }
        ProcessEnd::Unknown => raised(
            CellStatus::Failed,
            "the child process ended, and code of the session's took its exit status".to_owned(),
        ),
    }
}

pub(super) fn raised(status: CellStatus, message: String) -> Outcome {
    ended_by("ChildProcessError", status, message)
}

fn ended_by(kind: &str, status: CellStatus, message: String) -> Outcome {
    let exception = ExceptionInfo {
        kind: kind.to_owned(),
        traceback: format!("{kind}: {message}\n"),
        message,
    };
    Outcome::new(status, Some(exception), None)
}

fn is_readable(handle: &OwnedFd) -> bool {
    let mut set = [PollFd::new(handle, PollFlags::IN)];
    matches!(poll(&mut set, Some(&NOW)), Ok(count) if count > 0)
}

/// Nothing is in a pipe and nobody can write to it any more.
fn is_closed(pipe: &OwnedFd) -> bool {
    let mut set = [PollFd::new(pipe, PollFlags::IN)];
    matches!(poll(&mut set, Some(&NOW)), Ok(count) if count > 0)
        && set[0].revents() == PollFlags::HUP
}

fn has_ended(child: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(
        rustix::process::waitid(WaitId::Pid(child), look),
        Ok(None) | Err(Errno::INTR)
    )
}

fn wait_for_end(child: Pid) {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(
        rustix::process::waitid(WaitId::Pid(child), look),
        Err(Errno::INTR)
    ) {}
}

/// How a child ended that has ended. Session code that waits for any child may
/// have been quicker.
fn reap(child: Pid) -> ProcessEnd {
    loop {
        return match rustix::process::waitid(WaitId::Pid(child), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => ProcessEnd::Exited { status },
                (None, Some(signal)) => ProcessEnd::Signaled {
                    signal,
                    out_of_memory: false,
                },
                (None, None) => ProcessEnd::Unknown,
            },
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => ProcessEnd::Unknown,
        };
    }
}

/// The cell is forgotten as one that runs.
pub(super) fn forget(cell: CellId) {
    live().remove(&cell.as_u64());
}

/// Tells everybody of the end.
pub(super) fn announce(shared: &'static Shared, end: pythond_protocol::lane::FinishedCell) {
    forget(end.cell);
    shared.conclude(&end);
    ends::announce(shared, end);
}
