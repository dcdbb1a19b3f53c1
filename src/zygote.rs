//! One zygote: the task that owns its lane, and the way to ask it for hosts.
//!
//! Dropping every handle leaves the process alone: it outlives the daemon. A lane
//! that breaks is opened again as long as somebody listens: nobody else can say
//! how a host ended.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{
    HostInfo, LINK_VERSION, Lane, LaneError, Message, SessionSpec, ZygoteCommand, ZygoteEvent,
    ZygoteInfo,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::chain;
use crate::exits::{Exits, HostExit};
use crate::host_process::{HostProcess, open_control};
use crate::lane_io::{ConnectError, LaneIo, LaneLoss};
use crate::litter;
use crate::log::Log;

/// Requests that wait for the task.
const INBOX: usize = 256;
/// How often it is looked whether a zygote that owes an answer is stopped.
const LOOK: Duration = Duration::from_secs(1);
/// How long a zygote that owes an answer may say nothing to anybody.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the queue of a zygote's socket may be full when its lane broke.
const REOPEN_DEADLINE: Duration = Duration::from_secs(1);
/// Pause between attempts to open a new lane.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

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
    ListenAgain,
    Retire,
    Shutdown,
}

/// Why a zygote was of no use to whoever asked it.
#[derive(Debug)]
pub(crate) enum AskError {
    /// It said why.
    Refused(String),
    /// It is gone, or answers nothing; why another one is needed.
    Useless(String),
}

/// What the task and those who ask it share.
#[derive(Debug)]
struct Signs {
    /// When it was last heard of.
    heard: Instant,
    /// Why it is gone.
    loss: Option<String>,
}

/// The way to a zygote.
#[derive(Clone)]
pub(crate) struct ZygoteHandle {
    /// What it said of itself.
    pub(crate) info: Arc<ZygoteInfo>,
    process: HostProcess,
    signs: Arc<Mutex<Signs>>,
    inbox: mpsc::Sender<Ask>,
}

impl ZygoteHandle {
    /// Asks for a session host.
    ///
    /// # Errors
    /// [`AskError`].
    pub(crate) async fn spawn(&self, spec: SessionSpec) -> Result<Spawned, AskError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Spawn(Box::new(spec), reply), answer)
            .await?
            .map_err(AskError::Refused)
    }

    /// Nothing was installed since it started.
    ///
    /// # Errors
    /// [`AskError::Useless`].
    pub(crate) async fn is_fresh(&self) -> Result<bool, AskError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::CheckFresh(reply), answer).await
    }

    /// Waits for an answer as long as there are signs of life.
    async fn ask<T>(&self, ask: Ask, mut answer: oneshot::Receiver<T>) -> Result<T, AskError> {
        let asked = Instant::now();
        if self.inbox.send(ask).await.is_err() {
            return Err(AskError::Useless(self.why_gone()));
        }
        let mut was_stopped = false;
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut answer).await {
                return answer.map_err(|_| AskError::Useless(self.why_gone()));
            }
            let pid = self.info.pid;
            let is_stopped = self.process.is_stopped();
            if is_stopped && was_stopped {
                let why = format!("the zygote (pid {pid}) is stopped (SIGSTOP)");
                return Err(AskError::Useless(why));
            }
            was_stopped = is_stopped;
            if self.signs().heard.max(asked).elapsed() >= SILENCE {
                let why = format!("the zygote (pid {pid}) does not answer");
                return Err(AskError::Useless(why));
            }
        }
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is there, as far as anybody knows.
    pub(crate) fn is_alive(&self) -> bool {
        !self.inbox.is_closed()
    }

    /// Why it is gone, in words.
    pub(crate) fn why_gone(&self) -> String {
        let loss = self.signs().loss.clone();
        loss.unwrap_or_else(|| format!("the zygote (pid {}) is gone", self.info.pid))
    }

    /// Lets it listen again if somebody removed its socket.
    pub(crate) async fn listen_again(&self) {
        let _ = self.inbox.send(Ask::ListenAgain).await;
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

    /// Ends it although it does not listen.
    pub(crate) async fn kill(&self) {
        let hurry = CancellationToken::new();
        self.process.end(Duration::ZERO, &hurry).await;
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

/// What the task of a zygote works with.
pub(crate) struct Surroundings {
    pub(crate) dir: Arc<PrivateDir>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) log: Log,
    pub(crate) tracker: TaskTracker,
}

/// Starts the task that owns an open lane.
pub(crate) fn start(
    lane: LaneIo,
    info: ZygoteInfo,
    socket: String,
    around: Arc<Surroundings>,
) -> ZygoteHandle {
    let (sender, inbox) = mpsc::channel(INBOX);
    let info = Arc::new(info);
    let signs = Arc::new(Mutex::new(Signs {
        heard: Instant::now(),
        loss: None,
    }));
    let handle = ZygoteHandle {
        info: Arc::clone(&info),
        process: HostProcess::of(info.pid),
        signs: Arc::clone(&signs),
        inbox: sender,
    };
    let tracker = around.tracker.clone();
    let task = Zygote {
        link: Link::Up(Box::new(lane)),
        info,
        socket,
        signs,
        around,
        next_request: 1,
        spawns: HashMap::new(),
        freshness: HashMap::new(),
        end: None,
    };
    tracker.spawn(task.run(inbox));
    handle
}

/// Who waits for a session host, and for which.
type Waiting = (Box<SessionSpec>, oneshot::Sender<Result<Spawned, String>>);
type Reopening = Pin<Box<dyn Future<Output = Option<LaneIo>> + Send>>;

/// The lane, or the attempt to get a new one.
enum Link {
    Up(Box<LaneIo>),
    Reopening(Reopening),
}

enum LinkEvent {
    Message(Message<ZygoteEvent>),
    Broken(LaneLoss),
    Reopened(Box<LaneIo>),
    /// Nobody listens there any more.
    Gone,
}

impl Link {
    /// Cancel-safe: nothing is lost if it is dropped before it is ready.
    async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Up(lane) => match lane.next().await {
                Ok(message) => LinkEvent::Message(message),
                Err(loss) => LinkEvent::Broken(loss),
            },
            Self::Reopening(reopening) => match reopening.await {
                Some(lane) => LinkEvent::Reopened(Box::new(lane)),
                None => LinkEvent::Gone,
            },
        }
    }
}

