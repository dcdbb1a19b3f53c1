//! One terminal that is attached: the lane to its host, and what its client is
//! told. Bytes pass through; nothing is kept here.

use std::time::Duration;

use pythond_protocol::lane::{Attach, TerminalCommand, TerminalEvent};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::attach::{
    AttachEvent, AttachReply, AttachRequest, TerminalEnd, TerminalSize,
};
use pythond_protocol::{ErrorReply, SessionName};

use crate::lane_io::LaneIo;
use crate::session::SessionHandle;

/// How long a session whose terminal lane closed may take to be known as dead.
const DEATH_PATIENCE: Duration = Duration::from_secs(2);
/// Typed bytes that may wait for the host; with more the client is not read.
const MOST_TYPED: usize = 1 << 20;

/// An attached terminal.
pub(crate) struct AttachedTerminal {
    session: SessionHandle,
    lane: LaneIo,
    /// Tells it apart in its host.
    id: u64,
    format: ReplyFormat,
}

/// What comes from the session.
#[derive(Debug)]
pub(crate) enum FromTerminal {
    /// Bytes for the client's terminal.
    Bytes(Vec<u8>),
    /// Words for the client.
    Event(AttachEvent),
    /// Nothing that this client wants to know.
    Nothing,
    /// The last word.
    Closed(TerminalEnd, String),
}

impl AttachedTerminal {
    /// Attaches; the answer for the client, and what is to be written first.
    ///
    /// # Errors
    /// If the session does not answer, or has no terminal.
    pub(crate) async fn attach(
        session: SessionHandle,
        request: AttachRequest,
        format: ReplyFormat,
        author: String,
        host: String,
    ) -> Result<(Self, AttachReply, Vec<u8>), ErrorReply> {
        let how = Attach {
            size: request.size,
            read_only: request.read_only,
            screen: format == ReplyFormat::Json,
            author,
            term: request.term,
            colorterm: request.colorterm,
            input: request.input,
        };
        let (lane, message) = session.open_terminal(how).await?;
        let (event, first) = (message.header, message.body);
        let (id, size, attached, held_by, input) = match event {
            TerminalEvent::Attached {
                terminal,
                size,
                attached,
                held_by,
                input,
            } => (terminal, size, attached, held_by, input),
            TerminalEvent::Refused { error } => return Err(error),
            _ => return Err(crate::handlers::unexpected()),
        };
        let spec = &session.hosted().spec;
        let reply = AttachReply {
            ok: true,
            session: spec.session.clone(),
            session_id: spec.session_id.clone(),
            generation: spec.generation,
            rows: size.rows,
            cols: size.cols,
            read_only: request.read_only,
            held: held_by.is_some(),
            attached,
            host,
            taken: input.map(|input| input.taken),
            resumed: input.map(|input| input.resumed),
        };
        let terminal = Self {
            session,
            lane,
            id,
            format,
        };
        Ok((terminal, reply, first))
    }

    /// Its session's name.
    pub(crate) fn session(&self) -> &SessionName {
        self.session.name()
    }

    /// Tells it apart in its host.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// How its client wants to be told.
    pub(crate) fn format(&self) -> ReplyFormat {
        self.format
    }

    /// Passes on what was typed.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.send(&TerminalCommand::Input, bytes);
    }

    /// The client's terminal has another size.
    pub(crate) fn resize(&mut self, size: TerminalSize) {
        self.send(&TerminalCommand::Resize(size), b"");
    }

    fn send(&mut self, command: &TerminalCommand, body: &[u8]) {
        // One WebSocket message always fits; a broken lane shows when read.
        let _ = self.lane.send(command, body);
    }

    /// So much waits for the host that the client should not be read.
    pub(crate) fn is_full(&self) -> bool {
        self.lane.waiting() > MOST_TYPED
    }

    /// What comes next; nothing also when there is room for the client's words
    /// again.
    ///
    /// # Cancel safety
    /// Nothing is lost if it is dropped before it is ready, but for the cause
    /// of an end, which is found again.
    pub(crate) async fn next(&mut self) -> FromTerminal {
        let message = match self.lane.next_or_room::<TerminalEvent>(MOST_TYPED).await {
            Ok(Some(message)) => message,
            Ok(None) => return FromTerminal::Nothing,
            Err(_) => return self.end().await,
        };
        match message.header {
            TerminalEvent::Output => FromTerminal::Bytes(message.body),
            TerminalEvent::Resized(TerminalSize { rows, cols }) => {
                FromTerminal::Event(AttachEvent::TerminalResized { rows, cols })
            }
            TerminalEvent::Held { held_by, .. } => FromTerminal::Event(AttachEvent::Held {
                held: held_by.is_some(),
                author: held_by,
            }),
            TerminalEvent::Taken { taken } => {
                FromTerminal::Event(AttachEvent::InputTaken { taken })
            }
            TerminalEvent::Reattached => {
                let name = self.session.name();
                let message = format!(
                    "this terminal was attached to session `{name}` again, by another connection"
                );
                FromTerminal::Closed(TerminalEnd::Reattached, message)
            }
            TerminalEvent::Attached { .. } | TerminalEvent::Refused { .. } => FromTerminal::Nothing,
        }
    }

    /// The host closed the lane: it is gone, or cut this terminal off.
    async fn end(&self) -> FromTerminal {
        let name = self.session.name();
        let died = tokio::time::timeout(DEATH_PATIENCE, self.session.died());
        if died.await.is_err() {
            let message = format!(
                "this terminal did not read for too long and was cut off; session `{name}` goes on"
            );
            return FromTerminal::Closed(TerminalEnd::CutOff, message);
        }
        let (reason, cause) = self.session.terminal_end();
        FromTerminal::Closed(reason, format!("session `{name}` has ended: {cause}"))
    }
}
