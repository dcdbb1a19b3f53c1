//! `history.py` and `session.log`, written after the reply.
//!
//! Files are opened anew for each batch, through a checked directory: a cell
//! may have closed our descriptors, and a user may have moved the files away.

use pythond_protocol::shown::is_bidi_control;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use pythond_private_fs::PrivateDir;

use crate::append;
use crate::disk::{Disk, SLOW, STALLED};
use crate::files::session_directory;

/// Most output of one cell that `session.log` shows, in bytes.
pub(crate) const OUTPUT_SHOWN: usize = 64 << 10;
/// Bytes that may wait before whoever has more waits too.
const MOST_WAITING: usize = 4 << 20;

/// What the kernel shows to readers at once, in bytes.
const PAGE: usize = 4096;

/// A finished cell to record.
#[derive(Debug)]
pub(crate) struct Record {
    /// Local time of its end: `2026-01-31 23:59:59`.
    pub(crate) time: String,
    /// As it was sent.
    pub(crate) source: String,
    /// As it can be replayed; none if it failed or is empty.
    pub(crate) replay: Option<String>,
    /// Both streams and the traceback, at most [`OUTPUT_SHOWN`] bytes.
    pub(crate) output: String,
    /// It ended without an exception.
    pub(crate) ok: bool,
}

/// Writes the records of one session.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    waiting: Mutex<Waiting>,
    /// What waited is being written.
    taken: Condvar,
    writing: Mutex<Writing>,
    trouble: Mutex<Option<String>>,
}

/// Records that are not written yet.
#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    /// Cells that there was no room for, and how many of them can be replayed.
    left_out: (u64, u64),
}

impl Recorder {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change under the lock is one step.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record. Waits where too much waits already, unless the disk does
    /// not answer: then it is left out.
    pub(crate) fn push(&self, record: Record, disk: &Disk) {
        let size = record.source.len()
            + record.replay.as_ref().map_or(0, String::len)
            + record.output.len();
        let mut waiting = self.waiting();
        while !waiting.records.is_empty() && waiting.bytes + size > MOST_WAITING {
            disk.write_records_now();
            if disk.is_stalled() {
                waiting.left_out.0 += 1;
                waiting.left_out.1 += u64::from(record.replay.is_some());
                return;
            }
            // A stall begins without a word.
            let waited = self.taken.wait_timeout(waiting, STALLED / 10);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.bytes += size;
        waiting.records.push(record);
    }

    /// True if records wait.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting().records.is_empty()
    }

    /// Why the files cannot be written, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes all waiting records; without a directory, it is another's. For the
    /// thread of the disk.
    pub(crate) fn flush(&self, directory: Option<&Path>) {
        let mut state = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut *self.waiting());
        self.taken.notify_all();
        let (cells, replays) = waiting.left_out;
        if cells > 0 {
            state.log.miss(cells, SLOW);
        }
        if replays > 0 {
            state.history.miss(replays, SLOW);
        }
        if waiting.records.is_empty() {
            return;
        }
        let trouble = self.write(directory, &mut state, &waiting.records).err();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Takes away what a host of this session's name has left that was killed
    /// while it wrote. Only for whoever holds the directory's lock.
    pub(crate) fn repair(&self, directory: &PrivateDir) {
        let mut state = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails now is tried again, and told, with the first record.
        let _ = state.repair(directory);
    }

