use std::fs;
use std::path::Path;

use proptest::prelude::*;
use pythond_protocol::output_log::Stream;

use crate::fuzz::{Damaged, read_all};
use crate::kept_log::KeptLog;

/// Writes by stream and length; each byte says where it stands.
fn written(lengths: &[(bool, usize)], directory: &Path) -> (KeptLog, Vec<u8>, Vec<u8>) {
    let (mut log, mut all, mut errors) = (
        KeptLog::new(directory.to_owned(), u64::MAX),
        Vec::new(),
        Vec::new(),
    );
    for (error, length) in lengths {
        let from = all.len();
        let data: Vec<u8> = (from..from + length)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        all.extend_from_slice(&data);
        if *error {
            errors.extend_from_slice(&data);
        }
        let stream = if *error {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        log.append(stream, &data);
    }
    (log, all, errors)
}

fn writes() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), 0_usize..150_000), 8..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_was_written_is_read(writes in writes()) {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("one/two/three");
        let (log, all, errors) = written(&writes, &directory);
        prop_assert!(read_all(&log, None) == all);
        prop_assert!(read_all(&log, Some(Stream::Stderr)) == errors);
        prop_assert_eq!(log.lost(), 0);
    }

    /// Whatever is gone is a hole that is counted; what is there stands where it
    /// stood.
    #[test]
    fn a_file_that_was_cut_gives_what_is_whole(
        writes in writes(),
        cut in any::<prop::sample::Index>(),
        from in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("one/two/three");
        let (log, all, _) = written(&writes, &directory);
        if let Some(file) = fs::read_dir(&directory).into_iter().flatten().flatten().next() {
            let file = fs::File::options().write(true).open(file.path()).unwrap();
            let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
            file.set_len(cut.index(length) as u64).unwrap();
        }
        let mut at = from.index(all.len() + 1) as u64;
        while at < all.len() as u64 {
            let piece = log.read(None, at, 50_000);
            prop_assert_eq!(piece.offset, at + piece.missing);
            prop_assert!(piece.next > at);
            let mut place = usize::try_from(piece.offset).unwrap();
            for record in pythond_protocol::output_log::records(&piece.records) {
                let (_, data) = record.unwrap();
                prop_assert!(&all[place..place + data.len()] == data);
                place += data.len();
            }
            prop_assert_eq!(place as u64, piece.next);
            at = piece.next;
        }
    }

    #[test]
    fn no_damage_breaks_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        Damaged::default().cell_log(&bytes);
    }
}
