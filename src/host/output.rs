//! What cells write: told apart by cell and stream, in order, bounded, readable
//! from any offset while it grows and afterwards.
//!
//! Knows nothing of Python: whoever calls says whose bytes they are.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pythond_private_fs::PrivateDir;
use pythond_protocol::output_log::{RECORD_HEADER, Stream};

use crate::files::session_directory;
use crate::journal::Journal;

/// Output of one cell that is kept in memory before it moves to a file.
const WINDOW: usize = 1 << 20;
/// Greatest record, so that a reader with a small budget gets whole ones.
const LONGEST_RECORD: usize = 64 << 10;
/// Output of one cell that is kept at all.
const KEPT_PER_CELL: u64 = 256 << 20;
/// How names of files with a cell's output end.
const FILE_END: &str = ".out";
/// Finished cells that are kept.
const KEPT_CELLS: usize = 1000;
/// Bytes that finished cells may have in files.
const KEPT_IN_FILES: u64 = 1 << 30;
/// Memory that finished cells may hold.
const KEPT_MEMORY: usize = 16 << 20;

/// The outputs of a session's cells.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    cells: HashMap<u64, CellOutput>,
    finished: VecDeque<u64>,
    finished_memory: usize,
    finished_files: u64,
    /// The running `run` cell; 0 if there is none.
    running: u64,
    session: CellOutput,
    /// Where the end of the running cell's output outlives this process.
    journal: Option<Arc<Journal>>,
    /// Files are opened anew each time: main and I/O thread have descriptor
    /// tables of their own, and a cell may close whatever it finds in its.
    directory: Option<PathBuf>,
}

/// One cell's output log and its counts.
#[derive(Debug, Default)]
struct CellOutput {
    /// The log after what is in the file.
    log: Vec<u8>,
    /// Where in `log` the last record begins, and its stream.
    last: Option<(usize, Stream)>,
    file_length: u64,
    stdout_bytes: u64,
    stderr_bytes: u64,
    truncated: u64,
}

/// The counts of a cell's output at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes of the log.
    pub(crate) log: u64,
    /// Bytes that went to stdout.
    pub(crate) stdout: u64,
    /// Bytes of both streams.
    pub(crate) bytes: u64,
    /// Bytes that were not kept.
    pub(crate) truncated: u64,
}

impl Outputs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where logs go that are too long for memory.
    pub(crate) fn keep_files_in(&self, directory: PathBuf) {
        self.lock().directory = Some(directory);
    }

    /// Where the end of the running cell's output is kept for others.
    pub(crate) fn keep_end_in(&self, journal: Arc<Journal>) {
        self.lock().journal = Some(journal);
    }

    /// A `run` cell begins; descriptor-level output is its from now on.
    pub(crate) fn begin(&self, cell: u64) {
        let mut inner = self.lock();
        inner.cells.insert(cell, CellOutput::default());
        inner.running = cell;
        if let Some(journal) = &inner.journal {
            journal.begin_output();
        }
    }

    /// The `run` cell ended.
    pub(crate) fn end(&self, cell: u64) {
        let mut inner = self.lock();
        if inner.running == cell {
            inner.running = 0;
        }
        inner.finished.push_back(cell);
        let (memory, file) = inner.cells.get(&cell).map_or((0, 0), CellOutput::held);
        inner.finished_memory += memory;
        inner.finished_files += file;
        while inner.finished.len() > KEPT_CELLS
            || (inner.finished.len() > 1
                && (inner.finished_memory > KEPT_MEMORY || inner.finished_files > KEPT_IN_FILES))
        {
            let Some(oldest) = inner.finished.pop_front() else {
                break;
            };
            if let Some(output) = inner.cells.remove(&oldest) {
                let (memory, file) = output.held();
                inner.finished_memory = inner.finished_memory.saturating_sub(memory);
                inner.finished_files = inner.finished_files.saturating_sub(file);
                if output.file_length > 0
                    && let Some(directory) = &inner.directory
                    && let Ok(directory) = session_directory(directory)
                {
                    // Nothing is lost if it is gone already.
                    let _ = directory.remove(&file_name(oldest));
                }
            }
        }
    }

    /// Adds bytes of a cell; 0, and cells that are not kept any more, mean the
    /// session itself.
    pub(crate) fn append(&self, cell: u64, stream: Stream, data: &[u8]) {
        self.lock().append(cell, stream, data);
    }

    /// Reads what descriptors have until they would block, in one step with
    /// putting it in order. `read` returns 0 when nothing is there.
    pub(crate) fn drain(&self, mut read: impl FnMut(Stream, &mut [u8]) -> usize) {
        let mut inner = self.lock();
        let mut buffer = [0; 16 << 10];
        for stream in [Stream::Stdout, Stream::Stderr] {
            loop {
                let count = read(stream, &mut buffer);
                if count == 0 {
                    break;
                }
                let cell = inner.running;
                inner.append(cell, stream, &buffer[..count]);
            }
        }
    }

    /// How much a cell has written.
    pub(crate) fn extent(&self, cell: u64) -> Extent {
        self.lock()
            .cells
            .get(&cell)
            .map(CellOutput::extent)
            .unwrap_or_default()
    }

    /// Whole records from `offset` on, at most `most` bytes of them (but one at
    /// least), and where the next begin. None if the cell is not kept.
    pub(crate) fn read(&self, cell: u64, offset: u64, most: usize) -> Option<(Vec<u8>, u64)> {
        let inner = self.lock();
        let directory = inner.directory.as_deref();
        inner
            .cells
            .get(&cell)
            .map(|output| output.read(offset, most, directory, cell))
    }
}

