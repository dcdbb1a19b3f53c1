//! `pyctl stop`.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::stop::StopReply;
use pythond_transport::{Address, Client, ClientError, RemoteReason, Report};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use super::dispatch::{address, connect};
use crate::args::StopArgs;
use crate::failure::Outcome;
use crate::render::Render;
use crate::text;

/// A daemon stops within two seconds; one that takes longer than this is
/// worth a word.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the socket is looked at.
const STEP: Duration = Duration::from_millis(5);

/// How often a daemon on another machine is asked whether it is there.
const REMOTE_STEP: Duration = Duration::from_millis(100);

/// Asks the daemon to stop, with its sessions or without, and waits until its process and its socket are gone,
/// so that a start right afterwards finds the place free.
pub(super) fn stop(args: &StopArgs, render: &Render) -> Outcome {
    // One that is not there needs no start to be stopped.
    let address = address()?.without_start();
    let mut client = connect(&address, render)?;
    let (reply, gone) = match &address {
        Address::Unix(path) => {
            let socket = identity(path);
            let process = process_of(&mut client);
            let reply = client.stop(args.keep_sessions)?;
            // The last thing that it does is to remove its socket, if it made it.
            let gone = match process {
                Some(process) => wait_for_end(process),
                None => wait_until_gone(path, socket),
            };
            (reply, gone)
        }
        Address::Tcp(_) | Address::Ssh(_) => {
            let boot = client.info()?.value.boot;
            let reply = client.stop(args.keep_sessions)?;
            drop(client);
            (reply, wait_until_silent(&address, boot.as_deref())?)
        }
    };
    if !gone {
        return Err(Report::new(
            "busy",
            format!("the daemon has not ended after {} s", LIMIT.as_secs()),
            ExitCode::Refused,
        )
        .with_hint("see `pyctl status` for its process id")
        .into());
    }
    if render.json {
        render.line(reply.json())?;
    } else {
        let StopReply { sessions, kept, .. } = reply.value;
        let fate = if kept { "kept" } else { "ended" };
        render.line(&match sessions {
            0 => "OK stopping daemon".to_owned(),
            count => format!("OK stopping daemon; {} {fate}", text::sessions(count)),
        })?;
    }
    Ok(ExitCode::Success)
}

/// The daemon's process, held by descriptor. None if it cannot be had; the
/// socket then has to do.
fn process_of(client: &mut Client) -> Option<OwnedFd> {
    let pid = i32::try_from(client.info().ok()?.value.pid).ok()?;
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn wait_for_end(process: OwnedFd) -> bool {
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    matches!(poll(&mut ended, Some(&limit)), Ok(count) if count > 0)
}

/// A process on another machine cannot be watched: it is gone when nobody listens
/// at its address any more, or somebody else does.
fn wait_until_silent(address: &Address, boot: Option<&str>) -> Result<bool, ClientError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Client::connect(address).and_then(|mut client| client.info()) {
            Ok(info) if info.value.boot.as_deref() != boot => return Ok(true),
            Err(ClientError::NotConnected(error))
                if matches!(error.reason, RemoteReason::Refused) =>
            {
                return Ok(true);
            }
            Err(error) if error.is_final() => return Err(error),
            // It refuses new work, or cuts us off as it goes.
            Ok(_) | Err(_) => {}
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(REMOTE_STEP);
    }
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
