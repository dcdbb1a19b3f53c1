//! The bytes below a WebSocket: a unix socket, TCP, or TLS over it. Never waits.

use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use crate::ssh::Ssh;
use crate::tls_stream::TlsStream;

/// What carries a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// A daemon of this machine.
    Unix(UnixStream),
    /// The same, by TCP.
    Tcp(Wire),
    /// By what ssh is given and gives back; it ends with this.
    Ssh(
        UnixStream,
        #[expect(dead_code, reason = "dropped with it")] Arc<Mutex<Ssh>>,
    ),
    /// A daemon of any machine.
    Tls(Box<TlsStream<Wire>>),
}

/// TCP.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: TcpStream,
    opening: Opening,
}

/// The first bytes that came, which tell what is spoken at the other end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening(Arc<OnceLock<Vec<u8>>>);

const OPENING_BYTES: usize = 16;

impl Opening {
    /// At most 16; none if nothing came.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

impl Wire {
    /// Takes a connected socket.
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            opening: Opening::default(),
        }
    }

    /// To be looked at when the stream itself is gone.
    pub(crate) fn opening(&self) -> Opening {
        self.opening.clone()
    }
}

impl Stream {
    /// Bytes wait that the socket has not taken: it is to be waited for until it
    /// can be written to as well.
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Ssh(..) | Self::Tcp(_) => false,
            Self::Tls(stream) => stream.wants_write(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) | Self::Ssh(socket, _) => socket.as_fd(),
            Self::Tcp(wire) => wire.as_fd(),
            Self::Tls(stream) => stream.wire().as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Unix(socket) | Self::Ssh(socket, _) => socket.read(buffer),
            Self::Tcp(wire) => wire.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Unix(socket) | Self::Ssh(socket, _) => socket.write(bytes),
            Self::Tcp(wire) => wire.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Self::Unix(socket) | Self::Ssh(socket, _) => socket.flush(),
            Self::Tcp(wire) => wire.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.socket.read(buffer)?;
        if count > 0 {
            let first = &buffer[..count.min(OPENING_BYTES)];
            self.opening.0.get_or_init(|| first.to_vec());
        }
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.socket.write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[std::io::IoSlice<'_>]) -> Result<usize> {
        self.socket.write_vectored(pieces)
    }

    fn flush(&mut self) -> Result<()> {
        self.socket.flush()
    }
}
