//! Rotates a certificate: `rotate HOME announce|now`. A program of its own, so that
//! a test can end it at any call.
#![expect(clippy::print_stderr, reason = "the test shows what went wrong")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pythond_identity::{Overlap, Store, UnixTime};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [home, how] = words.as_slice() else {
        return ExitCode::FAILURE;
    };
    let overlap = match how.as_str() {
        "announce" => Overlap::For(Duration::from_secs(3600)),
        _ => Overlap::None,
    };
    // The test's own time.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    match Store::open(Path::new(home)).and_then(|store| store.rotate(overlap, now)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
