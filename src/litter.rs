//! Files of processes that are gone: what nobody listens on is removed, here and
//! nowhere else in the daemon.
//!
//! A zygote removes the files of its hosts itself, as long as it lives. They are
//! named `h-PID-RANDOM-NUMBER` after its process id.

use pythond_private_fs::PrivateDir;

use crate::host_process::is_alive;

/// How names of sockets end.
const SOCKET: &str = ".sock";
/// How names of sockets end whose process is no session yet; it answers nobody.
const PARKED: &str = ".parked";
/// How names of journals end.
const JOURNAL: &str = ".journal";

/// Removes the socket of a host that is dead, and its journal.
pub(crate) fn remove_of_host(dir: &PrivateDir, socket: &str) {
    let stem = socket
        .strip_suffix(SOCKET)
        .or_else(|| socket.strip_suffix(PARKED));
    // What stays is looked at again at the next start.
    let _ = dir.remove(socket);
    let _ = dir.remove(&format!("{}{JOURNAL}", stem.unwrap_or(socket)));
}

/// Removes what a zygote that is gone has left: the files of hosts that died with
/// it or before it. Its spares remove their own when they see its end.
pub(crate) fn remove_of_zygote(dir: &PrivateDir, pid: i32) {
    let mut names = dir.entries().unwrap_or_default();
    names.retain(|name| zygote_of(name) == Some(pid));
    remove_dead(dir, &names);
}

/// The sockets of the sessions that a zygote made.
pub(crate) fn sockets_of_zygote(dir: &PrivateDir, pid: i32) -> Vec<String> {
    let mut names = dir.entries().unwrap_or_default();
    names.retain(|name| zygote_of(name) == Some(pid) && name.ends_with(SOCKET));
    names
}

/// Removes everything that belongs to nobody.
pub(crate) fn sweep(dir: &PrivateDir) {
    let mut names = dir.entries().unwrap_or_default();
    for name in &names {
        // What an environment said is told in replies; its log is only of
        // use while it runs.
        let zygote = name
            .strip_suffix(".log")
            .filter(|name| name.starts_with("z-"));
        if zygote.is_some_and(|zygote| !names.contains(&format!("{zygote}{SOCKET}"))) {
            let _ = dir.remove(name);
        }
        if name.starts_with("z-") && name.ends_with(SOCKET) && is_dead(dir, name) {
            let _ = dir.remove(name);
        }
    }
    names.retain(|name| zygote_of(name).is_some_and(|pid| !is_alive(pid)));
    remove_dead(dir, &names);
}

/// Of files of hosts whose zygote is gone: nobody makes or renames any.
fn remove_dead(dir: &PrivateDir, names: &[String]) {
    let is_there = |stem: &str, end: &str| names.contains(&format!("{stem}{end}"));
    for name in names {
        let is_socket = name.ends_with(SOCKET) || name.ends_with(PARKED);
        let is_alone = name
            .strip_suffix(JOURNAL)
            .is_some_and(|stem| !is_there(stem, SOCKET) && !is_there(stem, PARKED));
        if is_alone {
            let _ = dir.remove(name);
        } else if is_socket && is_dead(dir, name) {
            remove_of_host(dir, name);
        }
    }
}

/// The process id of the zygote that made a host.
pub(crate) fn zygote_of(name: &str) -> Option<i32> {
    let (pid, _) = name.strip_prefix("h-")?.split_once('-')?;
    i32::from_str_radix(pid, 16).ok()
}

fn is_dead(dir: &PrivateDir, socket: &str) -> bool {
    let tried = dir.connect_socket_nonblocking(socket);
    tried.is_err_and(|error| error.is_refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_its_zygote() {
        assert_eq!(zygote_of("h-1f-2a.journal"), Some(31));
        for name in ["h-.sock", "h-x-1.sock", "z-1f-1.sock", "h-1f"] {
            assert_eq!(zygote_of(name), None, "{name}");
        }
    }

    #[test]
    fn files_of_the_dead_go_and_those_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open_or_create(root.path().join("run")).unwrap();
        let me = std::process::id();
        let held = dir.bind_socket("h-7-1.sock", 1).unwrap();
        drop(dir.bind_socket("h-7-2.sock", 1).unwrap());
        drop(dir.bind_socket("h-7-3.parked", 1).unwrap());
        drop(dir.bind_socket(&format!("h-{me:x}-1.parked"), 1).unwrap());
        for name in ["h-7-1", "h-7-2", "h-7-4"] {
            dir.append_file(&format!("{name}.journal")).unwrap();
        }
        remove_of_zygote(&dir, 7);
        sweep(&dir);
        let mut left = dir.entries().unwrap();
        left.sort();
        let mine = format!("h-{me:x}-1.parked");
        let mut expected = ["h-7-1.journal", "h-7-1.sock", &mine];
        expected.sort_unstable();
        assert_eq!(left, expected);
        drop(held);
    }
}
