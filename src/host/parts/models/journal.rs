//! A host that is killed at any access to its journal: what a reader finds
//! afterwards is what was written, and only that.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex as GhostMutex, PoisonError};

use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{KeyDigest, Reached};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::{Stream, merged};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use crate::fuzz::put;
use crate::journal::Journal;
use crate::models::rounds;
use crate::sys::BEFORE_ACCESS;

const CELLS: u32 = 3;
const RING: usize = 4096;
const HALF: u64 = 64 << 10;
const NAME: &str = "h-1.journal";

/// Bytes without order and without zeros.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 88_172_645_463_325_252_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from(state % 255).unwrap_or(0) + 1
    };
    (0..1 << 20).map(byte).collect()
});

/// Bytes of which some are certainly written, and all may be.
#[derive(Clone, Debug, Default)]
struct Written {
    begun: Vec<u8>,
    certain: usize,
}

impl Written {
    /// Where what was written may end, if these bytes are the end of it.
    fn ends(&self, last: &[u8]) -> impl Iterator<Item = usize> {
        let ends = self.certain..=self.begun.len();
        ends.filter(move |at| self.begun[..*at].ends_with(last))
    }
}

/// What the writers know.
#[derive(Clone, Debug, Default)]
struct Ghost {
    /// The running cell, while that is certain.
    running: Option<CellId>,
    /// Output of the cell that began last.
    output: Written,
    /// Each record that was begun, by age; all but the last are certain, and that
    /// one is if it is said.
    records: Vec<(Reached, CellId, u64)>,
    last_is_certain: bool,
    stderr: Written,
}

/// The journal under the lock that its writers take, as in the host.
struct Host {
    journal: Mutex<Journal>,
    directory: PrivateDir,
    ghost: GhostMutex<Ghost>,
}

