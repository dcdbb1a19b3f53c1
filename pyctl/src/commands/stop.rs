//! `pyctl stop`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pythond_protocol::ExitCode;
use pythond_transport::{Client, Report};

use super::dispatch::address;
use crate::failure::Outcome;
use crate::render::Render;

/// A daemon stops within two seconds; one that takes longer than this is
/// worth a word.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the socket is looked at.
const STEP: Duration = Duration::from_millis(5);

/// Asks the daemon to stop and waits until its socket is gone, so that a start
/// right afterwards finds the place free.
pub(super) fn stop(render: &Render) -> Outcome {
    let address = address()?;
    let mut client = Client::connect(&address)?;
    let path = address.socket_path();
    let socket = identity(path);
    let reply = client.stop()?;
    if !wait_until_gone(path, socket) {
        return Err(Report::new(
            "busy",
            format!(
                "the daemon still has its socket after {} s",
                LIMIT.as_secs()
            ),
            ExitCode::Refused,
        )
        .with_hint("see `pyctl status` for its process id")
        .into());
    }
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line("OK stopping daemon")?;
    }
    Ok(ExitCode::Success)
}

/// Which file stands at a path: a new daemon's socket is another one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata()
        .ok()
        .map(|found| (found.dev(), found.ino()))
}

fn wait_until_gone(path: &Path, socket: Option<(u64, u64)>) -> bool {
    // The file itself is watched and not the connection: a daemon that ends
    // closes its connections before it has removed the socket.
    let deadline = Instant::now() + LIMIT;
    while socket.is_some() && identity(path) == socket {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_at_the_same_path_counts_as_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert!(wait_until_gone(&path, identity(&path)));
        std::fs::File::create(&path).unwrap();
        let first = identity(&path);
        let other = directory.path().join("t");
        std::fs::File::create(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(wait_until_gone(&path, first));
    }
}
