//! All remotes by name, kept in files for the next daemon here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pythond_private_fs::PrivateDir;
use pythond_protocol::SessionName;
use pythond_protocol::verbs::connect::{ConnectOptions, ConnectRequest, RemoteSummary};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Remote, RemoteSpec};
use crate::error::chain;
use crate::log::Log;

/// How the names of the files begin and end.
const FILE: (&str, &str) = ("r-", ".remote");
/// Greatest file.
const MAX_BYTES: u64 = 64 << 10;

/// All remotes by name.
pub(crate) struct Remotes {
    table: Mutex<BTreeMap<SessionName, Arc<Remote>>>,
    dir: Arc<PrivateDir>,
    home: PathBuf,
    /// What our daemon says of itself.
    boot: Arc<str>,
    log: Log,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Of the cells of clients that have no keys.
    keys: AtomicU64,
    /// No other daemon's keys begin so.
    key_prefix: String,
}

impl Remotes {
    /// None yet.
    pub(crate) fn new(
        dir: Arc<PrivateDir>,
        home: PathBuf,
        boot: Arc<str>,
        log: Log,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            table: Mutex::default(),
            dir,
            home,
            boot,
            log,
            tracker,
            stop,
            keys: AtomicU64::new(1),
            key_prefix: key_prefix(),
        }
    }

    /// A key that no cell has.
    pub(crate) fn new_key(&self) -> String {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.key_prefix)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<SessionName, Arc<Remote>>> {
        // Each change leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the daemon before us left.
    pub(crate) fn adopt(&self) {
        for (file, name) in self.files() {
            match self.read(&name, &file) {
                Ok(spec) => drop(self.enter(self.remote(spec))),
                // Another daemon may understand it: it stays.
                Err(why) => self.log.note(&format!(
                    "WARN: {file} tells of no remote: {why}; it is left as it is, and \
                     `pyctl connect {name}` writes it anew"
                )),
            }
        }
    }

    /// The files of remotes, and the names that they are for.
    fn files(&self) -> Vec<(String, String)> {
        let named = |file: String| {
            let name = file.strip_prefix(FILE.0)?.strip_suffix(FILE.1)?.to_owned();
            Some((file, name))
        };
        let files = self.dir.entries().unwrap_or_default();
        files.into_iter().filter_map(named).collect()
    }

    fn read(&self, name: &str, file: &str) -> Result<RemoteSpec, String> {
        let content = self
            .dir
            .read_file(file, MAX_BYTES)
            .map_err(|it| chain(&it))?;
        // What is wrong is not shown: there is a token in it.
        let options: ConnectOptions =
            serde_json::from_slice(&content).map_err(|_| "it is damaged".to_owned())?;
        let name = name.parse().map_err(|_| "its name is none".to_owned())?;
        RemoteSpec::of(ConnectRequest { name, options }).map_err(|error| error.message)
    }

    /// A remote that is not in the table.
    pub(crate) fn remote(&self, spec: RemoteSpec) -> Arc<Remote> {
        let remote = Remote::new(
            spec,
            self.home.clone(),
            Arc::clone(&self.boot),
            self.log.clone(),
        );
        let keeping = Arc::clone(&remote).keep(self.stop.clone());
        self.tracker.spawn(keeping);
        remote
    }

    /// Enters a remote, in place of one that has its name.
    pub(crate) fn enter(&self, remote: Arc<Remote>) -> Option<Arc<Remote>> {
        self.keep_file(&remote.spec);
        let before = self.table().insert(remote.spec.name.clone(), remote);
        if let Some(before) = &before {
            before.disconnect();
        }
        before
    }

    fn keep_file(&self, spec: &RemoteSpec) {
        let content = serde_json::to_vec(&spec.to_options()).unwrap_or_default();
        let file = file_of(&spec.name);
        if let Err(error) = self.dir.write_whole_unsynced(&file, &content) {
            let (name, why) = (&spec.name, chain(&error));
            self.log.note(&format!(
                "WARN: remote {name} will not be known to the next daemon: {why}"
            ));
        }
    }

    /// Forgets a remote.
    pub(crate) fn remove(&self, name: &SessionName) -> Option<Arc<Remote>> {
        let removed = self.table().remove(name);
        if let Some(remote) = &removed {
            remote.disconnect();
            // What stays is taken over by the next daemon.
            let _ = self.dir.remove(&file_of(name));
        }
        removed
    }

    /// The remote of this name.
    pub(crate) fn get(&self, name: &SessionName) -> Option<Arc<Remote>> {
        self.table().get(name).cloned()
    }

    /// What is told of each, by name.
    pub(crate) fn summaries(&self) -> Vec<RemoteSummary> {
        self.table()
            .values()
            .map(|remote| remote.summary())
            .collect()
    }

    /// The daemon ends, and nobody is to find them again.
    pub(crate) fn forget_all(&self) {
        let names: Vec<SessionName> = self.table().keys().cloned().collect();
        for name in names {
            self.remove(&name);
        }
        // There may be tokens in those that nobody understood.
        for (file, _) in self.files() {
            let _ = self.dir.remove(&file);
        }
    }
}

fn key_prefix() -> String {
    let mut random = [0; 12];
    // Without it the time and our process are as good as unique.
    if getrandom::fill(&mut random).is_err() {
        let now = jiff::Timestamp::now().as_nanosecond();
        return format!("proxy-{}-{now}", std::process::id());
    }
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("proxy-{digits}")
}

fn file_of(name: &SessionName) -> String {
    format!("{}{name}{}", FILE.0, FILE.1)
}
