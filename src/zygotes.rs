//! All zygotes, one per environment: started when first needed, adopted when
//! they are there already, replaced when something was installed.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{SessionSpec, ZygoteInfo};
use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::{Environment, FileMark};
use crate::error::{SpawnError, chain};
use crate::exits::Exits;
use crate::lane_io::LaneIo;
use crate::log::Log;
use crate::zygote::{self, AskError, Spawned, Surroundings, ZygoteHandle};

/// How long an environment may take to come up.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long who wants a session waits for a zygote that was there already.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before a zygote whose lane cannot be opened is tried again.
const ADOPT_PAUSE: Duration = Duration::from_secs(1);
/// Zygotes that are tried for one session.
const ATTEMPTS: u32 = 3;
/// Most of a zygote's log that is read to say why it ended, in bytes.
const LOG_TAIL: u64 = 16 << 10;
/// Connections that may wait at a zygote's socket.
const BACKLOG: i32 = 16;

/// Where the host program is and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct HostProgram {
    /// The launcher.
    pub(crate) launcher: PathBuf,
    /// The library that it loads.
    pub(crate) library: PathBuf,
    /// Limit of open files that children get, ours being raised.
    pub(crate) open_files: Option<rustix::process::Rlimit>,
}

/// One environment's place: holding the lock means starting its zygote, or
/// taking over the one that is there.
#[derive(Default)]
struct Slot {
    zygote: tokio::sync::Mutex<Option<ZygoteHandle>>,
    /// Why the zygote that is there is not the one of before; told with the next
    /// session.
    why_another: Mutex<Option<String>>,
}

impl Slot {
    fn why_another(&self) -> MutexGuard<'_, Option<String>> {
        self.why_another
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// All zygotes of this daemon.
pub(crate) struct Zygotes {
    around: Arc<Surroundings>,
    program: HostProgram,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// Every zygote whose lane is open, retired ones too.
    all: Mutex<Vec<ZygoteHandle>>,
    /// The daemon stops: a zygote that comes up now is not wanted any more.
    stopping: CancellationToken,
}

impl Zygotes {
    pub(crate) fn new(
        dir: Arc<PrivateDir>,
        program: HostProgram,
        exits: Arc<Exits>,
        log: Log,
        tracker: TaskTracker,
    ) -> Self {
        let around = Surroundings {
            dir,
            exits,
            log,
            tracker,
        };
        Self {
            around: Arc::new(around),
            program,
            slots: Mutex::default(),
            all: Mutex::default(),
            stopping: CancellationToken::new(),
        }
    }

    fn dir(&self) -> &PrivateDir {
        &self.around.dir
    }

    fn slot(&self, key: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(key.to_owned()).or_default())
    }

