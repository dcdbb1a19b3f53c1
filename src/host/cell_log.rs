//! The output of one cell: a window in memory, blocks in files, and where each
//! begins. Offsets count raw bytes, of both streams in the order of arrival or
//! of one stream alone.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pythond_protocol::output_log::{self, RECORD_HEADER, Stream};

use crate::append;
use crate::files::session_directory;

/// Output that is kept in memory before it moves to a file, in bytes.
const WINDOW: usize = 1 << 20;
/// Greatest record, so that a reader with a small budget gets whole ones.
const LONGEST_RECORD: usize = 64 << 10;
/// Bytes that are read from a file at once, about.
const BLOCK: usize = 256 << 10;
/// Bytes in one file: the oldest output goes away file by file.
const SEGMENT: u64 = 16 << 20;
/// How names of files with a cell's output end.
pub(crate) const FILE_END: &str = ".out";

/// Where a cell's files are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// The session's directory, once it is known.
    pub(crate) directory: Option<&'a Path>,
    /// The cell.
    pub(crate) cell: u64,
    /// Most bytes of its files.
    pub(crate) most: u64,
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
    blocks: VecDeque<Block>,
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
    /// How the last move to a file went, until somebody asks.
    moved: Option<Result<(), String>>,
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

    /// Bytes in memory and in files.
    pub(crate) fn held(&self) -> (usize, u64) {
        (self.window.len(), self.in_files)
    }

    /// How the last move to a file went, if there was one since this was asked
    /// last.
    pub(crate) fn take_moved(&mut self) -> Option<Result<(), String>> {
        self.moved.take()
    }

    pub(crate) fn append(&mut self, stream: Stream, data: &[u8], place: Place<'_>) {
        for piece in data.chunks(LONGEST_RECORD) {
            if self.window.len() + piece.len() > WINDOW {
                self.spill(place);
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

    /// Moves the window to a file; where that fails, its output is lost and
    /// counted.
    fn spill(&mut self, place: Place<'_>) {
        let begin = self.window_begin.of(None);
        let (segment, at) = match self.blocks.back() {
            Some(last) if last.at + (last.length as u64) < SEGMENT => {
                (last.segment, last.at + last.length as u64)
            }
            _ => (begin, 0),
        };
        let written = open_file(place, segment).and_then(|file| {
            let written = file.write_all_at(&self.window, at);
            written.map_err(|error| format!("{} (cannot keep output)", append::words(&error)))
        });
        let failed = written.is_err();
        self.moved = Some(written);
        if failed {
            self.drop_window();
            return;
        }
        self.index(segment, at);
        self.in_files += self.window.len() as u64;
        self.begin_window();
        while self.in_files > place.most {
            self.drop_oldest_file(place);
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

    fn drop_oldest_file(&mut self, place: Place<'_>) {
        let Some(segment) = self.blocks.front().map(|block| block.segment) else {
            return;
        };
        while let Some(block) = self.blocks.front()
            && block.segment == segment
        {
            self.lost += block.end.of(None) - block.begin.of(None);
            self.in_files -= block.length as u64;
            self.blocks.pop_front();
        }
        remove_file(place, segment);
    }

    /// Nothing more will come.
    pub(crate) fn finish(&mut self) {
        self.window.shrink_to_fit();
    }

    /// Removes the files.
    pub(crate) fn remove_files(&self, place: Place<'_>) {
        let mut last = None;
        for block in &self.blocks {
            if last != Some(block.segment) {
                remove_file(place, block.segment);
                last = Some(block.segment);
            }
        }
    }

    /// Output from `offset` on, of one stream or both, at most `most` raw bytes.
    /// Empty only if nothing is there.
    pub(crate) fn read(
        &self,
        stream: Option<Stream>,
        offset: u64,
        most: usize,
        place: Place<'_>,
    ) -> Piece {
        let mut piece = Piece {
            offset,
            next: offset,
            total: self.total.of(stream),
            ..Piece::default()
        };
        // Files that somebody removed are holes too.
        for block in self.blocks.iter().filter(|it| it.end.of(stream) > offset) {
            let mut bytes = vec![0; block.length];
            let read = open_file(place, block.segment)
                .is_ok_and(|file| file.read_exact_at(&mut bytes, block.at).is_ok());
            if read && piece.take(stream, block.begin, &bytes, most) {
                return piece;
            }
        }
        if self.total.of(stream) > piece.next {
            piece.take(stream, self.window_begin, &self.window, most);
        }
        // What comes after a hole that reaches to the end is not written yet.
        if piece.records.is_empty() && piece.next < self.total.of(stream) {
            piece.missing += self.total.of(stream) - piece.next;
            (piece.offset, piece.next) = (self.total.of(stream), self.total.of(stream));
        }
        piece
    }
}

impl Piece {
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

fn file_name(place: Place<'_>, segment: u64) -> String {
    format!("{:012x}.{segment:012x}{FILE_END}", place.cell)
}

fn open_file(place: Place<'_>, segment: u64) -> Result<File, String> {
    let directory = place.directory.ok_or_else(|| "no directory".to_owned())?;
    session_directory(directory)
        .and_then(|directory| directory.read_write_file(&file_name(place, segment)))
        .map_err(|error| append::explain(&error))
}

fn remove_file(place: Place<'_>, segment: u64) {
    if let Some(directory) = place.directory
        && let Ok(directory) = session_directory(directory)
    {
        // Nothing is lost if it is gone already.
        let _ = directory.remove(&file_name(place, segment));
    }
}
