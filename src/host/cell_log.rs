//! The output of one cell: a window in memory, blocks in files, and where each
//! begins. Offsets count raw bytes, of both streams in the order of arrival or
//! of one stream alone.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use pythond_protocol::output_log::{self, RECORD_HEADER, Stream};

use crate::append;
use crate::disk::{Job, SLOW};
use crate::files::session_directory;

/// Output that is kept in memory before it moves to a file, in bytes.
const WINDOW: usize = 1 << 20;
/// Greatest record, so that a reader with a small budget gets whole ones.
const LONGEST_RECORD: usize = 64 << 10;
/// Bytes that are read from a file at once, about.
const BLOCK: usize = 256 << 10;
/// Bytes in one file: the oldest output goes away file by file.
const SEGMENT: u64 = 16 << 20;
/// Bytes of the beginning that stay in memory.
pub(crate) const HEAD: usize = 64 << 10;
/// How names of files with a cell's output end.
pub(crate) const FILE_END: &str = ".out";

/// What a cell may keep, and what is to be done for that.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// The cell.
    pub(crate) cell: u64,
    /// Most bytes of its files.
    pub(crate) most: u64,
    /// The disk can take more.
    pub(crate) free: bool,
    /// What the disk has to do.
    pub(crate) jobs: &'a mut Vec<Job>,
}

/// A part of a cell's output on its way to a file.
#[derive(Clone, Debug)]
pub(crate) struct Spilled {
    pub(crate) cell: u64,
    segment: u64,
    at: u64,
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// Bytes of each stream, or how many came before a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Count {
    /// In the numbering of one stream, or of both.
    pub(crate) fn of(self, stream: Option<Stream>) -> u64 {
        match stream {
            None => self.stdout + self.stderr,
            Some(Stream::Stdout) => self.stdout,
            Some(Stream::Stderr) => self.stderr,
        }
    }

    fn add(&mut self, stream: Stream, bytes: u64) {
        match stream {
            Stream::Stdout => self.stdout += bytes,
            Stream::Stderr => self.stderr += bytes,
        }
    }
}

/// A part of the log that moved to a file.
#[derive(Clone, Copy, Debug)]
struct Block {
    begin: Count,
    end: Count,
    /// The file, named by the offset that it begins with.
    segment: u64,
    at: u64,
    length: usize,
}

/// A piece of output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Whole records.
    pub(crate) records: Vec<u8>,
    /// Where they begin.
    pub(crate) offset: u64,
    /// Where the next would begin.
    pub(crate) next: u64,
    /// Bytes before `offset` that were asked for and are not kept.
    pub(crate) missing: u64,
    /// Where everything ends that was written so far.
    pub(crate) total: u64,
}

/// One cell's output.
#[derive(Debug, Default)]
pub(crate) struct CellLog {
    /// The first records, once they are in a file: whoever tells of a cell must
    /// not wait for the disk.
    head: Vec<u8>,
    blocks: VecDeque<Block>,
    /// What is not in its file yet.
    waiting: VecDeque<Spilled>,
    /// The end of the log, as records.
    window: Vec<u8>,
    window_begin: Count,
    /// Where in `window` the last record begins, and its stream.
    last: Option<(usize, Stream)>,
    /// Everything that was ever written.
    total: Count,
    /// Bytes that are not kept.
    lost: u64,
    in_files: u64,
    /// Why some of it could not be kept.
    trouble: Option<String>,
}

/// What somebody wants to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) cell: u64,
    pub(crate) stream: Option<Stream>,
    pub(crate) offset: u64,
    /// Raw bytes.
    pub(crate) most: usize,
    /// It is told when there is more.
    pub(crate) follow: bool,
}

/// Where output is that somebody asked for.
#[derive(Debug)]
pub(crate) enum Found {
    /// In memory.
    Here(Piece),
    /// In files.
    InFiles(FileParts),
}

/// Parts of files, to be read without any lock.
#[derive(Debug)]
pub(crate) struct FileParts {
    wanted: Wanted,
    /// Nothing yet.
    piece: Piece,
    blocks: Vec<Block>,
}

impl CellLog {
    /// Everything that was written.
    pub(crate) fn total(&self) -> Count {
        self.total
    }

    /// Bytes that are not kept any more.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes in memory and in files, those on their way included.
    pub(crate) fn held(&self) -> (usize, u64) {
        (self.head.len() + self.window.len(), self.in_files)
    }

