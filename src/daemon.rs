//! The daemon: single instance, start, ordered stop. Owns all tasks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pythond_private_fs::cgroup::Delegated;
use pythond_private_fs::{
    LockGuard, LockOutcome, PrivateDir, PrivateFsError, bind_at, connect_at_nonblocking,
    peer_credentials, remove_socket_at,
};
use pythond_protocol::ExitCode;
use pythond_protocol::verbs::stop::StopRequest;
use pythond_tls::server::{KeysError, ServerKeys};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission;
use crate::adoption::Adoption;
use crate::config::Config;
use crate::error::chain;
use crate::events::EventLog;
use crate::exits::{Exits, HostExit};
use crate::guard;
use crate::handlers::{Context, GRACE};
use crate::handover;
use crate::host_process::HostProcess;
use crate::hosts::Hosts;
use crate::listener::{BACKLOG, Entrance, Listeners, NetworkListener, UnixListener};
use crate::log::Log;
use crate::log_file::LogFile;
use crate::network::listen::{ListenError, Listening, listen, take_over};
use crate::network::{self, Network, keys};
use crate::registry::Registry;
use crate::remote::Remotes;
use crate::session::EndReason;
use crate::supervisor;
use crate::tombstones;
use crate::zygotes::{HostProgram, Zygotes};

/// Name of the lock in the runtime directory.
pub(crate) const LOCK: &str = "daemon.lock";
/// What a detached daemon says, in the runtime directory.
pub(crate) const DETACHED_LOG: &str = "daemon.log";
/// Open files that two lanes for each session and all connections need.
const OPEN_FILES: u64 = 16_384;
/// How long clients are not even heard while hosts are taken over that an earlier
/// daemon left. Later each waits for the session that it wants.
const ADOPT_FIRST: Duration = Duration::from_millis(50);
/// How long connections may take to say goodbye when everything has ended.
const GOODBYE: Duration = Duration::from_millis(300);
/// The same when all that clients wait for goes on: they ask the next daemon.
const SHORT_GOODBYE: Duration = Duration::from_millis(50);
/// How long sessions that are being made may take before the daemon leaves them
/// to the next one.
const LAST_BIRTHS: Duration = Duration::from_secs(2);
/// How long another start may have the lock that a restart let go for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon has the lock, or answers on the socket.
    #[error("a daemon is running already{}; stop it with `pyctl stop`", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Running {
        /// Its process id, if it is known.
        pid: Option<i32>,
    },
    /// The socket or the runtime directory cannot be used.
    #[error(transparent)]
    Files(#[from] PrivateFsError),
    /// Other machines could not reach us.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What says who may come in cannot be used.
    #[error("cannot listen for other machines{}", .source.hint().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Keys {
        /// What is wrong with it.
        #[from]
        source: KeysError,
    },
    /// The system refuses something that we cannot do without.
    #[error("cannot {action}")]
    System {
        /// What.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl DaemonError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Refused
    }

    fn system(action: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// Serves until it is told to stop.
///
/// # Errors
/// [`DaemonError`] if it cannot begin.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let Claim {
        dir,
        mut lock,
        socket,
        activated,
        network: listening,
        keys,
        trouble,
    } = claim(&config)?;
    let open_files = raise_open_files();
    let log = open_log(&config, &dir)?;
    if let Some(trouble) = trouble {
        log.note(&format!(
            "WARN: {trouble}; what was listened on is as it was"
        ));
    }
    let mut signals = Signals::new()?;
    let (orphans_in, orphans) = mpsc::unbounded_channel();
    let entrance = Entrance::new(config.limits, log.clone());
    let place = (!activated).then(|| config.socket.path.clone());
    let failed = DaemonError::system("listen");
    let unix = UnixListener::new(socket, place, Arc::clone(&entrance)).map_err(&failed)?;
    let mut listeners = Listeners {
        unix,
        network: Vec::new(),
        entrance,
    };
    let network = keys.map(|read| Network::new(config.home.clone(), read, log.clone()));
    if let Some(network) = &network {
        for listening in listening {
            let (network, entrance) = (Arc::clone(network), Arc::clone(&listeners.entrance));
            let listener = NetworkListener::new(listening, config.listen.tls, network, entrance);
            listeners.network.push(listener.map_err(&failed)?);
        }
    }
    let context = context(
        &config,
        dir,
        log.clone(),
        Arc::new(Exits::new(orphans_in)),
        open_files,
        (network, &listeners),
    );
    announce(&config, &context, &listeners)?;
    let background = context.hosts.tracker.clone();
    background.spawn(bury_orphans(Arc::clone(&context), orphans));
    context.remotes.adopt();
    adopt(&context).await;
    context.hosts.sweep();
    if let Ok(groups) = &context.groups {
        groups.sweep();
    }
    background.spawn(warm_default(Arc::clone(&context)));
    let connections = TaskTracker::new();
    supervisor::tell_ready();
    tokio::select! {
        () = listeners.run(&context, &connections) => {}
        () = guard::guard(&context, &listeners.unix, &mut lock) => {}
        () = signals.next() => {}
    }
    let end = match context.leaving.get() {
        Some(how) => *how,
        None => StopRequest::EndSessions,
    };
    match end {
        StopRequest::EndSessions => {
            supervisor::tell_stopping();
            stop(&context, listeners, &connections, signals).await;
            log.note("pythond stopped");
        }
        StopRequest::KeepSessions => {
            supervisor::tell_stopping();
            leave(&context, &connections).await;
            drop(listeners);
            log.note("pythond stopped; its sessions go on");
        }
        StopRequest::Restart => {
            supervisor::tell_reloading();
            leave(&context, &connections).await;
            log.note("pythond restarts");
            log.flush();
            let failed = DaemonError::system("hand over to the next daemon");
            let sockets = listeners.into_sockets().map_err(&failed)?;
            return Err(failed(handover::become_next(&config, activated, sockets)));
        }
    }
    if !activated && let Err(error) = remove_socket_at(&config.socket.path) {
        log.note(&format!("WARN: {}", chain(&error)));
    }
    log.flush();
    Ok(())
}

