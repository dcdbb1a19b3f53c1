//! The bytes of a connection, however they come.

use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connection that was accepted.
pub(crate) enum Stream {
    /// On this machine.
    Unix(UnixStream),
    /// From a network, as it is.
    Tcp(TcpStream),
    /// From a network, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Waits for the first byte, an end or an error, and leaves it where it is. The
    /// byte, if there is one, and no TLS yet.
    pub(super) async fn something_came(&self) -> Option<u8> {
        let look = || {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let mut byte = [0];
            let (came, _) = rustix::net::recv(self, &mut byte[..], flags)?;
            Ok((came > 0).then_some(byte[0]))
        };
        // The runtime takes a new socket for readable until somebody has looked.
        loop {
            let looked = match self {
                Self::Unix(stream) => match stream.readable().await {
                    Ok(()) => stream.try_io(Interest::READABLE, look),
                    Err(error) => Err(error),
                },
                Self::Tcp(stream) => match stream.readable().await {
                    Ok(()) => stream.try_io(Interest::READABLE, look),
                    Err(error) => Err(error),
                },
                // A handshake has come already.
                Self::Tls(_) => return None,
            };
            match looked {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                found => return found.ok().flatten(),
            }
        }
    }

    /// Sends a few bytes as they are. A new connection takes them at once; the
    /// runtime may not know that yet.
    pub(super) fn say(&self, words: &[u8]) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // One that has gone needs no answer.
        let _ = rustix::net::send(self, words, flags);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

/// Calls the same method of whichever it is.
macro_rules! forward {
    ($self:ident, $call:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).$call($($argument),*),
            Stream::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).$call($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        forward!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        forward!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        forward!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        forward!(self, poll_shutdown, context)
    }
}