    /// Why some of it could not be kept, if so.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Something is not in its file yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn append(&mut self, stream: Stream, data: &[u8], room: &mut Room<'_>) {
        for piece in data.chunks(LONGEST_RECORD) {
            if self.window.len() + piece.len() > WINDOW {
                self.spill(room);
            }
            self.push(stream, piece);
        }
    }

    /// Keeps the newest bytes in memory only.
    pub(crate) fn append_bounded(&mut self, stream: Stream, data: &[u8]) {
        for piece in data.chunks(LONGEST_RECORD) {
            if self.window.len() + piece.len() > WINDOW {
                self.drop_window();
            }
            self.push(stream, piece);
        }
    }

    fn push(&mut self, stream: Stream, data: &[u8]) {
        self.total.add(stream, data.len() as u64);
        if let Some((at, last)) = self.last
            && last == stream
        {
            let old = self.window.len() - at - RECORD_HEADER;
            if old + data.len() <= LONGEST_RECORD {
                let length = u32::try_from(old + data.len()).unwrap_or(u32::MAX);
                self.window[at + 1..at + RECORD_HEADER].copy_from_slice(&length.to_le_bytes());
                self.window.extend_from_slice(data);
                return;
            }
        }
        self.last = Some((self.window.len(), stream));
        output_log::append(&mut self.window, stream, data);
    }

    /// Sends the window to a file; where the disk cannot take it, it is lost and
    /// counted.
    fn spill(&mut self, room: &mut Room<'_>) {
        if !room.free {
            self.trouble
                .get_or_insert_with(|| format!("{SLOW} (cannot keep output)"));
            self.drop_window();
            return;
        }
        let begin = self.window_begin.of(None);
        if begin == 0 {
            let mut head = Piece::default();
            head.take(None, Count::default(), &self.window, HEAD);
            self.head = head.records;
        }
        let (segment, at) = match self.blocks.back() {
            Some(last) if last.at + (last.length as u64) < SEGMENT => {
                (last.segment, last.at + last.length as u64)
            }
            _ => (begin, 0),
        };
        self.index(segment, at);
        self.in_files += self.window.len() as u64;
        let next = Vec::with_capacity(WINDOW);
        let spilled = Spilled {
            cell: room.cell,
            segment,
            at,
            bytes: Arc::new(std::mem::replace(&mut self.window, next)),
        };
        self.waiting.push_back(spilled.clone());
        room.jobs.push(Job::Keep(spilled));
        self.begin_window();
        while self.in_files > room.most {
            self.drop_oldest_file(room);
        }
    }

    /// A part is in its file, or could not be written: then it is lost and
    /// counted.
    pub(crate) fn spilled(&mut self, part: &Spilled, written: Result<(), String>) {
        let (segment, from) = (part.segment, part.at);
        let is_part = |it: &Spilled| (it.segment, it.at) == (segment, from);
        let Some(index) = self.waiting.iter().position(is_part) else {
            return;
        };
        self.waiting.remove(index);
        let Err(why) = written else { return };
        self.trouble.get_or_insert(why);
        let to = from + part.bytes.len() as u64;
        let blocks = std::mem::take(&mut self.blocks);
        for block in blocks {
            if block.segment == segment && (from..to).contains(&block.at) {
                self.forget(block);
            } else {
                self.blocks.push_back(block);
            }
        }
    }

    fn forget(&mut self, block: Block) {
        self.lost += block.end.of(None) - block.begin.of(None);
        self.in_files -= block.length as u64;
        if block.begin == Count::default() {
            self.head = Vec::new();
        }
    }

    /// Notes where the blocks of the window begin, which is in a file now.
    fn index(&mut self, segment: u64, at: u64) {
        let (mut begin, mut end) = (self.window_begin, self.window_begin);
        let (mut from, mut length) = (at, 0);
        for record in output_log::records(&self.window) {
            let Ok((stream, data)) = record else { break };
            end.add(stream, data.len() as u64);
            length += RECORD_HEADER + data.len();
            if length >= BLOCK {
                self.blocks.push_back(Block {
                    begin,
                    end,
                    segment,
                    at: from,
                    length,
                });
                from += length as u64;
                (begin, length) = (end, 0);
            }
        }
        if length > 0 {
            self.blocks.push_back(Block {
                begin,
                end,
                segment,
                at: from,
                length,
            });
        }
    }

    fn begin_window(&mut self) {
        self.window.clear();
        self.last = None;
        self.window_begin = self.total;
    }

    fn drop_window(&mut self) {
        self.lost += self.total.of(None) - self.window_begin.of(None);
        self.begin_window();
    }

    fn drop_oldest_file(&mut self, room: &mut Room<'_>) {
        let Some(segment) = self.blocks.front().map(|block| block.segment) else {
            return;
        };
        while let Some(block) = self.blocks.front().copied()
            && block.segment == segment
        {
            self.blocks.pop_front();
            self.forget(block);
        }
        self.waiting.retain(|part| part.segment != segment);
        room.jobs.push(Job::Remove(file_name(room.cell, segment)));
    }

    /// Nothing more will come.
    pub(crate) fn finish(&mut self) {
        self.window.shrink_to_fit();
    }

    /// Removes the files.
    pub(crate) fn remove_files(&self, room: &mut Room<'_>) {
        let mut last = None;
        for block in &self.blocks {
            if last != Some(block.segment) {
                room.jobs
                    .push(Job::Remove(file_name(room.cell, block.segment)));
                last = Some(block.segment);
            }
        }
    }

    /// Output of one stream or both from some offset on. A piece is empty only if
    /// nothing is there. Without `files`, what is in files is missing.
    pub(crate) fn read(&self, wanted: &Wanted, files: bool) -> Found {
        let Wanted {
            stream,
            offset,
            most,
            ..
        } = *wanted;
        let mut piece = Piece {
            offset,
            next: offset,
            total: self.total.of(stream),
            ..Piece::default()
        };
        piece.take(stream, Count::default(), &self.head, most);
        if !piece.records.is_empty() {
            return Found::Here(piece);
        }
        let mut blocks = Vec::new();
        let mut found = 0;
        for block in &self.blocks {
            let (begin, end) = (block.begin.of(stream), block.end.of(stream));
            if end <= offset.max(begin) {
                continue;
            }
            match self.in_memory(block) {
                Some(bytes) if blocks.is_empty() => {
                    if piece.take(stream, block.begin, bytes, most) {
                        return Found::Here(piece);
                    }
                }
                None if files && piece.records.is_empty() => {
                    blocks.push(*block);
                    found += end - offset.max(begin);
                    if found >= most as u64 {
                        break;
                    }
                }
                None if !files => {}
                _ => break,
            }
        }
        if !blocks.is_empty() {
            return Found::InFiles(FileParts {
                wanted: *wanted,
                piece,
                blocks,
            });
        }
        if self.total.of(stream) > piece.next {
            piece.take(stream, self.window_begin, &self.window, most);
        }
        // What comes after a hole that reaches to the end is not written yet.
        if piece.records.is_empty() && piece.next < self.total.of(stream) {
            piece.miss_until(self.total.of(stream));
        }
        Found::Here(piece)
    }

    /// The records of a block that is not in its file yet.
    fn in_memory(&self, block: &Block) -> Option<&[u8]> {
        self.waiting.iter().find_map(|part| {
            let at = usize::try_from(block.at.checked_sub(part.at)?).ok()?;
            let same = part.segment == block.segment;
            let bytes = part.bytes.get(at..at + block.length)?;
            same.then_some(bytes)
        })
    }
}

