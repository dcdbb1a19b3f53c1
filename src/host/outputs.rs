//! What cells write: told apart by cell and stream, in order, bounded, readable
//! from any offset while it grows and afterwards.
//!
//! Knows nothing of Python: whoever calls says whose bytes they are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pythond_private_fs::PrivateDir;
use pythond_protocol::limits::{Kept, KeptBudget};
use pythond_protocol::output_log::Stream;

use crate::cell_log::{CellLog, FILE_END, Found, Piece, Room, Spilled, Wanted};
use crate::disk::{Disk, Job, STALLED};
use crate::journal::{INTAKE, Journal};

/// How long a cell waits for readers that are too slow.
const MOST_PATIENCE: Duration = Duration::from_secs(30);
/// How long cells wait for a disk that is too slow.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two pieces of the same flow that are not full: each costs every
/// process on the way some wake-ups.
const PACE: Duration = Duration::from_millis(2);
/// What a reader or a disk takes in a second that is not too slow, in bytes.
const FAST_ENOUGH: u64 = 4 << 20;

/// The outputs of a session's cells.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    inner: Mutex<Inner>,
    told: Arc<Mutex<Told>>,
    /// A reader or the disk took something.
    moved: Condvar,
    disk: Arc<Disk>,
}

#[derive(Debug, Default)]
struct Inner {
    cells: HashMap<u64, CellOutput>,
    finished: VecDeque<u64>,
    finished_memory: usize,
    finished_files: u64,
    budget: KeptBudget,
    /// The running `run` cell; 0 if there is none.
    running: u64,
    session: CellLog,
    told: Arc<Mutex<Told>>,
    /// Where the end of the running cell's output outlives this process.
    journal: Option<Arc<Journal>>,
    disk: Arc<Disk>,
    /// How long cells have waited for the disk, less what it has earned.
    patience: Duration,
}

/// What is told of all this, apart from what is locked while a flood is taken in.
#[derive(Debug, Default)]
struct Told {
    /// Why output cannot be moved to files, if so.
    trouble: Option<String>,
    kept: Kept,
}

#[derive(Debug, Default)]
struct CellOutput {
    log: CellLog,
    /// The cell has ended.
    retired: bool,
    /// Memory that its end holds.
    text: usize,
    /// Somebody waits for more.
    awaited: bool,
    /// When somebody who follows was given something last.
    given: Option<Instant>,
    /// Who reads while the cell writes.
    reader: Option<Reader>,
    /// How long the cell has waited for readers, less what they have earned by
    /// reading.
    patience: Duration,
}

/// Where a live reader is.
#[derive(Clone, Copy, Debug)]
struct Reader {
    offset: u64,
    moved: Instant,
}

/// The counts of a cell's output at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes that went to stdout.
    pub(crate) stdout: u64,
    /// Bytes of both streams.
    pub(crate) bytes: u64,
    /// Bytes that are not kept.
    pub(crate) truncated: u64,
}

/// What a writer has to do after it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Somebody waits for these bytes.
    pub(crate) awaited: bool,
    /// A reader is so far behind that it would lose some.
    pub(crate) too_fast: bool,
}

