//! A terminal on a remote session: a connection of its own, whose messages are
//! passed on as they are.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_protocol::{ErrorReply, Frame};
use tokio::time::{Instant, Interval, interval, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::Routed;
use super::dial::Socket;
use super::stream::Activity;

/// How often the other end is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// No byte for so long, and the other end is not there.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a message may take to leave.
const SEND: Duration = Duration::from_secs(20);

/// A terminal on a remote session.
pub(crate) struct AttachedRemote {
    routed: Routed,
    socket: Socket,
    activity: Activity,
    heartbeat: Interval,
    last: (u64, Instant),
}

/// What comes from the remote daemon.
pub(crate) enum FromRemote {
    /// For the client, as it is.
    Message(Message),
    /// It closes the connection, in order.
    Closed(Option<CloseFrame>),
    /// The connection broke: the client may come again.
    Broken,
}

impl AttachedRemote {
    /// Opens the connection and asks.
    ///
    /// # Errors
    /// If the remote cannot be used.
    pub(crate) async fn open(routed: Routed) -> Result<Self, ErrorReply> {
        let remote = &routed.remote;
        let name = remote.spec.name.as_str();
        let dialled = remote.dial().await.map_err(|error| error.reply(name))?;
        let mut opened = Self {
            socket: dialled.socket,
            last: (dialled.activity.bytes(), Instant::now()),
            activity: dialled.activity,
            heartbeat: interval(HEARTBEAT),
            routed,
        };
        let asked = Message::text(opened.routed.as_frame());
        // What goes wrong shows when it is read.
        let _ = opened.send(asked).await;
        Ok(opened)
    }

    /// Sends what the client typed, or what it says to this remote.
    pub(crate) async fn send(&mut self, message: Message) -> Result<(), ()> {
        let sent = timeout(SEND, self.socket.send(message)).await;
        sent.map_err(drop)?.map_err(drop)
    }

    /// It is for the same remote daemon.
    pub(crate) fn is_for(&self, other: &Routed) -> bool {
        std::sync::Arc::ptr_eq(&self.routed.remote, &other.remote)
    }

    /// The client leaves.
    pub(crate) fn is_detach(frame: &Frame<'_>) -> bool {
        frame.verb == pythond_protocol::verbs::attach::DETACH
    }

    /// Waits for what comes next.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> FromRemote {
        loop {
            tokio::select! {
                message = self.socket.next() => return match message {
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                    Some(Ok(Message::Close(close))) => FromRemote::Closed(close),
                    Some(Ok(message)) => FromRemote::Message(message),
                    Some(Err(_)) | None => FromRemote::Broken,
                },
                now = self.heartbeat.tick() => {
                    let bytes = self.activity.bytes();
                    if bytes != self.last.0 {
                        self.last = (bytes, now);
                    } else if now.duration_since(self.last.1) >= SILENCE {
                        return FromRemote::Broken;
                    }
                    if self.send(Message::Ping(Bytes::new())).await.is_err() {
                        return FromRemote::Broken;
                    }
                }
            }
        }
    }
}