/// Says that we are there, and to whom. A token is for whoever asked for it.
fn announce(config: &Config, context: &Context, listeners: &Listeners) -> Result<(), DaemonError> {
    let log = &context.hosts.log;
    log.note(&format!(
        "pythond pid={} ws://{}",
        std::process::id(),
        config.socket.path.display()
    ));
    for listener in &listeners.network {
        log.note(&format!("listening for other machines: {}", listener.url()));
    }
    if config.listen.show_token && !config.detached && !config.inherit {
        network::print_secrets(&config.home)?;
    }
    Ok(())
}

/// Lets go of the sessions as they are. Whoever waits for a cell asks the next
/// daemon for it.
async fn leave(context: &Arc<Context>, connections: &TaskTracker) {
    context.stop.cancel();
    let births = async {
        while context.registry.has_reservations() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // The next daemon takes over what comes later.
    let _ = tokio::time::timeout(LAST_BIRTHS, births).await;
    connections.close();
    let _ = tokio::time::timeout(SHORT_GOODBYE, connections.wait()).await;
}

/// What one daemon has and no other.
struct Claim {
    dir: Arc<PrivateDir>,
    lock: LockGuard,
    socket: OwnedFd,
    /// A service manager made the socket.
    activated: bool,
    /// Sockets that other machines can reach.
    network: Vec<Listening>,
    /// What says who may come in there, if anybody may.
    keys: Option<Result<ServerKeys, KeysError>>,
    /// Why not all is listened on that should be.
    trouble: Option<String>,
}

/// Takes the lock and the socket, or says who has them.
fn claim(config: &Config) -> Result<Claim, DaemonError> {
    if !config.socket_dir().exists() {
        PrivateDir::open_or_create(config.socket_dir())?;
    }
    let dir = Arc::new(PrivateDir::open_or_create(&config.runtime_dir)?);
    let patience = if config.inherit {
        LOCK_PATIENCE
    } else {
        Duration::ZERO
    };
    let lock = lock(&dir, patience)?;
    let path = &config.socket.path;
    if config.inherit {
        let failed = DaemonError::system("take over the socket in our standard input");
        let (socket, inherited) = handover::inherited_sockets(path).map_err(failed)?;
        let failed = DaemonError::system("take over the sockets that others can reach");
        let (network, error) = take_over(&config.listen.listen, inherited).map_err(failed)?;
        return Ok(Claim {
            dir,
            lock,
            socket,
            activated: config.activated,
            // Sessions wait for us: what cannot be read lets nobody in until it can.
            keys: (!network.is_empty()).then(|| keys::read_again(&config.home)),
            network,
            trouble: error.map(|error| chain(&error)),
        });
    }
    let failed = DaemonError::system("take the socket of the service manager");
    let network = listen(&config.listen.listen, Vec::new())?;
    // Before anybody can connect: whoever waits for our socket takes it for a start
    // that went well.
    let keys = match network.is_empty() {
        true => None,
        false => Some(Ok(keys::read(&config.home)?)),
    };
    let trouble = None;
    if let Some(socket) = supervisor::socket_for(path, BACKLOG).map_err(failed)? {
        let activated = true;
        return Ok(Claim {
            dir,
            lock,
            socket,
            activated,
            network,
            keys,
            trouble,
        });
    }
    match connect_at_nonblocking(path) {
        // Somebody without our lock answers: an older daemon.
        Ok(stream) => {
            let pid = peer_credentials(&stream).ok().map(|peer| peer.pid);
            return Err(DaemonError::Running { pid });
        }
        // Its queue is full.
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::WouldBlock) => {
            return Err(DaemonError::Running { pid: None });
        }
        Err(error) if error.is_refused() => remove_socket_at(path)?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let socket = bind_at(path, BACKLOG)?;
    let activated = false;
    Ok(Claim {
        dir,
        lock,
        socket,
        activated,
        network,
        keys,
        trouble,
    })
}

fn lock(dir: &PrivateDir, patience: Duration) -> Result<LockGuard, DaemonError> {
    let deadline = Instant::now() + patience;
    loop {
        match dir.lock(LOCK)? {
            LockOutcome::Acquired(lock) => return Ok(lock),
            LockOutcome::Held { pid } if Instant::now() >= deadline => {
                return Err(DaemonError::Running { pid });
            }
            LockOutcome::Held { .. } => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn open_log(config: &Config, dir: &Arc<PrivateDir>) -> Result<Log, DaemonError> {
    let failed = "start the log's thread";
    let most = config.limits.log;
    // Where a detached daemon's standard error is a file of ours, a panic is to
    // be found in the newest one too.
    let stays_standard_error = |file: &File| {
        let _ = rustix::stdio::dup2_stderr(file);
    };
    let words = config
        .detached
        .then(|| LogFile::open(Arc::clone(dir), DETACHED_LOG, most, stays_standard_error).ok());
    let log = Log::to_stderr(words.flatten()).map_err(DaemonError::system(failed))?;
    match LogFile::open(Arc::clone(dir), "access.log", most, |_| {}) {
        // A detached daemon's standard error is a file beside this one.
        Ok(file) => log
            .with_access(file, !config.detached)
            .map_err(DaemonError::system(failed)),
        Err(error) => {
            log.note(&format!("WARN: no access log: {}", chain(&error)));
            Ok(log)
        }
    }
}

/// Raises our limit of open files as far as we may; gives back the one before,
/// for our children.
fn raise_open_files() -> Option<Rlimit> {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let most = before.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    if before.current.is_none_or(|current| current >= most) {
        return None;
    }
    let raised = Rlimit {
        current: Some(most),
        maximum: before.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised)
        .ok()
        .map(|()| before)
}

fn context(
    config: &Config,
    dir: Arc<PrivateDir>,
    log: Log,
    exits: Arc<Exits>,
    open_files: Option<Rlimit>,
    (network, listeners): (Option<Arc<Network>>, &Listeners),
) -> Arc<Context> {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let mut boot = [0; 4];
    // Without randomness the pid still tells one daemon from the next.
    let boot = match getrandom::fill(&mut boot) {
        Ok(()) => u32::from_ne_bytes(boot),
        Err(_) => std::process::id(),
    };
    let zygotes = Zygotes::new(
        Arc::clone(&dir),
        HostProgram {
            open_files,
            ..host_program(&config.executable)
        },
        Arc::clone(&exits),
        log.clone(),
        tracker.clone(),
    );
    crate::remote::set_most_answer(config.limits.remote_answer);
    let events = EventLog::new(boot, config.limits.events);
    let remotes = Remotes::new(
        Arc::clone(&dir),
        config.home.clone(),
        events.boot().into(),
        log.clone(),
        tracker.clone(),
        stop.clone(),
    );
    Arc::new(Context {
        registry: Registry::new(config.limits.sessions.min(admission::most_sessions())),
        hosts: Hosts {
            dir,
            exits,
            zygotes,
            log,
            events,
            tracker,
            restored: Notify::new(),
        },
        variables: config.variables.clone(),
        search_path: config.search_path.clone(),
        cwd: config.cwd.clone(),
        new_replaces: config.new_replaces,
        // Before there are zygotes, which inherit the group.
        groups: Delegated::take(),
        limits: config.limits,
        session_limits: config.session_limits,
        sessions_dir: config.sessions_dir.clone(),
        socket: config.socket.path.clone(),
        remotes,
        endpoints: listeners
            .network
            .iter()
            .map(NetworkListener::endpoint)
            .collect(),
        network,
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        started: Instant::now(),
        adoption: Adoption::new(),
        executable: config.executable.clone(),
        leaving: OnceLock::new(),
        stop,
        hurry: CancellationToken::new(),
    })
}

/// The host program stands beside ours; its library beside it or, once
/// installed, in the `lib` directory of the same prefix.
fn host_program(executable: &Path) -> HostProgram {
    const LIBRARY: &str = "libpythond_host.so";
    let beside = executable.parent().unwrap_or(Path::new("/"));
    let places = [
        beside.join(LIBRARY),
        beside.join("../lib/pythond").join(LIBRARY),
        beside.join("../lib").join(LIBRARY),
    ];
    let library = places
        .iter()
        .find(|path| path.exists())
        .unwrap_or(&places[0]);
    HostProgram {
        launcher: beside.join("pythond-host"),
        library: library.clone(),
        open_files: None,
    }
}

/// Takes over what an earlier daemon left. Whoever answers at once is there
/// before the first client, who waits a little for the others.
async fn adopt(context: &Arc<Context>) {
    for end in tombstones::read(&context.hosts.dir, &context.hosts.log) {
        if let Some(session) = crate::session::bury(&end, &context.hosts.dir) {
            context.registry.adopt(session);
        }
    }
    let (zygotes, sessions) = context.hosts.left_behind();
    let zygotes = zygotes.into_iter().map(|socket| {
        let context = Arc::clone(context);
        context.hosts.tracker.clone().spawn(async move {
            context.hosts.zygotes.adopt(&socket).await;
        })
    });
    let zygotes: Vec<_> = zygotes.collect();
    context.adoption.begin(sessions.len());
    let sessions = sessions.into_iter().map(|socket| {
        let context = Arc::clone(context);
        context.hosts.tracker.clone().spawn(async move {
            let free = |name: &pythond_protocol::SessionName| context.registry.is_free(name);
            let is_listed = AtomicBool::new(false);
            let unreached = |stand_in: &crate::session::SessionHandle| {
                context.registry.adopt(stand_in.clone());
                is_listed.store(true, SeqCst);
                context.adoption.one_done(Some(stand_in.name()));
            };
            let found = tokio::select! {
                () = context.stop.cancelled() => None,
                found = context.hosts.adopt(&socket, free, unreached) => found,
            };
            let name = found.map(|session| {
                let name = session.name().clone();
                context.registry.adopt(session);
                name
            });
            if !is_listed.load(SeqCst) {
                context.adoption.one_done(name.as_ref());
            }
        })
    });
    let sessions: Vec<_> = sessions.collect();
    // What zygotes tell of dead sessions is known before the first client too.
    let all = futures_util::future::join_all(zygotes.into_iter().chain(sessions));
    let _ = tokio::time::timeout(ADOPT_FIRST, all).await;
}

/// Starts the environment that most sessions want before anybody asks.
async fn warm_default(context: Arc<Context>) {
    let warmed = match crate::handlers::default_environment(&context) {
        Ok(environment) => context.hosts.zygotes.get(&environment).await.map(drop),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = warmed {
        context
            .hosts
            .log
            .note(&format!("WARN: the default environment: {}", chain(&error)));
    }
}

/// Sessions that died while no daemon looked get their tombstones.
async fn bury_orphans(context: Arc<Context>, mut orphans: mpsc::UnboundedReceiver<HostExit>) {
    loop {
        let exit = tokio::select! {
            () = context.stop.cancelled() => return,
            exit = orphans.recv() => exit,
        };
        let Some(exit) = exit else { return };
        if !exit.end.ordered
            && let Some(session) = crate::session::bury(&exit.end, &context.hosts.dir)
        {
            context.registry.adopt(session);
        }
    }
}

/// The one place where the order of the end is written.
async fn stop(
    context: &Arc<Context>,
    listeners: Listeners,
    connections: &TaskTracker,
    mut signals: Signals,
) {
    context.stop.cancel();
    context.hosts.zygotes.refuse();
    context.registry.close();
    drop(listeners);
    let orderly = async {
        let ends =
            context
                .registry
                .all()
                .into_iter()
                .map(|session| async move {
                    session.end(EndReason::Stopped, GRACE, &context.hurry).await
                });
        futures_util::future::join_all(ends).await;
        // Sessions that were being made when the stop came.
        while context.registry.has_reservations() && !context.hurry.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = context
            .registry
            .all()
            .into_iter()
            .filter(|session| !session.is_dead());
        let late = late.map(|session| async move {
            session
                .end(EndReason::Stopped, Duration::ZERO, &context.hurry)
                .await
        });
        futures_util::future::join_all(late).await;
    };
    let mut orderly = std::pin::pin!(tokio::time::timeout(Duration::from_secs(5), orderly));
    let mut asked_again = false;
    loop {
        tokio::select! {
            _ = &mut orderly => break,
            () = signals.next(), if !asked_again => {
                asked_again = true;
                context.hurry.cancel();
            }
        }
    }
    // Whatever became of the sessions: nothing would be left to end these.
    context.hosts.zygotes.shut_down(GRACE).await;
    end_children().await;
    context.remotes.forget_all();
    connections.close();
    // Whoever does not read our goodbye is cut off by our end.
    let _ = tokio::time::timeout(GOODBYE, connections.wait()).await;
    // Last, for spares end a moment after their zygote.
    context.hosts.sweep();
}

/// Ends what is left of our children: after a restart in place these are zygotes that
/// an earlier daemon in this process started, and that have not answered yet.
async fn end_children() {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ends = pids.filter(|pid| is_our_child(*pid)).map(|pid| async move {
        let process = HostProcess::of(pid);
        process.end(Duration::ZERO, &CancellationToken::new()).await
    });
    futures_util::future::join_all(ends).await;
}

/// By the fourth field of proc_pid_stat(5); the name before it may hold anything.
fn is_our_child(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let parent: Option<u32> = fields.nth(1).and_then(|parent| parent.parse().ok());
    parent == Some(std::process::id())
}

/// SIGTERM, SIGINT and SIGHUP's absence: a terminal that closes ends a
/// foreground daemon as it ends any program.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let catch = |kind| signal(kind).map_err(DaemonError::system("catch signals"));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where a detached daemon's words go.
#[must_use]
pub fn detached_log(config: &Config) -> PathBuf {
    config.runtime_dir.join(DETACHED_LOG)
}
