//! The one thread of a host that waits for the disk, and what waits for it: the
//! session's records, output that is too long for memory, and readers of that.
//!
//! It shares the I/O thread's descriptors, which no cell can reach. Nobody else
//! waits for a disk that does not answer: what cannot be written in time is left
//! out, counted and told.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::cell_log::Spilled;
use crate::sys;

/// A disk, or a reader, that has not moved for so long is not waited for.
pub(crate) const STALLED: Duration = Duration::from_secs(1);
/// What is told of it.
pub(crate) const SLOW: &str = "slow disk";
/// How long records may wait while cells keep coming: those of cells that follow
/// one another closely are written together.
const WRITE_RECORDS: Duration = Duration::from_millis(20);
/// Output that may wait before a cell waits for the disk, in bytes.
const BEHIND: u64 = 4 << 20;
/// Output that may wait at all, in bytes.
const FULL: u64 = 8 << 20;
/// How long a session that ends waits for its records.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What is to be done with the session's files.
pub(crate) enum Job {
    /// Take the lock of the session's directory.
    Lock,
    /// Keep a part of a cell's output.
    Keep(Spilled),
    /// Remove a file of a cell's output.
    Remove(String),
    /// Write the records that wait.
    Records,
    /// Read a cell's output for somebody who waits.
    Read(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Job")
    }
}

/// What waits for the disk.
#[derive(Default)]
pub(crate) struct Disk {
    directory: OnceLock<PathBuf>,
    queue: Mutex<Queue>,
    came: Condvar,
    done: Condvar,
    /// Bytes of output that wait.
    bytes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// These need not wait for what is to be written: that can still be read
    /// from memory.
    reads: VecDeque<Job>,
    /// The last one was a read.
    has_read: bool,
    /// When the records that wait are to be written.
    records_at: Option<Instant>,
    /// Since when the thread is busy with one job.
    busy: Option<Instant>,
    /// The lock was taken, or cannot be.
    locked: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Disk")
    }
}

impl Queue {
    fn is_stalled(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() >= STALLED)
    }

    fn take(&mut self, now: Instant) -> Option<Job> {
        if self.records_at.is_some_and(|at| at <= now) && self.locked {
            self.records_at = None;
            return Some(Job::Records);
        }
        // In turns, so that neither readers nor writers wait for ever.
        let read = if self.has_read && !self.jobs.is_empty() {
            None
        } else {
            self.reads.pop_front()
        };
        self.has_read = read.is_some();
        read.or_else(|| self.jobs.pop_front())
    }
}

impl Disk {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change under the lock is one step.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the session's directory is; it may not be there yet. Once.
    pub(crate) fn work_in(&self, directory: PathBuf) {
        self.directory.get_or_init(|| directory);
    }

    /// The session's directory, once it is known.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.get().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Starts the thread. Called once, by the I/O thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(&'static self, work: impl Fn(Job) + Send + 'static) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name("pythond-disk".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                sys::block_all_signals();
                loop {
                    let job = self.next();
                    let bytes = match &job {
                        Job::Keep(spilled) => spilled.bytes.len() as u64,
                        _ => 0,
                    };
                    let locks = matches!(job, Job::Lock);
                    work(job);
                    self.bytes.fetch_sub(bytes, SeqCst);
                    self.end(locks);
                }
            })
            .map(drop)
    }

    fn next(&self) -> Job {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            if let Some(job) = queue.take(now) {
                queue.busy = Some(now);
                return job;
            }
            queue = match queue.records_at.filter(|_| queue.locked) {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    let waited = self.came.wait_timeout(queue, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.came.wait(queue);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn end(&self, locks: bool) {
        let mut queue = self.queue();
        queue.busy = None;
        queue.locked |= locks;
        self.done.notify_all();
    }

    /// Hands something over; never waits.
    pub(crate) fn hand(&self, job: Job) {
        if let Job::Keep(spilled) = &job {
            self.bytes.fetch_add(spilled.bytes.len() as u64, SeqCst);
        }
        let mut queue = self.queue();
        match job {
            Job::Read(_) => queue.reads.push_back(job),
            _ => queue.jobs.push_back(job),
        }
        self.came.notify_one();
    }

    /// Asks that the records that wait are written, with those that come soon.
    pub(crate) fn write_records_soon(&self) {
        self.ask_for_records(Instant::now() + WRITE_RECORDS, false);
    }

    /// Asks that the records that wait are written.
    pub(crate) fn write_records_now(&self) {
        self.ask_for_records(Instant::now(), true);
    }

    fn ask_for_records(&self, at: Instant, sooner: bool) {
        let mut queue = self.queue();
        if queue.records_at.is_none() || sooner {
            queue.records_at = Some(at);
            self.came.notify_one();
        }
    }

    /// Takes the lock of the session's directory. Waits for that a little; on a
    /// disk that does not answer it comes later.
    pub(crate) fn lock_directory(&self) {
        let mut queue = self.queue();
        queue.jobs.push_front(Job::Lock);
        self.came.notify_one();
        let locked = |queue: &mut Queue| !queue.locked;
        let waited = self.done.wait_timeout_while(queue, STALLED, locked);
        drop(waited);
    }

    /// True if the disk has not answered for some time.
    pub(crate) fn is_stalled(&self) -> bool {
        self.queue().is_stalled()
    }

    /// A cell that writes more has to wait.
    pub(crate) fn is_behind(&self) -> bool {
        self.bytes.load(SeqCst) > BEHIND && !self.is_stalled()
    }

    /// More output can wait.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.load(SeqCst) < FULL
    }

    /// Waits until the last records are written, if the disk answers.
    pub(crate) fn finish(&self) {
        let until = Instant::now() + LAST_WORDS;
        self.write_records_now();
        let mut queue = self.queue();
        while queue.records_at.is_some() || queue.busy.is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.is_stalled() || !queue.locked {
                return;
            }
            // A stall begins without a word.
            let waited = self.done.wait_timeout(queue, left.min(STALLED / 10));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
