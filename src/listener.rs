//! Accepts connections: limit, credentials, handshake. Knows no verbs.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_private_fs::{PrivateDir, PrivateFsError, bind_at};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::task::TaskTracker;

use crate::access_log::{self, AccessLog, Fields};
use crate::admission::{Admission, Place};
use crate::complaints::Complaints;
use crate::daemon_limits::DaemonLimits;
use crate::error::chain;
use crate::handlers::Context;
use crate::lane_io;
use crate::log::Log;
use crate::peer::Peer;
use crate::router;

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

/// Connections that are refused and still read, and for how long: one that is
/// closed at once breaks the pipe of a client that has not written its request,
/// which may never see our answer then.
const LINGERING: usize = 16;
const LINGER: Duration = Duration::from_secs(1);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Content-Length: 5\r\n\r\nbusy\n";

/// The daemon's socket.
pub(crate) struct Listener {
    socket: Mutex<Arc<UnixListener>>,
    /// It was made again.
    replaced: Notify,
    /// Where it is; none if it is somebody else's to make.
    place: Option<PathBuf>,
    admission: Arc<Admission>,
    lingering: Arc<Semaphore>,
    complaints: Arc<Complaints>,
    numbers: AtomicU64,
    max_message: usize,
    log: Log,
}

impl Listener {
    /// Takes a socket that listens.
    ///
    /// # Errors
    /// If the runtime cannot take it.
    pub(crate) fn new(
        socket: OwnedFd,
        place: Option<PathBuf>,
        limits: DaemonLimits,
        log: Log,
    ) -> std::io::Result<Self> {
        Ok(Self {
            socket: Mutex::new(Arc::new(listening(socket)?)),
            replaced: Notify::new(),
            place,
            admission: Admission::new(limits.connections),
            lingering: Arc::new(Semaphore::new(LINGERING)),
            complaints: Arc::default(),
            numbers: AtomicU64::new(1),
            max_message: limits.message.saturating_add(HEADER_ROOM),
            log,
        })
    }

    /// The socket itself, which goes on listening.
    ///
    /// # Errors
    /// If the runtime cannot let go of it.
    pub(crate) fn into_socket(self) -> std::io::Result<OwnedFd> {
        let socket = self.socket.into_inner();
        let socket = Arc::into_inner(socket.unwrap_or_else(PoisonError::into_inner));
        let socket = socket.ok_or_else(|| Error::other("somebody still accepts"))?;
        socket.into_std().map(OwnedFd::from)
    }

