//! How hosts come to be: forked ahead as spares, forked on demand, or started
//! cold.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_private_fs::cgroup::Delegated;
use pythond_protocol::lane::SessionSpec;
use pythond_protocol::limits::SessionLimits;
use pythond_protocol::verbs::new::StartKind;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Signal};

use super::death::oom_kills;
use super::{Host, PARKED, Spare, Zygote};
use crate::assignment::{self, Assignment};
use crate::parked::{Parked, Ready};
use crate::sys::{self, Fork};
use crate::{limits, session, streams};

/// Processes that are forked for one session if those before die at once.
const MOST_TRIES: u32 = 6;
/// Backlog of a host's socket: both lanes of a daemon and of its successor.
pub(crate) const BACKLOG: i32 = 8;

/// Everything a child needs, made before it exists.
#[derive(Debug)]
struct Cradle {
    name: String,
    parked: Parked,
    stdout_write: OwnedFd,
    stderr_write: OwnedFd,
    mine: OwnedFd,
    theirs: OwnedFd,
}

impl Zygote {
    /// Makes a host; returns its process id and name.
    pub(super) fn spawn(
        &mut self,
        py: Python<'_>,
        spec: SessionSpec,
    ) -> std::io::Result<(i32, String)> {
        self.last_request = Instant::now();
        self.restore_directory();
        if let Some(made) = self.made_already(&spec) {
            return Ok(made);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let (spare, start) = self.next_spare(py, spec.must_start_cold || tries > MOST_TRIES)?;
            match self.assign(spare, start, spec.clone()) {
                // It has died a moment ago, and was nothing yet.
                Err(error)
                    if error.kind() == std::io::ErrorKind::BrokenPipe && tries <= MOST_TRIES => {}
                done => return done,
            }
        }
    }

    fn next_spare(
        &mut self,
        py: Python<'_>,
        must_start_cold: bool,
    ) -> std::io::Result<(Spare, StartKind)> {
        if must_start_cold {
            return Ok((self.start_cold()?, StartKind::Cold));
        }
        if let Some(spare) = self.spares.pop_front() {
            return Ok((spare, StartKind::Spare));
        }
        // A library may have started a thread since.
        self.cannot_fork = self.cannot_fork.take().or_else(other_threads);
        Ok(match self.cannot_fork.clone() {
            None => (self.fork_spare(py)?, StartKind::Fork),
            Some(_) => (self.start_cold()?, StartKind::Cold),
        })
    }

    fn assign(
        &mut self,
        spare: Spare,
        start: StartKind,
        spec: SessionSpec,
    ) -> std::io::Result<(i32, String)> {
        let Spare {
            socket,
            pid,
            mut host,
        } = spare;
        host.session = Some((
            spec.session.clone(),
            spec.session_id.clone(),
            spec.generation,
        ));
        host.since = Instant::now();
        host.cold = start == StartKind::Cold;
        host.limits = spec.limits;
        let limits = limits::of_group(&spec.limits);
        if !limits.is_empty() {
            // What cannot be limited without, the host refuses.
            host.group = Delegated::of_leaf().and_then(|it| it.enclose(pid, &limits).ok());
        }
        let mut python = self.python.clone();
        python.reason.clone_from(&spec.python_reason);
        let mut cold_reason = spec.cold_reason.clone();
        if start == StartKind::Cold {
            cold_reason = cold_reason
                .or_else(|| self.cannot_fork.clone())
                .or_else(|| Some("processes that are forked for it end at once".to_owned()));
        }
        let assignment = Assignment {
            spec,
            python,
            // For whoever waits it is one: its environment had to come up first.
            start: if cold_reason.is_some() {
                StartKind::Cold
            } else {
                start
            },
            cold_reason,
            zygote_pid: rustix::process::getpid().as_raw_nonzero().get(),
            runtime_dir: self.launch.runtime_dir.clone(),
            name: host.name.clone(),
        };
        let name = host.name.clone();
        // From now on a daemon that looks around finds a session there.
        let sent = self
            .directory
            .rename(&format!("{name}.{PARKED}"), &format!("{name}.sock"))
            .map_err(|error| {
                // Somebody removed its socket: nobody could ever reach it.
                end_unreachable(pid);
                std::io::Error::new(std::io::ErrorKind::BrokenPipe, error)
            })
            .and_then(|()| assignment::send(&socket, &assignment));
        if sent
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
        {
            // When it is reaped it counts as the spare that it still is.
            let spare = Spare { socket, pid, host };
            self.remove_files(&name);
            self.dying.push(spare);
        } else {
            self.hosts.insert(pid, host);
        }
        sent.map(|()| (pid, name))
    }

    /// The host of a session that is asked for again because the answer was lost.
    fn made_already(&self, spec: &SessionSpec) -> Option<(i32, String)> {
        let (pid, host) = self.hosts.iter().find(|(_, host)| {
            // One that was forked before may be dead, and not be reaped yet.
            (host.cold || !spec.must_start_cold)
                && host.session.as_ref().is_some_and(|(_, id, generation)| {
                    *id == spec.session_id && *generation == spec.generation
                })
        })?;
        Some((*pid, host.name.clone()))
    }

