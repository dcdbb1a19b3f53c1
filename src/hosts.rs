//! Sessions made and taken over: both connect to a host that listens.

use std::sync::Arc;
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::SessionName;
use pythond_protocol::lane::{HostCommand, HostInfo, SessionSpec};
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
use crate::session::{self, SessionHandle};
use crate::tombstones;
use crate::zygotes::Zygotes;

/// Pause before a host that did not answer is asked again.
const ADOPT_PAUSE: Duration = Duration::from_secs(2);

/// What is needed to reach hosts.
pub(crate) struct Hosts {
    pub(crate) dir: Arc<PrivateDir>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) zygotes: Zygotes,
    pub(crate) log: Log,
    pub(crate) events: Arc<EventLog>,
    pub(crate) tracker: TaskTracker,
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
        let mut spawned = self.zygotes.spawn(environment, spec.clone()).await?;
        let mut connected = self.connect(&spawned.socket, |_| true).await;
        if connected.as_ref().is_err_and(died_at_once) {
            // It has run nothing. What kills a process that is forked need not
            // kill one that starts from nothing.
            let pid = spawned.pid;
            let why = format!("the process {pid} that was forked for it died at once");
            self.log.note(&format!("WARN: session {name}: {why}"));
            spec.must_start_cold = true;
            spec.cold_reason = Some(why);
            spawned = self.zygotes.spawn(environment, spec).await?;
            connected = self.connect(&spawned.socket, |_| true).await;
        }
        if matches!(connected, Err(_) | Ok(None)) {
            // Nobody knows of it, and nobody would ever end it.
            let process = HostProcess::of(spawned.pid);
            process.end(Duration::ZERO, &CancellationToken::new()).await;
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
        let (control, cell) = tokio::join!(
            host_process::open_control(&self.dir, socket),
            host_process::open_cell(&self.dir, socket)
        );
        let (control, info) = control?;
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
        let cell = cell?;
        if !wanted(&hosted.spec.session) {
            return Ok(None);
        }
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
    /// still free.
    pub(crate) async fn adopt(
        &self,
        socket: &str,
        wanted: impl Fn(&SessionName) -> bool,
    ) -> Option<SessionHandle> {
        let mut told = false;
        loop {
            match self.connect(socket, &wanted).await {
                Ok(found) => return found,
                Err(error) if error.is_gone() => {
                    // Its zygote may yet say how it ended.
                    let end = tombstones::unreported(&self.dir, socket);
                    litter::remove_of_host(&self.dir, socket);
                    return session::bury(&end?, &self.dir);
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
        }
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
        (sockets("z-"), sockets("h-"))
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

/// How names of sockets end.
const SOCKET: &str = ".sock";
