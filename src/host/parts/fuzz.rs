//! What the fuzz targets do with their bytes. Each panics if something is found.

use std::fs;
use std::os::unix::fs::FileExt as _;

use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{
    CellSpec, Decoder, HELLO_TAG, HostInfo, KeyDigest, Lane, Message, Prefix, Reached, decode,
    encode,
};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::{self, RECORD_HEADER, Stream};
use tempfile::TempDir;

use crate::append;
use crate::journal::Journal;
use crate::kept_log::KeptLog;
use crate::state::{CellBoard, Resume};

/// A directory of the host's files that are damaged again and again.
#[derive(Debug)]
pub struct Damaged {
    directory: TempDir,
    held: PrivateDir,
}

const JOURNAL: &str = "h-1.journal";
/// Most bytes of a journal's log: two halves, and what is being taken in.
const MOST_LOG: usize = (2 * 64 + 16) * 1024 + RECORD_HEADER;
/// Most cells that a journal tells of.
const MOST_FATES: usize = 1024;
/// Most bytes of standard error: the ring, and what is being taken in.
const MOST_STDERR: usize = (4 + 16) * 1024;

impl Default for Damaged {
    fn default() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let held = PrivateDir::open_or_create(directory.path().join("kept"));
        let held = held.expect("it is ours alone");
        Self { directory, held }
    }
}

/// Takes a number of two bytes off the front.
fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (first, rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    Some(usize::from(u16::from_le_bytes(*first)))
}

/// Takes what stands behind a number that says how long it is, or what there is
/// of it.
fn counted<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(bytes)?.min(bytes.len());
    let (piece, rest) = bytes.split_at(length);
    *bytes = rest;
    Some(piece)
}

/// A stream, by a number.
fn stream(number: usize) -> Stream {
    if number.is_multiple_of(2) {
        Stream::Stdout
    } else {
        Stream::Stderr
    }
}

impl Damaged {
    /// A journal that was written, then damaged at places that the bytes say:
    /// its reader stays within it and gives no more than it can hold.
    pub fn journal(&self, mut bytes: &[u8]) {
        let journal = Journal::create(&self.held, JOURNAL).expect("it can be made");
        journal.note_output(Stream::Stdout, b"whole\n");
        journal.note_stderr(b"whole\n");
        let cell = CellId::from_parts(1, 1);
        let key = KeyDigest::new("k", CellKind::Run, "1");
        journal.record(Reached::Accepted, cell, 1, Some(key));
        drop(journal);
        let file = self.held.read_write_file(JOURNAL).expect("it is there");
        let length = file.metadata().expect("it is open").len();
        // Words are what the reader goes by: most places are theirs.
        while let (Some(at), Some(piece)) = (number(&mut bytes), counted(&mut bytes)) {
            let at = if at.is_multiple_of(4) {
                at as u64 * 4
            } else {
                (at % 20) as u64 * 8
            };
            let room = usize::try_from(length.saturating_sub(at)).unwrap_or(0);
            file.write_all_at(&piece[..piece.len().min(room)], at)
                .expect("it is ours");
        }
        let Ok(journal) = Journal::open(&self.held, JOURNAL) else {
            return;
        };
        let (log, _) = journal.last_output();
        assert!(log.len() <= MOST_LOG, "{} bytes of output", log.len());
        assert!(journal.last_stderr().len() <= MOST_STDERR);
        assert!(journal.take_forks().iter().all(|pid| *pid > 0));
        assert!(journal.take_forks().is_empty(), "told twice");
        let _ = journal.running();
        let (fates, _) = journal.fates();
        assert!(fates.len() <= MOST_FATES, "{} cells", fates.len());
        // A record is as it was written, or it is none.
        let known = fates.iter().find(|fate| fate.cell == cell);
        assert!(known.is_none_or(|fate| fate.key == Some(key)));
    }

    /// A note of an append that did not end, and a file of some length: the file
    /// is as before or as the note says, never longer, never something else.
    pub fn append(&self, mut bytes: &[u8]) {
        let before = b"# whole\n".repeat(number(&mut bytes).unwrap_or(0) % 100);
        let path = self.held.path().join("history.py");
        put(&self.held, "history.py", &before);
        put(&self.held, "appending", bytes);
        let cut = append::repair(&self.held).expect("nothing is in the way");
        let after = fs::read(&path).expect("it is there");
        assert!(before.starts_with(&after));
        assert_eq!(cut, after.len() < before.len());
        assert!(!append::repair(&self.held).expect("as before"), "cut twice");
    }

