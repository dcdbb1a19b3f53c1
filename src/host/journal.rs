//! What a host leaves behind: which cells were accepted, started, finished, and
//! the end of its standard error.
//!
//! A file in the runtime directory, mapped shared: writing costs no system call
//! once a page is there, and what was written outlives a host that was killed.
//! What the file system has no room for is left out.
//!
//! Layout, all numbers little endian: bytes 0–4095 header (words: magic,
//! running cell + 1 or 0, stderr bytes so far, records so far, stderr bytes once
//! what is being written is there, records that were left out; from 64 on:
//! active half, log bytes of both halves, output bytes of both halves, output
//! bytes lost, what is being taken in; from 1024 on: process ids of `fork`
//! cells' children); 4096–8191 ring of stderr; from 8192 a ring of 64-byte
//! records (words: number, event, cell, request or time in µs, three of the client's
//! key, checksum); then two halves
//! of 64 KiB that take turns in holding the end of the running cell's output
//! log; then 16 KiB for what is being taken in.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::fence;

use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{CellFate, KeyDigest, Reached};
use pythond_protocol::output_log::{self, RECORD_HEADER, Stream};

use crate::sys::SharedMap;

const MAGIC: u64 = u64::from_le_bytes(*b"ptdjrnl3");
const TAIL_AT: usize = 4096;
const TAIL: usize = 4096;
const RECORDS_AT: usize = 8192;
const RECORD: usize = 64;
const RECORDS: usize = 1024;
const HALVES_AT: usize = RECORDS_AT + RECORD * RECORDS;
const HALF: usize = 64 << 10;
const INTAKE_AT: usize = HALVES_AT + 2 * HALF;
/// Most bytes that are taken in at once.
pub(crate) const INTAKE: usize = 16 << 10;
const LENGTH: usize = INTAKE_AT + INTAKE;
/// The ring of stderr has lost what is too old for this count already.
const STDERR_AFTER: usize = 32;
/// Records for which there was no room.
const LEFT_OUT: usize = 40;
/// Words of a record before its checksum.
const RECORD_WORDS: usize = RECORD / 8 - 1;
const ACTIVE: usize = 64;
const LOG_BYTES: [usize; 2] = [72, 80];
const OUTPUT_BYTES: [usize; 2] = [88, 96];
const LOST: usize = 104;
/// The stream that is being taken in, plus 1; 0 if none is.
const INTAKE_STREAM: usize = 112;
/// [`ACTIVE`], the active one of [`LOG_BYTES`] and the bytes of stderr before that.
const BEFORE_INTAKE: [usize; 3] = [120, 128, 136];
const FORKS_AT: usize = 1024;
/// Children of `fork` cells that have a place, each in a word of its own.
pub(crate) const FORKS: usize = 100;

/// The journal of one host.
#[derive(Debug)]
pub(crate) struct Journal {
    map: SharedMap,
}

impl Journal {
    /// Makes an empty journal of this name.
    pub(crate) fn create(directory: &PrivateDir, name: &str) -> io::Result<Self> {
        let file = directory.read_write_file(name).map_err(io::Error::other)?;
        rustix::fs::ftruncate(&file, 0)?;
        rustix::fs::ftruncate(&file, LENGTH as u64)?;
        let journal = Self {
            map: SharedMap::new(&file, LENGTH)?,
        };
        journal.begin()?;
        journal.map.word(0).store(MAGIC, Release);
        Ok(journal)
    }

