//! A cell's output as one log of records: which stream, which bytes, in order.
//!
//! Shape of a record: stream (1 byte, 1 = stdout, 2 = stderr), length (4 bytes,
//! little endian), that many bytes. A log is cut only between records.

/// Where a cell's bytes were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// Bytes of a record before its data.
pub const RECORD_HEADER: usize = 5;

/// Appends one record; data over 4 GiB is cut into several.
pub fn append(log: &mut Vec<u8>, stream: Stream, data: &[u8]) {
    for piece in data.chunks(u32::MAX as usize) {
        log.extend_from_slice(&header(stream, piece));
        log.extend_from_slice(piece);
    }
}

/// What stands before the data of one record, which has less than 4 GiB.
#[must_use]
pub fn header(stream: Stream, data: &[u8]) -> [u8; RECORD_HEADER] {
    let length = u32::try_from(data.len()).expect("pieces of at most u32::MAX bytes");
    let [a, b, c, d] = length.to_le_bytes();
    [stream as u8, a, b, c, d]
}

/// A log that breaks off inside a record or names an unknown stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged output log")]
pub struct DamagedLog;

/// The records of a log, in order. Ends after the first [`DamagedLog`].
pub fn records(log: &[u8]) -> impl Iterator<Item = Result<(Stream, &[u8]), DamagedLog>> {
    let mut rest = log;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = take_record(rest);
        match record {
            Some((stream, data, after)) => {
                rest = after;
                Some(Ok((stream, data)))
            }
            None => {
                rest = &[];
                Some(Err(DamagedLog))
            }
        }
    })
}

fn take_record(log: &[u8]) -> Option<(Stream, &[u8], &[u8])> {
    let (header, after) = log.split_at_checked(RECORD_HEADER)?;
    let stream = match header[0] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return None,
    };
    let length = u32::from_le_bytes(header[1..].try_into().ok()?) as usize;
    let (data, after) = after.split_at_checked(length)?;
    Some((stream, data, after))
}

/// The bytes of a log, told apart and merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demuxed {
    /// What went to standard output.
    pub stdout: Vec<u8>,
    /// What went to standard error.
    pub stderr: Vec<u8>,
}

impl Demuxed {
    /// Tells the streams of a log apart.
    ///
    /// # Errors
    /// [`DamagedLog`] if the log is not made of whole records.
    pub fn from_log(log: &[u8]) -> Result<Self, DamagedLog> {
        let mut both = Self::default();
        for record in records(log) {
            let (stream, data) = record?;
            match stream {
                Stream::Stdout => both.stdout.extend_from_slice(data),
                Stream::Stderr => both.stderr.extend_from_slice(data),
            }
        }
        Ok(both)
    }
}

/// Both streams in the order of arrival, as the plain wire shows them.
///
/// # Errors
/// [`DamagedLog`] if the log is not made of whole records.
pub fn merged(log: &[u8]) -> Result<Vec<u8>, DamagedLog> {
    let mut bytes = Vec::with_capacity(log.len());
    for record in records(log) {
        bytes.extend_from_slice(record?.1);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_torn_record_is_reported_once() {
        let mut log = Vec::new();
        append(&mut log, Stream::Stdout, b"ab");
        append(&mut log, Stream::Stderr, b"cd");
        log.pop();
        let found: Vec<_> = records(&log).collect();
        assert_eq!(found, [Ok((Stream::Stdout, &b"ab"[..])), Err(DamagedLog)]);
    }

    proptest! {
        #[test]
        fn any_writes_come_back(writes in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let mut log = Vec::new();
            let mut expected = Demuxed::default();
            let mut all = Vec::new();
            for (error, data) in &writes {
                append(&mut log, if *error { Stream::Stderr } else { Stream::Stdout }, data);
                if *error { &mut expected.stderr } else { &mut expected.stdout }.extend_from_slice(data);
                all.extend_from_slice(data);
            }
            prop_assert_eq!(Demuxed::from_log(&log), Ok(expected));
            prop_assert_eq!(merged(&log), Ok(all));
        }

        #[test]
        fn a_log_that_was_cut_gives_all_whole_records(lengths in prop::collection::vec(0_usize..50, 1..20), cut in any::<prop::sample::Index>()) {
            let mut log = Vec::new();
            let mut ends = Vec::new();
            for length in &lengths {
                append(&mut log, Stream::Stdout, &vec![b'x'; length + 1]);
                ends.push(log.len());
            }
            let cut = cut.index(log.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let torn = cut != 0 && !ends.contains(&cut);
            let found: Vec<_> = records(&log[..cut]).collect();
            prop_assert_eq!(found.iter().filter(|it| it.is_ok()).count(), whole);
            prop_assert_eq!(found.last().is_some_and(Result::is_err), torn);
        }

        #[test]
        fn records_before_a_flipped_bit_are_as_they_were(lengths in prop::collection::vec(1_usize..50, 1..20), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut log = Vec::new();
            let mut ends = Vec::new();
            for length in &lengths {
                append(&mut log, Stream::Stderr, &vec![b'y'; *length]);
                ends.push(log.len());
            }
            let at = at.index(log.len());
            let before: Vec<_> = records(&log).collect();
            let mut flipped = log.clone();
            flipped[at] ^= 1_u8 << bit;
            let whole = ends.iter().filter(|end| **end <= at).count();
            let found: Vec<_> = records(&flipped).collect();
            prop_assert!(found.len() >= whole);
            prop_assert_eq!(&found[..whole], &before[..whole]);
        }

        #[test]
        fn no_bytes_panic(log in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Demuxed::from_log(&log);
        }
    }
}
