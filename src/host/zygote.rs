//! One zygote per environment: imports once, forks sessions, reaps them and
//! says how each ended. Single-threaded, outlives the daemon.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{
    Hello, LINK_VERSION, Message, SessionSpec, ZygoteCommand, ZygoteEvent, ZygoteInfo,
};
use pythond_protocol::names::{SessionId, SessionName};
use pythond_protocol::outcome::ProcessEnd;
use pythond_protocol::output_log::{self, Stream};
use pythond_protocol::verbs::new::{PythonInfo, StartKind};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use crate::assignment::{self, Assignment};
use crate::cell::Namespace;
use crate::journal::Journal;
use crate::lane_socket::{LaneLost, LaneSocket};
use crate::parked::{Parked, Ready};
use crate::start::{self, Launch};
use crate::sys::{self, Fork};
use crate::{helpers, session, streams};

/// End of the name of the socket of a process that is no session yet.
const PARKED: &str = "parked";
/// Processes that wait to become sessions.
const SPARES: usize = 3;
/// How long after the last request new spares are made.
const QUIET: Duration = Duration::from_millis(5);
/// A zygote without hosts and without a daemon ends after this.
const ALONE: Duration = Duration::from_secs(60);
/// Ends of hosts that a new daemon is told of.
const REMEMBERED_ENDS: usize = 256;
/// Most bytes of a dead host's standard error that are told.
const LAST_STDERR: usize = 4096;
/// Backlog of a host's socket: both lanes of a daemon and of its successor.
const BACKLOG: i32 = 8;

/// Serves until nobody needs it.
pub(crate) fn main(py: Python<'_>, launch: Launch, listener: OwnedFd) -> PyResult<()> {
    // It cannot fail: a process that was just executed leads no group.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(std::io::Error::from)?;
    let directory =
        PrivateDir::open(PathBuf::from(&launch.runtime_dir)).map_err(std::io::Error::other)?;
    let (namespace, failure) = match start::prepare(py, &launch.preload) {
        Ok(namespace) => (Some(namespace), None),
        Err(error) => (None, Some(error.value(py).to_string())),
    };
    let python = python_info(py)?;
    let path_times = helpers::load(py)?
        .session
        .bind(py)
        .call_method0("path_times")?
        .unbind();
    sys::handle_by_nothing(Signal::CHILD.as_raw())?;
    sys::block_signal(Signal::CHILD.as_raw());
    sys::ignore(Signal::HUP.as_raw());
    sys::handle_by_default(Signal::INT.as_raw());
    let mut zygote = Zygote {
        cannot_fork: other_threads(),
        launch,
        python,
        path_times,
        directory,
        listener: Some(listener),
        connections: Vec::new(),
        spares: VecDeque::new(),
        hosts: HashMap::new(),
        ended: VecDeque::new(),
        failure,
        namespace,
        retired: false,
        finished: false,
        next_name: 0,
        last_request: Instant::now(),
        last_company: Instant::now(),
    };
    while !zygote.finished {
        zygote.turn(py)?;
    }
    Ok(())
}

fn python_info(py: Python<'_>) -> PyResult<PythonInfo> {
    let sys = py.import("sys")?;
    let version: (u8, u8, u8) = sys
        .getattr("version_info")?
        .get_item(pyo3::types::PySlice::new(py, 0, 3, 1))?
        .extract()?;
    Ok(PythonInfo {
        executable: sys.getattr("executable")?.extract()?,
        version: format!("{}.{}.{}", version.0, version.1, version.2),
        reason: String::new(),
    })
}

/// A process with more than one thread must not be forked.
fn other_threads() -> Option<String> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    (threads > 1).then(|| {
        format!(
            "importing left {} threads running, and only a single thread can be forked",
            threads - 1
        )
    })
}