impl Outputs {
    /// Output whose files `disk` writes.
    pub(crate) fn new(disk: Arc<Disk>) -> Self {
        let told = Arc::default();
        let inner = Inner {
            disk: Arc::clone(&disk),
            told: Arc::clone(&told),
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
            told,
            moved: Condvar::new(),
            disk,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much is kept of finished cells.
    pub(crate) fn keep_within(&self, budget: KeptBudget) {
        let mut inner = self.lock();
        inner.budget = budget;
        inner.tell();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of finished cells.
    pub(crate) fn kept(&self, forgotten: u64) -> Kept {
        let kept = self.told().kept;
        Kept { forgotten, ..kept }
    }

    /// Where the end of the running cell's output is kept for others.
    pub(crate) fn keep_end_in(&self, journal: Arc<Journal>) {
        self.lock().journal = Some(journal);
    }

    /// Why output cannot be moved to files, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.told().trouble.clone()
    }

    /// Why some output of a cell could not be kept, if so.
    pub(crate) fn trouble_of(&self, cell: u64) -> Option<String> {
        let inner = self.lock();
        let log = &inner.cells.get(&cell)?.log;
        log.trouble().map(str::to_owned)
    }

    /// A cell is accepted: its output, empty so far, can be read.
    pub(crate) fn open(&self, cell: u64) {
        self.lock().cells.entry(cell).or_default();
    }

    /// A cell of the main thread begins; descriptor-level output is its from
    /// now on.
    pub(crate) fn begin_main(&self, cell: u64) {
        let mut inner = self.lock();
        inner.cells.entry(cell).or_default();
        inner.running = cell;
        if let Some(journal) = &inner.journal {
            journal.begin_output();
        }
    }

    /// The cell of the main thread ended.
    pub(crate) fn end_main(&self, cell: u64) {
        let mut inner = self.lock();
        if inner.running == cell {
            inner.running = 0;
        }
    }

    /// A cell ended; `text` is the memory that its end holds. Returns the cells
    /// that had to go.
    pub(crate) fn retire(&self, cell: u64, text: usize) -> Vec<u64> {
        let mut inner = self.lock();
        inner.finished.push_back(cell);
        if let Some(output) = inner.cells.get_mut(&cell) {
            output.text = text;
            output.retired = true;
            output.reader = None;
            output.log.finish();
            let (memory, files) = output.held();
            inner.finished_memory += memory;
            inner.finished_files += files;
        }
        let mut gone = Vec::new();
        while inner.is_over_budget() {
            let Some(oldest) = inner.finished.pop_front() else {
                break;
            };
            if let Some(output) = inner.cells.remove(&oldest) {
                let (memory, files) = output.held();
                inner.finished_memory = inner.finished_memory.saturating_sub(memory);
                inner.finished_files = inner.finished_files.saturating_sub(files);
                let mut jobs = Vec::new();
                output.log.remove_files(&mut inner.room(oldest, &mut jobs));
                inner.hand(jobs);
            }
            gone.push(oldest);
        }
        inner.tell();
        gone
    }

    /// Adds bytes of a cell; 0, and cells that are not kept any more, mean the
    /// session itself.
    pub(crate) fn append(&self, cell: u64, stream: Stream, data: &[u8]) -> Written {
        self.lock().append(cell, stream, data)
    }

    /// Reads what descriptors have until they would block, in one step with
    /// putting it in order. `read` returns 0 when nothing is there.
    pub(crate) fn drain(&self, mut read: impl FnMut(Stream, &mut [u8]) -> usize) -> Written {
        let mut inner = self.lock();
        let journal = inner.journal.clone();
        let mut written = Written::default();
        for stream in [Stream::Stdout, Stream::Stderr] {
            loop {
                let read = |buffer: &mut [u8]| read(stream, buffer);
                let keep = |data: &[u8]| {
                    let cell = inner.running;
                    inner.append(cell, stream, data)
                };
                let Some(now) = take_in(journal.as_deref(), stream, read, keep) else {
                    break;
                };
                written.awaited |= now.awaited;
                written.too_fast |= now.too_fast;
                if written.too_fast {
                    return written;
                }
            }
        }
        written
    }

    /// Waits until a reader or the disk takes something, for so long at most. True
    /// if the cell still has to wait.
    pub(crate) fn wait_for_readers(&self, cell: u64, most: Duration) -> bool {
        let began = Instant::now();
        let inner = self.lock();
        let (mut inner, _) = self
            .moved
            .wait_timeout(inner, most)
            .unwrap_or_else(PoisonError::into_inner);
        inner.is_too_fast(cell, began.elapsed())
    }

    /// True while descriptor-level output has to wait; `waited` is how long it
    /// has since this was asked last.
    pub(crate) fn is_main_too_fast(&self, waited: Duration) -> bool {
        let mut inner = self.lock();
        let running = inner.running;
        inner.is_too_fast(running, waited)
    }

    /// Waits until what a cell wrote is in its files, unless the disk does not
    /// answer.
    pub(crate) fn wait_for_disk(&self, cell: u64) {
        let mut inner = self.lock();
        let is_waiting = |inner: &Inner| {
            let output = inner.cells.get(&cell);
            output.is_some_and(|output| output.log.is_waiting())
        };
        while is_waiting(&inner) && !self.disk.is_stalled() {
            // A stall begins without a word.
            let waited = self.moved.wait_timeout(inner, STALLED / 10);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A part of a cell's output is in its file, or could not be written.
    pub(crate) fn spilled(&self, part: &Spilled, written: Result<(), String>) {
        self.told().trouble = written.clone().err();
        let mut inner = self.lock();
        let earned = (part.bytes.len() as u64).saturating_mul(1000) / FAST_ENOUGH;
        inner.patience = inner.patience.saturating_sub(Duration::from_millis(earned));
        if let Some(output) = inner.cells.get_mut(&part.cell) {
            let before = output.held();
            output.log.spilled(part, written);
            let (after, retired) = (output.held(), output.retired);
            if retired {
                inner.change_finished(before, after);
                inner.tell();
            }
        }
        drop(inner);
        self.moved.notify_all();
    }

    /// How much a cell has written.
    pub(crate) fn extent(&self, cell: u64) -> Extent {
        let inner = self.lock();
        inner
            .cells
            .get(&cell)
            .map(|output| Extent {
                stdout: output.log.total().stdout,
                bytes: output.log.total().of(None),
                truncated: output.log.lost(),
            })
            .unwrap_or_default()
    }

    /// What somebody wants of a cell's output, as [`CellLog::read`] has it. None if
    /// the cell is not kept.
    pub(crate) fn read(&self, wanted: &Wanted, files: bool) -> Option<Found> {
        let mut inner = self.lock();
        let output = inner.cells.get_mut(&wanted.cell)?;
        let found = output.log.read(wanted, files);
        if wanted.follow
            && let Found::Here(piece) = &found
        {
            output.followed(wanted.stream, piece);
            self.moved.notify_all();
        }
        Some(found)
    }

    /// The beginning of a cell's output, if it is kept: at most
    /// [`HEAD`](crate::cell_log::HEAD) bytes, without waiting for the disk.
    pub(crate) fn beginning(&self, cell: u64, most: usize) -> Option<Piece> {
        let wanted = Wanted {
            cell,
            stream: None,
            offset: 0,
            most,
            follow: false,
        };
        self.without_files(&wanted)
    }

    /// What can be had without waiting for the disk.
    pub(crate) fn without_files(&self, wanted: &Wanted) -> Option<Piece> {
        match self.read(wanted, false)? {
            Found::Here(piece) => Some(piece),
            Found::InFiles(_) => None,
        }
    }

    /// Reads what is in files, and what follows it. For the thread of the disk.
    pub(crate) fn read_files(&self, mut wanted: Wanted) -> Option<Piece> {
        let mut missing = 0;
        loop {
            let mut piece = match self.read(&wanted, true)? {
                Found::Here(piece) => piece,
                Found::InFiles(parts) => {
                    let piece = parts.read(self.disk.directory());
                    if piece.records.is_empty() {
                        // All of that is gone; what follows may be there.
                        missing += piece.missing;
                        wanted.offset = piece.next;
                        continue;
                    }
                    let mut inner = self.lock();
                    if wanted.follow
                        && let Some(output) = inner.cells.get_mut(&wanted.cell)
                    {
                        output.followed(wanted.stream, &piece);
                        self.moved.notify_all();
                    }
                    piece
                }
            };
            piece.missing += missing;
            return Some(piece);
        }
    }

    /// When whoever follows the cell is to be given the next piece, if not at
    /// once: a piece that is full, or the first for some time, need not wait.
    pub(crate) fn next_piece_at(
        &self,
        cell: u64,
        stream: Option<Stream>,
        offset: u64,
        most: usize,
    ) -> Option<Instant> {
        let inner = self.lock();
        let output = inner.cells.get(&cell)?;
        let there = output.log.total().of(stream).saturating_sub(offset);
        let due = output.given? + PACE;
        (there < most as u64 && due > Instant::now()).then_some(due)
    }
}

impl Inner {
    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.kept = Kept {
            cells: self.finished.len() as u64,
            memory_bytes: self.finished_memory as u64,
            file_bytes: self.finished_files,
            forgotten: 0,
            budget: self.budget,
        };
    }

    /// Finished cells have to go; the newest never has.
    fn is_over_budget(&self) -> bool {
        let budget = &self.budget;
        let cells = self.finished.len();
        cells as u64 > budget.cells
            || (cells > 1
                && (self.finished_memory as u64 > budget.memory_bytes
                    || self.finished_files > budget.file_bytes))
    }

    /// How far a reader may be behind before a cell waits for it, in bytes.
    fn lead(&self) -> u64 {
        self.budget.cell_file_bytes / 2
    }

    fn room<'a>(&self, cell: u64, jobs: &'a mut Vec<Job>) -> Room<'a> {
        Room {
            cell,
            most: self.budget.cell_file_bytes,
            free: self.disk.has_room(),
            jobs,
        }
    }

    fn hand(&self, jobs: Vec<Job>) {
        for job in jobs {
            self.disk.hand(job);
        }
    }

    /// A cell that is not running any more holds more or less.
    fn change_finished(&mut self, before: (usize, u64), after: (usize, u64)) {
        self.finished_memory = (self.finished_memory + after.0).saturating_sub(before.0);
        self.finished_files = (self.finished_files + after.1).saturating_sub(before.1);
    }

    /// True while the disk has to be waited for: not for one that is too slow.
    fn is_disk_behind(&self) -> bool {
        self.disk.is_behind() && self.patience <= DISK_PATIENCE
    }

    fn is_too_fast(&mut self, cell: u64, waited: Duration) -> bool {
        let (lead, behind) = (self.lead(), self.is_disk_behind());
        if behind {
            self.patience += waited;
        }
        let Some(output) = self.cells.get_mut(&cell) else {
            return behind;
        };
        if !behind {
            output.patience += waited;
        }
        output.is_too_fast(lead) || behind
    }

    fn append(&mut self, cell: u64, stream: Stream, data: &[u8]) -> Written {
        if let Some(journal) = &self.journal {
            if stream == Stream::Stderr {
                journal.note_stderr(data);
            }
            if cell == self.running && cell != 0 {
                journal.note_output(stream, data);
            }
        }
        let mut jobs = Vec::new();
        let (mut room, lead) = (self.room(cell, &mut jobs), self.lead());
        let Some(output) = self.cells.get_mut(&cell) else {
            self.session.append_bounded(stream, data);
            return Written::default();
        };
        let before = output.held();
        output.log.append(stream, data, &mut room);
        let mut written = Written {
            awaited: std::mem::take(&mut output.awaited),
            too_fast: output.is_too_fast(lead),
        };
        if output.retired {
            // What a thread writes that outlives its cell counts too.
            let after = output.held();
            self.change_finished(before, after);
        }
        if !jobs.is_empty() {
            self.hand(jobs);
            written.too_fast |= self.is_disk_behind();
        }
        written
    }
}

impl CellOutput {
    fn held(&self) -> (usize, u64) {
        let (window, files) = self.log.held();
        (window + self.text, files)
    }