impl FileParts {
    /// Reads them. Files that somebody removed are holes; an empty piece ends
    /// where the last part ends.
    pub(crate) fn read(self, directory: &Path) -> Piece {
        let Wanted {
            cell, stream, most, ..
        } = self.wanted;
        let mut piece = self.piece;
        for block in &self.blocks {
            let mut bytes = vec![0; block.length];
            let read = open_file(directory, cell, block.segment)
                .is_ok_and(|file| file.read_exact_at(&mut bytes, block.at).is_ok());
            if read && piece.take(stream, block.begin, &bytes, most) {
                return piece;
            }
        }
        if piece.records.is_empty()
            && let Some(last) = self.blocks.last()
        {
            piece.miss_until(last.end.of(stream));
        }
        piece
    }
}

impl Spilled {
    /// Writes it to its file.
    ///
    /// # Errors
    /// One line that says why it is not there.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), String> {
        let file = open_file(directory, self.cell, self.segment)?;
        let written = file.write_all_at(&self.bytes, self.at);
        written.map_err(|error| format!("{} (cannot keep output)", append::words(&error)))
    }
}

impl Piece {
    /// There is nothing to give.
    pub(crate) fn is_nothing(&self) -> bool {
        self.records.is_empty() && self.missing == 0
    }

    /// Nothing is there up to some point.
    fn miss_until(&mut self, end: u64) {
        self.missing += end - self.next;
        (self.offset, self.next) = (end, end);
    }

    /// Adds what records, which begin at `begin`, have from `self.next` on. True
    /// if the piece is full, or a hole follows.
    fn take(&mut self, stream: Option<Stream>, begin: Count, records: &[u8], most: usize) -> bool {
        let mut at = begin;
        for record in output_log::records(records) {
            let Ok((from, data)) = record else { break };
            let start = at.of(stream);
            at.add(from, data.len() as u64);
            if stream.is_some_and(|wanted| wanted != from) || at.of(stream) <= self.next {
                continue;
            }
            if start > self.next {
                if !self.records.is_empty() {
                    return true;
                }
                self.missing += start - self.next;
                (self.offset, self.next) = (start, start);
            }
            let skip = usize::try_from(self.next - start).unwrap_or(usize::MAX);
            let have = usize::try_from(self.next - self.offset).unwrap_or(usize::MAX);
            let room = most.saturating_sub(have);
            let rest = &data[skip.min(data.len())..];
            let part = &rest[..rest.len().min(room)];
            if !part.is_empty() {
                output_log::append(&mut self.records, from, part);
                self.next += part.len() as u64;
            }
            if part.len() == room {
                return true;
            }
        }
        false
    }
}

fn file_name(cell: u64, segment: u64) -> String {
    format!("{cell:012x}.{segment:012x}{FILE_END}")
}

fn open_file(directory: &Path, cell: u64, segment: u64) -> Result<File, String> {
    session_directory(directory)
        .and_then(|directory| directory.read_write_file(&file_name(cell, segment)))
        .map_err(|error| append::explain(&error))
}