/// Opens a new lane to the same zygote; none once it is gone.
async fn reopen(around: Arc<Surroundings>, socket: String, pid: i32) -> Option<LaneIo> {
    loop {
        // One that is stopped answers when it goes on: the connection stays.
        let deadline = Instant::now() + REOPEN_DEADLINE;
        match open(&around.dir, &socket, deadline).await {
            Ok(Ok((lane, info))) if info.pid == pid => return Some(lane),
            Ok(_) => return None,
            Err(error) if error.is_gone() => return None,
            Err(_) => tokio::time::sleep(REOPEN_PAUSE).await,
        }
    }
}

struct Zygote {
    link: Link,
    info: Arc<ZygoteInfo>,
    /// Its socket's name in the runtime directory.
    socket: String,
    signs: Arc<Mutex<Signs>>,
    around: Arc<Surroundings>,
    next_request: u64,
    spawns: HashMap<u64, Waiting>,
    freshness: HashMap<u64, oneshot::Sender<bool>>,
    /// It was told to end, so that it does is no news.
    end: Option<ZygoteCommand>,
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
                event = self.link.next() => match event {
                    LinkEvent::Message(message) => {
                        self.signs().heard = Instant::now();
                        self.event(message.header, message.body);
                    }
                    LinkEvent::Broken(_) if self.end == Some(ZygoteCommand::Shutdown) => break,
                    LinkEvent::Broken(loss) => self.broken(&loss),
                    LinkEvent::Reopened(lane) => self.reopened(lane),
                    LinkEvent::Gone => break,
                },
            }
        }
        self.find_made().await;
        let pid = self.info.pid;
        if self.end.is_none() {
            let loss = format!("the zygote (pid {pid}) is gone");
            self.around.log.note(&loss);
            self.signs().loss = Some(loss);
        }
        // What nobody listens on is only litter.
        let _ = self.around.dir.remove(&self.socket);
        let _ = self
            .around
            .dir
            .remove(&self.socket.replace(".sock", ".log"));
        litter::remove_of_zygote(&self.around.dir, pid);
        self.around.exits.forget_zygote(pid);
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds hosts that the zygote made before it ended and did not tell of:
    /// whoever waits gets them, for nobody else would ever know of them.
    async fn find_made(&mut self) {
        if self.spawns.is_empty() {
            return;
        }
        for socket in litter::sockets_of_zygote(&self.around.dir, self.info.pid) {
            if self.around.exits.is_watched(&socket) {
                continue;
            }
            // One that does not answer is none: it died with its zygote.
            let Ok((_, info)) = open_control(&self.around.dir, &socket).await else {
                continue;
            };
            let HostInfo {
                pid,
                session: Some(hosted),
                ..
            } = info
            else {
                continue;
            };
            let made = self.spawns.iter().find(|(_, (spec, _))| {
                spec.session_id == hosted.spec.session_id
                    && spec.generation == hosted.spec.generation
            });
            if let Some(request) = made.map(|(request, _)| *request) {
                let event = ZygoteEvent::Spawned {
                    request,
                    pid,
                    socket,
                };
                self.event(event, Vec::new());
            }
        }
    }

    fn broken(&mut self, loss: &LaneLoss) {
        if self.end.is_none() {
            let (pid, why) = (self.info.pid, chain(loss));
            let note = format!("the lane of zygote pid={pid} broke: {why}");
            self.around.log.note(&note);
        }
        let (around, socket) = (Arc::clone(&self.around), self.socket.clone());
        self.link = Link::Reopening(Box::pin(reopen(around, socket, self.info.pid)));
    }

    /// Asks again what was not answered. A host that was made already for a
    /// session is not made again.
    fn reopened(&mut self, lane: Box<LaneIo>) {
        let pid = self.info.pid;
        self.link = Link::Up(lane);
        let note = format!("a new lane of zygote pid={pid} is open");
        self.around.log.note(&note);
        let spawns = self.spawns.iter();
        let spawns = spawns.map(|(request, (spec, _))| ZygoteCommand::Spawn {
            request: *request,
            spec: spec.clone(),
        });
        let freshness = self.freshness.keys();
        let freshness = freshness.map(|request| ZygoteCommand::CheckFresh { request: *request });
        let again: Vec<_> = spawns.chain(freshness).chain(self.end.clone()).collect();
        for command in again {
            // What fitted once fits again.
            let _ = self.send(&command);
        }
    }

    /// Sends a command, or leaves it to the next lane.
    fn send(&mut self, command: &ZygoteCommand) -> Result<(), LaneError> {
        match &mut self.link {
            Link::Up(lane) => lane.send(command, b""),
            Link::Reopening(_) => Ok(()),
        }
    }

    fn ask(&mut self, ask: Ask) {
        let request = self.next_request;
        self.next_request += 1;
        let command = match ask {
            Ask::Spawn(spec, reply) => {
                self.spawns.insert(request, (spec.clone(), reply));
                ZygoteCommand::Spawn { request, spec }
            }
            Ask::CheckFresh(reply) => {
                self.freshness.insert(request, reply);
                ZygoteCommand::CheckFresh { request }
            }
            Ask::ListenAgain => ZygoteCommand::ListenAgain,
            Ask::Retire => ZygoteCommand::Retire,
            Ask::Shutdown => ZygoteCommand::Shutdown,
        };
        if matches!(command, ZygoteCommand::Retire | ZygoteCommand::Shutdown) {
            self.end = Some(command.clone());
        }
        if let Err(error) = self.send(&command) {
            if let Some((_, reply)) = self.spawns.remove(&request) {
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
                let waiting = self.spawns.remove(&request);
                let spawned = Spawned { pid, socket };
                if waiting.is_none_or(|(_, reply)| reply.send(Ok(spawned)).is_err()) {
                    self.end_unwanted(pid);
                }
            }
            ZygoteEvent::SpawnFailed { request, error } => {
                if let Some((_, reply)) = self.spawns.remove(&request) {
                    let _ = reply.send(Err(error));
                }
            }
            ZygoteEvent::Fresh { request, fresh } => {
                if let Some(reply) = self.freshness.remove(&request) {
                    let _ = reply.send(fresh);
                }
            }
            ZygoteEvent::Exited(end) => self.around.exits.report(HostExit { end, log }),
            ZygoteEvent::Failed { error } => {
                let pid = self.info.pid;
                self.around
                    .log
                    .note(&format!("zygote pid={pid} failed: {error}"));
            }
            ZygoteEvent::Welcome(_) => {}
        }
    }

    /// A host that came too late: whoever wanted it has another by now, and
    /// nobody would ever end it.
    fn end_unwanted(&self, pid: i32) {
        let process = HostProcess::of(pid);
        self.around.tracker.spawn(async move {
            process.end(Duration::ZERO, &CancellationToken::new()).await;
        });
    }
}