#[derive(Debug)]
struct Zygote {
    launch: Launch,
    python: PythonInfo,
    path_times: Py<PyAny>,
    directory: PrivateDir,
    listener: Option<OwnedFd>,
    connections: Vec<Connection>,
    spares: VecDeque<Spare>,
    hosts: HashMap<i32, Host>,
    ended: VecDeque<(ZygoteEvent, Vec<u8>)>,
    cannot_fork: Option<String>,
    /// What every session begins with.
    namespace: Option<Namespace>,
    /// Why the environment cannot serve, told to whoever connects.
    failure: Option<String>,
    retired: bool,
    finished: bool,
    next_name: u32,
    last_request: Instant,
    last_company: Instant,
}

#[derive(Debug)]
struct Connection {
    lane: LaneSocket,
    greeted: bool,
}

/// A forked process that waits for its assignment.
#[derive(Debug)]
struct Spare {
    socket: OwnedFd,
    pid: i32,
    host: Host,
}

#[derive(Debug)]
struct Host {
    name: String,
    /// What is left in these pipes when the host is dead are its last words.
    stdout_read: OwnedFd,
    stderr_read: OwnedFd,
    session: Option<(SessionName, SessionId, u64)>,
    oom_kills: u64,
}

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
    fn turn(&mut self, py: Python<'_>) -> PyResult<()> {
        let mut set: Vec<libc::pollfd> = self
            .listener
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain(
                self.connections
                    .iter()
                    .map(|connection| connection.lane.as_fd().as_raw_fd()),
            )
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        for (entry, connection) in set.iter_mut().skip(1).zip(&self.connections) {
            if connection.lane.wants_to_write() {
                entry.events |= libc::POLLOUT;
            }
        }
        let wait = if self.wants_spares() {
            QUIET
        } else {
            ALONE / 4
        };
        let child = Signal::CHILD.as_raw();
        // Interrupted by a child's end, timed out or ready: it shows below.
        let _ = sys::wait_with_signal(&mut set, Some(wait), child);
        self.reap();
        let ready: Vec<bool> = set.iter().map(|entry| entry.revents != 0).collect();
        self.serve_connections(py, ready.get(1..).unwrap_or_default());
        if ready.first() == Some(&true) {
            self.accept();
        }
        if self.wants_spares() && self.last_request.elapsed() >= QUIET {
            self.make_spare(py);
        }
        self.leave_if_alone();
        Ok(())
    }

    fn wants_spares(&self) -> bool {
        self.cannot_fork.is_none()
            && self.failure.is_none()
            && !self.retired
            && !self.finished
            && self.spares.len() < SPARES
            && self.connections.iter().any(|connection| connection.greeted)
    }

    fn leave_if_alone(&mut self) {
        if !self.connections.is_empty() || !self.hosts.is_empty() {
            self.last_company = Instant::now();
        }
        let alone = self.last_company.elapsed() >= ALONE;
        let done = self.retired && self.hosts.is_empty();
        let told = self.failure.is_some() && self.connections.is_empty() && alone;
        if alone || done || told {
            self.leave();
        }
    }

    fn leave(&mut self) {
        // Spares see the end of their sockets and end too.
        for spare in std::mem::take(&mut self.spares) {
            self.remove_files(&spare.host.name);
        }
        self.finished = true;
    }

    fn remove_files(&self, name: &str) {
        for suffix in [PARKED, "sock", "journal"] {
            // Nothing is lost if it is gone already.
            let _ = self.directory.remove(&format!("{name}.{suffix}"));
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else {
            return;
        };
        let mine = rustix::process::geteuid().as_raw();
        if pythond_private_fs::peer_credentials(&socket).is_ok_and(|peer| peer.uid == mine) {
            self.connections.push(Connection {
                lane: LaneSocket::new(socket),
                greeted: false,
            });
        }
    }

    fn serve_connections(&mut self, py: Python<'_>, ready: &[bool]) {
        // By index, from the last: whoever is forked meanwhile finds all
        // connections in one place and lets go of them.
        for index in (0..self.connections.len()).rev() {
            let is_ready = ready.get(index).copied().unwrap_or(false);
            if is_ready && self.serve_connection(py, index).is_err() {
                self.connections.remove(index);
            }
        }
    }

    fn serve_connection(&mut self, py: Python<'_>, index: usize) -> Result<(), LaneLost> {
        let connection = &mut self.connections[index];
        connection.lane.flush()?;
        connection.lane.receive()?;
        if !connection.greeted && !self.greet(index)? {
            return Ok(());
        }
        while let Some(message) = self.connections[index].lane.next::<ZygoteCommand>()? {
            if let Some(event) = self.obey(py, message.header) {
                self.connections[index].lane.send(&event, b"")?;
            }
        }
        Ok(())
    }

    /// Answers a daemon's first message. False if it is not whole yet, or if
    /// there is nothing more to say.
    fn greet(&mut self, index: usize) -> Result<bool, LaneLost> {
        let Some(Message { header: hello, .. }) = self.connections[index].lane.next::<Hello>()?
        else {
            return Ok(false);
        };
        let info = self.info();
        let connection = &mut self.connections[index];
        connection.lane.set_tag(hello.tag);
        connection.greeted = true;
        if let Some(error) = self.failure.clone() {
            connection.lane.send(&ZygoteEvent::Failed { error }, b"")?;
            self.finished = true;
            return Ok(false);
        }
        connection
            .lane
            .send(&ZygoteEvent::Welcome(Box::new(info)), b"")?;
        for (event, log) in self.ended.drain(..) {
            connection.lane.send(&event, &log)?;
        }
        Ok(true)
    }

    fn info(&self) -> ZygoteInfo {
        ZygoteInfo {
            version: LINK_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            key: self.launch.key.clone(),
            executable: self.python.executable.clone(),
            python_version: self.python.version.clone(),
            preload: self.launch.preload.clone(),
            cannot_fork: self.cannot_fork.clone(),
        }
    }

    fn obey(&mut self, py: Python<'_>, command: ZygoteCommand) -> Option<ZygoteEvent> {
        match command {
            ZygoteCommand::Spawn { request, spec } => Some(match self.spawn(py, *spec) {
                Ok((pid, name)) => ZygoteEvent::Spawned {
                    request,
                    pid,
                    socket: format!("{name}.sock"),
                },
                Err(error) => ZygoteEvent::SpawnFailed {
                    request,
                    error: error.to_string(),
                },
            }),
            ZygoteCommand::CheckFresh { request } => {
                let now = helpers::get(py).session.bind(py).call_method0("path_times");
                let fresh = now
                    .and_then(|now| now.eq(&self.path_times))
                    .unwrap_or(false);
                Some(ZygoteEvent::Fresh { request, fresh })
            }
            ZygoteCommand::Retire => {
                self.retired = true;
                for spare in std::mem::take(&mut self.spares) {
                    self.remove_files(&spare.host.name);
                }
                None
            }
            ZygoteCommand::Shutdown => {
                self.leave();
                None
            }
        }
    }

    /// Makes a host; returns its process id and name.
    fn spawn(&mut self, py: Python<'_>, spec: SessionSpec) -> std::io::Result<(i32, String)> {
        self.last_request = Instant::now();
        let (spare, start) = if let Some(spare) = self.spares.pop_front() {
            (spare, StartKind::Spare)
        } else {
            // A library may have started a thread since.
            self.cannot_fork = self.cannot_fork.take().or_else(other_threads);
            match self.cannot_fork.clone() {
                None => (self.fork_spare(py)?, StartKind::Fork),
                Some(_) => (self.start_cold()?, StartKind::Cold),
            }
        };
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
        let mut python = self.python.clone();
        python.reason.clone_from(&spec.python_reason);
        let assignment = Assignment {
            spec,
            python,
            start,
            cold_reason: self
                .cannot_fork
                .clone()
                .filter(|_| start == StartKind::Cold),
            zygote_pid: rustix::process::getpid().as_raw_nonzero().get(),
            runtime_dir: self.launch.runtime_dir.clone(),
            name: host.name.clone(),
        };
        let name = host.name.clone();
        // From now on a daemon that looks around finds a session there.
        let sent = self
            .directory
            .rename(&format!("{name}.{PARKED}"), &format!("{name}.sock"))
            .map_err(std::io::Error::other)
            .and_then(|()| assignment::send(&socket, &assignment));
        self.hosts.insert(pid, host);
        sent.map(|()| (pid, name))
    }

    fn make_spare(&mut self, py: Python<'_>) {
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
        let name = format!(
            "h-{:x}-{:x}",
            rustix::process::getpid().as_raw_nonzero(),
            self.next_name
        );
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
        let assignment = assignment::receive(&theirs);
        drop(theirs);
        match assignment {
            Some(assignment) => session::serve(py, ready, assignment),
            None => sys::exit_now(0),
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
        let host = Host {
            name: cradle.name,
            stdout_read: cradle.parked.stdout_read,
            stderr_read: cradle.parked.stderr_read,
            session: None,
            oom_kills: oom_kills(),
        };
        Ok(Spare {
            socket: cradle.mine,
            pid,
            host,
        })
    }

    /// The next child that has ended. What it left in its process group is
    /// ended first: until the child is reaped, the group's number is its own.
    fn next_dead(&self) -> Option<(Pid, WaitStatus)> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::All, look).ok().flatten()?;
        let dead: Vec<i32> = self
            .hosts
            .keys()
            .copied()
            .filter(|pid| has_ended(*pid))
            .collect();
        for pid in dead.into_iter().filter_map(Pid::from_raw) {
            // Nobody is left in most groups.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        rustix::process::wait(WaitOptions::NOHANG).ok().flatten()
    }

    /// Takes in every child that has ended, ours and those we inherited.
    fn reap(&mut self) {
        while let Some((pid, status)) = self.next_dead() {
            let pid = pid.as_raw_nonzero().get();
            if let Some(at) = self.spares.iter().position(|spare| spare.pid == pid) {
                if let Some(spare) = self.spares.remove(at) {
                    self.remove_files(&spare.host.name);
                }
                continue;
            }
            let Some(host) = self.hosts.remove(&pid) else {
                continue;
            };
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => ProcessEnd::Exited { status },
                (None, Some(signal)) => ProcessEnd::Signaled {
                    signal,
                    out_of_memory: signal == Signal::KILL.as_raw() && oom_kills() > host.oom_kills,
                },
                (None, None) => ProcessEnd::Unknown,
            };
            self.report(pid, host, end);
        }
    }

    fn report(&mut self, pid: i32, host: Host, end: ProcessEnd) {
        let journal = Journal::open(&self.directory, &format!("{}.journal", host.name)).ok();
        let mut last = journal
            .as_ref()
            .map(Journal::last_stderr)
            .unwrap_or_default();
        let (mut log, log_lost) = journal
            .as_ref()
            .map(Journal::last_output)
            .unwrap_or_default();
        output_log::append(&mut log, Stream::Stdout, &unread(&host.stdout_read));
        let unread_stderr = unread(&host.stderr_read);
        output_log::append(&mut log, Stream::Stderr, &unread_stderr);
        last.extend(unread_stderr);
        let last = &last[last.len().saturating_sub(LAST_STDERR)..];
        let cell: Option<CellId> = journal.as_ref().and_then(Journal::running);
        let event = ZygoteEvent::Exited {
            pid,
            socket: format!("{}.sock", host.name),
            end,
            last_stderr: String::from_utf8_lossy(last).into_owned(),
            cell,
            session: host.session,
            log_lost,
        };
        self.remove_files(&host.name);
        let mut told = false;
        for connection in &mut self.connections {
            told |= connection.greeted && connection.lane.send(&event, &log).is_ok();
        }
        // Only what nobody heard is kept for the next daemon: what one has
        // heard it may have forgotten on purpose.
        if !told {
            self.ended.push_back((event, log));
        }
        if self.ended.len() > REMEMBERED_ENDS {
            self.ended.pop_front();
        }
    }
}

/// True if this child has ended and is not reaped yet.
fn has_ended(pid: i32) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Pid::from_raw(pid)
        .is_some_and(|pid| matches!(rustix::process::waitid(WaitId::Pid(pid), look), Ok(Some(_))))
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
fn oom_kills() -> u64 {
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
