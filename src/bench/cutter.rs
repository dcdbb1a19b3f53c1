//! A TCP relay that resets all its connections when it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_linger;

use crate::client::PATIENCE;

/// The relay.
pub(crate) struct Cutter {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The connections that come. Each breaks when its end of this is dropped.
    comes: Receiver<UnixStream>,
}

impl Cutter {
    /// Starts one in front of an address. Its thread ends with the process: it
    /// waits for connections until then, and costs nothing.
    pub(crate) fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (tell, comes) = channel();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if relay(near, to, &tell).is_err() {
                    break;
                }
            }
        });
        Ok(Self { address, comes })
    }

    /// Waits for a connection, lets it go on for so long, and resets it at both
    /// ends; those that came meanwhile too.
    pub(crate) fn cut(&self, after: Duration) -> Result<()> {
        let first = self.comes.recv_timeout(PATIENCE);
        let first = first.context("the proxy does not connect any more")?;
        thread::sleep(after);
        drop(first);
        self.comes.try_iter().for_each(drop);
        Ok(())
    }
}

/// Carries one connection, in a thread of its own.
fn relay(near: TcpStream, to: SocketAddr, tell: &Sender<UnixStream>) -> Result<()> {
    let far = TcpStream::connect(to)?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
    }
    let (cut, is_cut) = UnixStream::pair()?;
    // Before any byte is carried, so that each of them may be the last.
    tell.send(cut)?;
    thread::spawn(move || {
        if carry(&near, &far, &is_cut).is_err() {
            for socket in [&near, &far] {
                // Closed so, it is reset. One that is gone is what is wanted.
                let _ = set_socket_linger(socket, Some(Duration::ZERO));
            }
        }
    });
    Ok(())
}

/// Carries bytes until one end closes; fails if it is cut.
fn carry(near: &TcpStream, far: &TcpStream, is_cut: &UnixStream) -> Result<()> {
    let mut part = vec![0; 65536];
    loop {
        let mut ready = [
            PollFd::new(near, PollFlags::IN),
            PollFd::new(far, PollFlags::IN),
            PollFd::new(is_cut, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut ready, None))?;
        let [from_near, from_far, cut] = ready.map(|entry| !entry.revents().is_empty());
        anyhow::ensure!(!cut, "it is cut");
        for (is_ready, mut from, mut to) in [(from_near, near, far), (from_far, far, near)] {
            if is_ready {
                match from.read(&mut part)? {
                    0 => return Ok(()),
                    count => to.write_all(&part[..count])?,
                }
            }
        }
    }
}
