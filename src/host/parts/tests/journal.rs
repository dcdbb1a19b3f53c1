use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;
use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{KeyDigest, Reached};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::{Demuxed, Stream, records};

use crate::fuzz::Damaged;
use crate::journal::Journal;

/// What the running cell wrote, stream by stream, and what of it is kept.
fn noted(writes: &[(bool, usize)]) -> (Journal, PrivateDir, tempfile::TempDir, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let held = PrivateDir::open_or_create(directory.path().join("kept")).unwrap();
    let journal = Journal::create(&held, "h-1.journal").unwrap();
    let mut all = Vec::new();
    for (error, length) in writes {
        let from = all.len();
        let data: Vec<u8> = (from..from + length)
            .map(|at| u8::try_from(at % 251).unwrap() + 1)
            .collect();
        all.extend_from_slice(&data);
        let stream = if *error {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        journal.note_output(stream, &data);
        journal.note_stderr(&data);
    }
    (journal, held, directory, all)
}

fn writes() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), 0_usize..90_000), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_end_of_what_was_written_is_read_and_the_rest_counted(writes in writes()) {
        let (_, held, _directory, all) = noted(&writes);
        let journal = Journal::open(&held, "h-1.journal").unwrap();
        let (log, lost) = journal.last_output();
        let kept = pythond_protocol::output_log::merged(&log).unwrap();
        prop_assert!(all.ends_with(&kept));
        prop_assert_eq!(kept.len() as u64 + lost, all.len() as u64);
        let last = &all[all.len().saturating_sub(4096)..];
        prop_assert_eq!(journal.last_stderr(), last);
    }

    /// One byte of the two halves that changed: what stands before it in its half
    /// is as it was.
    #[test]
    fn damage_spares_the_records_before_it(
        writes in prop::collection::vec((any::<bool>(), 1_usize..4000), 1..12),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let (_, held, _directory, _) = noted(&writes);
        let whole = Journal::open(&held, "h-1.journal").unwrap().last_output().0;
        let at = at.index(whole.len());
        let file = held.read_write_file("h-1.journal").unwrap();
        // The first half is where a journal begins.
        let place = (8192 + 64 * 1024 + at) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        prop_assert_eq!(byte[0], whole[at]);
        file.write_all_at(&[byte[0] ^ (1 << bit)], place).unwrap();
        let damaged = Journal::open(&held, "h-1.journal").unwrap().last_output().0;
        let mut end = 0;
        let before: Vec<_> = records(&whole).map(Result::unwrap).take_while(|(_, data)| {
            end += 5 + data.len();
            end <= at
        }).collect();
        let after: Vec<_> = records(&damaged).take(before.len()).collect();
        prop_assert_eq!(after, before.into_iter().map(Ok).collect::<Vec<_>>());
    }

    #[test]
    fn a_journal_that_was_cut_is_none(length in 0_u64..200_000) {
        let (_, held, _directory, _) = noted(&[(false, 100)]);
        held.read_write_file("h-1.journal").unwrap().set_len(length).unwrap();
        prop_assert!(Journal::open(&held, "h-1.journal").is_err());
    }

    #[test]
    fn no_damage_breaks_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        Damaged::default().journal(&bytes);
    }
}

#[test]
fn what_was_taken_in_and_not_noted_is_there() {
    let (journal, held, _directory, _) = noted(&[]);
    let open = || Journal::open(&held, "h-1.journal").unwrap();
    let read = |buffer: &mut [u8]| {
        buffer[..5].copy_from_slice(b"taken");
        5
    };
    let look = |_: &[u8]| {
        let dead = open();
        let both = Demuxed::from_log(&dead.last_output().0).unwrap();
        (both.stderr, dead.last_stderr())
    };
    let seen = journal.take_in(Stream::Stderr, read, look);
    assert_eq!(seen, Some((b"taken".to_vec(), b"taken".to_vec())));
    assert_eq!(
        (open().last_output().0, open().last_stderr()),
        (vec![], vec![])
    );
}

/// Where the first record is.
const RECORDS_AT: u64 = 8192;

fn digest(number: u32) -> KeyDigest {
    KeyDigest::new(&number.to_string(), CellKind::Run, "1")
}

#[test]
fn keys_are_told_with_their_cells_and_whether_these_are_all() {
    let (journal, held, _directory, _) = noted(&[]);
    let fates = || Journal::open(&held, "h-1.journal").unwrap().fates();
    assert_eq!(fates(), (vec![], true));
    for number in 1..=1024 {
        let cell = CellId::from_parts(1, number);
        let key = (number > 1).then(|| digest(number));
        journal.record(Reached::Accepted, cell, u64::from(number), key);
    }
    let (all, are_all) = fates();
    assert!(are_all);
    let told: Vec<_> = all.iter().map(|fate| fate.key).collect();
    let expected: Vec<_> = (1..=1024).map(|it| (it > 1).then(|| digest(it))).collect();
    assert_eq!(told, expected);
    // The oldest is overwritten.
    journal.record(Reached::Started, CellId::from_parts(1, 2), 0, None);
    let (left, are_all) = fates();
    assert!(!are_all);
    assert_eq!(left.len(), 1023);
    assert_eq!(
        (left[0].reached, left[0].key),
        (Reached::Started, Some(digest(2)))
    );
}

#[test]
fn a_damaged_record_is_left_out_and_then_these_are_not_all() {
    for at in 0..64 {
        let (journal, held, _directory, _) = noted(&[]);
        let cell = CellId::from_parts(1, 1);
        journal.record(Reached::Accepted, cell, 7, Some(digest(1)));
        let file = held.read_write_file("h-1.journal").unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, RECORDS_AT + at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], RECORDS_AT + at)
            .unwrap();
        assert_eq!(journal.fates(), (vec![], false), "byte {at}");
    }
}
