//! `history.py` and `session.log`, written after the reply.
//!
//! Files are opened anew for each batch, through a checked directory: a cell
//! may have closed our descriptors, and a user may have moved the files away.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

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
    writing: Mutex<()>,
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
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let records =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if records.is_empty() {
            return false;
        }
        let trouble = self.write(&records).err();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        true
    }

    fn write(&self, records: &[Record]) -> Result<(), String> {
        let directory = self
            .directory
            .get()
            .ok_or_else(|| "no directory".to_owned())?;
        let directory = session_directory(directory).map_err(|error| error.to_string())?;
        let mut history = Vec::new();
        let mut log = String::new();
        for record in records {
            let Record {
                time,
                source,
                replay,
                output,
                ok,
            } = record;
            if let Some(replay) = replay {
                history.push(format!("\n# [{time}]\n{replay}\n"));
            }
            let tag = if *ok { "OK" } else { "ERROR" };
            let _ = write!(log, "\n# [{time}] {tag}\n{}\n", escaped(source));
            for line in output.lines() {
                let _ = writeln!(log, "# > {}", escaped(line));
            }
        }
        let append = |name: &str, text: &dyn Fn(u64) -> String| {
            let file = directory
                .append_file(name)
                .map_err(|error| error.to_string())?;
            let length = file.metadata().map_err(|error| error.to_string())?.len();
            append_whole(&file, text(length).as_bytes())
                .map_err(|error| format!("cannot write `{name}`: {error}"))
        };
        if !history.is_empty() {
            append("history.py", &|length| in_whole_pages(&history, length))?;
        }
        append("session.log", &|_| log.clone())
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

/// Appends all bytes or none: a file that is torn in the middle of a record
/// would not parse any more.
fn append_whole(file: &File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(file.as_fd(), rest) {
            Ok(count) => rest = &rest[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                file.set_len(before)?;
                return Err(errno.into());
            }
        }
    }
    Ok(())
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
