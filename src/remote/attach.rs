//! A terminal on a remote session: a connection of its own, whose messages are
//! passed on as they are.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_protocol::{ErrorReply, Frame};
use pythond_transport::{Exchange, Spoken, Step};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use super::dial::Socket;
use super::forward::loops;
use super::heartbeat::Heartbeat;
use super::{Routed, names};

/// A terminal on a remote session.
pub(crate) struct AttachedRemote {
    routed: Routed,
    socket: Socket,
    heartbeat: Heartbeat,
    outgoing: VecDeque<Message>,
    spoken: Spoken,
    /// What a daemon of 0.4 has not answered yet.
    exchange: Option<Exchange>,
    /// Texts for the client.
    ready: VecDeque<String>,
    /// The request has its answer, which may be a refusal.
    answered: bool,
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
    /// Somebody has disconnected the remote: the client is told so.
    Disconnected(ErrorReply),
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
        if routed.comes_back && remote.is_own(&dialled) {
            return Err(loops(&routed));
        }
        let mut opened = Self {
            socket: dialled.socket,
            heartbeat: Heartbeat::new(dialled.activity),
            outgoing: VecDeque::new(),
            spoken: dialled.spoken,
            exchange: None,
            ready: VecDeque::new(),
            answered: false,
            routed,
        };
        let asked = opened.routed.passed_on();
        match opened.spoken {
            Spoken::Ours => opened.send(Message::text(asked)),
            Spoken::Earlier => {
                let (exchange, step) = Exchange::begin(&asked);
                match step {
                    Step::Ask(text) | Step::AskLater(_, text) => opened.send(Message::text(text)),
                    Step::Answer(texts) => {
                        let tagged = |text| exchange.tagged(text);
                        opened.ready = texts.into_iter().map(tagged).collect();
                    }
                }
                opened.exchange = Some(exchange);
            }
        }
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

    /// It understands nothing but what is typed, and `detach`.
    pub(crate) fn is_earlier(&self) -> bool {
        self.spoken == Spoken::Earlier
    }

    /// It is for the same remote daemon.
    pub(crate) fn is_for(&self, other: &Routed) -> bool {
        std::sync::Arc::ptr_eq(&self.routed.remote, &other.remote)
    }

    /// The request has its answer.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// What the remote is called here.
    pub(crate) fn remote_name(&self) -> &str {
        self.routed.remote.spec.name.as_str()
    }

    /// The client leaves.
    pub(crate) fn is_detach(frame: &Frame<'_>) -> bool {
        frame.verb == pythond_protocol::verbs::attach::DETACH
    }

    /// A refusal names the session as the client does.
    fn in_names_of_here(&mut self, text: Utf8Bytes) -> Utf8Bytes {
        let session = self.routed.session.as_ref();
        let is_answer = !std::mem::replace(&mut self.answered, true);
        let remote = self.routed.remote.spec.name.as_str();
        session
            .filter(|_| is_answer)
            .and_then(|session| names::text_of_here(&text, remote, session.as_str()))
            .map_or(text, Utf8Bytes::from)
    }

    /// Waits for what comes next.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> FromRemote {
        loop {
            if let Some(text) = self.ready.pop_front() {
                self.answered = true;
                return FromRemote::Message(Message::text(text));
            }
            let had_room = self.has_room();
            let (socket, outgoing) = (&mut self.socket, &mut self.outgoing);
            tokio::select! {
                message = poll_fn(|context| exchange(socket, outgoing, had_room, context)) => {
                    return match message {
                        Ok(Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                        Ok(Some(Message::Close(close))) => FromRemote::Closed(close),
                        Ok(Some(Message::Text(text))) if self.exchange.is_some() => {
                            if let Some(mut exchange) = self.exchange.take()
                                && let Step::Answer(texts) = exchange.answered(&text)
                            {
                                let tagged = |text| exchange.tagged(text);
                                self.ready.extend(texts.into_iter().map(tagged));
                            }
                            continue;
                        }
                        Ok(Some(Message::Text(text))) => {
                            FromRemote::Message(Message::Text(self.in_names_of_here(text)))
                        }
                        Ok(Some(message)) => FromRemote::Message(message),
                        Ok(None) => FromRemote::Sent,
                        Err(()) => FromRemote::Broken,
                    };
                }
                gone = self.routed.remote.disconnected() => {
                    return FromRemote::Disconnected(gone.reply(self.remote_name()));
                }
                now = self.heartbeat.tick() => {
                    if self.heartbeat.look(now, !had_room).is_err() {
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
