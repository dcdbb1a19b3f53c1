//! Sessions made and taken over: both connect to a host that listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use pythond_private_fs::PrivateDir;
use pythond_protocol::SessionName;
use pythond_protocol::lane::{HostCommand, HostEnd, HostInfo, LIVING, SessionSpec};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::error::{SpawnError, chain};
use crate::events::EventLog;
use crate::exits::Exits;
use crate::host_process::{self, HostProcess, Lanes};
use crate::lane_io::ConnectError;
use crate::litter;
use crate::log::Log;
use crate::session::{self, SessionHandle, Unreached};
use crate::tombstones;
use crate::zygotes::Zygotes;

/// Pause before a host that did not answer is asked again.
const ADOPT_PAUSE: Duration = Duration::from_millis(500);
/// How long a zygote may take to say how a host ended: less than clients wait for
/// sessions that are taken over.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a host may take to answer before it is listed without an answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What is needed to reach hosts.
pub(crate) struct Hosts {
    pub(crate) dir: Arc<PrivateDir>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) zygotes: Zygotes,
    pub(crate) log: Log,
    pub(crate) events: Arc<EventLog>,
    pub(crate) tracker: TaskTracker,
    /// The runtime directory was made again.
    pub(crate) restored: Notify,
}

impl Hosts {
    /// Makes a session.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub(crate) async fn create(
        &self,
        environment: &Environment,
        mut spec: SessionSpec,
    ) -> Result<SessionHandle, SpawnError> {
        let name = spec.session.clone();
        // Where it cannot be made, whatever is done in it says why.
        if matches!(self.dir.restore(), Ok(true)) {
            self.restored.notify_one();
        }
        let mut spawned = self.zygotes.spawn(environment, spec.clone()).await?;
        let mut connected = self.connect(&spawned.socket, |_| true).await;
        if connected.as_ref().is_err_and(died_at_once) {
            // It has run nothing. What kills a process that is forked need not
            // kill one that starts from nothing.
            let pid = spawned.pid;
            let why = format!("the process {pid} that was forked for it did not come up");
            end_unknown(pid).await;
            self.log.note(&format!("WARN: session {name}: {why}"));
            spec.must_start_cold = true;
            spec.cold_reason = Some(why);
            spawned = self.zygotes.spawn(environment, spec).await?;
            connected = self.connect(&spawned.socket, |_| true).await;
        }
        if matches!(connected, Err(_) | Ok(None)) {
            end_unknown(spawned.pid).await;
        }
        match connected {
            Ok(Some(handle)) if handle.process().pid() == spawned.pid => Ok(handle),
            Ok(_) => Err(SpawnError::Connect(ConnectError::Unexpected)),
            Err(ConnectError::NameInUse) => Err(SpawnError::NameInUse(name)),
            Err(ConnectError::Refused(why)) => Err(SpawnError::Limits(why)),
            Err(error) => Err(SpawnError::Connect(error)),
        }
    }

    /// Opens both lanes to whoever listens on a socket of the runtime directory
    /// and starts its task. None for a parked spare, and for a session that
    /// `wanted` does not want.
    ///
    /// # Errors
    /// [`ConnectError`].
    async fn connect(
        &self,
        socket: &str,
        wanted: impl FnOnce(&SessionName) -> bool,
    ) -> Result<Option<SessionHandle>, ConnectError> {
        let (control, info) = host_process::open_control(&self.dir, socket).await?;
        let HostInfo {
            pid,
            session: Some(hosted),
            name_in_use,
            refused,
            ..
        } = info
        else {
            return Ok(None);
        };
        if name_in_use {
            // It has run nothing, and nobody knows of it.
            let mut control = control;
            let _ = control.send(&HostCommand::Shutdown, b"");
            return Err(ConnectError::NameInUse);
        }
        if let Some(why) = refused {
            let mut control = control;
            let _ = control.send(&HostCommand::Shutdown, b"");
            return Err(ConnectError::Refused(why));
        }
        if !wanted(&hosted.spec.session) {
            return Ok(None);
        }
        // In this order: a welcome ends the use of the cell lane that is there.
        let cell = host_process::open_cell(&self.dir, socket).await?;
        tombstones::expect(&self.dir, &hosted, pid, socket);
        let exit = self.exits.watch(hosted.zygote_pid, socket);
        let link = session::Connected {
            lanes: Lanes { cell, control },
            hosted,
            socket: socket.to_owned(),
            exit,
            pid,
        };
        Ok(Some(session::start(
            link,
            Arc::clone(&self.dir),
            self.log.clone(),
            Arc::clone(&self.events),
            &self.tracker,
        )))
    }

    /// Takes over the session that listens on a socket, however long its host
    /// takes to answer; it may be stopped. `wanted` says whether its name is
    /// still free; `unreached` is told what stands in for it meanwhile.
    pub(crate) async fn adopt(
        &self,
        socket: &str,
        wanted: impl Fn(&SessionName) -> bool,
        unreached: impl Fn(&SessionHandle),
    ) -> Option<SessionHandle> {
        let mut told = false;
        let began = Instant::now();
        let mut stand_in: Option<Unreached> = None;
        let stands_in = AtomicBool::new(false);
        let let_stand_in = |stand_in: &mut Option<Unreached>| {
            if stand_in.is_none() {
                *stand_in = self.stand_in(socket, &wanted);
                if let Some(found) = stand_in {
                    stands_in.store(true, SeqCst);
                    unreached(&found.handle);
                }
            }
        };
        loop {
            // The name is not free when its own stand-in has it.
            let connecting = self.connect(socket, |name| stands_in.load(SeqCst) || wanted(name));
            let mut connecting = std::pin::pin!(connecting);
            let connected = match tokio::time::timeout(ANSWER, &mut connecting).await {
                Ok(connected) => connected,
                Err(_) => {
                    let_stand_in(&mut stand_in);
                    connecting.await
                }
            };
            match connected {
                Ok(found) => {
                    if let (Some(stand_in), Some(found)) = (stand_in, &found) {
                        stand_in.become_known(found);
                    }
                    return found;
                }
                Err(error) if error.is_gone() => {
                    if let Some(process) = tombstones::living(&self.dir, socket) {
                        if began.elapsed() < LISTENS_AGAIN {
                            tokio::time::sleep(LISTENS_AGAIN / 100).await;
                            continue;
                        }
                        if process.other_program().is_none() {
                            let_stand_in(&mut stand_in);
                            tokio::time::sleep(ADOPT_PAUSE).await;
                            continue;
                        }
                        // It holds nothing of the session any more.
                        end_unknown(process.pid()).await;
                    }
                    let told = self.told_by_zygote(socket).await;
                    let end = told.or_else(|| tombstones::unreported(&self.dir, socket));
                    litter::remove_of_host(&self.dir, socket);
                    return session::bury(&end.filter(|end| !end.ordered)?, &self.dir);
                }
                Err(error) if !told => {
                    told = true;
                    let why = chain(&error);
                    self.log
                        .note(&format!("cannot take over {socket} yet: {why}"));
                }
                Err(_) => {}
            }
            tokio::time::sleep(ADOPT_PAUSE).await;
            while let Some(stopped) = &stand_in
                && stopped.handle.process().is_stopped()
            {
                // Each attempt would take a place in the queue of its socket.
                tokio::time::sleep(ADOPT_PAUSE).await;
            }
        }
    }

    /// How a host ended that is gone, if its zygote is there to say so.
    async fn told_by_zygote(&self, socket: &str) -> Option<HostEnd> {
        let zygote = litter::zygote_of(socket)?;
        if HostProcess::of(zygote).is_gone() {
            return None;
        }
        let exit = self.exits.watch(zygote, socket);
        let exit = tokio::time::timeout(EXIT_PATIENCE, exit).await;
        if exit.is_err() {
            // What it says later is for whoever listens then.
            self.exits.unwatch(socket);
        }
        exit.ok()?.ok().map(|exit| *exit.end)
    }

    /// What stands in for a host that does not answer, if its zygote tells of it.
    fn stand_in(&self, socket: &str, wanted: impl Fn(&SessionName) -> bool) -> Option<Unreached> {
        let zygotes = self.zygotes.alive();
        let (zygote, host) = zygotes.iter().find_map(|zygote| {
            let host = zygote
                .info
                .hosts
                .iter()
                .find(|host| host.socket == socket)?;
            Some((zygote, host))
        })?;
        wanted(&host.session.0).then(|| {
            let exit = self.exits.watch(zygote.info.pid, socket);
            let dir = Arc::clone(&self.dir);
            Unreached::new(host, zygote.info.pid, dir, exit, &self.tracker)
        })
    }

    /// What an earlier daemon left: sockets of zygotes, sockets of sessions.
    pub(crate) fn left_behind(&self) -> (Vec<String>, Vec<String>) {
        let names = self.dir.entries().unwrap_or_else(|error| {
            self.log
                .note(&format!("cannot look for sessions: {}", chain(&error)));
            Vec::new()
        });
        let sockets = |prefix: &str| -> Vec<String> {
            let ours = names
                .iter()
                .filter(|name| name.starts_with(prefix) && name.ends_with(SOCKET));
            ours.cloned().collect()
        };
        // One whose socket somebody removed listens again when it sees that the
        // daemon before is gone.
        let mut hosts = sockets("h-");
        let living = names.iter().filter_map(|name| {
            let host = name.strip_suffix(LIVING)?.strip_suffix('.')?;
            Some(format!("{host}{SOCKET}"))
        });
        hosts.extend(living);
        hosts.sort();
        hosts.dedup();
        (sockets("z-"), hosts)
    }

    /// Removes what nobody listens on.
    pub(crate) fn sweep(&self) {
        litter::sweep(&self.dir);
    }
}

/// A host that was just made has gone before it said who it is.
fn died_at_once(error: &ConnectError) -> bool {
    error.is_gone() || matches!(error, ConnectError::Lost(_))
}

/// Ends a host that nobody knows of: nobody else would ever end it.
async fn end_unknown(pid: i32) {
    let process = HostProcess::of(pid);
    process.end(Duration::ZERO, &CancellationToken::new()).await;
}

/// How long a host may take to listen again on a socket that was removed.
pub(crate) const LISTENS_AGAIN: Duration = Duration::from_secs(2);
/// How names of sockets end.
const SOCKET: &str = ".sock";