    pub(super) fn make_spare(&mut self, py: Python<'_>) {
        self.cannot_fork = self.cannot_fork.take().or_else(other_threads);
        if self.cannot_fork.is_some() {
            return;
        }
        match self.fork_spare(py) {
            Ok(spare) => self.spares.push_back(spare),
            // Tried again after the next request.
            Err(_) => self.last_request = Instant::now() + Duration::from_secs(1),
        }
    }

    fn cradle(&mut self) -> std::io::Result<Cradle> {
        self.next_name += 1;
        // Another process may have had our number before, and have left files.
        let name = format!(
            "h-{:x}-{:x}-{:x}",
            rustix::process::getpid().as_raw_nonzero(),
            self.unlike_others,
            self.next_name
        );
        self.restore_directory();
        let listener = self
            .directory
            .bind_socket(&format!("{name}.{PARKED}"), BACKLOG)
            .map_err(std::io::Error::other)?;
        let (stdout_read, stdout_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_read, stderr_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (mine, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let parked = Parked {
            listener,
            stdout_read,
            stderr_read,
        };
        Ok(Cradle {
            name,
            parked,
            stdout_write,
            stderr_write,
            mine,
            theirs,
        })
    }

    fn fork_spare(&mut self, py: Python<'_>) -> std::io::Result<Spare> {
        let cradle = self.cradle()?;
        match sys::fork_python(py)? {
            Fork::Parent(pid) => {
                let host = Host {
                    name: cradle.name,
                    stdout_read: cradle.parked.stdout_read,
                    stderr_read: cradle.parked.stderr_read,
                    session: None,
                    since: Instant::now(),
                    cold: false,
                    limits: SessionLimits::default(),
                    group: None,
                    cpu_ticks: 0,
                    oom_kills: oom_kills(),
                };
                Ok(Spare {
                    socket: cradle.mine,
                    pid,
                    host,
                })
            }
            Fork::Child => self.be_spare(py, cradle),
        }
    }

    /// The child: lets go of everything that is the zygote's and waits.
    fn be_spare(&mut self, py: Python<'_>, cradle: Cradle) -> ! {
        self.listener = None;
        self.connections.clear();
        self.spares.clear();
        self.dying.clear();
        self.hosts.clear();
        let Cradle {
            name,
            parked,
            stdout_write,
            stderr_write,
            mine,
            theirs,
        } = cradle;
        drop(mine);
        // It cannot fail: a forked process leads no group.
        let _ = rustix::process::setsid();
        // Nor this: it is less than what we have.
        let _ = rustix::process::setrlimit(Resource::Nofile, self.open_files);
        let redirected = rustix::stdio::dup2_stdout(&stdout_write)
            .and_then(|()| rustix::stdio::dup2_stderr(&stderr_write));
        drop((stdout_write, stderr_write));
        sys::handle_by_default(Signal::CHILD.as_raw());
        sys::handle_by_default(Signal::HUP.as_raw());
        sys::unblock_all_signals();
        streams::set_forked(false);
        let Some(namespace) = self.namespace.take().filter(|_| redirected.is_ok()) else {
            sys::exit_now(1)
        };
        let ready = match Ready::prepare(py, parked, namespace, &self.directory, &name) {
            Ok(ready) => ready,
            Err(error) => {
                error.print(py);
                sys::exit_now(1)
            }
        };
        assignment::tell_ready(&theirs);
        let assignment = assignment::receive(&theirs);
        drop(theirs);
        match assignment {
            Some(assignment) => session::serve(py, ready, assignment),
            None => {
                // A zygote that was killed removes nothing.
                self.remove_files(&name);
                sys::exit_now(0)
            }
        }
    }

    /// Starts a host from nothing, as a child of ours all the same.
    fn start_cold(&mut self) -> std::io::Result<Spare> {
        let cradle = self.cradle()?;
        let mut command = std::process::Command::new(&self.launch.launcher);
        command
            .arg("host")
            .arg("--python")
            .arg(&self.launch.python)
            .stdin(Stdio::from(cradle.theirs))
            .stdout(Stdio::from(cradle.stdout_write))
            .stderr(Stdio::from(cradle.stderr_write));
        if !self.launch.preload.is_empty() {
            command.arg("--preload").arg(self.launch.preload.join(","));
        }
        let child = command.spawn()?;
        let Parked {
            listener,
            stdout_read,
            stderr_read,
        } = &cradle.parked;
        assignment::send_descriptors(&cradle.mine, listener, stdout_read, stderr_read)?;
        let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
        // One that has ended already needs no limit.
        let _ = rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, self.open_files);
        let host = Host {
            name: cradle.name,
            stdout_read: cradle.parked.stdout_read,
            stderr_read: cradle.parked.stderr_read,
            session: None,
            since: Instant::now(),
            cold: false,
            limits: SessionLimits::default(),
            group: None,
            cpu_ticks: 0,
            oom_kills: oom_kills(),
        };
        Ok(Spare {
            socket: cradle.mine,
            pid,
            host,
        })
    }
}

fn end_unreachable(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It is our child: it is there until we reap it.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// A process with more than one thread must not be forked.
pub(super) fn other_threads() -> Option<String> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    (threads > 1).then(|| {
        format!(
            "importing left {} threads running, and only a single thread can be forked",
            threads - 1
        )
    })
}