impl Inner {
    fn append(&mut self, cell: u64, stream: Stream, data: &[u8]) {
        if let Some(journal) = &self.journal {
            if stream == Stream::Stderr {
                journal.note_stderr(data);
            }
            if cell == self.running && cell != 0 {
                journal.note_output(stream, data);
            }
        }
        match self.cells.get_mut(&cell) {
            Some(output) => output.append(stream, data, self.directory.as_deref(), cell),
            None => self.session.append_bounded(stream, data),
        }
    }
}

impl CellOutput {
    /// Bytes in memory and in its file.
    fn held(&self) -> (usize, u64) {
        (self.log.len(), self.file_length)
    }

    fn extent(&self) -> Extent {
        Extent {
            log: self.file_length + self.log.len() as u64,
            stdout: self.stdout_bytes,
            bytes: self.stdout_bytes + self.stderr_bytes,
            truncated: self.truncated,
        }
    }

    fn append(&mut self, stream: Stream, data: &[u8], directory: Option<&Path>, cell: u64) {
        let size = data.len() as u64;
        match stream {
            Stream::Stdout => self.stdout_bytes += size,
            Stream::Stderr => self.stderr_bytes += size,
        }
        for piece in data.chunks(LONGEST_RECORD) {
            if self.file_length + self.log.len() as u64 > KEPT_PER_CELL {
                self.truncated += piece.len() as u64;
                continue;
            }
            if self.log.len() + piece.len() > WINDOW {
                self.spill(directory, cell);
            }
            if self.log.len() + piece.len() > WINDOW {
                // The file could not take it: the beginning is kept.
                self.truncated += piece.len() as u64;
                continue;
            }
            self.push(stream, piece);
        }
    }

    /// Keeps the newest output of the session itself.
    fn append_bounded(&mut self, stream: Stream, data: &[u8]) {
        if self.log.len() + data.len() > WINDOW {
            self.truncated += self.log.len() as u64;
            self.log = Vec::new();
            self.last = None;
        }
        for piece in data.chunks(LONGEST_RECORD) {
            self.push(stream, piece);
        }
    }

    fn push(&mut self, stream: Stream, data: &[u8]) {
        if let Some((at, last)) = self.last
            && last == stream
        {
            let old = self.log.len() - at - RECORD_HEADER;
            if old + data.len() <= LONGEST_RECORD {
                let length = u32::try_from(old + data.len()).unwrap_or(u32::MAX);
                self.log[at + 1..at + RECORD_HEADER].copy_from_slice(&length.to_le_bytes());
                self.log.extend_from_slice(data);
                return;
            }
        }
        self.last = Some((self.log.len(), stream));
        pythond_protocol::output_log::append(&mut self.log, stream, data);
    }

    /// Moves the log to its file. On failure it stays where it is.
    fn spill(&mut self, directory: Option<&Path>, cell: u64) {
        let Some(file) = open_file(directory, cell) else {
            return;
        };
        // What an earlier failure left behind the end is overwritten.
        if file.write_all_at(&self.log, self.file_length).is_ok() {
            self.file_length += self.log.len() as u64;
            self.log.clear();
            self.last = None;
        }
    }

    fn read(
        &self,
        offset: u64,
        most: usize,
        directory: Option<&Path>,
        cell: u64,
    ) -> (Vec<u8>, u64) {
        let end = self.file_length + self.log.len() as u64;
        let offset = offset.min(end);
        let mut bytes = if offset < self.file_length {
            let want = usize::try_from(self.file_length - offset)
                .unwrap_or(usize::MAX)
                .min(most.max(LONGEST_RECORD + RECORD_HEADER));
            let mut bytes = vec![0; want];
            match open_file(directory, cell).map(|file| file.read_exact_at(&mut bytes, offset)) {
                Some(Ok(())) => bytes,
                // Somebody removed it: what is in memory still follows.
                _ => return (Vec::new(), self.file_length.max(offset)),
            }
        } else {
            let begin = usize::try_from(offset - self.file_length).unwrap_or(usize::MAX);
            self.log[begin.min(self.log.len())..].to_vec()
        };
        let whole = whole_records(&bytes, most);
        bytes.truncate(whole);
        let next = offset + whole as u64;
        (bytes, next)
    }
}

/// Length of the whole records at the beginning of `bytes`, at most `most` but
/// at least one.
fn whole_records(bytes: &[u8], most: usize) -> usize {
    let mut end = 0;
    while let Some(header) = bytes.get(end..end + RECORD_HEADER) {
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let next = end + RECORD_HEADER + length;
        if next > bytes.len() || (next > most && end > 0) {
            break;
        }
        end = next;
    }
    end
}

fn file_name(cell: u64) -> String {
    format!("{cell:012x}{FILE_END}")
}

fn open_file(directory: Option<&Path>, cell: u64) -> Option<File> {
    session_directory(directory?)
        .ok()?
        .read_write_file(&file_name(cell))
        .ok()
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
