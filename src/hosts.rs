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
        spec: SessionSpec,
    ) -> Result<SessionHandle, SpawnError> {
        let name = spec.session.clone();
        let spawned = self.zygotes.spawn(environment, spec).await?;
        let connected = self.connect(&spawned.socket, |_| true).await;
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
                    self.remove_litter(socket);
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
        let names = self.dir.entries().unwrap_or_default();
        for name in &names {
            // What an environment said is told in replies; its log is only of
            // use while it runs.
            let zygote = name
                .strip_suffix(".log")
                .filter(|name| name.starts_with("z-"));
            if zygote.is_some_and(|zygote| !names.contains(&format!("{zygote}{SOCKET}"))) {
                let _ = self.dir.remove(name);
            }
        }
        for name in names {
            let ours = (name.starts_with("h-") || name.starts_with("z-"))
                && (name.ends_with(SOCKET) || name.ends_with(PARKED));
            if ours && self.is_dead(&name) {
                self.remove_litter(&name);
            }
        }
    }

    fn is_dead(&self, socket: &str) -> bool {
        let tried = self.dir.connect_socket_nonblocking(socket);
        tried.is_err_and(|error| error.is_refused())
    }

    fn remove_litter(&self, socket: &str) {
        // What stays is looked at again at the next start.
        let _ = self.dir.remove(socket);
        let _ = self.dir.remove(&journal_of(socket));
    }
}

/// How names of sockets end.
const SOCKET: &str = ".sock";
/// How names of sockets end whose process is no session yet; it answers nobody.
const PARKED: &str = ".parked";

/// The name of a host's journal, beside its socket.
fn journal_of(socket: &str) -> String {
    let name = socket
        .strip_suffix(SOCKET)
        .or_else(|| socket.strip_suffix(PARKED));
    format!("{}.journal", name.unwrap_or(socket))
}
