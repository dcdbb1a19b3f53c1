//! Word of sessions that died, left by their zygotes for every daemon until the
//! name is used again.

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{HostEnd, TOMBSTONE};

use crate::error::chain;
use crate::log::Log;

/// Most dead sessions that are remembered.
pub(crate) const MAX_TOMBSTONES: usize = 1000;
/// Most bytes of one: a journal's records and the end of standard error.
const MAX_BYTES: u64 = 1 << 20;

/// What is there, the oldest first. What cannot be read tells nobody anything,
/// and goes.
pub(crate) fn read(dir: &PrivateDir, log: &Log) -> Vec<HostEnd> {
    let end = format!(".{TOMBSTONE}");
    let names = dir.entries().unwrap_or_default();
    let mut found = Vec::new();
    for name in &names {
        if is_unfinished(name) {
            // Of one who was killed while it wrote.
            let _ = dir.remove(name);
        } else if name.starts_with("h-") && name.ends_with(&end) {
            match read_one(dir, name) {
                Ok(tombstone) => found.push((tombstone, name)),
                Err(why) => {
                    log.note(&format!("WARN: {name} tells of no session: {why}"));
                    let _ = dir.remove(name);
                }
            }
        }
    }
    found.sort_by_key(|(tombstone, _)| tombstone.died_ns);
    let too_many = found.len().saturating_sub(MAX_TOMBSTONES);
    for (_, name) in found.drain(..too_many) {
        let _ = dir.remove(name);
    }
    found.into_iter().map(|(tombstone, _)| tombstone).collect()
}

fn read_one(dir: &PrivateDir, name: &str) -> Result<HostEnd, String> {
    let content = dir
        .read_file(name, MAX_BYTES)
        .map_err(|error| chain(&error))?;
    serde_json::from_slice(&content).map_err(|error| error.to_string())
}

/// The temporary file of a process that is gone: `.h-….tombstone.PID.NUMBER`.
fn is_unfinished(name: &str) -> bool {
    let Some((_, numbers)) = name
        .strip_prefix(".h-")
        .and_then(|name| name.split_once(&format!(".{TOMBSTONE}.")))
    else {
        return false;
    };
    let pid = numbers.split('.').next().and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_finishes_any_more_is_told_apart() {
        let me = std::process::id();
        assert!(!is_unfinished(&format!(".h-1-2.tombstone.{me}.0")));
        assert!(is_unfinished(".h-1-2.tombstone.2147483646.0"));
        assert!(is_unfinished(".h-1-2.tombstone."));
        assert!(!is_unfinished("h-1-2.tombstone"));
        assert!(!is_unfinished(".z-1.log.4.4"));
    }
}