    /// Somebody who follows the cell is given this piece: one who has to wait is
    /// told by [`Written::awaited`], and the cell does not outrun one who reads on.
    fn followed(&mut self, stream: Option<Stream>, piece: &Piece) {
        if piece.is_nothing() {
            self.awaited = true;
        } else {
            self.given = Some(Instant::now());
        }
        if stream.is_none() {
            let moved = Instant::now();
            // The one that is furthest is waited for: one slow reader of many
            // does not hold the cell.
            let offset = self
                .reader
                .map_or(piece.next, |reader| reader.offset.max(piece.next));
            let taken = offset.saturating_sub(self.reader.map_or(offset, |it| it.offset));
            let earned = Duration::from_millis(taken.saturating_mul(1000) / FAST_ENOUGH);
            self.patience = self.patience.saturating_sub(earned);
            self.reader = Some(Reader { offset, moved });
        }
    }

    fn is_too_fast(&mut self, lead: u64) -> bool {
        let Some(reader) = self.reader else {
            return false;
        };
        if self.log.total().of(None).saturating_sub(reader.offset) < lead {
            return false;
        }
        if reader.moved.elapsed() > STALLED || self.patience > MOST_PATIENCE {
            self.reader = None;
            return false;
        }
        true
    }
}

/// Takes bytes in so that they are not lost with this process, if it can.
fn take_in<T>(
    journal: Option<&Journal>,
    stream: Stream,
    read: impl FnOnce(&mut [u8]) -> usize,
    keep: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    match journal {
        Some(journal) => journal.take_in(stream, read, keep),
        None => {
            let mut buffer = [0; INTAKE];
            let count = read(&mut buffer);
            (count > 0).then(|| keep(&buffer[..count]))
        }
    }
}

/// Removes the files of cells of an earlier host: nobody can name them any
/// more. Only for whoever holds the directory's lock.
pub(crate) fn remove_left_behind(directory: &PrivateDir) {
    for name in directory.entries().unwrap_or_default() {
        if name.ends_with(FILE_END) {
            // What stays is tried again by the next session of this name.
            let _ = directory.remove(&name);
        }
    }
}
