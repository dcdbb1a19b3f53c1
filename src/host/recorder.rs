//! `history.py` and `session.log`, written after the reply.
//!
//! Files are opened anew for each batch, through a checked directory: a cell
//! may have closed our descriptors, and a user may have moved the files away.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

use pythond_private_fs::PrivateDir;

use crate::append;
use crate::files::session_directory;

/// Most output of one cell that `session.log` shows, in bytes.
pub(crate) const OUTPUT_SHOWN: usize = 64 << 10;
/// Bytes that may wait before the main thread writes them itself.
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
    directory: OnceLock<PathBuf>,
    waiting: Mutex<Vec<Record>>,
    writing: Mutex<Writing>,
    trouble: Mutex<Option<String>>,
    /// The I/O thread looks at the waiting records by itself.
    watched: AtomicBool,
}

impl Recorder {
    /// Where the session's directory is; it may not be there yet. Once.
    pub(crate) fn write_to(&self, directory: PathBuf) {
        self.directory.get_or_init(|| directory);
    }

    /// Adds a record. Returns true if so much waits that it must be written now.
    pub(crate) fn push(&self, record: Record) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(record);
        waiting
            .iter()
            .map(|record| record.source.len() + record.output.len())
            .sum::<usize>()
            > MOST_WAITING
    }

    /// True if records wait.
    pub(crate) fn has_waiting(&self) -> bool {
        !self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Asks that the I/O thread looks after the records. Returns true if it
    /// must be woken for that.
    pub(crate) fn watch(&self) -> bool {
        !self.watched.swap(true, SeqCst)
    }

    /// True while the I/O thread looks after the records.
    pub(crate) fn watched(&self) -> bool {
        self.watched.load(SeqCst)
    }

    /// The I/O thread writes what waits, and stops looking if nothing did.
    pub(crate) fn tick(&self) {
        if !self.flush() {
            self.watched.store(false, SeqCst);
            // A record that came between the two is not forgotten.
            self.flush();
        }
    }

    /// Why the files cannot be written, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes all waiting records. Returns false if there were none.
    pub(crate) fn flush(&self) -> bool {
        let mut state = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let records =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if records.is_empty() {
            return false;
        }
        let trouble = self.write(&mut state, &records).err();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        true
    }

    /// Takes away what a host of this session's name has left that was killed
    /// while it wrote. Only for whoever holds the directory's lock.
    pub(crate) fn repair(&self, directory: &PrivateDir) {
        let mut state = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails now is tried again, and told, with the first record.
        let _ = state.repair(directory);
    }

    fn write(&self, state: &mut Writing, records: &[Record]) -> Result<(), String> {
        let opened = self
            .directory
            .get()
            .ok_or_else(|| "no directory".to_owned());
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
        let bidirectional = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if matches!(character, '\n' | '\t') {
            shown.push(character);
        } else if character.is_control() || bidirectional {
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
