//! The bytes of a connection to a remote daemon, and when the last ones came.

use std::io::Result;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use pythond_transport::Traffic;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio_rustls::client::TlsStream;

/// How many bytes have come and gone: as long as they do, somebody is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activity(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    came: AtomicU64,
    went: AtomicU64,
    /// It began like TLS, and nobody had asked for that.
    speaks_tls: AtomicBool,
}

impl Activity {
    /// Bytes that came, and that the kernel took from us, so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            came: self.0.came.load(Ordering::Relaxed),
            went: self.0.went.load(Ordering::Relaxed),
        }
    }

    /// What came first is a record of TLS: an alert, or the beginning of a handshake.
    /// Of a connection without TLS only.
    pub(super) fn speaks_tls(&self) -> bool {
        self.0.speaks_tls.load(Ordering::Relaxed)
    }

    fn look_at(&self, bytes: &[u8]) {
        let is_first = self.0.came.load(Ordering::Relaxed) == 0;
        if is_first && matches!(bytes, [0x15 | 0x16, 3, ..]) {
            self.0.speaks_tls.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn add_came(&self, count: u64) {
        self.0.came.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn add_went(&self, count: u64) {
        self.0.went.fetch_add(count, Ordering::Relaxed);
    }
}

enum Kind {
    /// By ssh, which ends when this is dropped.
    Ssh(
        UnixStream,
        #[expect(dead_code, reason = "dropped with it")] Child,
    ),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that we made.
pub(crate) struct ClientStream {
    kind: Kind,
    activity: Activity,
}

impl ClientStream {
    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self {
            kind: Kind::Tcp(stream),
            activity: Activity::default(),
        }
    }

    pub(super) fn ssh(stream: UnixStream, ssh: Child) -> Self {
        Self {
            kind: Kind::Ssh(stream, ssh),
            activity: Activity::default(),
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self {
            kind: Kind::Tls(Box::new(stream)),
            activity: Activity::default(),
        }
    }

    pub(super) fn activity(&self) -> Activity {
        self.activity.clone()
    }
}

/// Calls the same method of whichever it is.
macro_rules! forward {
    ($self:ident, $call:ident $(, $argument:expr)*) => {
        match &mut $self.get_mut().kind {
            Kind::Ssh(stream, _) => Pin::new(stream).$call($($argument),*),
            Kind::Tcp(stream) => Pin::new(stream).$call($($argument),*),
            Kind::Tls(stream) => Pin::new(stream.as_mut()).$call($($argument),*),
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        let activity = self.activity.clone();
        let polled = forward!(self, poll_read, context, buffer);
        let came = (buffer.filled().len() - before) as u64;
        activity.look_at(&buffer.filled()[before..]);
        activity.add_came(came);
        polled
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let activity = self.activity.clone();
        let polled = forward!(self, poll_write, context, bytes);
        if let Poll::Ready(Ok(went)) = &polled {
            activity.add_went(*went as u64);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        forward!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        forward!(self, poll_shutdown, context)
    }
}
