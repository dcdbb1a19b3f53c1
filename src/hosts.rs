//! Sessions made and taken over: both connect to a host that listens.

use std::sync::Arc;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{HostInfo, SessionSpec};
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::error::SpawnError;
use crate::exits::Exits;
use crate::host_process::{self, Lanes};
use crate::lane_io::ConnectError;
use crate::log::Log;
use crate::session::{self, SessionHandle};
use crate::zygotes::Zygotes;

/// What is needed to reach hosts.
pub(crate) struct Hosts {
    pub(crate) dir: Arc<PrivateDir>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) zygotes: Zygotes,
    pub(crate) log: Log,
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
        let spawned = self.zygotes.spawn(environment, spec).await?;
        match self.connect(&spawned.socket).await {
            Ok(Some(handle)) if handle.process().pid() == spawned.pid => Ok(handle),
            Ok(_) => Err(SpawnError::Connect(ConnectError::Unexpected)),
            Err(error) => Err(SpawnError::Connect(error)),
        }
    }

    /// Takes over whoever listens on a socket of the runtime directory. None
    /// for a parked spare.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) async fn connect(&self, socket: &str) -> Result<Option<SessionHandle>, ConnectError> {
        let (control, info) = host_process::open_control(&self.dir, socket).await?;
        let HostInfo { pid, session: Some(hosted), .. } = info else { return Ok(None) };
        let cell = host_process::open_cell(&self.dir, socket).await?;
        let exit = self.exits.watch(hosted.zygote_pid, socket);
        let link = session::Connected {
            lanes: Lanes { cell, control },
            hosted,
            socket: socket.to_owned(),
            exit,
            pid,
        };
        Ok(Some(session::start(link, Arc::clone(&self.dir), self.log.clone(), &self.tracker)))
    }

    /// Takes over everything that an earlier daemon left. Sockets that nobody
    /// listens on are removed.
    pub(crate) async fn adopt_all(&self) -> Vec<SessionHandle> {
        let names = self.dir.entries().unwrap_or_else(|error| {
            self.log.note(&format!("cannot look for sessions: {}", crate::error::chain(&error)));
            Vec::new()
        });
        let of_kind = |prefix: &'static str| {
            names.iter().filter(move |name| name.starts_with(prefix) && name.ends_with(".sock"))
        };
        // Zygotes first: they report hosts that ended meanwhile.
        futures_util::future::join_all(of_kind("z-").map(|socket| self.zygotes.adopt(socket))).await;
        let found = of_kind("h-").map(|socket| async move {
            match self.connect(socket).await {
                Ok(found) => found,
                Err(error) if error.is_gone() => {
                    // What nobody listens on is only litter.
                    let _ = self.dir.remove(socket);
                    None
                }
                Err(error) => {
                    let why = crate::error::chain(&error);
                    self.log.note(&format!("cannot take over {socket}: {why}"));
                    None
                }
            }
        });
        futures_util::future::join_all(found).await.into_iter().flatten().collect()
    }
}
