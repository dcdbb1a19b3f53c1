//! A file that is replaced as a whole is old or new, whenever its writer ends,
//! and nothing is done before what must come first is on the disk.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use pythond_private_fs::PrivateDir;

/// Every call that changes a file system or waits for it.
const CALLS: &str =
    "openat,write,ftruncate,fsync,fdatasync,close,rename,renameat,renameat2,unlinkat";

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap();
    built.join("examples/write_whole")
}

/// Writes `new` to `file` under strace; its report of calls stands in `trace`.
fn write(directory: &Path, trace: &Path, faults: &[String]) -> ExitStatus {
    let mut command = Command::new("strace");
    command.arg("-qq").arg("-y").arg("-o").arg(trace);
    command.arg("-e").arg(format!("trace={CALLS}"));
    for fault in faults {
        command.arg("-e").arg(fault);
    }
    command
        .arg(program())
        .arg(directory)
        .args(["file", "new content"]);
    let status = command.status();
    status.expect("these tests need strace, which `make test` installs where it can")
}

fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("d");
    let private = PrivateDir::open_or_create(&directory).unwrap();
    private.write_whole("file", b"old content").unwrap();
    let trace = root.path().join("trace");
    (root, directory, trace)
}

fn content(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("file")).unwrap()
}

#[test]
fn a_file_is_old_or_new_at_whichever_call_its_writer_is_killed() {
    let (mut old, mut new) = (0, 0);
    for call in CALLS.split(',') {
        // strace counts each kind of call apart.
        for when in 1.. {
            let (_root, directory, trace) = place();
            let kill = format!("inject={call}:signal=SIGKILL:when={when}");
            let status = write(&directory, &trace, &[kill]);
            if status.success() {
                assert_eq!(content(&directory), "new content");
                break;
            }
            match content(&directory).as_str() {
                "old content" => old += 1,
                "new content" => new += 1,
                other => panic!("neither old nor new, killed at {call} {when}: {other:?}"),
            }
            assert!(when < 200, "the program never comes to its end");
        }
    }
    assert!(old >= 5, "killed {old} times before the file was new");
    assert!(new >= 1, "killed {new} times after");
}

#[test]
fn a_call_that_fails_leaves_the_old_file_and_no_other() {
    for call in ["write", "fsync", "renameat", "renameat2"] {
        for error in ["EIO", "ENOSPC"] {
            let (_root, directory, trace) = place();
            let fault = format!("inject={call}:error={error}:when=1");
            let status = write(&directory, &trace, &[fault]);
            let names: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
            assert_eq!(names.len(), 1, "{call} {error}: {names:?}");
            let expected = if status.success() { "new" } else { "old" };
            assert_eq!(content(&directory), format!("{expected} content"), "{call}");
            let used = std::fs::read_to_string(&trace)
                .unwrap()
                .contains("(INJECTED)");
            assert_eq!(status.success(), !used, "{call} {error}");
        }
    }
}

#[test]
fn the_content_is_on_the_disk_before_its_name_and_the_name_before_the_end() {
    let (_root, directory, trace) = place();
    let status = write(&directory, &trace, &[]);
    assert!(status.success());
    let trace = std::fs::read_to_string(&trace).unwrap();
    let at = |what: &str, from: usize| {
        let rest = &trace[from..];
        from + rest
            .find(what)
            .unwrap_or_else(|| panic!("no `{what}` after {from}:\n{trace}"))
    };
    let written = at("new content", 0);
    let synced = at("fsync(", written);
    assert!(trace[synced..].lines().next().unwrap().contains(".file."));
    let renamed = at("rename", synced);
    let settled = at("fsync(", renamed);
    let last = trace[settled..].lines().next().unwrap();
    let directory = directory.canonicalize().unwrap();
    assert!(
        last.contains(&format!("{}>", directory.display())),
        "{last}"
    );
    assert!(last.ends_with("= 0"), "{last}");
}
