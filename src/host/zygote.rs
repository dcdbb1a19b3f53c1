//! One zygote per environment: imports once, forks sessions, reaps them and
//! says how each ended. Single-threaded, outlives the daemon.

pub(crate) mod birth;
mod death;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_private_fs::PrivateDir;
use pythond_private_fs::cgroup::Group;
use pythond_protocol::lane::{
    Hello, LINK_VERSION, LIVING, Message, ZygoteCommand, ZygoteEvent, ZygoteHost, ZygoteInfo,
};
use pythond_protocol::limits::SessionLimits;
use pythond_protocol::names::{SessionId, SessionName};
use pythond_protocol::verbs::new::PythonInfo;
use rustix::net::{SocketAddrUnix, SocketFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};

use self::birth::BACKLOG;
use crate::lane_socket::{LaneLost, LaneSocket};
use crate::namespace::Namespace;
use crate::start::{self, Launch};
use crate::{helpers, sys};

/// End of the name of the socket of a process that is no session yet.
const PARKED: &str = "parked";
/// Processes that wait to become sessions.
const SPARES: usize = 3;
/// How long after the last request new spares are made.
const QUIET: Duration = Duration::from_millis(5);
/// How often one without a daemon looks whether its socket is still there.
const LOOK_FOR_SOCKET: Duration = Duration::from_secs(5);
/// A zygote without hosts and without a daemon ends after this.
const ALONE: Duration = Duration::from_secs(60);

/// Serves until nobody needs it.
pub(crate) fn main(py: Python<'_>, launch: Launch, listener: OwnedFd) -> PyResult<()> {
    sys::name_process("pythond-zygote");
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
        open_files: raise_open_files(),
        cannot_fork: birth::other_threads().or_else(|| launch.cold.clone()),
        launch,
        python,
        path_times,
        directory,
        listener: Some(listener),
        connections: Vec::new(),
        spares: VecDeque::new(),
        dying: Vec::new(),
        hosts: HashMap::new(),
        empty_groups: Vec::new(),
        ended: VecDeque::new(),
        written: VecDeque::new(),
        failure,
        namespace,
        retired: false,
        finished: false,
        next_name: 0,
        unlike_others: unlike_others(),
        stillborn: 0,
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

fn unlike_others() -> u32 {
    let mut random = [0; 4];
    // Without it the process id alone has to do.
    let _ = getrandom::fill(&mut random);
    u32::from_ne_bytes(random)
}

/// Raises the limit of open files, of which each host takes two here; gives back
/// the one before, for the hosts.
fn raise_open_files() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // Where that is refused there is room for fewer hosts.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    before
}

#[derive(Debug)]
struct Zygote {
    /// The limit of open files that hosts have.
    open_files: Rlimit,
    launch: Launch,
    python: PythonInfo,
    path_times: Py<PyAny>,
    directory: PrivateDir,
    listener: Option<OwnedFd>,
    connections: Vec<Connection>,
    spares: VecDeque<Spare>,
    /// Spares that have died and are not reaped yet.
    dying: Vec<Spare>,
    hosts: HashMap<i32, Host>,
    /// Groups of sessions that are gone, until nothing is left in them.
    empty_groups: Vec<Group>,
    /// Ends of hosts that could not be written down.
    ended: VecDeque<(ZygoteEvent, Vec<u8>)>,
    /// Names of those that were: a daemon that looked before does not know it.
    written: VecDeque<String>,
    cannot_fork: Option<String>,
    /// What every session begins with.
    namespace: Option<Namespace>,
    /// Why the environment cannot serve, told to whoever connects.
    failure: Option<String>,
    retired: bool,
    finished: bool,
    next_name: u32,
    /// In the names of its hosts' files.
    unlike_others: u32,
    /// Spares in a row that died before they came up.
    stillborn: u32,
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
    /// When it became that session, or was made.
    since: Instant,
    /// It was not forked.
    cold: bool,
    limits: SessionLimits,
    /// Its control group, if it needs one.
    group: Option<Group>,
    /// Processor time that it had used when it was dead, in hundredths of a
    /// second.
    cpu_ticks: u64,
    oom_kills: u64,
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
        } else if self.connections.is_empty() {
            LOOK_FOR_SOCKET
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
        if self.connections.is_empty() {
            // No daemon would tell that the socket is gone.
            self.listen_again();
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
        for spare in std::mem::take(&mut self.spares) {
            if let Some(pid) = Pid::from_raw(spare.pid) {
                // It holds nothing, and may be about to make its files. Whoever
                // waits for our end finds none of either.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            }
            self.remove_files(&spare.host.name);
        }
        self.finished = true;
    }

    fn remove_files(&self, name: &str) {
        for suffix in [PARKED, "sock", "journal", LIVING] {
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

    /// Makes the runtime directory again if somebody removed it.
    fn restore_directory(&mut self) {
        // Where it cannot be made, whatever is done in it says why.
        if matches!(self.directory.restore(), Ok(true)) {
            // Spares listen where nobody finds them; they end with their sockets.
            self.spares.clear();
        }
    }

    /// The next daemon is to find the socket, also if somebody has removed it.
    fn listen_again(&mut self) {
        let name = self.listener.as_ref().and_then(|listener| {
            let address = SocketAddrUnix::try_from(rustix::net::getsockname(listener).ok()?);
            let path = address.ok()?.path()?.to_string_lossy().into_owned();
            path.rsplit('/').next().map(str::to_owned)
        });
        let Some(name) = name else { return };
        self.restore_directory();
        // Where that cannot be, nobody could have reached it before.
        if let Ok(Some(listener)) = self.directory.bind_socket_again(&name, BACKLOG) {
            self.listener = Some(listener);
        }
    }

    fn serve_connections(&mut self, py: Python<'_>, ready: &[bool]) {
        // By index, from the last: whoever is forked meanwhile finds all
        // connections in one place and lets go of them.
        for index in (0..self.connections.len()).rev() {
            let is_ready = ready.get(index).copied().unwrap_or(false);
            if is_ready && self.serve_connection(py, index).is_err() {
                self.connections.remove(index);
                self.listen_again();
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
        // Those that are still there: no daemon took the word away.
        let words: Vec<_> = self.written_ends().collect();
        let lane = &mut self.connections[index].lane;
        for end in words {
            lane.send(&ZygoteEvent::Exited(Box::new(end)), b"")?;
        }
        Ok(true)
    }

    fn living_sessions(&self) -> Vec<ZygoteHost> {
        let sessions = self.hosts.iter().filter_map(|(pid, host)| {
            Some(ZygoteHost {
                pid: *pid,
                socket: format!("{}.sock", host.name),
                session: host.session.clone()?,
            })
        });
        sessions.collect()
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
            hosts: self.living_sessions(),
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
            ZygoteCommand::ListenAgain => {
                self.listen_again();
                None
            }
            ZygoteCommand::Retire => {
                self.retired = true;
                for spare in std::mem::take(&mut self.spares) {
                    self.remove_files(&spare.host.name);
                }
                None
            }
            ZygoteCommand::Shutdown => {
                for (pid, host) in &self.hosts {
                    self.remove_files(&host.name);
                    let Some(pid) = Pid::from_raw(*pid) else {
                        continue;
                    };
                    // The daemon has ended those that it knew: nobody reaches this one.
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
                self.leave();
                None
            }
        }
    }
}
