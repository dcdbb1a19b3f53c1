//! A connection that is a terminal of a session.

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::attach::{AttachEvent, AttachRequest, TerminalEnd, no_session};
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Asked, Connection, End};
use crate::access_log::Fields;
use crate::terminal::{AttachedTerminal, FromTerminal};

impl Connection<'_> {
    /// Makes the client's connection a terminal.
    pub(super) async fn attach(
        &mut self,
        request: AttachRequest,
        format: ReplyFormat,
        asked: &Asked,
    ) -> Result<(), ErrorReply> {
        let refused = "this connection is attached already";
        if self.terminal.is_some() {
            return Err(ErrorReply::new(ErrorCode::Usage, refused)
                .with_hint("send `detach`, or attach on a connection of its own"));
        }
        let name = request.session.clone();
        self.context.adopted(&name).await;
        let session = self
            .context
            .registry
            .get(&name)
            .map_err(|error| match format {
                ReplyFormat::Plain => no_session(name.as_str()),
                ReplyFormat::Json => error,
            })?;
        let author = self.author.clone();
        let host = self.context.host.clone();
        let attached = AttachedTerminal::attach(session, request, format, author, host).await;
        let status = if attached.is_ok() { "ok" } else { "error" };
        let fields = Fields {
            status: Some(status),
            ..asked.fields()
        };
        self.access.event("attach", &fields);
        let (terminal, reply, first) = attached?;
        let text = match format {
            ReplyFormat::Plain => "OK attached".to_owned(),
            ReplyFormat::Json => {
                serde_json::to_string(&reply).expect("replies have text keys only")
            }
        };
        let text = self.caller(asked.tag.clone()).tagged(text);
        self.terminal = Some(terminal);
        // A client that is gone shows when it is read.
        let _ = self.deliver(Message::text(text)).await;
        if !first.is_empty() {
            let _ = self.deliver(Message::binary(first)).await;
        }
        Ok(())
    }

    /// Passes on what the session's terminal has.
    pub(super) async fn terminal_says(&mut self, from: FromTerminal) -> Option<End> {
        match from {
            FromTerminal::Bytes(bytes) => match self.deliver(Message::binary(bytes)).await {
                Ok(()) => None,
                Err(_) => Some(self.left()),
            },
            FromTerminal::Event(event) => self.terminal_event(&event).await,
            FromTerminal::Nothing => None,
            FromTerminal::Closed(reason, message) => {
                let event = AttachEvent::TerminalClosed { reason, message };
                let gone = self.terminal_event(&event).await;
                self.left();
                let close = match reason {
                    TerminalEnd::CutOff => End::Close(CloseCode::Again, "did not read"),
                    TerminalEnd::Reattached => End::Close(CloseCode::Normal, "attached again"),
                    _ => End::Close(CloseCode::Normal, "session ended"),
                };
                Some(gone.unwrap_or(close))
            }
        }
    }

    pub(super) async fn terminal_event(&mut self, event: &AttachEvent) -> Option<End> {
        let terminal = self.terminal.as_ref()?;
        if terminal.format() == ReplyFormat::Plain {
            return None;
        }
        let text = serde_json::to_string(event).expect("events have text keys only");
        self.send(text).await
    }

    /// The terminal is attached no longer.
    pub(super) fn left(&mut self) -> End {
        if let Some(terminal) = self.terminal.take() {
            let fields = Fields {
                session: Some(terminal.session().as_str()),
                ..Fields::default()
            };
            self.access.event("detach", &fields);
        }
        End::Gone
    }

    /// The client said that it detaches.
    pub(super) async fn detach(&mut self) -> Option<End> {
        let gone = self.send("OK detached".to_owned()).await;
        self.left();
        Some(gone.unwrap_or(End::Close(CloseCode::Normal, "detached")))
    }

    pub(super) fn is_attached_to(&self, session: &SessionName) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| terminal.session() == session)
    }
}

/// What comes from a terminal; nothing ever without one.
pub(super) async fn from_terminal(terminal: Option<&mut AttachedTerminal>) -> FromTerminal {
    match terminal {
        Some(terminal) => terminal.next().await,
        None => std::future::pending().await,
    }
}
