//! Accepts connections: limit, credentials, handshake. Knows no verbs.

mod connection;
mod gate;
mod pairing;
mod request;
mod stream;
mod tcp;
mod unix;

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
use self::gate::Gate;
use crate::access_log::{self, AccessLog, Fields};
use crate::admission::{Admission, Place};
use crate::complaints::Complaints;
use crate::daemon_limits::DaemonLimits;
use crate::handlers::Context;
use crate::lane_io;
use crate::log::Log;
use crate::network::penalties::Source;
use crate::peer::Peer;

pub(crate) use request::BOOT_HEADER;
pub(crate) use stream::Stream;
pub(crate) use tcp::NetworkListener;
pub(crate) use unix::UnixListener;

/// Everything that is listened on.
pub(crate) struct Listeners {
    /// The daemon's own socket.
    pub(crate) unix: UnixListener,
    /// Those that other machines can reach.
    pub(crate) network: Vec<NetworkListener>,
    /// What all have in common.
    pub(crate) entrance: Arc<Entrance>,
}

impl Listeners {
    /// Accepts until the daemon stops. No failure ends it.
    pub(crate) async fn run(&self, context: &Arc<Context>, tracker: &TaskTracker) {
        let network = self.network.iter().map(|it| it.run(context, tracker));
        let keys = async {
            match &context.network {
                Some(network) => network.keys.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = async { tokio::join!(self.unix.run(context, tracker), join_all(network)); } => {}
            () = self.entrance.tell_left_out() => {}
            () = keys => {}
        }
    }

    /// The sockets themselves, which go on listening: the daemon's own, and those
    /// that other machines can reach.
    ///
    /// # Errors
    /// If the runtime cannot let go of one.
    pub(crate) fn into_sockets(self) -> std::io::Result<(OwnedFd, Vec<OwnedFd>)> {
        let network = self.network.into_iter().map(NetworkListener::into_socket);
        Ok((self.unix.into_socket()?, network.collect::<Result<_, _>>()?))
    }
}

/// Connections that may wait to be accepted.
pub(crate) const BACKLOG: i32 = 1024;
/// Room for the first line of a message beside the greatest body.
const HEADER_ROOM: usize = 64 << 10;
/// Pause after an `accept` that failed, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Connections that are refused and still read, and for how long: one that is
/// closed at once breaks the pipe of a client that has not written its request,
/// which may never see our answer then.
const LINGERING: usize = 16;
const LINGER: Duration = Duration::from_secs(1);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Content-Length: 5\r\n\r\nbusy\n";

/// What all listeners have in common: how many may come in, and what is said of
/// those that may not.
pub(crate) struct Entrance {
    admission: Arc<Admission>,
    lingering: Arc<Semaphore>,
    complaints: Arc<Complaints>,
    numbers: AtomicU64,
    max_message: usize,
    log: Log,
}

impl Entrance {
    pub(crate) fn new(limits: DaemonLimits, log: Log) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::new(limits.connections),
            lingering: Arc::new(Semaphore::new(LINGERING)),
            complaints: Arc::default(),
            numbers: AtomicU64::new(1),
            max_message: limits.message.saturating_add(HEADER_ROOM),
            log,
        })
    }

    /// Says now and then what was left out of the log, until it is dropped.
    pub(crate) async fn tell_left_out(&self) {
        loop {
            for (kind, count) in self.complaints.left_out().await {
                access_log::left_out(&self.log, kind, count);
            }
        }
    }

    /// Accepts until it is dropped. No failure ends it.
    async fn accept_all<S>(
        &self,
        accept: impl AsyncFn() -> std::io::Result<S>,
        admit: impl Fn(S),
    ) -> std::convert::Infallible {
        let mut pause = BACKOFF.0;
        loop {
            self.admission.settled().await;
            match accept().await {
                Ok(stream) => {
                    pause = BACKOFF.0;
                    admit(stream);
                }
                Err(error) => pause = self.failed(&error, pause).await,
            }
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

    fn access_log(&self, peer: Peer) -> AccessLog {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        AccessLog::new(self.log.clone(), number, peer)
    }

    /// A place for a newcomer from a network, or from this machine; none if it has to
    /// go.
    fn place(&self, access: &mut AccessLog, source: Option<Source>) -> Option<Place> {
        let place = self.admission.enter(lane_io::open_lanes(), source);
        if place.is_none() {
            self.reject(access, "connect", "busy");
        }
        place
    }

    /// Writes down why somebody may not come in.
    fn reject(&self, access: &mut AccessLog, event: &str, why: &'static str) {
        if self.complaints.tells(why) {
            access.event(event, &rejected(why));
        }
    }

    /// Turns away somebody for whom there is no place.
    fn turn_away(&self, stream: Stream, gate: Option<Gate>, tracker: &TaskTracker) {
        // One that is answered before it has asked may not find the answer.
        if let Ok(permit) = Arc::clone(&self.lingering).try_acquire_owned() {
            tracker.spawn(async move {
                let _ = tokio::time::timeout(LINGER, refuse(stream, gate)).await;
                drop(permit);
            });
        } else if !gate.is_some_and(|gate| gate.is_encrypted) {
            stream.say(BUSY);
        }
    }

    fn connection(
        self: &Arc<Self>,
        context: &Arc<Context>,
        access: AccessLog,
        author: String,
        gate: Option<Gate>,
    ) -> Connection {
        Connection {
            context: Arc::clone(context),
            entrance: Arc::clone(self),
            access,
            author,
            gate,
        }
    }
}

fn rejected(detail: &str) -> Fields<'_> {
    Fields {
        status: Some("rejected"),
        detail: Some(detail),
        ..Fields::default()
    }
}

/// Reads the request of a client that is refused, and says so.
async fn refuse(stream: Stream, gate: Option<Gate>) {
    let secured = match gate {
        Some(gate) => gate.secure(stream, None).await.map(|(stream, _)| stream),
        None => Ok(stream),
    };
    let Ok(mut stream) = secured else { return };
    let reading = read_request(&mut stream);
    // One that is too slow is told all the same.
    let _ = tokio::time::timeout(LINGER / 2, reading).await;
    // One that has gone needs no answer.
    let _ = stream.write_all(BUSY).await;
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut Stream) {
    let mut scratch = [0; 1024];
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
}