    /// Zygotes that are up, each once.
    pub(crate) fn alive(&self) -> Vec<ZygoteHandle> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(ZygoteHandle::is_alive);
        all.clone()
    }

    /// The zygote of an environment, started if it is not up.
    ///
    /// # Errors
    /// [`SpawnError::Environment`] says why it cannot be used.
    pub(crate) async fn get(&self, environment: &Environment) -> Result<ZygoteHandle, SpawnError> {
        self.get_able(environment, None).await
    }

    /// The same; one that has to be started forks nothing if there is a reason
    /// why it must not.
    async fn get_able(
        &self,
        environment: &Environment,
        cold: Option<&str>,
    ) -> Result<ZygoteHandle, SpawnError> {
        let key = self.key(environment);
        let slot = self.slot(&key);
        let mut current = slot.zygote.lock().await;
        match current.take() {
            Some(zygote) if zygote.is_alive() => {
                *current = Some(zygote.clone());
                return Ok(zygote);
            }
            Some(gone) => *slot.why_another() = Some(gone.why_gone()),
            None => {}
        }
        let zygote = self.start(environment, &key, cold).await?;
        *current = Some(zygote.clone());
        Ok(zygote)
    }

    /// Makes a session host in an environment. A zygote that dies over it, or
    /// does not answer, is replaced; if that one does so too, the next one forks
    /// nothing.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub(crate) async fn spawn(
        &self,
        environment: &Environment,
        mut spec: SessionSpec,
    ) -> Result<Spawned, SpawnError> {
        let slot = self.slot(&self.key(environment));
        let mut why = None;
        for attempt in 1..=ATTEMPTS {
            let cold = why.as_deref().filter(|_| attempt == ATTEMPTS);
            let zygote = self.get_able(environment, cold).await?;
            let why_another = slot.why_another().take();
            spec.cold_reason = why_another.or(spec.cold_reason);
            let useless = match self.spawn_from(environment, &zygote, &spec).await {
                Ok(spawned) => return Ok(spawned),
                Err(SpawnFailure::Told(error)) => return Err(error),
                Err(SpawnFailure::Useless(useless)) => useless,
            };
            self.give_up(&slot, &zygote, &useless).await;
            spec.cold_reason = Some(useless.clone());
            why = Some(useless);
        }
        Err(SpawnError::Refused(why.unwrap_or_default()))
    }

    async fn spawn_from(
        &self,
        environment: &Environment,
        zygote: &ZygoteHandle,
        spec: &SessionSpec,
    ) -> Result<Spawned, SpawnFailure> {
        if zygote.is_fresh().await? {
            return Ok(zygote.spawn(spec.clone()).await?);
        }
        let renewed = self.renew(environment, zygote).await;
        let renewed = renewed.map_err(SpawnFailure::Told)?;
        Ok(renewed.spawn(spec.clone()).await?)
    }

    /// Lets the next session have another zygote. This one may answer later, and
    /// reports its hosts as long as it lives.
    async fn give_up(&self, slot: &Slot, useless: &ZygoteHandle, why: &str) {
        self.around.log.note(&format!("WARN: {why}"));
        useless.retire().await;
        let mut current = slot.zygote.lock().await;
        if current
            .as_ref()
            .is_some_and(|zygote| zygote.info.pid == useless.info.pid)
        {
            *current = None;
        }
    }

    /// Replaces a zygote that does not see what was installed since.
    async fn renew(
        &self,
        environment: &Environment,
        stale: &ZygoteHandle,
    ) -> Result<ZygoteHandle, SpawnError> {
        let key = self.key(environment);
        let slot = self.slot(&key);
        let mut current = slot.zygote.lock().await;
        if let Some(zygote) = current.as_ref()
            && zygote.is_alive()
            && zygote.info.pid != stale.info.pid
        {
            return Ok(zygote.clone());
        }
        stale.retire().await;
        *current = None;
        let zygote = self.start(environment, &key, None).await?;
        *current = Some(zygote.clone());
        Ok(zygote)
    }

    fn key(&self, environment: &Environment) -> String {
        let build = [&self.program.launcher, &self.program.library];
        environment.key(&build.map(|path| FileMark::of(path.clone())))
    }

    /// Starts a process and waits for its first words.
    async fn start(
        &self,
        environment: &Environment,
        key: &str,
        cold: Option<&str>,
    ) -> Result<ZygoteHandle, SpawnError> {
        let (name, listener) = self.bind(key)?;
        let socket = format!("z-{name}.sock");
        let log_name = format!("z-{name}.log");
        let started = self.start_process(environment, &name, cold, listener);
        let outcome = match started {
            Ok(child) => {
                self.wait_for_welcome(environment, child, &socket, &log_name)
                    .await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok((lane, info)) => Ok(self.take(lane, info, socket)),
            Err(error) => {
                // Nobody listens there any more.
                let _ = self.dir().remove(&socket);
                Err(error)
            }
        }
    }

    /// Finds a free name for an environment's socket: a retired zygote of the
    /// same key may still hold the first one.
    fn bind(&self, key: &str) -> Result<(String, std::os::fd::OwnedFd), SpawnError> {
        for number in 0_u32.. {
            let name = if number == 0 {
                key.to_owned()
            } else {
                format!("{key}-{number}")
            };
            match self.dir().bind_socket(&format!("z-{name}.sock"), BACKLOG) {
                Ok(listener) => return Ok((name, listener)),
                Err(error) if error.io_kind() == Some(std::io::ErrorKind::AddrInUse) => {}
                Err(error) => return Err(SpawnError::Files(error)),
            }
        }
        unreachable!("the loop above has no end")
    }

    fn start_process(
        &self,
        environment: &Environment,
        name: &str,
        cold: Option<&str>,
        listener: std::os::fd::OwnedFd,
    ) -> Result<tokio::process::Child, SpawnError> {
        let log_name = format!("z-{name}.log");
        let output = self
            .dir()
            .empty_file(&log_name)
            .map_err(SpawnError::Files)?;
        let errors = output.try_clone().map_err(SpawnError::Launch)?;
        let mut command = tokio::process::Command::new(&self.program.launcher);
        command
            .arg("zygote")
            .args(["--python", &environment.python])
            .arg("--runtime-dir")
            .arg(self.dir().path())
            .args(["--key", name])
            .env_clear()
            .envs(&environment.variables)
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors))
            // ^C at the daemon's terminal is not for the sessions.
            .process_group(0);
        if !environment.preload.is_empty() {
            command.args(["--preload", &environment.preload.join(",")]);
        }
        if let Some(reason) = cold {
            command.args(["--cold", reason]);
        }
        let child = command.spawn().map_err(SpawnError::Launch)?;
        if let (Some(limit), Some(pid)) = (&self.program.open_files, child.id()) {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            // Programs that use select(2) rely on the usual limit.
            let _ = rustix::process::prlimit(pid, rustix::process::Resource::Nofile, *limit);
        }
        Ok(child)
    }

    async fn wait_for_welcome(
        &self,
        environment: &Environment,
        child: tokio::process::Child,
        socket: &str,
        log_name: &str,
    ) -> Result<(LaneIo, ZygoteInfo), SpawnError> {
        let mut newborn = Newborn(Some(child));
        let child = newborn.0.as_mut().expect("it was just put there");
        let deadline = Instant::now() + START_DEADLINE;
        let outcome = tokio::select! {
            biased;
            opened = zygote::open(self.dir(), socket, deadline) => opened.ok(),
            _ = child.wait() => None,
            // Dropping the newborn ends it.
            () = self.stopping.cancelled() => return Err(stops()),
            () = tokio::time::sleep_until(deadline) => {
                // Its own handle is held, so the number cannot be another's.
                let _ = child.start_kill();
                let _ = child.wait().await;
                let limit = START_DEADLINE.as_secs();
                let words = format!("python did not come up within {limit} s");
                return Err(SpawnError::Environment(blame(environment, words)));
            }
        };
        match outcome {
            // Dropping it ends it.
            Some(Ok(_)) if self.stopping.is_cancelled() => Err(stops()),
            Some(Ok(opened)) => {
                self.reap(newborn);
                Ok(opened)
            }
            Some(Err(error)) => {
                self.reap(newborn);
                Err(SpawnError::Environment(error))
            }
            None => {
                let _ = child.start_kill();
                let status = child.wait().await;
                let words = self.last_line(log_name).map(|line| {
                    let python = &environment.python;
                    if line.starts_with("cannot ") {
                        line
                    } else {
                        format!("cannot use the interpreter `{python}`: {line}")
                    }
                });
                let words = words.unwrap_or_else(|| match status {
                    Ok(status) => format!("python ended at once ({status})"),
                    Err(_) => "python ended at once".to_owned(),
                });
                Err(SpawnError::Environment(blame(environment, words)))
            }
        }
    }

    /// Reaps a zygote by its own handle whenever it ends.
    fn reap(&self, mut newborn: Newborn) {
        if let Some(mut child) = newborn.0.take() {
            self.around
                .tracker
                .spawn(async move { drop(child.wait().await) });
        }
    }

    /// The last line that a zygote wrote before it ended.
    fn last_line(&self, log_name: &str) -> Option<String> {
        let mut file = self.dir().open_file(log_name).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
            .ok()?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let lines = || {
            text.lines()
                .rev()
                .map(str::trim)
                .filter(|line| !line.is_empty())
        };
        // Python's own last words end in a dump of frames; the reason is above.
        let is_reason = |line: &&str| {
            let word = line.split([':', ' ']).next().unwrap_or("");
            word.ends_with("Error") || line.starts_with("cannot ")
        };
        let line = lines()
            .find(is_reason)
            .or_else(|| lines().find(|line| line.starts_with("Fatal Python error")))
            .or_else(|| lines().next())?;
        Some(line.chars().filter(|c| !c.is_control()).take(500).collect())
    }

    fn take(&self, lane: LaneIo, info: ZygoteInfo, socket: String) -> ZygoteHandle {
        let handle = zygote::start(lane, info, socket, Arc::clone(&self.around));
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(ZygoteHandle::is_alive);
        all.push(handle.clone());
        handle
    }

    /// Takes over a zygote that an earlier daemon started, however long it takes
    /// to answer. Removes its socket if it is dead.
    ///
    /// Who wants a session in its environment waits for it, but not for long.
    pub(crate) async fn adopt(&self, socket: &str) {
        let key = socket.trim_start_matches("z-").split(['-', '.']).next();
        let slot = self.slot(key.unwrap_or_default());
        let mut opening = std::pin::pin!(self.open_left_behind(socket));
        let current = slot.zygote.lock().await;
        match tokio::time::timeout(ADOPT_DEADLINE, &mut opening).await {
            Ok(opened) => self.adopted(opened, current, socket).await,
            Err(_) => {
                drop(current);
                let why = format!("the zygote of {socket} does not answer");
                self.around.log.note(&format!("WARN: {why}"));
                *slot.why_another() = Some(why);
                let opened = opening.await;
                self.adopted(opened, slot.zygote.lock().await, socket).await;
            }
        }
    }

    async fn adopted(
        &self,
        opened: Option<(LaneIo, ZygoteInfo)>,
        mut current: tokio::sync::MutexGuard<'_, Option<ZygoteHandle>>,
        socket: &str,
    ) {
        let Some((lane, info)) = opened else { return };
        self.around.tracker.spawn(reap(info.pid));
        let handle = self.take(lane, info, socket.to_owned());
        match current.as_ref() {
            _ if self.stopping.is_cancelled() => handle.shut_down().await,
            // Of two, one was retired; which does not matter, for both
            // are asked whether they are fresh.
            Some(other) if other.is_alive() => handle.retire().await,
            _ => *current = Some(handle),
        }
    }

    /// Waits for the first words of a zygote that was there before this daemon;
    /// none if it is gone, or of no use.
    async fn open_left_behind(&self, socket: &str) -> Option<(LaneIo, ZygoteInfo)> {
        let mut told = false;
        loop {
            // One that is stopped, or still imports, answers in its time: the
            // connection stays.
            let deadline = Instant::now() + ADOPT_DEADLINE;
            let words = match zygote::open(self.dir(), socket, deadline).await {
                Ok(Ok(opened)) => return Some(opened),
                Ok(Err(error)) => {
                    let failed = format!("zygote {socket} failed: {error}");
                    self.around.log.note(&failed);
                    return None;
                }
                Err(error) if error.is_gone() => {
                    // What nobody listens on is only litter.
                    let _ = self.dir().remove(socket);
                    let _ = self.dir().remove(&socket.replace(".sock", ".log"));
                    return None;
                }
                Err(error) => format!("cannot adopt zygote {socket} yet: {}", chain(&error)),
            };
            if !told {
                told = true;
                self.around.log.note(&words);
            }
            tokio::time::sleep(ADOPT_PAUSE).await;
        }
    }

    /// No zygote comes up any more; whoever waits for one is told.
    pub(crate) fn refuse(&self) {
        self.stopping.cancel();
    }

    /// Ends all zygotes, for at most `patience`.
    pub(crate) async fn shut_down(&self, patience: Duration) {
        self.refuse();
        let ends = self
            .alive()
            .into_iter()
            .map(|zygote| async move { zygote.shut_down().await });
        let _ = tokio::time::timeout(patience, futures_util::future::join_all(ends)).await;
        // One that is stopped would be there for ever. It has no hosts any more.
        let left = self.alive();
        let ends = left.iter().map(ZygoteHandle::kill);
        futures_util::future::join_all(ends).await;
    }
}

