//! The bytes below a WebSocket: a unix socket, TCP, or TLS over it. Never waits.

use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use crate::heartbeat::Traffic;
use crate::ssh::Ssh;
use crate::tls_stream::TlsStream;

/// What carries a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    kind: Kind,
    traffic: Traffic,
}

#[derive(Debug)]
enum Kind {
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
    /// A daemon of this machine.
    pub(crate) fn unix(socket: UnixStream) -> Self {
        Self::of(Kind::Unix(socket))
    }

    /// The same, by TCP.
    pub(crate) fn tcp(wire: Wire) -> Self {
        Self::of(Kind::Tcp(wire))
    }

    /// By what ssh is given and gives back; it ends with this.
    pub(crate) fn ssh(socket: UnixStream, ssh: Arc<Mutex<Ssh>>) -> Self {
        Self::of(Kind::Ssh(socket, ssh))
    }

    /// A daemon of any machine.
    pub(crate) fn tls(stream: TlsStream<Wire>) -> Self {
        Self::of(Kind::Tls(Box::new(stream)))
    }

    fn of(kind: Kind) -> Self {
        let traffic = Traffic::default();
        Self { kind, traffic }
    }

    /// Bytes wait that the socket has not taken: it is to be waited for until it
    /// can be written to as well.
    pub(crate) fn wants_write(&self) -> bool {
        match &self.kind {
            Kind::Unix(_) | Kind::Ssh(..) | Kind::Tcp(_) => false,
            Kind::Tls(stream) => stream.wants_write(),
        }
    }

    /// A network is in between: the other end may vanish without a word, and be
    /// anybody's.
    pub(crate) fn is_over_network(&self) -> bool {
        !matches!(self.kind, Kind::Unix(_))
    }

    /// Bytes that came and went so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Unix(socket) | Kind::Ssh(socket, _) => socket.as_fd(),
            Kind::Tcp(wire) => wire.as_fd(),
            Kind::Tls(stream) => stream.wire().as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let came = match &mut self.kind {
            Kind::Unix(socket) | Kind::Ssh(socket, _) => socket.read(buffer),
            Kind::Tcp(wire) => wire.read(buffer),
            Kind::Tls(stream) => stream.read(buffer),
        }?;
        self.traffic.came += came as u64;
        Ok(came)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let went = match &mut self.kind {
            Kind::Unix(socket) | Kind::Ssh(socket, _) => socket.write(bytes),
            Kind::Tcp(wire) => wire.write(bytes),
            Kind::Tls(stream) => stream.write(bytes),
        }?;
        self.traffic.went += went as u64;
        Ok(went)
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Unix(socket) | Kind::Ssh(socket, _) => socket.flush(),
            Kind::Tcp(wire) => wire.flush(),
            Kind::Tls(stream) => stream.flush(),
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