impl Host {
    fn ghost<T>(&self, change: impl FnOnce(&mut Ghost) -> T) -> T {
        change(&mut self.ghost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes bytes as the host's outputs do.
    fn keep(&self, journal: &Journal, stream: Stream, data: &[u8]) {
        if stream == Stream::Stderr {
            journal.note_stderr(data);
            self.ghost(|ghost| ghost.stderr.certain = ghost.stderr.begun.len());
        }
        journal.note_output(stream, data);
        self.ghost(|ghost| ghost.output.certain = ghost.output.begun.len());
    }

    fn begin(&self, stream: Stream, data: &[u8]) {
        self.ghost(|ghost| {
            ghost.output.begun.extend_from_slice(data);
            if stream == Stream::Stderr {
                ghost.stderr.begun.extend_from_slice(data);
            }
        });
    }

    /// Python code writes.
    fn print(&self, stream: Stream, data: &[u8]) {
        let journal = self.journal.lock().unwrap();
        self.begin(stream, data);
        self.keep(&journal, stream, data);
    }

    /// A pipe is emptied.
    fn drain(&self, stream: Stream, data: &[u8]) {
        let journal = self.journal.lock().unwrap();
        let read = |buffer: &mut [u8]| {
            buffer[..data.len()].copy_from_slice(data);
            // The pipe has them no more: from here on they are here or nowhere.
            self.begin(stream, data);
            self.ghost(|ghost| {
                ghost.output.certain = ghost.output.begun.len();
                if stream == Stream::Stderr {
                    ghost.stderr.certain = ghost.stderr.begun.len();
                }
            });
            data.len()
        };
        journal.take_in(stream, read, |data| self.keep(&journal, stream, data));
    }

    /// Writes a record; the caller has the lock.
    fn record(&self, journal: &Journal, reached: Reached, cell: CellId, note: u64) {
        let key = (reached == Reached::Accepted).then(|| key_of(cell));
        self.ghost(|ghost| {
            ghost.records.push((reached, cell, note));
            ghost.last_is_certain = false;
        });
        journal.record(reached, cell, note, key);
        self.ghost(|ghost| ghost.last_is_certain = true);
    }

    fn run(&self, number: u32) {
        let id = CellId::from_parts(7, number);
        {
            let journal = self.journal.lock().unwrap();
            self.record(&journal, Reached::Accepted, id, u64::from(number) + 40);
        }
        {
            let journal = self.journal.lock().unwrap();
            self.ghost(|ghost| ghost.output = Written::default());
            journal.begin_output();
        }
        // The journal's records have a lock of their own in the host.
        let records = self.journal.lock().unwrap();
        self.record(&records, Reached::Started, id, 1);
        records.set_running(Some(id));
        self.ghost(|ghost| ghost.running = Some(id));
        drop(records);
        for _ in 0..3 {
            let data = some_bytes();
            self.print(some_stream(), &data);
        }
        self.ghost(|ghost| ghost.running = None);
        let records = self.journal.lock().unwrap();
        self.record(&records, Reached::Finished, id, 2);
        records.set_running(None);
    }

    /// What a reader finds if the process dies now: nothing is waited for.
    fn killed(&self) {
        let ghost = self.ghost(|ghost| ghost.clone());
        let left = std::fs::read(self.directory.path().join(NAME)).unwrap();
        put(&self.directory, "left.journal", &left);
        let dead = Journal::open(&self.directory, "left.journal").unwrap();

        let (told, all) = dead.fates();
        assert!(all, "nothing was left out or overwritten");
        assert!(told.iter().all(|it| it.key == Some(key_of(it.cell))));
        let uncertain = usize::from(!ghost.last_is_certain);
        let certain = ghost.records.len().saturating_sub(uncertain);
        let fates = |count: usize| {
            let mut fates: BTreeMap<CellId, (u64, Reached)> = BTreeMap::new();
            for (reached, cell, note) in &ghost.records[..count.min(ghost.records.len())] {
                let fate = fates.entry(*cell).or_insert((*note, *reached));
                fate.1 = *reached;
            }
            fates
        };
        let told = told.iter().map(|it| (it.cell, (it.request, it.reached)));
        let told: BTreeMap<_, _> = told.collect();
        let expected = [fates(certain), fates(ghost.records.len())];
        assert!(expected.contains(&told), "{told:?}, not {expected:?}");

        let stderr = dead.last_stderr();
        let written = ghost.stderr.ends(&stderr).next();
        assert!(written.is_some(), "standard error that nobody wrote");
        // What is being written takes the place of what is too old beside it.
        let first = ghost.stderr.begun.len().saturating_sub(RING);
        let expected = ghost.stderr.certain.saturating_sub(first);
        assert!(stderr.len() >= expected, "{} bytes of it", stderr.len());
        if let Some(running) = dead.running() {
            let (log, lost) = dead.last_output();
            let kept = merged(&log).expect("whole records");
            // A half that is about to be used again may be counted already.
            let fits = |end: usize| {
                let missing = (end - kept.len()) as u64;
                (missing..=missing + HALF).contains(&lost)
            };
            let mut ends = ghost.output.ends(&kept);
            assert!(ends.any(fits), "{} bytes, {lost} lost before", kept.len());
            if let Some(certain) = ghost.running {
                assert_eq!(running, certain);
            }
        } else {
            assert_eq!(ghost.running, None, "a running cell that nobody knows of");
        }
    }
}

/// The key that a cell came with.
fn key_of(cell: CellId) -> KeyDigest {
    KeyDigest::new(&cell.to_string(), CellKind::Run, "1")
}

fn some_stream() -> Stream {
    if thread_rng().gen_bool(0.5) {
        Stream::Stdout
    } else {
        Stream::Stderr
    }
}

/// Few bytes or many.
fn some_bytes() -> Vec<u8> {
    let mut random = thread_rng();
    let lengths = [1, 40, 3000, 9000, 40_000, 70_000];
    let length = lengths[random.gen_range(0..lengths.len())];
    let from = random.gen_range(0..BYTES.len() - length);
    BYTES[from..from + length].to_vec()
}

fn model() {
    BEFORE_ACCESS.set(|| {});
    let kept = tempfile::tempdir().unwrap();
    let directory = PrivateDir::open_or_create(kept.path().join("kept")).unwrap();
    let host = Arc::new(Host {
        journal: Mutex::new(Journal::create(&directory, NAME).unwrap()),
        directory,
        ghost: GhostMutex::default(),
    });
    BEFORE_ACCESS.set(thread::yield_now);
    let main = thread::spawn({
        let host = Arc::clone(&host);
        move || (1..=CELLS).for_each(|number| host.run(number))
    });
    let io = thread::spawn({
        let host = Arc::clone(&host);
        move || {
            for _ in 0..4 {
                let data = some_bytes();
                host.drain(some_stream(), &data[..data.len().min(9000)]);
            }
        }
    });
    let killer = thread::spawn({
        let host = Arc::clone(&host);
        move || {
            for _ in 0..thread_rng().gen_range(0..120) {
                thread::yield_now();
            }
            // A dead process goes on no more: no thread gets its turn meanwhile.
            BEFORE_ACCESS.set(|| {});
            host.killed();
            BEFORE_ACCESS.set(thread::yield_now);
        }
    });
    for thread in [main, io, killer] {
        thread.join().unwrap();
    }
    BEFORE_ACCESS.set(|| {});
}

#[test]
fn a_journal_that_breaks_off_anywhere_tells_what_was_written() {
    shuttle::check_random(model, rounds(400));
}