/// Takes in the end of a process if it is our own child: after a restart in place
/// zygotes are, and nobody holds a handle of them.
async fn reap(pid: i32) {
    let (Some(pid), Ok(mut ended)) = (Pid::from_raw(pid), signal(SignalKind::child())) else {
        return;
    };
    // Another's child is an error at once.
    while let Ok(None) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
        ended.recv().await;
    }
}

/// Why there is no host.
enum SpawnFailure {
    /// For a reason that another zygote would not change.
    Told(SpawnError),
    /// The zygote is of no use; why.
    Useless(String),
}

impl From<AskError> for SpawnFailure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(why) => Self::Told(SpawnError::Refused(why)),
            AskError::Useless(why) => Self::Useless(why),
        }
    }
}

fn stops() -> SpawnError {
    SpawnError::Refused("the daemon stops".to_owned())
}

/// A zygote that nobody has spoken with yet: it ends with whoever waits for it,
/// as a daemon that stops meanwhile, for nobody else knows of it.
struct Newborn(Option<tokio::process::Child>);

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Its own handle is held, so the number cannot be another's.
            let _ = child.start_kill();
        }
    }
}

/// What a Python that does not come up was to import is the first suspect.
fn blame(environment: &Environment, words: String) -> String {
    if environment.preload.is_empty() || words.starts_with("cannot ") {
        return words;
    }
    let modules = environment.preload.join("`, `");
    format!("cannot preload `{modules}`: {words}")
}
