//! Whenever whoever makes or rotates a certificate is killed, there is a pair that
//! belongs together: the old one, or the new one.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use pythond_identity::{Overlap, Store, UnixTime};

/// Every call that changes a name or a file here.
const CALLS: &str = "write,fsync,ftruncate,renameat,renameat2,rename,unlinkat";

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap();
    built.join("examples/rotate")
}

fn rotate(home: &Path, how: &str, fault: &str) -> ExitStatus {
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e"]);
    command.arg(format!("trace={CALLS}"));
    command
        .args(["-e", fault])
        .arg(program())
        .arg(home)
        .arg(how);
    let status = command.status();
    status.expect("these tests need strace, which `make test` installs where it can")
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

fn store(home: &Path) -> Store {
    Store::open(home).unwrap()
}

/// Kills at each call in turn, and looks at what is there then. Gives back what
/// certificates were met in place, as `old` and `new`.
fn kill_everywhere(how: &str, begun: impl Fn(&Path)) -> BTreeSet<&'static str> {
    let mut met = BTreeSet::new();
    for call in CALLS.split(',') {
        for when in 1.. {
            let root = tempfile::tempdir().unwrap();
            let home = root.path();
            begun(home);
            let old = store(home).own(now()).unwrap();
            let old = old.map(|own| own.pair.certificate.fingerprint());
            let fault = format!("inject={call}:signal=SIGKILL:when={when}");
            let done = rotate(home, how, &fault).success();
            // None before the first pair is there; never an error.
            let found = store(home).own(now()).unwrap();
            let found = found.map(|own| own.pair.certificate.fingerprint());
            assert!(
                found.is_some() || old.is_none(),
                "{call} {when}: nothing is left"
            );
            met.insert(if found == old { "old" } else { "new" });
            // And the next can go on from there.
            store(home).rotate(Overlap::None, now()).unwrap();
            let names: BTreeSet<_> = std::fs::read_dir(home.join(".pythond/tls"))
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.file_type().unwrap().is_file())
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            let expected = ["cert.pem", "key.pem"].map(str::to_owned);
            assert_eq!(names, BTreeSet::from(expected), "{call} {when}");
            if done {
                break;
            }
            assert!(when < 300, "the program never comes to its end");
        }
    }
    met
}

#[test]
fn the_first_pair_is_there_or_not() {
    let met = kill_everywhere("now", |_| {});
    assert_eq!(met, BTreeSet::from(["new", "old"]));
}

#[test]
fn a_pair_that_is_replaced_is_old_or_new() {
    let met = kill_everywhere("now", |home| {
        store(home).own_or_make(now()).unwrap();
    });
    assert_eq!(met, BTreeSet::from(["new", "old"]));
}

#[test]
fn a_pair_is_in_use_while_another_is_announced() {
    let met = kill_everywhere("announce", |home| {
        store(home).own_or_make(now()).unwrap();
    });
    assert_eq!(met, BTreeSet::from(["old"]));
}

#[test]
fn an_announced_pair_takes_over_or_does_not() {
    let met = kill_everywhere("now", |home| {
        store(home).own_or_make(now()).unwrap();
        let overlap = Overlap::For(Duration::from_secs(3600));
        store(home).rotate(overlap, now()).unwrap();
    });
    assert_eq!(met, BTreeSet::from(["new", "old"]));
}
