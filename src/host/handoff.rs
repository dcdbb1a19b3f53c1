//! From the I/O thread to the main thread: a new cell lane, or a nudge.
//!
//! A socket pair of whole messages: the two threads have descriptor tables of
//! their own, so a descriptor has to be sent.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

/// What arrives.
#[derive(Debug)]
pub(crate) enum Handed {
    /// The lane that cells come from, from now on, and its tag.
    CellLane(OwnedFd, u64),
    /// Something waits in shared memory.
    Nudge,
    /// Nothing was there.
    Nothing,
}

/// Both ends: the main thread's, the I/O thread's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (mine, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Nobody reads that end: a cell that writes to descriptors which are not its
    // own is told so, and does not wait for ever once the queue is full.
    rustix::net::shutdown(&theirs, Shutdown::Read)?;
    Ok((mine, theirs))
}

/// Hands over a cell lane. [`Errno::AGAIN`]: the main thread has not looked for so
/// long that nudges fill the queue.
pub(crate) fn give_lane(end: impl AsFd, lane: BorrowedFd<'_>, tag: u64) -> Result<(), Errno> {
    send_with_descriptors(end, &tag.to_le_bytes(), &[lane], SendFlags::DONTWAIT)
}

/// Sends bytes together with descriptors.
pub(crate) fn send_with_descriptors(
    end: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    rustix::net::sendmsg(
        end,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives bytes together with descriptors.
pub(crate) fn receive_with_descriptors(
    end: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        end,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((received.bytes, descriptors))
}

/// Nudges the main thread.
pub(crate) fn nudge(end: impl AsFd) {
    // A full queue of nudges is a nudge.
    let _ = rustix::net::send(end, b"n", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Takes one message, if one is there.
pub(crate) fn take(end: impl AsFd) -> Result<Handed, Errno> {
    let mut bytes = [0; 16];
    match receive_with_descriptors(end, &mut bytes, RecvFlags::DONTWAIT) {
        Ok((8, descriptors)) => {
            let mut tag = [0; 8];
            tag.copy_from_slice(&bytes[..8]);
            match descriptors.into_iter().next() {
                Some(lane) => Ok(Handed::CellLane(lane, u64::from_le_bytes(tag))),
                // A session's limit of open files leaves no number for it.
                None => Err(Errno::MFILE),
            }
        }
        Ok((0, _)) => Err(Errno::PIPE),
        Ok(_) => Ok(Handed::Nudge),
        // Too long: a cell wrote to a descriptor of ours. It says nothing.
        Err(Errno::MSGSIZE) => Ok(Handed::Nudge),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Handed::Nothing),
        Err(errno) => Err(errno),
    }
}
