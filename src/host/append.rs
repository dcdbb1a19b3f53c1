//! Files that grow by whole records: what is appended is there as a whole or not
//! at all, also where the disk is full or the writer is killed in the midst.
//!
//! What is about to be appended is noted in a file beside them first. Whoever
//! comes next takes away what an append that did not end has left. After the
//! power went this may be in vain, as nothing waits for the disk.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use pythond_private_fs::{PrivateDir, PrivateFsError};
use rustix::io::Errno;

/// Where an append is noted.
const NOTE: &str = "appending";
/// Length of a note: magic, number of the file or 0, length before, length after,
/// checksum, each 8 bytes, little endian.
const NOTE_BYTES: usize = 40;
const MAGIC: u64 = u64::from_le_bytes(*b"ptdappn1");
/// The files that are written so, by number from 1.
const FILES: [&str; 2] = ["history.py", "session.log"];

/// Appends to one of [`FILES`]; `text` is told how long the file is.
///
/// # Errors
/// One line that says why. The file is as it was, or [`repair`] makes it so.
pub(crate) fn append(
    directory: &PrivateDir,
    name: &str,
    text: impl FnOnce(u64) -> String,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} (cannot write `{name}`)", words(&error));
    let file = directory.append_file(name).map_err(|it| explain(&it))?;
    let before = file.metadata().map_err(failed)?.len();
    let text = text(before);
    let number = FILES.iter().position(|it| *it == name).unwrap_or(0) as u64 + 1;
    let note = directory.read_write_file(NOTE).map_err(|it| explain(&it))?;
    let after = before + text.len() as u64;
    let noted = note.write_all_at(&encode(number, before, after), 0);
    noted.map_err(failed)?;
    match write_all(&file, text.as_bytes()) {
        Ok(()) => {
            // One that stays says that all of it was written.
            let _ = note.write_all_at(&encode(0, 0, 0), 0);
            Ok(())
        }
        Err(error) => {
            if file.set_len(before).is_ok() {
                let _ = note.write_all_at(&encode(0, 0, 0), 0);
            }
            Err(failed(error))
        }
    }
}

/// Takes away what an append has left that did not end. True if there was
/// something.
///
/// # Errors
/// One line that says why it is still there.
pub(crate) fn repair(directory: &PrivateDir) -> Result<bool, String> {
    let note = match directory.open_file(NOTE) {
        Ok(note) => note,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(explain(&error)),
    };
    let mut bytes = [0; NOTE_BYTES];
    if note.read_exact_at(&mut bytes, 0).is_err() {
        return Ok(false);
    }
    let Some((name, before, after)) = decode(&bytes) else {
        return Ok(false);
    };
    let failed = |error: io::Error| format!("{} (cannot write `{name}`)", words(&error));
    let file = directory.append_file(name).map_err(|it| explain(&it))?;
    let length = file.metadata().map_err(failed)?.len();
    // Anything else is whole, or somebody else has changed the file since.
    let torn = before < length && length < after;
    if torn {
        file.set_len(before).map_err(failed)?;
    }
    let note = directory.read_write_file(NOTE).map_err(|it| explain(&it))?;
    note.write_all_at(&encode(0, 0, 0), 0).map_err(failed)?;
    Ok(torn)
}

fn encode(number: u64, before: u64, after: u64) -> [u8; NOTE_BYTES] {
    let words = [
        MAGIC,
        number,
        before,
        after,
        checksum(number, before, after),
    ];
    let mut bytes = [0; NOTE_BYTES];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Which file, how long before and after; none if nothing was going on, or if
/// this is no note.
fn decode(bytes: &[u8; NOTE_BYTES]) -> Option<(&'static str, u64, u64)> {
    let mut words = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|it| u64::from_le_bytes(*it));
    let mut next = || words.next().unwrap_or(0);
    let (magic, number, before, after, sum) = (next(), next(), next(), next(), next());
    if magic != MAGIC || sum != checksum(number, before, after) {
        return None;
    }
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    Some((FILES.get(index)?, before, after))
}

fn checksum(number: u64, before: u64, after: u64) -> u64 {
    [number, before, after].iter().fold(MAGIC, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29)
    })
}

fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(file.as_fd(), rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Why a file cannot be used, in one line.
pub(crate) fn explain(error: &PrivateFsError) -> String {
    match error {
        PrivateFsError::Io { source, .. } => format!("{} ({error})", words(source)),
        _ => error.to_string(),
    }
}

/// What the system said, in few words.
pub(crate) fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => "no space".to_owned(),
        Some(Errno::ROFS) => "read-only file system".to_owned(),
        Some(Errno::IO) => "input/output error".to_owned(),
        Some(Errno::FBIG) => "file size limit".to_owned(),
        _ => error.to_string(),
    }
}