    /// Files of a cell's output that were damaged: what is read is whole records,
    /// at offsets that go on, and ends where the output does.
    pub fn cell_log(&self, mut bytes: &[u8]) {
        let directory = self.directory.path().join("one/two/three");
        let mut log = KeptLog::new(directory.clone(), 3 << 20);
        for turn in 0..3 + number(&mut bytes).unwrap_or(0) % 40 {
            log.append(stream(turn), &vec![b'a'; 100_000]);
        }
        let files = fs::read_dir(&directory).into_iter().flatten();
        let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
        files.sort();
        while let (Some(which), Some(at), Some(piece)) =
            (number(&mut bytes), number(&mut bytes), counted(&mut bytes))
        {
            let Some(path) = files.get(which % files.len().max(1)) else {
                break;
            };
            let Ok(file) = fs::File::options().write(true).open(path) else {
                continue;
            };
            let at = at as u64 * 64;
            let done = match which % 5 {
                0 => file.set_len(at),
                1 => fs::remove_file(path),
                _ => file.write_all_at(piece, at),
            };
            done.expect("it is ours");
        }
        for wanted in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
            read_all(&log, wanted);
        }
        log.remove_files();
        for path in files {
            // What was cut may have grown again by a write behind its end.
            let _ = fs::remove_file(path);
        }
    }
}

/// What a host says of itself to a daemon that takes it over: it is refused, or
/// taken as it was said, and its cells have ends that are told once.
pub fn adoption(bytes: &[u8]) {
    let prefix = Prefix {
        header: bytes.len(),
        body: 0,
    };
    let Ok(Message { header: info, .. }) = decode::<HostInfo>(prefix, bytes.to_vec()) else {
        return;
    };
    let mut decoder = Decoder::new(HELLO_TAG);
    if let Ok(again) = encode(HELLO_TAG, &info, b"") {
        decoder.extend(&again);
        let again = decoder.next_message::<HostInfo>();
        assert_eq!(
            again.map(|it| it.map(|it| it.header)),
            Ok(Some(info.clone()))
        );
    }
    let Some(hosted) = info.session else {
        return;
    };
    let mut board = CellBoard::new(hosted.next_cell, 1, hosted.keys_by_cell_lane);
    for cell in &hosted.unfinished {
        board.inherit(*cell);
    }
    assert_eq!(board.is_idle(), hosted.unfinished.is_empty());
    let steps = board.resume(hosted.next_cell);
    assert_eq!(steps.len(), hosted.unfinished.len());
    for (step, cell) in steps.iter().zip(&hosted.unfinished) {
        let Resume::Await {
            cell: asked,
            request,
        } = step
        else {
            panic!("{step:?} for a cell that another daemon sent");
        };
        assert_eq!(asked, cell);
        assert!(board.remove(*request).is_none(), "nobody waits here");
    }
    let added = board.add("1".into(), CellKind::Run, CellSpec::default(), ());
    assert!(
        matches!(added, Ok((_, Lane::Cell))),
        "the main thread is free"
    );
}

/// Writes a file anew.
pub(crate) fn put(directory: &PrivateDir, name: &str, bytes: &[u8]) {
    let file = directory.empty_file(name).expect("it can be made");
    file.write_all_at(bytes, 0).expect("it is ours");
}

/// Reads a log to its end, a piece at a time, and checks each.
pub(crate) fn read_all(log: &KeptLog, wanted: Option<Stream>) -> Vec<u8> {
    let (mut at, mut all) = (0, Vec::new());
    let total = log.total().of(wanted);
    while at < total {
        let piece = log.read(wanted, at, 70_000);
        let mut held = 0;
        for record in output_log::records(&piece.records) {
            let (from, data) = record.expect("a piece is made of whole records");
            assert!(wanted.is_none_or(|wanted| wanted == from));
            held += data.len() as u64;
            all.extend_from_slice(data);
        }
        assert_eq!(piece.offset, at + piece.missing, "from {at}: {piece:?}");
        assert_eq!(piece.next, piece.offset + held);
        assert!(piece.next > at && piece.next <= total);
        at = piece.next;
    }
    all
}