    /// Opens the journal that another process left.
    pub(crate) fn open(directory: &PrivateDir, name: &str) -> io::Result<Self> {
        let file = directory.read_write_file(name).map_err(io::Error::other)?;
        if rustix::fs::fstat(&file)?.st_size < LENGTH as i64 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let journal = Self {
            map: SharedMap::new(&file, LENGTH)?,
        };
        journal.begin()?;
        if journal.map.word(0).load(Acquire) != MAGIC {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(journal)
    }

    /// The header and the ring of stderr have their place from the start; the rest
    /// gets it when it is used, so that an idle session costs little.
    fn begin(&self) -> io::Result<()> {
        if self.map.reserve(0, RECORDS_AT) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
    }

    /// Writes one record: how far a cell has come, the number of who asked for
    /// it, or the time in µs, and with which key it came. One thread at a time.
    pub(crate) fn record(&self, reached: Reached, cell: CellId, note: u64, key: Option<KeyDigest>) {
        let number = self.map.word(24).load(Relaxed);
        let slot = usize::try_from(number % RECORDS as u64).unwrap_or(0);
        let at = RECORDS_AT + RECORD * slot;
        if !self.map.reserve(at, RECORD) {
            self.add(LEFT_OUT, 1);
            return;
        }
        let event = match reached {
            Reached::Accepted => 1,
            Reached::Started => 2,
            Reached::Finished => 3,
        };
        let [first, second, third] = key.map_or([0; 3], KeyDigest::to_words);
        let words = [number, event, cell.as_u64(), note, first, second, third];
        for (index, word) in words.iter().enumerate() {
            self.map.word(at + 8 * index).store(*word, Relaxed);
        }
        let sum_at = at + 8 * RECORD_WORDS;
        self.map.word(sum_at).store(checksum(&words), Release);
        self.map.word(24).store(number + 1, Release);
    }

    /// The cell that runs on the main thread from now on. One thread at a time.
    pub(crate) fn set_running(&self, cell: Option<CellId>) {
        let word = cell.map_or(0, |cell| cell.as_u64() + 1);
        self.map.word(8).store(word, Release);
    }

    /// What the last records tell of cells, by age, and whether these are all that
    /// there ever were. A record that was not written whole is left out.
    pub(crate) fn fates(&self) -> (Vec<CellFate>, bool) {
        let next = self.map.word(24).load(Acquire);
        let mut all = next <= RECORDS as u64 && self.map.word(LEFT_OUT).load(Acquire) == 0;
        let mut fates = BTreeMap::new();
        for number in next.saturating_sub(RECORDS as u64)..next {
            let Some((reached, cell, note, key)) = self.read(number) else {
                all = false;
                continue;
            };
            let fate = fates.entry(cell).or_insert(CellFate {
                cell,
                request: 0,
                reached,
                key: None,
            });
            fate.reached = reached;
            if reached == Reached::Accepted {
                fate.request = note;
                fate.key = key;
            }
        }
        (fates.into_values().collect(), all)
    }

    fn read(&self, number: u64) -> Option<(Reached, CellId, u64, Option<KeyDigest>)> {
        let slot = usize::try_from(number % RECORDS as u64).ok()?;
        let at = RECORDS_AT + RECORD * slot;
        if !self.map.reserve(at, RECORD) {
            return None;
        }
        let sum = self.map.word(at + 8 * RECORD_WORDS).load(Acquire);
        let words: [u64; RECORD_WORDS] =
            std::array::from_fn(|word| self.map.word(at + 8 * word).load(Relaxed));
        if words[0] != number || sum != checksum(&words) {
            return None;
        }
        let reached = match words[1] {
            1 => Reached::Accepted,
            2 => Reached::Started,
            3 => Reached::Finished,
            _ => return None,
        };
        let key = KeyDigest::from_words([words[4], words[5], words[6]]);
        Some((reached, CellId::from_u64(words[2])?, words[3], key))
    }

    /// The child of a `fork` cell has this process id; 0 once it is gone. Told by
    /// the child itself, so that there is none that is not told.
    pub(crate) fn note_fork(&self, slot: usize, pid: i32) {
        if slot < FORKS {
            let pid = u64::try_from(pid).unwrap_or(0);
            self.map.word(FORKS_AT + 8 * slot).store(pid, Release);
        }
    }

    /// The children of `fork` cells that were there, each told once.
    pub(crate) fn take_forks(&self) -> Vec<i32> {
        let slots = (0..FORKS).map(|slot| self.map.word(FORKS_AT + 8 * slot));
        let pids = slots.filter_map(|word| i32::try_from(word.swap(0, Acquire)).ok());
        pids.filter(|pid| *pid > 0).collect()
    }

    /// The cell that runs on the main thread, or ran when the process died.
    pub(crate) fn running(&self) -> Option<CellId> {
        self.map
            .word(8)
            .load(Acquire)
            .checked_sub(1)
            .and_then(CellId::from_u64)
    }

    /// Forgets the output of the cell before.
    pub(crate) fn begin_output(&self) {
        for word in [ACTIVE, LOST]
            .into_iter()
            .chain(LOG_BYTES)
            .chain(OUTPUT_BYTES)
        {
            self.map.word(word).store(0, Relaxed);
        }
    }

    /// Keeps the end of the running cell's output. One thread at a time.
    pub(crate) fn note_output(&self, stream: Stream, data: &[u8]) {
        let kept = &data[data.len().saturating_sub(2 * (HALF - RECORD_HEADER))..];
        self.add(LOST, data.len() - kept.len());
        for piece in kept.chunks(HALF - RECORD_HEADER) {
            let mut half = usize::from(self.map.word(ACTIVE).load(Relaxed) == 1);
            let mut at = usize::try_from(self.map.word(LOG_BYTES[half]).load(Relaxed)).unwrap_or(0);
            let turns = at + RECORD_HEADER + piece.len() > HALF;
            if turns {
                half = 1 - half;
                at = 0;
            }
            let place = HALVES_AT + half * HALF + at;
            if !self.map.reserve(place, RECORD_HEADER + piece.len()) {
                self.add(LOST, piece.len());
                continue;
            }
            if turns {
                let forgotten = self.map.word(OUTPUT_BYTES[half]).swap(0, Relaxed);
                self.map.word(LOST).fetch_add(forgotten, Relaxed);
                self.map.word(LOG_BYTES[half]).store(0, Release);
                self.map.word(ACTIVE).store(half as u64, Release);
            }
            self.map.write(place, &output_log::header(stream, piece));
            self.map.write(place + RECORD_HEADER, piece);
            self.add(OUTPUT_BYTES[half], piece.len());
            self.map
                .word(LOG_BYTES[half])
                .store((at + RECORD_HEADER + piece.len()) as u64, Release);
        }
    }

    /// Takes bytes in: `read` fills a buffer and returns how many came, `keep` is
    /// to note them. Whoever is killed between the two has them here. One thread
    /// at a time. Returns what `keep` does; None if nothing came.
    pub(crate) fn take_in<T>(
        &self,
        stream: Stream,
        read: impl FnOnce(&mut [u8]) -> usize,
        keep: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        if !self.map.reserve(INTAKE_AT, INTAKE) {
            let mut buffer = vec![0; INTAKE];
            let count = read(&mut buffer).min(INTAKE);
            return (count > 0).then(|| keep(&buffer[..count]));
        }
        let active = self.active();
        let before = [
            active as u64,
            self.map.word(LOG_BYTES[active]).load(Relaxed),
            self.map.word(16).load(Relaxed),
        ];
        for (word, value) in BEFORE_INTAKE.into_iter().zip(before) {
            self.map.word(word).store(value, Relaxed);
        }
        self.map.word(INTAKE_STREAM).store(stream as u64, Release);
        let kept = self.map.with_bytes(INTAKE_AT, INTAKE, |buffer| {
            let count = read(buffer).min(INTAKE);
            let kept = (count > 0).then(|| keep(&buffer[..count]));
            // How many came is known by the zeros after them.
            buffer[..count].fill(0);
            kept
        });
        self.map.word(INTAKE_STREAM).store(0, Release);
        kept
    }

    /// What was taken in and is not in the running cell's log, or not in the
    /// ring of stderr, because the process died in between. Zeros at its end are
    /// not known to be there.
    fn intake(&self, noted: impl Fn(&Self, [u64; 3]) -> bool) -> Option<(Stream, Vec<u8>)> {
        let stream = match self.map.word(INTAKE_STREAM).load(Acquire) {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        if noted(
            self,
            BEFORE_INTAKE.map(|at| self.map.word(at).load(Acquire)),
        ) {
            return None;
        }
        if !self.map.reserve(INTAKE_AT, INTAKE) {
            return None;
        }
        let bytes = self.map.bytes(INTAKE_AT, INTAKE);
        let mut bytes: Vec<u8> = bytes.iter().map(|byte| byte.load(Relaxed)).collect();
        let end = bytes.iter().rposition(|byte| *byte != 0)?;
        bytes.truncate(end + 1);
        Some((stream, bytes))
    }

    fn active(&self) -> usize {
        usize::from(self.map.word(ACTIVE).load(Acquire) == 1)
    }

    fn add(&self, word: usize, count: usize) {
        self.map.word(word).fetch_add(count as u64, Relaxed);
    }

    /// The end of the running cell's output log, and how many bytes of output
    /// are missing before it.
    pub(crate) fn last_output(&self) -> (Vec<u8>, u64) {
        let active = self.active();
        let mut log = Vec::new();
        for half in [1 - active, active] {
            let length = self.map.word(LOG_BYTES[half]).load(Acquire);
            let length = usize::try_from(length).unwrap_or(0).min(HALF);
            if !self.map.reserve(HALVES_AT + half * HALF, length) {
                continue;
            }
            let bytes = self.map.bytes(HALVES_AT + half * HALF, length);
            log.extend(bytes.iter().map(|byte| byte.load(Relaxed)));
        }
        let logged = |journal: &Self, before: [u64; 3]| {
            let active = journal.active();
            let length = journal.map.word(LOG_BYTES[active]).load(Acquire);
            // A half that was just begun is empty until its first record is whole.
            length != 0 && [active as u64, length] != before[..2]
        };
        if let Some((stream, bytes)) = self.intake(logged) {
            output_log::append(&mut log, stream, &bytes);
        }
        (log, self.map.word(LOST).load(Acquire))
    }

    /// Keeps the end of standard error.
    pub(crate) fn note_stderr(&self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL)..];
        let total = self.map.word(16).load(Relaxed);
        let ring = self.map.bytes(TAIL_AT, TAIL);
        let begin = usize::try_from(total % TAIL as u64).unwrap_or(0);
        let after = total + data.len() as u64;
        // Whoever is killed below leaves new bytes in the place of old ones.
        self.map.word(STDERR_AFTER).store(after, Relaxed);
        fence(Release);
        for (offset, byte) in data.iter().enumerate() {
            ring[(begin + offset) % TAIL].store(*byte, Relaxed);
        }
        self.map.word(16).store(after, Release);
    }

    /// The end of standard error, at most 4 KiB and what was being taken in.
    pub(crate) fn last_stderr(&self) -> Vec<u8> {
        let total = self.map.word(16).load(Acquire);
        let ring = self.map.bytes(TAIL_AT, TAIL);
        let after = self.map.word(STDERR_AFTER).load(Acquire).max(total);
        let first = after.saturating_sub(TAIL as u64);
        let mut last: Vec<u8> = (first..total)
            .map(|at| ring[usize::try_from(at % TAIL as u64).unwrap_or(0)].load(Relaxed))
            .collect();
        let noted = |_: &Self, before: [u64; 3]| before[2] != total;
        if let Some((Stream::Stderr, bytes)) = self.intake(noted) {
            last.extend(bytes);
        }
        last
    }
}

fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(MAGIC, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29)
    })
}