    fn write(
        &self,
        directory: Option<&Path>,
        state: &mut Writing,
        records: &[Record],
    ) -> Result<(), String> {
        let opened = directory.ok_or_else(|| "another session has this name".to_owned());
        let opened = opened
            .and_then(|path| session_directory(path).map_err(|error| append::explain(&error)));
        let repaired = opened.and_then(|directory| {
            state.repair(&directory)?;
            Ok(directory)
        });
        let count = records.len() as u64;
        let directory = match repaired {
            Ok(directory) => directory,
            Err(why) => {
                state.history.miss(count, &why);
                state.log.miss(count, &why);
                return Err(why);
            }
        };
        let time = records.last().map_or("", |record| record.time.as_str());
        let history = records.iter().filter_map(|record| {
            let replay = record.replay.as_ref()?;
            Some(format!("\n# [{}]\n{replay}\n", record.time))
        });
        let history: Vec<String> = history.collect();
        let mut log = String::new();
        for record in records {
            let tag = if record.ok { "OK" } else { "ERROR" };
            let _ = write!(
                log,
                "\n# [{}] {tag}\n{}\n",
                record.time,
                escaped(&record.source)
            );
            for line in record.output.lines() {
                let _ = writeln!(log, "# > {}", escaped(line));
            }
        }
        let first = if history.is_empty() {
            Ok(())
        } else {
            let entries = history.len() as u64;
            let mark = state.history.mark(time);
            let pieces: Vec<String> = mark.into_iter().chain(history).collect();
            let done = append::append(&directory, "history.py", |length| {
                in_whole_pages(&pieces, length)
            });
            state.history.note(entries, done)
        };
        let mark = state.log.mark(time).unwrap_or_default();
        let done = append::append(&directory, "session.log", |_| mark + &log);
        let second = state.log.note(count, done);
        state.repaired = first.is_ok() && second.is_ok();
        first.and(second)
    }
}

/// What is known of the files between two writes.
#[derive(Debug, Default)]
struct Writing {
    /// Nothing torn is in the files.
    repaired: bool,
    history: Missing,
    log: Missing,
}

impl Writing {
    fn repair(&mut self, directory: &PrivateDir) -> Result<(), String> {
        if !self.repaired {
            let torn = append::repair(directory)?;
            self.log.torn |= torn;
            self.repaired = true;
        }
        Ok(())
    }
}

/// What one file lacks.
#[derive(Debug, Default)]
struct Missing {
    cells: u64,
    why: String,
    /// A record was there in part and was taken away.
    torn: bool,
}

impl Missing {
    fn miss(&mut self, cells: u64, why: &str) {
        self.cells += cells;
        why.clone_into(&mut self.why);
    }

    fn note(&mut self, cells: u64, done: Result<(), String>) -> Result<(), String> {
        match &done {
            Ok(()) => *self = Self::default(),
            Err(why) => self.miss(cells, why),
        }
        done
    }

    /// A comment on what is missing.
    fn mark(&self, time: &str) -> Option<String> {
        let mut mark = String::new();
        if self.torn {
            let _ = write!(
                mark,
                "\n# [{time}] NOT RECORDED: what was being written when the session died\n"
            );
        }
        if self.cells > 0 {
            let (cells, why) = (self.cells, escaped(&self.why).replace('\n', " "));
            let noun = if cells == 1 { "cell" } else { "cells" };
            let _ = write!(mark, "\n# [{time}] NOT RECORDED: {cells} {noun}: {why}\n");
        }
        (!mark.is_empty()).then_some(mark)
    }
}

/// Joins records so that none lies across the border of two pages if it fits
/// into one: whoever reads while it is written sees all of a page or nothing of
/// it, and so a file that parses. A comment fills the rest of a page.
fn in_whole_pages(records: &[String], length: u64) -> String {
    let mut text = String::new();
    let mut at = usize::try_from(length % PAGE as u64).unwrap_or(0);
    for record in records {
        let room = PAGE - at;
        if record.len() > room && record.len() <= PAGE {
            match room {
                1 => text.push('\n'),
                room => {
                    text.push('#');
                    text.extend(std::iter::repeat_n(' ', room - 2));
                    text.push('\n');
                }
            }
            at = 0;
        }
        text.push_str(record);
        at = (at + record.len()) % PAGE;
    }
    text
}

/// A text whose control characters, but newline and tab, are visible.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\n' | '\t') {
            shown.push(character);
        } else if character.is_control() || is_bidi_control(character) {
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
