//! The daemon: single instance, start, ordered stop. Owns all tasks.

mod claim;
mod ending;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pythond_private_fs::cgroup::Delegated;
use pythond_private_fs::{PrivateDir, PrivateFsError, remove_socket_at};
use pythond_protocol::ExitCode;
use pythond_protocol::verbs::stop::StopRequest;
use pythond_tls::server::KeysError;
use rustix::process::{Resource, Rlimit};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::claim::{Claim, claim};
use self::ending::{Signals, leave, stop};
use crate::admission;
use crate::adoption::Adoption;
use crate::config::Config;
use crate::error::chain;
use crate::events::EventLog;
use crate::exits::{Exits, HostExit};
use crate::guard;
use crate::handlers::Context;
use crate::handover;
use crate::hosts::Hosts;
use crate::listener::{Entrance, Listeners, NetworkListener, UnixListener};
use crate::log::Log;
use crate::log_file::LogFile;
use crate::network::listen::ListenError;
use crate::network::{self, Network};
use crate::registry::Registry;
use crate::remote::Remotes;
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

/// Where a detached daemon's words go.
#[must_use]
pub fn detached_log(config: &Config) -> PathBuf {
    config.runtime_dir.join(DETACHED_LOG)
}
