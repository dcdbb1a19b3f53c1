//! A daemon that makes place for the next one in the same process: its sockets
//! stay open, so that no client finds nobody there.

use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pythond_private_fs::{connect_at_nonblocking, peer_credentials};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt,
};

use crate::config::Config;

/// Most sockets that are handed over.
const MOST: usize = 64;

/// Becomes the program that stands in our file now, and hands it the sockets by its
/// standard input. Returns only if that fails.
pub(crate) fn become_next(
    config: &Config,
    activated: bool,
    (unix, network): (OwnedFd, Vec<OwnedFd>),
) -> Error {
    let mut next = Command::new(&config.executable);
    next.args(["daemon", "--inherit"]);
    for (on, word) in [(config.detached, "--detached"), (activated, "--activated")] {
        if on {
            next.arg(word);
        }
    }
    next.args(config.listen.to_arguments());
    let sockets = match network.is_empty() {
        // As versions take it over that listen nowhere else.
        true => Ok(unix),
        false => bundle(&unix, &network),
    };
    match sockets {
        Ok(sockets) => next.stdin(Stdio::from(sockets)).exec(),
        Err(error) => error,
    }
}

/// A socket that has others in it.
fn bundle(unix: &OwnedFd, network: &[OwnedFd]) -> Result<OwnedFd> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let all: Vec<_> = std::iter::once(unix).chain(network).collect();
    let all: Vec<_> = all.iter().map(|socket| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(Error::other("there are too many sockets"));
    }
    sendmsg(
        ours,
        &[IoSlice::new(b"s")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(theirs)
}

fn unbundle(bundle: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(
        bundle,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        flags,
    )?;
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            sockets.extend(sent);
        }
    }
    Ok(sockets)
}

/// The sockets that the daemon before us left in our standard input: the one at
/// `path`, and those that other machines can reach.
///
/// # Errors
/// If there is none, or if another listens at `path`.
pub(crate) fn inherited_sockets(path: &Path) -> Result<(OwnedFd, Vec<TcpListener>)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let (unix, network) = if sockopt::socket_acceptconn(&input)? {
        (input, Vec::new())
    } else {
        let mut sockets = unbundle(&input)?;
        if sockets.is_empty() {
            return Err(Error::other("there is no socket in it"));
        }
        let network = sockets.split_off(1);
        (sockets.remove(0), network)
    };
    let ours = match connect_at_nonblocking(path) {
        // The kernel remembers who began to listen, and we are the same process.
        Ok(stream) => peer_credentials(&stream)
            .is_ok_and(|peer| peer.pid.unsigned_abs() == std::process::id()),
        // Clients have filled its queue while nobody accepted: that it is ours
        // follows from our lock, and to wait for room would be to wait for us.
        Err(error) => error.io_kind() == Some(std::io::ErrorKind::WouldBlock),
    };
    if !sockopt::socket_acceptconn(&unix)? || !ours {
        return Err(Error::other("it is not the daemon's socket"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok((unix, network.into_iter().map(TcpListener::from).collect()))
}
