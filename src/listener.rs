//! Accepts connections: limit, credentials, handshake. Knows no verbs.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::task::TaskTracker;

use crate::access_log::{AccessLog, Fields};
use crate::handlers::Context;
use crate::log::Log;
use crate::peer::Peer;
use crate::router;

/// Most connections at a time; the next one is told that the daemon is busy.
pub(crate) const MAX_CONNECTIONS: usize = 4096;
/// Connections that may wait to be accepted.
pub(crate) const BACKLOG: i32 = 1024;
/// How long a client may take for its handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Room for the first line of a message beside the greatest body.
const HEADER_ROOM: usize = 64 << 10;
/// Pause after an `accept` that failed, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Read and write buffers of a connection begin with this many bytes.
const BUFFER: usize = 16 << 10;
/// In the order of preference.
const SUBPROTOCOLS: [&str; 3] = ["pythond.1", "pythond.0.4", "pythond.0.3"];

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Content-Length: 5\r\n\r\nbusy\n";

/// The daemon's socket.
pub(crate) struct Listener {
    socket: UnixListener,
    permits: Arc<Semaphore>,
    numbers: AtomicU64,
    max_message: usize,
    log: Log,
}

impl Listener {
    /// Takes a socket that listens.
    ///
    /// # Errors
    /// If the runtime cannot take it.
    pub(crate) fn new(socket: OwnedFd, max_payload: usize, log: Log) -> std::io::Result<Self> {
        let socket = StdUnixListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixListener::from_std(socket)?,
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            numbers: AtomicU64::new(1),
            max_message: max_payload.saturating_add(HEADER_ROOM),
            log,
        })
    }

    /// The socket itself, which goes on listening.
    ///
    /// # Errors
    /// If the runtime cannot let go of it.
    pub(crate) fn into_socket(self) -> std::io::Result<OwnedFd> {
        self.socket.into_std().map(OwnedFd::from)
    }

    /// Accepts until the daemon stops. No failure ends it.
    pub(crate) async fn run(&self, context: &Arc<Context>, tracker: &TaskTracker) {
        let (mut pause, most) = BACKOFF;
        loop {
            let accepted = tokio::select! {
                biased;
                () = context.stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    pause = BACKOFF.0;
                    self.admit(stream, context, tracker);
                }
                Err(error) => {
                    self.log.note(&format!("WARN: cannot accept: {error}"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(most);
                }
            }
        }
    }

    fn admit(&self, stream: UnixStream, context: &Arc<Context>, tracker: &TaskTracker) {
        let Ok(peer) = Peer::of(&stream) else { return };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut access = AccessLog::new(self.log.clone(), number, peer);
        let rejected = |detail| Fields {
            status: Some("rejected"),
            detail: Some(detail),
            ..Fields::default()
        };
        if !peer.is_me() {
            access.event("connect", &rejected("foreign-user"));
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            access.event("connect", &rejected("busy"));
            let mut stream = stream;
            tracker.spawn(async move {
                let _ = tokio::time::timeout(BACKOFF.1, stream.write_all(BUSY)).await;
            });
            return;
        };
        let context = Arc::clone(context);
        let max_message = self.max_message;
        tracker.spawn(async move {
            let _permit = permit;
            access.event("connect", &Fields::default());
            connection(stream, context, &mut access, max_message, peer.author()).await;
            access.event("disconnect", &Fields::default());
        });
    }
}

async fn connection(
    stream: UnixStream,
    context: Arc<Context>,
    access: &mut AccessLog,
    max_message: usize,
    author: String,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message));
    let handshake = tokio_tungstenite::accept_hdr_async_with_config(stream, agree, Some(config));
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake) => shaken,
        () = context.stop.cancelled() => return,
    };
    let detail = match shaken {
        Ok(Ok(socket)) => return router::serve(socket, context, access, author).await,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "deadline".to_owned(),
    };
    let fields = Fields {
        status: Some("rejected"),
        detail: Some(&detail),
        ..Fields::default()
    };
    access.event("handshake", &fields);
}

/// Browsers send an `Origin`, and no page may talk to us.
#[expect(clippy::result_large_err, reason = "the library's signature")]
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if request.headers().contains_key(header::ORIGIN) {
        let mut refusal = ErrorResponse::new(Some("no requests from web pages\n".to_owned()));
        *refusal.status_mut() = StatusCode::FORBIDDEN;
        return Err(refusal);
    }
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered: Vec<_> = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    if let Some(chosen) = SUBPROTOCOLS.iter().find(|known| offered.contains(known)) {
        let value = HeaderValue::from_static(chosen);
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(response)
}
