//! `pythond daemon -d`: start the daemon as a process of its own and wait until
//! it answers.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pythond_private_fs::{PrivateDir, connect_at_nonblocking, peer_credentials};

use crate::config::Config;
use crate::daemon::{DETACHED_LOG, DaemonError};
use crate::log_file::open_with_room;

/// Lowest descriptor that is no standard stream.
const FIRST_FREE: i32 = 3;
/// How long the daemon may take until its socket answers.
const DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(3);
/// Most of the daemon's words that are shown when it fails, in bytes.
const MOST_WORDS: u64 = 16 << 10;

/// Why there is no detached daemon.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// It said why.
    #[error("{words}")]
    Refused {
        /// What it wrote, and its exit code.
        words: String,
        /// Its exit code.
        code: u8,
    },
    /// It does not answer.
    #[error("the daemon (pid {pid}) does not answer within {} s; see `{log}`", DEADLINE.as_secs())]
    Silent {
        /// Its process id.
        pid: u32,
        /// Where it writes.
        log: String,
    },
    /// It could not be started.
    #[error("cannot start the daemon")]
    Start(#[source] std::io::Error),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
}

/// Starts the daemon and returns its process id once its socket answers.
///
/// # Errors
/// [`DetachError`].
pub fn start(config: &Config) -> Result<u32, DetachError> {
    let dir = PrivateDir::open_or_create(&config.runtime_dir).map_err(DaemonError::from)?;
    let log = open_with_room(&dir, DETACHED_LOG, config.limits.log).map_err(DaemonError::from)?;
    let before = log.metadata().map_err(DetachError::Start)?.len();
    // The daemon would keep them open for days: a pipe whose reader waits for its
    // end, a lock.
    close_fds::set_fds_cloexec(FIRST_FREE, &[]);
    let mut child = Command::new(&config.executable)
        .args(["daemon", "--detached"])
        .args(config.listen.to_arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(DetachError::Start)?;
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if answers(config, &child) {
            return Ok(child.id());
        }
        if let Some(status) = child.try_wait().map_err(DetachError::Start)? {
            let words = words_since(&dir, before);
            let code = status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(4);
            return Err(DetachError::Refused { words, code });
        }
        std::thread::sleep(PAUSE);
    }
    let log = crate::daemon::detached_log(config).display().to_string();
    Err(DetachError::Silent {
        pid: child.id(),
        log,
    })
}

/// The socket is that of our child: an older daemon's would answer as well.
fn answers(config: &Config, child: &Child) -> bool {
    connect_at_nonblocking(&config.socket.path)
        .ok()
        .and_then(|stream| peer_credentials(&stream).ok())
        .is_some_and(|peer| u32::try_from(peer.pid).is_ok_and(|pid| pid == child.id()))
}

fn words_since(dir: &PrivateDir, offset: u64) -> String {
    let read = || -> Option<String> {
        let mut file = dir.open_file(DETACHED_LOG).ok()?;
        file.seek(SeekFrom::Start(offset)).ok()?;
        let mut words = Vec::new();
        file.take(MOST_WORDS).read_to_end(&mut words).ok()?;
        Some(String::from_utf8_lossy(&words).trim().to_owned())
    };
    let words = read().unwrap_or_default();
    // An older daemon may have written here meanwhile; the word `error` comes
    // back when this is printed.
    let last = words
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    let words = last.map(str::to_owned).unwrap_or(words);
    if words.is_empty() {
        "the daemon ended at once".to_owned()
    } else {
        words
    }
}
