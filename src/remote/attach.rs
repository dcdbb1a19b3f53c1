//! A terminal on a remote session: a connection of its own, whose messages are
//! passed on as they are.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_protocol::{ErrorReply, Frame};
use tokio::time::{Instant, Interval, interval};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::Routed;
use super::dial::Socket;
use super::stream::Activity;

/// How often the other end is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// No byte for so long, either way, and the other end is not there.
const SILENCE: Duration = Duration::from_secs(20);

/// A terminal on a remote session.
pub(crate) struct AttachedRemote {
    routed: Routed,
    socket: Socket,
    activity: Activity,
    heartbeat: Interval,
    outgoing: VecDeque<Message>,
    /// Bytes that came, and when the last of them did.
    came: (u64, Instant),
    /// The same of those that went, while some were to go.
    went: (u64, Instant),
}

/// What comes from the remote daemon.
pub(crate) enum FromRemote {
    /// For the client, as it is.
    Message(Message),
    /// What was sent is on its way.
    Sent,
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
            came: (dialled.activity.bytes(), Instant::now()),
            went: (dialled.activity.went(), Instant::now()),
            outgoing: VecDeque::new(),
            activity: dialled.activity,
            heartbeat: interval(HEARTBEAT),
            routed,
        };
        let asked = Message::text(opened.routed.as_frame());
        opened.send(asked);
        Ok(opened)
    }

    /// Sends what the client typed, or what it says to this remote, while
    /// [`Self::next`] is waited for.
    pub(crate) fn send(&mut self, message: Message) {
        self.outgoing.push_back(message);
    }

    /// What was sent is on its way. The client is not read before: two ends that
    /// both wait for the other to read would wait for ever.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.is_empty()
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
            let had_room = self.has_room();
            let (socket, outgoing) = (&mut self.socket, &mut self.outgoing);
            tokio::select! {
                message = poll_fn(|context| exchange(socket, outgoing, had_room, context)) => {
                    return match message {
                        Ok(Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                        Ok(Some(Message::Close(close))) => FromRemote::Closed(close),
                        Ok(Some(message)) => FromRemote::Message(message),
                        Ok(None) => FromRemote::Sent,
                        Err(()) => FromRemote::Broken,
                    };
                }
                now = self.heartbeat.tick() => {
                    let moved = (self.activity.bytes(), self.activity.went());
                    if moved.0 != self.came.0 {
                        self.came = (moved.0, now);
                    }
                    if moved.1 != self.went.0 || had_room {
                        self.went = (moved.1, now);
                    }
                    // A great message that leaves slowly holds our question up.
                    let silent = now.duration_since(self.came.1) >= SILENCE && had_room;
                    if silent || now.duration_since(self.went.1) >= SILENCE {
                        return FromRemote::Broken;
                    }
                    if had_room {
                        self.outgoing.push_back(Message::Ping(Bytes::new()));
                    }
                }
            }
        }
    }
}

/// Sends what is to be sent, and reads. None once all has left that was to leave.
fn exchange(
    socket: &mut Socket,
    outgoing: &mut VecDeque<Message>,
    had_room: bool,
    context: &mut Context<'_>,
) -> Poll<Result<Option<Message>, ()>> {
    while !outgoing.is_empty() && socket.poll_ready_unpin(context).map_err(drop)?.is_ready() {
        if let Some(message) = outgoing.pop_front() {
            socket.start_send_unpin(message).map_err(drop)?;
        }
    }
    if socket.poll_flush_unpin(context).map_err(drop)?.is_ready()
        && outgoing.is_empty()
        && !had_room
    {
        return Poll::Ready(Ok(None));
    }
    socket
        .poll_next_unpin(context)
        .map(|message| match message {
            Some(Ok(message)) => Ok(Some(message)),
            Some(Err(_)) | None => Err(()),
        })
}
