//! All zygotes, one per environment: started when first needed, adopted when
//! they are there already, replaced when something was installed.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{SessionSpec, ZygoteCommand, ZygoteInfo};
use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::{Environment, FileMark};
use crate::error::SpawnError;
use crate::exits::Exits;
use crate::lane_io::LaneIo;
use crate::log::Log;
use crate::zygote::{self, Spawned, ZygoteHandle};

/// How long an environment may take to come up.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a zygote that was there already may take to answer.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
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

/// One environment's place: holding the lock means starting its zygote.
#[derive(Default)]
struct Slot {
    zygote: tokio::sync::Mutex<Option<ZygoteHandle>>,
}

/// All zygotes of this daemon.
pub(crate) struct Zygotes {
    dir: Arc<PrivateDir>,
    program: HostProgram,
    exits: Arc<Exits>,
    log: Log,
    tracker: TaskTracker,
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
        Self {
            dir,
            program,
            exits,
            log,
            tracker,
            slots: Mutex::default(),
            all: Mutex::default(),
            stopping: CancellationToken::new(),
        }
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
        let key = self.key(environment);
        let slot = self.slot(&key);
        let mut current = slot.zygote.lock().await;
        if let Some(zygote) = current.as_ref().filter(|zygote| zygote.is_alive()) {
            return Ok(zygote.clone());
        }
        let zygote = self.start(environment, &key).await?;
        *current = Some(zygote.clone());
        Ok(zygote)
    }

    /// Makes a session host in an environment.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub(crate) async fn spawn(
        &self,
        environment: &Environment,
        spec: SessionSpec,
    ) -> Result<Spawned, SpawnError> {
        let mut zygote = self.get(environment).await?;
        if !zygote.is_fresh().await {
            zygote = self.renew(environment, &zygote).await?;
        }
        match zygote.spawn(spec.clone()).await {
            Ok(spawned) => Ok(spawned),
            Err(Some(error)) => Err(SpawnError::Refused(error)),
            // It died between the question and this; nothing was made that
            // anybody knows of, so one more start is no double execution.
            Err(None) => {
                let zygote = self.get(environment).await?;
                zygote.spawn(spec).await.map_err(|error| {
                    SpawnError::Refused(error.unwrap_or_else(|| "the zygote died".to_owned()))
                })
            }
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
        let zygote = self.start(environment, &key).await?;
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
    ) -> Result<ZygoteHandle, SpawnError> {
        let (name, listener) = self.bind(key)?;
        let socket = format!("z-{name}.sock");
        let log_name = format!("z-{name}.log");
        let started = self.start_process(environment, &name, &log_name, listener);
        let outcome = match started {
            Ok(child) => {
                self.wait_for_welcome(environment, child, &socket, &log_name)
                    .await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok((lane, info)) => Ok(self.take(lane, info)),
            Err(error) => {
                // Nobody listens there any more.
                let _ = self.dir.remove(&socket);
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
            match self.dir.bind_socket(&format!("z-{name}.sock"), BACKLOG) {
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
        log_name: &str,
        listener: std::os::fd::OwnedFd,
    ) -> Result<tokio::process::Child, SpawnError> {
        let output = self.dir.empty_file(log_name).map_err(SpawnError::Files)?;
        let errors = output.try_clone().map_err(SpawnError::Launch)?;
        let mut command = tokio::process::Command::new(&self.program.launcher);
        command
            .arg("zygote")
            .args(["--python", &environment.python])
            .arg("--runtime-dir")
            .arg(self.dir.path())
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
            opened = zygote::open(&self.dir, socket, deadline) => opened.ok(),
            _ = child.wait() => None,
            // Dropping the newborn ends it.
            () = self.stopping.cancelled() => return Err(stops()),
            () = tokio::time::sleep_until(deadline) => {
                // Its own handle is held, so the number cannot be another's.
                let _ = child.start_kill();
                let _ = child.wait().await;
                return Err(SpawnError::Environment(format!(
                    "python did not come up within {} s", START_DEADLINE.as_secs()
                )));
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
                Err(SpawnError::Environment(words))
            }
        }
    }

    /// Reaps a zygote by its own handle whenever it ends.
    fn reap(&self, mut newborn: Newborn) {
        if let Some(mut child) = newborn.0.take() {
            self.tracker.spawn(async move { drop(child.wait().await) });
        }
    }

    /// The last line that a zygote wrote before it ended.
    fn last_line(&self, log_name: &str) -> Option<String> {
        let mut file = self.dir.open_file(log_name).ok()?;
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

    fn take(&self, lane: LaneIo, info: ZygoteInfo) -> ZygoteHandle {
        let exits = Arc::clone(&self.exits);
        let handle = zygote::start(lane, info, exits, self.log.clone(), &self.tracker);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(ZygoteHandle::is_alive);
        all.push(handle.clone());
        handle
    }

    /// Takes over a zygote that an earlier daemon started. Removes its socket
    /// if it is dead.
    pub(crate) async fn adopt(&self, socket: &str) {
        let deadline = Instant::now() + ADOPT_DEADLINE;
        let opened =
            tokio::time::timeout(ADOPT_DEADLINE, zygote::open(&self.dir, socket, deadline));
        match opened.await {
            Ok(Ok(Ok((mut lane, _)))) if self.stopping.is_cancelled() => {
                // A lane that breaks now belongs to one that ends anyway.
                let _ = lane.send(&ZygoteCommand::Shutdown, b"");
            }
            Ok(Ok(Ok((lane, info)))) => {
                let key = info.key.split('-').next().unwrap_or(&info.key).to_owned();
                self.tracker.spawn(reap(info.pid));
                let handle = self.take(lane, info);
                let slot = self.slot(&key);
                let mut current = slot.zygote.lock().await;
                match current.as_ref() {
                    // Of two, one was retired; which does not matter, for both
                    // are asked whether they are fresh.
                    Some(other) if other.is_alive() => handle.retire().await,
                    _ => *current = Some(handle),
                }
            }
            Ok(Ok(Err(error))) => self.log.note(&format!("zygote {socket} failed: {error}")),
            Ok(Err(error)) if error.is_gone() => {
                // What nobody listens on is only litter.
                let _ = self.dir.remove(socket);
                let _ = self.dir.remove(&socket.replace(".sock", ".log"));
            }
            Ok(Err(error)) => self
                .log
                .note(&format!("cannot adopt zygote {socket}: {error}")),
            Err(_) => self.log.note(&format!("zygote {socket} does not answer")),
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
        // One that does not end has no hosts any more and ends by itself.
        let _ = tokio::time::timeout(patience, futures_util::future::join_all(ends)).await;
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
