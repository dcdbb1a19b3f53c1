//! One zygote: the task that owns its lane, and the way to ask it for hosts.
//!
//! Dropping every handle leaves the process alone: it outlives the daemon.

use std::collections::HashMap;
use std::sync::Arc;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{
    LINK_VERSION, Lane, SessionSpec, ZygoteCommand, ZygoteEvent, ZygoteInfo,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::exits::{Exits, HostExit};
use crate::lane_io::{ConnectError, LaneIo};
use crate::log::Log;

/// Requests that wait for the task.
const INBOX: usize = 256;

/// A host that was made.
#[derive(Clone, Debug)]
pub(crate) struct Spawned {
    /// Its process id.
    pub(crate) pid: i32,
    /// Its socket's name in the runtime directory.
    pub(crate) socket: String,
}

enum Ask {
    Spawn(Box<SessionSpec>, oneshot::Sender<Result<Spawned, String>>),
    CheckFresh(oneshot::Sender<bool>),
    Retire,
    Shutdown,
}

/// The way to a zygote.
#[derive(Clone)]
pub(crate) struct ZygoteHandle {
    /// What it said of itself.
    pub(crate) info: Arc<ZygoteInfo>,
    inbox: mpsc::Sender<Ask>,
}

impl ZygoteHandle {
    /// Asks for a session host. `Err(None)` if the zygote is gone.
    pub(crate) async fn spawn(&self, spec: SessionSpec) -> Result<Spawned, Option<String>> {
        let (reply, answer) = oneshot::channel();
        self.inbox
            .send(Ask::Spawn(Box::new(spec), reply))
            .await
            .map_err(|_| None)?;
        answer.await.map_err(|_| None)?.map_err(Some)
    }

    /// Nothing was installed since it started. False if it is gone.
    pub(crate) async fn is_fresh(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Ask::CheckFresh(reply)).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// The lane is up.
    pub(crate) fn is_alive(&self) -> bool {
        !self.inbox.is_closed()
    }

    /// Lets it end with its last host.
    pub(crate) async fn retire(&self) {
        // One that is gone needs no telling.
        let _ = self.inbox.send(Ask::Retire).await;
    }

    /// Ends it and its spares, and waits until its lane closes.
    pub(crate) async fn shut_down(&self) {
        let _ = self.inbox.send(Ask::Shutdown).await;
        self.inbox.closed().await;
    }
}

/// Opens the lane of a zygote and waits for its first words.
///
/// # Errors
/// [`ConnectError`]; the inner error is the zygote's own word on why its
/// environment cannot be used.
pub(crate) async fn open(
    dir: &PrivateDir,
    socket: &str,
    deadline: Instant,
) -> Result<Result<(LaneIo, ZygoteInfo), String>, ConnectError> {
    let mut lane = LaneIo::connect(dir, socket, Lane::Control, deadline).await?;
    let first = lane
        .next::<ZygoteEvent>()
        .await
        .map_err(ConnectError::Lost)?;
    match first.header {
        ZygoteEvent::Welcome(info)
            if info.version != LINK_VERSION && info.version + 1 != LINK_VERSION =>
        {
            Err(ConnectError::Version(info.version))
        }
        ZygoteEvent::Welcome(info) => Ok(Ok((lane, *info))),
        ZygoteEvent::Failed { error } => Ok(Err(error)),
        _ => Err(ConnectError::Unexpected),
    }
}

/// Starts the task that owns an open lane.
pub(crate) fn start(
    lane: LaneIo,
    info: ZygoteInfo,
    exits: Arc<Exits>,
    log: Log,
    tracker: &TaskTracker,
) -> ZygoteHandle {
    let (sender, inbox) = mpsc::channel(INBOX);
    let info = Arc::new(info);
    let handle = ZygoteHandle {
        info: Arc::clone(&info),
        inbox: sender,
    };
    let task = Zygote {
        lane,
        info,
        exits,
        log,
        next_request: 1,
        spawns: HashMap::new(),
        freshness: HashMap::new(),
        told_to_end: false,
    };
    tracker.spawn(task.run(inbox));
    handle
}

struct Zygote {
    lane: LaneIo,
    info: Arc<ZygoteInfo>,
    exits: Arc<Exits>,
    log: Log,
    next_request: u64,
    spawns: HashMap<u64, oneshot::Sender<Result<Spawned, String>>>,
    freshness: HashMap<u64, oneshot::Sender<bool>>,
    /// It was told to end, so that it does is no news.
    told_to_end: bool,
}

impl Zygote {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut open = true;
        loop {
            tokio::select! {
                ask = inbox.recv(), if open => match ask {
                    Some(ask) => self.ask(ask),
                    // Nobody will ask again, but hosts are still reported.
                    None => open = false,
                },
                event = self.lane.next::<ZygoteEvent>() => match event {
                    Ok(message) => self.event(message.header, message.body),
                    Err(_) if self.told_to_end => break,
                    Err(loss) => {
                        self.log.note(&format!(
                            "zygote pid={} is lost: {loss}", self.info.pid
                        ));
                        break;
                    }
                },
            }
        }
        self.exits.forget_zygote(self.info.pid);
    }

    fn ask(&mut self, ask: Ask) {
        let request = self.next_request;
        self.next_request += 1;
        self.told_to_end |= matches!(ask, Ask::Retire | Ask::Shutdown);
        let command = match ask {
            Ask::Spawn(spec, reply) => {
                self.spawns.insert(request, reply);
                ZygoteCommand::Spawn { request, spec }
            }
            Ask::CheckFresh(reply) => {
                self.freshness.insert(request, reply);
                ZygoteCommand::CheckFresh { request }
            }
            Ask::Retire => ZygoteCommand::Retire,
            Ask::Shutdown => ZygoteCommand::Shutdown,
        };
        if let Err(error) = self.lane.send(&command, b"") {
            if let Some(reply) = self.spawns.remove(&request) {
                let _ = reply.send(Err(error.to_string()));
            }
            self.freshness.remove(&request);
        }
    }

    fn event(&mut self, event: ZygoteEvent, log: Vec<u8>) {
        // Whoever stopped waiting for an answer does not need it.
        match event {
            ZygoteEvent::Spawned {
                request,
                pid,
                socket,
            } => {
                if let Some(reply) = self.spawns.remove(&request) {
                    let _ = reply.send(Ok(Spawned { pid, socket }));
                }
            }
            ZygoteEvent::SpawnFailed { request, error } => {
                if let Some(reply) = self.spawns.remove(&request) {
                    let _ = reply.send(Err(error));
                }
            }
            ZygoteEvent::Fresh { request, fresh } => {
                if let Some(reply) = self.freshness.remove(&request) {
                    let _ = reply.send(fresh);
                }
            }
            ZygoteEvent::Exited(end) => self.exits.report(HostExit { end, log }),
            ZygoteEvent::Failed { error } => {
                self.log
                    .note(&format!("zygote pid={} failed: {error}", self.info.pid));
            }
            ZygoteEvent::Welcome(_) => {}
        }
    }
}