    fn socket(&self) -> Arc<UnixListener> {
        Arc::clone(&self.socket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Listens again if somebody removed the socket; true if it did.
    pub(crate) fn listen_again(&self) -> Result<bool, String> {
        let Some(place) = &self.place else {
            return Ok(false);
        };
        let found = std::fs::symlink_metadata(place);
        if !found.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(false);
        }
        let socket = bind_again(place).map_err(|why| format!("{}: {why}", place.display()))?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(socket);
        self.replaced.notify_one();
        Ok(true)
    }

    /// Accepts until the daemon stops. No failure ends it.
    pub(crate) async fn run(&self, context: &Arc<Context>, tracker: &TaskTracker) {
        let accepting = async {
            let mut pause = BACKOFF.0;
            loop {
                self.admission.settled().await;
                let socket = self.socket();
                let accepted = tokio::select! {
                    accepted = socket.accept() => accepted,
                    () = self.replaced.notified() => continue,
                };
                match accepted {
                    Ok((stream, _)) => {
                        pause = BACKOFF.0;
                        self.admit(stream, context, tracker);
                    }
                    Err(error) => pause = self.failed(&error, pause).await,
                }
            }
        };
        let telling = async {
            loop {
                for (kind, count) in self.complaints.left_out().await {
                    access_log::left_out(&self.log, kind, count);
                }
            }
        };
        tokio::select! {
            biased;
            () = context.stop.cancelled() => {}
            () = telling => {}
            () = accepting => {}
        }
    }

    /// Waits until `accept` is worth another try; the pause after the next
    /// failure.
    async fn failed(&self, error: &Error, pause: Duration) -> Duration {
        if self.complaints.tells("accept") {
            self.log.note(&format!("WARN: cannot accept: {error}"));
        }
        // The client went, or a signal came: the next one is not concerned. It
        // waits a little even so, lest a failure that repeats keeps us busy.
        if matches!(
            error.kind(),
            ErrorKind::ConnectionAborted | ErrorKind::Interrupted
        ) {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            return BACKOFF.0;
        }
        // Most likely there is no descriptor or no memory.
        self.admission.make_room();
        tokio::select! {
            () = self.admission.one_left() => {}
            () = tokio::time::sleep(pause) => {}
        }
        (pause * 2).min(BACKOFF.1)
    }

    fn admit(&self, stream: UnixStream, context: &Arc<Context>, tracker: &TaskTracker) {
        let Ok(peer) = Peer::of(&stream) else { return };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut access = AccessLog::new(self.log.clone(), number, peer);
        if !peer.is_me() {
            if self.complaints.tells("foreign-user") {
                access.event("connect", &rejected("foreign-user"));
            }
            return;
        }
        let Some(place) = self.admission.enter(lane_io::open_lanes()) else {
            if self.complaints.tells("busy") {
                access.event("connect", &rejected("busy"));
            }
            // One that is answered before it has asked may not find the answer.
            if let Ok(permit) = Arc::clone(&self.lingering).try_acquire_owned() {
                tracker.spawn(async move {
                    say_busy(&linger(stream).await);
                    drop(permit);
                });
            } else {
                say_busy(&stream);
            }
            return;
        };
        let connection = Connection {
            context: Arc::clone(context),
            access,
            max_message: self.max_message,
            author: peer.author(),
            complaints: Arc::clone(&self.complaints),
        };
        tracker.spawn(async move {
            connection.serve(stream, &place).await;
            // Its socket is closed: now there is room.
            drop(place);
        });
    }
}

fn listening(socket: OwnedFd) -> std::io::Result<UnixListener> {
    let socket = StdUnixListener::from(socket);
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

fn bind_again(place: &Path) -> Result<UnixListener, String> {
    let told = |error: PrivateFsError| chain(&error);
    if let Some(parent) = place.parent().filter(|parent| !parent.exists()) {
        PrivateDir::open_or_create(parent).map_err(told)?;
    }
    let socket = bind_at(place, BACKLOG).map_err(told)?;
    listening(socket).map_err(|error| error.to_string())
}

fn rejected(detail: &str) -> Fields<'_> {
    Fields {
        status: Some("rejected"),
        detail: Some(detail),
        ..Fields::default()
    }
}

/// Waits for the first byte, an end or an error, and leaves it where it is.
async fn something_came(stream: &UnixStream) {
    let look = || {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        Ok(rustix::net::recv(stream, &mut [0; 1][..], flags).map(drop)?)
    };
    // The runtime takes a new socket for readable until somebody has looked.
    while stream.readable().await.is_ok() {
        match stream.try_io(Interest::READABLE, look) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// A new connection takes these few bytes at once; the runtime may not know
/// that yet.
fn say_busy(stream: &UnixStream) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // One that has gone needs no answer.
    let _ = rustix::net::send(stream, BUSY, flags);
}

/// Reads the request of a client that will be refused, if it comes soon.
async fn linger(mut stream: UnixStream) -> UnixStream {
    let mut scratch = [0; 1024];
    let request = async {
        // The end of a request without a body.
        let mut last = [0; 4];
        while let Ok(count @ 1..) = stream.read(&mut scratch).await {
            for byte in &scratch[..count] {
                last.rotate_left(1);
                last[3] = *byte;
                if last == *b"\r\n\r\n" {
                    return;
                }
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, request).await;
    stream
}

/// What becomes a connection.
struct Connection {
    context: Arc<Context>,
    access: AccessLog,
    max_message: usize,
    author: String,
    complaints: Arc<Complaints>,
}

impl Connection {
    async fn serve(mut self, stream: UnixStream, place: &Place) {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(self.max_message))
            .max_frame_size(Some(self.max_message));
        let shake = async {
            // One that said nothing can still be told why it has to go.
            tokio::select! {
                () = something_came(&stream) => {}
                () = place.makes_room() => {
                    say_busy(&stream);
                    return Err("busy".to_owned());
                }
            }
            tokio::select! {
                shaken = tokio_tungstenite::accept_hdr_async_with_config(stream, agree, Some(config)) => {
                    shaken.map_err(|error| error.to_string())
                }
                () = place.makes_room() => Err("busy".to_owned()),
            }
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, shake) => shaken,
            () = self.context.stop.cancelled() => return,
        };
        let detail = match shaken {
            Ok(Ok(socket)) => {
                place.introduced();
                self.access.event("connect", &Fields::default());
                router::serve(socket, self.context, &mut self.access, self.author, place).await;
                self.access.event("disconnect", &Fields::default());
                return;
            }
            Ok(Err(detail)) => detail,
            Err(_) => "deadline".to_owned(),
        };
        if self.complaints.tells("handshake") {
            self.access.event("handshake", &rejected(&detail));
        }
    }
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
