//! A connection that is a terminal of a remote session.

use futures_util::StreamExt as _;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::attach::{AttachEvent, TerminalEnd};
use pythond_protocol::{ErrorCode, ErrorReply, Frame};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::{Asked, Connection, Done, End, MAX_AHEAD, MAX_AHEAD_BYTES, next_of};
use crate::access_log::Fields;
use crate::handlers::Reply;
use crate::remote::{AttachedRemote, FromRemote, Routed};

impl Connection<'_> {
    /// Joins the client's connection with one to a remote daemon until one of them
    /// ends.
    pub(super) async fn attach_remote(&mut self, routed: Routed, asked: Asked) -> Option<End> {
        let format = routed.parsed().format;
        let opened = match self.terminal {
            Some(_) => Err(ErrorReply::new(
                ErrorCode::Usage,
                "this connection is attached already",
            )),
            None => match self.open(routed).await {
                Ok(opened) => opened,
                Err(end) => return Some(end),
            },
        };
        let status = if opened.is_ok() { "ok" } else { "error" };
        let fields = Fields {
            status: Some(status),
            ..asked.fields()
        };
        self.access.event("attach", &fields);
        match opened {
            Ok(remote) => {
                let end = self.join(remote, format).await;
                self.access.event("detach", &asked.fields());
                Some(end)
            }
            Err(error) => {
                let caller = self.caller(asked.tag.clone());
                let reply = Reply::refused(format, &error);
                self.done(Done::new(&caller, Some(reply), format, asked))
                    .await
            }
        }
    }

    /// Opens the way there, as long as the client is there to use it.
    async fn open(&mut self, routed: Routed) -> Result<Result<AttachedRemote, ErrorReply>, End> {
        // What waited behind this request comes before what is read now.
        self.early.extend(self.ahead.drain(..).map(Message::Text));
        let stop = self.context.stop.clone();
        let mut opening = std::pin::pin!(AttachedRemote::open(routed));
        loop {
            let idle = self.running.is_empty();
            let ahead: usize = self.early.iter().map(Message::len).sum();
            let full = self.early.len() >= MAX_AHEAD || ahead > MAX_AHEAD_BYTES;
            let end = tokio::select! {
                biased;
                opened = &mut opening => return Ok(opened),
                Some(event) = self.events.recv() => self.send(event).await,
                Some(done) = self.running.next(), if !idle => self.done(done).await,
                incoming = self.socket.next(), if !full => match incoming {
                    Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                        self.early.push_back(message);
                        None
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Some(End::Gone),
                },
                () = stop.cancelled() => Some(self.stopped().await),
            };
            if let Some(end) = end {
                return Err(end);
            }
        }
    }

    async fn join(&mut self, mut remote: AttachedRemote, format: ReplyFormat) -> End {
        let stop = self.context.stop.clone();
        // The client comes again by itself, and goes on where it was.
        let broken = || End::Close(CloseCode::Restart, "the way to the remote broke");
        loop {
            let idle = self.running.is_empty();
            let end = tokio::select! {
                // What was asked with tags before is answered beside it.
                Some(event) = self.events.recv() => self.send(event).await,
                Some(done) = self.running.next(), if !idle => self.done(done).await,
                from = remote.next() => match from {
                    FromRemote::Message(message) => {
                        self.deliver(message).await.err().map(|_| End::Gone)
                    }
                    FromRemote::Sent => None,
                    FromRemote::Closed(close) => Some(ended(close.map(|it| it.code))),
                    FromRemote::Broken => Some(broken()),
                    FromRemote::Disconnected(why) => {
                        Some(self.disconnected(&remote, &why, format).await)
                    }
                },
                incoming = next_of(&mut self.early, self.socket), if remote.has_room() => {
                    match incoming {
                    Some(Ok(Message::Text(text))) => {
                        match self.for_remote(&text, &remote) {
                            Ok(None) => {}
                            Ok(Some(said)) => remote.send(Message::text(said)),
                            Err(refusal) => self.refuse(&refusal).await,
                        }
                        None
                    }
                    Some(Ok(message @ Message::Binary(_))) => {
                        remote.send(message);
                        None
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
                    Some(Err(WsError::Protocol(_))) => {
                        Some(End::Close(CloseCode::Protocol, "protocol error"))
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Some(End::Gone),
                }
                }
                () = stop.cancelled() => Some(self.stopped().await),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Somebody has disconnected the remote: the client is not to come again by itself.
    async fn disconnected(
        &mut self,
        remote: &AttachedRemote,
        why: &ErrorReply,
        format: ReplyFormat,
    ) -> End {
        let text = match (remote.is_answered(), format) {
            // All that it may hear is the close.
            (true, ReplyFormat::Plain) => None,
            (true, ReplyFormat::Json) => {
                let event = AttachEvent::TerminalClosed {
                    reason: TerminalEnd::CutOff,
                    message: format!("its remote `{}` was disconnected", remote.remote_name()),
                };
                let text = serde_json::to_string(&event);
                Some(text.expect("events have text keys only"))
            }
            (false, ReplyFormat::Plain) => Some(why.to_plain()),
            (false, ReplyFormat::Json) => Some(why.to_json().to_string()),
        };
        if let Some(text) = text {
            // A client that does not read is told by the close.
            let sending = self.deliver(Message::text(text));
            let _ = tokio::time::timeout(super::STALL, sending).await;
        }
        End::Close(CloseCode::Normal, "remote disconnected")
    }

    /// What a text of the client is for the remote daemon; none if it is nothing.
    fn for_remote(&self, text: &str, remote: &AttachedRemote) -> Result<Option<String>, String> {
        let Some(frame) = Frame::parse(text) else {
            return Ok(None);
        };
        if AttachedRemote::is_detach(&frame) {
            return Ok(Some(text.to_owned()));
        }
        match self.context.remotes.route(&frame) {
            // It has no size of its own.
            Ok(Some(_)) if remote.is_earlier() && frame.verb == "resize" => Ok(None),
            Ok(Some(routed)) if remote.is_for(&routed) && !remote.is_earlier() => {
                Ok(Some(routed.as_frame()))
            }
            other => {
                let message = "this connection is a terminal of another machine's session";
                let error = other.err().unwrap_or_else(|| {
                    ErrorReply::new(ErrorCode::Usage, message)
                        .with_hint("ask on a connection of its own")
                });
                let format = match pythond_protocol::verbs::Parsed::of(&frame).format {
                    ReplyFormat::Plain => error.to_plain(),
                    ReplyFormat::Json => error.to_json().to_string(),
                };
                Err(format)
            }
        }
    }
}

/// How the client is told what the remote daemon said.
fn ended(code: Option<CloseCode>) -> End {
    match code {
        Some(CloseCode::Normal) => End::Close(CloseCode::Normal, "session ended"),
        Some(CloseCode::Again) => End::Close(CloseCode::Again, "did not read"),
        Some(CloseCode::Away) => End::Close(CloseCode::Away, "daemon stopping"),
        _ => End::Close(CloseCode::Restart, "the way to the remote broke"),
    }
}
