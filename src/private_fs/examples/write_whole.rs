//! Replaces a file as a whole: `write_whole DIRECTORY NAME CONTENT`. A program of
//! its own, so that a test can end it at any call.
#![expect(clippy::print_stderr, reason = "the test shows what went wrong")]

use std::process::ExitCode;

use pythond_private_fs::PrivateDir;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name, content] = words.as_slice() else {
        return ExitCode::FAILURE;
    };
    let written = PrivateDir::open(directory)
        .and_then(|directory| directory.write_whole(name, content.as_bytes()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
