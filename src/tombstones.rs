//! Word of sessions that died, left by their zygotes for every daemon until the
//! name is used again.

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{HostEnd, HostedSession, LIVING, TOMBSTONE};
use pythond_protocol::outcome::ProcessEnd;

use crate::error::chain;
use crate::host_process::HostProcess;
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
                Ok(tombstone) => found.push(tombstone),
                Err(why) => {
                    log.note(&format!("WARN: {name} tells of no session: {why}"));
                    let _ = dir.remove(name);
                }
            }
        }
    }
    found.sort_by_key(|tombstone| tombstone.died_ns);
    let too_many = found.len().saturating_sub(MAX_TOMBSTONES);
    for tombstone in found.drain(..too_many) {
        forget(dir, &tombstone.socket);
    }
    found
}

/// Writes down which session a host is, for the case that nobody sees it die.
pub(crate) fn expect(dir: &PrivateDir, hosted: &HostedSession, pid: i32, socket: &str) {
    // An earlier daemon did: no other host ever has this name.
    if dir.open_file(&file_of(socket, LIVING)).is_ok() {
        return;
    }
    let spec = &hosted.spec;
    let end = HostEnd {
        pid,
        socket: socket.to_owned(),
        end: ProcessEnd::Unknown,
        last_stderr: String::new(),
        cell: None,
        session: Some((
            spec.session.clone(),
            spec.session_id.clone(),
            spec.generation,
        )),
        log_lost: 0,
        cause: None,
        died_at: String::new(),
        died_ns: 0,
        fates: Vec::new(),
        fates_are_all: false,
        born_ns: 0,
        ordered: false,
        start_time: HostProcess::of(pid).start_time().unwrap_or(0),
        hosted: Some(Box::new(HostedSession {
            unfinished: Vec::new(),
            unfinished_beside: Vec::new(),
            unfinished_forks: Vec::new(),
            queued: Vec::new(),
            held_by: None,
            not_recorded: None,
            ..hosted.clone()
        })),
    };
    let content = serde_json::to_vec(&end).unwrap_or_default();
    // Without it such a session is only gone.
    let _ = dir.write_whole_unsynced(&file_of(socket, LIVING), &content);
}

/// A host is gone that nobody reported: what is known of it becomes its
/// tombstone.
pub(crate) fn unreported(dir: &PrivateDir, socket: &str) -> Option<HostEnd> {
    let living = file_of(socket, LIVING);
    let end = HostEnd {
        died_at: jiff::Timestamp::now().to_string(),
        ..read_one(dir, &living).ok()?
    };
    write(dir, &end);
    let _ = dir.remove(&living);
    Some(end)
}

/// The process of a host that was written down, if it is there.
pub(crate) fn living(dir: &PrivateDir, socket: &str) -> Option<HostProcess> {
    let end = read_one(dir, &file_of(socket, LIVING)).ok()?;
    let process = HostProcess::of(end.pid);
    // Another one may have its number by now.
    let is_it = end.start_time == 0 || process.start_time() == Some(end.start_time);
    (is_it && !process.is_gone()).then_some(process)
}

/// What was written down of a session that lives.
pub(crate) fn hosted(dir: &PrivateDir, socket: &str) -> Option<HostedSession> {
    let end = read_one(dir, &file_of(socket, LIVING)).ok()?;
    end.hosted.map(|hosted| *hosted)
}

/// A host is told to end: that it does is no death to tell of.
pub(crate) fn told_to_end(dir: &PrivateDir, socket: &str) {
    // What stays is told as a death.
    let _ = dir.remove(&file_of(socket, LIVING));
}

/// No daemon needs to be told of this host any more.
pub(crate) fn forget(dir: &PrivateDir, socket: &str) {
    for end in [LIVING, TOMBSTONE] {
        // What stays is told by the next daemon once more.
        let _ = dir.remove(&file_of(socket, end));
    }
}

/// Says why a host ended, in place of what its zygote could see.
pub(crate) fn correct(dir: &PrivateDir, end: &HostEnd, cause: &str) {
    // What fails here leaves the zygote's own word.
    write(
        dir,
        &HostEnd {
            cause: Some(cause.to_owned()),
            ..end.clone()
        },
    );
}

fn write(dir: &PrivateDir, end: &HostEnd) {
    let content = serde_json::to_vec(end).unwrap_or_default();
    // This daemon knows it, and only later ones will not.
    let _ = dir.write_whole_unsynced(&file_of(&end.socket, TOMBSTONE), &content);
}

/// The name of a host's file, from its socket's.
fn file_of(socket: &str, end: &str) -> String {
    format!("{}.{end}", socket.strip_suffix(".sock").unwrap_or(socket))
}

fn read_one(dir: &PrivateDir, name: &str) -> Result<HostEnd, String> {
    let content = dir
        .read_file(name, MAX_BYTES)
        .map_err(|error| chain(&error))?;
    serde_json::from_slice(&content).map_err(|error| error.to_string())
}

/// The temporary file of a process that is gone: `.h-….tombstone.PID.NUMBER`.
fn is_unfinished(name: &str) -> bool {
    let Some(name) = name.strip_prefix(".h-") else {
        return false;
    };
    let ours = [LIVING, TOMBSTONE];
    let mut numbers = ours
        .iter()
        .filter_map(|end| name.split_once(&format!(".{end}.")));
    let Some((_, numbers)) = numbers.next() else {
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
        assert!(is_unfinished(".h-1-2.session.2147483646.0"));
        assert!(!is_unfinished("h-1-2.tombstone"));
        assert!(!is_unfinished(".z-1.log.4.4"));
    }
}
