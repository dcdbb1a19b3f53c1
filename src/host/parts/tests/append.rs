use std::fs;

use proptest::prelude::*;
use pythond_private_fs::PrivateDir;

use crate::append::{append, repair};
use crate::fuzz::{Damaged, put};

proptest! {
    /// Killed anywhere in an append, its writer leaves the records before it, or
    /// with it.
    #[test]
    fn a_writer_that_was_cut_off_leaves_whole_records(
        records in prop::collection::vec("[a-z\n]{1,40}", 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let held = PrivateDir::open_or_create(directory.path().join("kept")).unwrap();
        let file = held.path().join("history.py");
        let (last, others) = records.split_last().unwrap();
        for record in others {
            append(&held, "history.py", |_| record.clone()).unwrap();
        }
        let before = others.concat();
        // The note as it is while the last one is written.
        let mut noted = Vec::new();
        append(&held, "history.py", |at| {
            assert_eq!(at, before.len() as u64);
            last.clone()
        })
        .unwrap();
        let words = [
            u64::from_le_bytes(*b"ptdappn1"),
            1,
            before.len() as u64,
            (before.len() + last.len()) as u64,
        ];
        for word in words {
            noted.extend_from_slice(&word.to_le_bytes());
        }
        let sum = words[1..].iter().fold(words[0], |sum, word| {
            (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
        });
        noted.extend_from_slice(&sum.to_le_bytes());
        let written = cut.index(last.len() + 1);
        put(&held, "history.py", format!("{before}{}", &last[..written]).as_bytes());
        put(&held, "appending", &noted);
        let torn = written != 0 && written != last.len();
        prop_assert_eq!(repair(&held), Ok(torn));
        let expected = if written == last.len() { before + last } else { before };
        prop_assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        prop_assert_eq!(repair(&held), Ok(false));
    }

    #[test]
    fn no_note_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        Damaged::default().append(&bytes);
    }
}
