//! A connection after `attach`: bytes of a terminal both ways, and what happens
//! beside them. Never waits: whoever owns it polls, as there is a terminal to
//! listen to as well.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use pythond_protocol::SessionPath;
use pythond_protocol::lane::InputKey;
use pythond_protocol::verbs::attach::{AttachEvent, AttachReply, DETACH, TerminalSize};
use pythond_protocol::verbs::hold::HoldReply;
use serde::Deserialize;

use crate::connection::{Arrived, Connection};
use crate::header::Header;
use crate::pending::decode;
use crate::{Client, ClientError, Pending, Reply, TransportError};

/// The tag of answers to `hold` and `release` while attached.
const HOLD_TAG: &str = "hold";
/// The tag of answers to `resize`.
const RESIZE_TAG: &str = "resize";

/// What a terminal says of itself when it is attached.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Its size.
    pub size: TerminalSize,
    /// Nothing is typed.
    pub read_only: bool,
    /// Its `TERM`.
    pub term: Option<String>,
    /// Its `COLORTERM`.
    pub colorterm: Option<String>,
    /// What is typed is to be counted and acknowledged.
    pub input: Option<InputKey>,
}

/// Bytes for the terminal.
#[derive(Debug)]
pub struct TerminalBytes(tungstenite::Bytes);

impl Deref for TerminalBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// What came from the daemon.
#[derive(Debug)]
pub enum Incoming {
    /// To be written to the terminal.
    Bytes(TerminalBytes),
    /// Something happened.
    Event(AttachEvent),
    /// Whether agents' cells wait, as an answer; none if that was refused.
    Held(Option<bool>),
    /// Nothing to act on: an answer without news, or words that came after this
    /// version.
    Other,
    /// The daemon closed the connection; nothing follows.
    Closed,
}

/// A terminal on a session. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    connection: Connection,
    session: SessionPath,
}

impl Client {
    /// Asks for a terminal on a session; [`Attachment::of`] is what follows the
    /// answer.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn attach(
        &mut self,
        session: &SessionPath,
        options: &AttachOptions,
    ) -> Result<Pending<'_, AttachReply>, ClientError> {
        self.send(attach_frame(session, options)?)
    }

    /// Makes agents' new cells wait, or ends that.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn hold(
        &mut self,
        session: &SessionPath,
        held: bool,
        author: Option<&str>,
    ) -> Result<Reply<HoldReply>, ClientError> {
        let header = Header::of(hold_verb(held), session)?.value("author", author)?;
        self.send(header.finish())?.wait()
    }
}

impl Attachment {
    /// The connection whose `attach` was answered.
    #[must_use]
    pub fn of(client: Client, session: SessionPath) -> Self {
        Self {
            connection: client.into_connection(),
            session,
        }
    }

    /// Takes what has come, without waiting; none if nothing has.
    ///
    /// # Errors
    /// [`TransportError`] if the connection broke.
    pub fn take(&mut self) -> Result<Option<Incoming>, TransportError> {
        Ok(match self.connection.take()? {
            None => None,
            Some(Arrived::Binary(bytes)) => Some(Incoming::Bytes(TerminalBytes(bytes))),
            Some(Arrived::Text(text)) => Some(understand(&text)),
            Some(Arrived::Close) => Some(Incoming::Closed),
            Some(Arrived::Nothing) => Some(Incoming::Other),
        })
    }

    /// Sends what was typed. What the daemon does not take now is kept, in
    /// order, for [`Self::flush`].
    ///
    /// # Errors
    /// [`TransportError`] if the connection broke.
    pub fn send_typed(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.connection.queue_binary(bytes.to_vec())
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// [`ClientError::Transport`] if the connection broke.
    pub fn send_resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        let header = Header::of("resize", &self.session)?
            .value("tag", Some(RESIZE_TAG))?
            .arguments([size.rows, size.cols]);
        Ok(self.connection.queue_text(header.finish())?)
    }

    /// Asks for agents' new cells to wait, or not to.
    ///
    /// # Errors
    /// [`ClientError::Transport`] if the connection broke.
    pub fn send_hold(&mut self, held: bool) -> Result<(), ClientError> {
        let header = Header::of(hold_verb(held), &self.session)?.value("tag", Some(HOLD_TAG))?;
        Ok(self.connection.queue_text(header.finish())?)
    }

    /// Asks the daemon to detach: it closes when it has taken what was typed.
    ///
    /// # Errors
    /// [`TransportError`] if the connection broke.
    pub fn send_detach(&mut self) -> Result<(), TransportError> {
        self.connection.queue_text(DETACH.to_owned())
    }

    /// Looks whether the daemon is still there, which it is asked now and then; when to
    /// do so again, where it may be gone without a word. To be called before each wait,
    /// when all that came was taken.
    ///
    /// # Errors
    /// [`TransportError`] if the connection broke, or nothing comes any more.
    pub fn beat(&mut self) -> Result<Option<Instant>, TransportError> {
        self.connection.beat()
    }

    /// Bytes, about, that wait until the descriptor can be written to. Then
    /// [`Self::flush`] is due.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.connection.unsent()
    }

    /// Sends more of what waits.
    ///
    /// # Errors
    /// [`TransportError`] if the connection broke.
    pub fn flush(&mut self) -> Result<(), TransportError> {
        self.connection.flush()
    }
}

impl AsFd for Attachment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn hold_verb(held: bool) -> &'static str {
    if held { "hold" } else { "release" }
}

fn attach_frame(session: &SessionPath, options: &AttachOptions) -> Result<String, ClientError> {
    let header = Header::of("attach", session)?
        .flag("read-only", options.read_only)
        .value("term", options.term.as_ref())?
        .value("colorterm", options.colorterm.as_ref())?
        .value("input-key", options.input.as_ref().map(|input| &input.key))?
        .flag("resume", options.input.as_ref().is_some_and(|it| it.resume))
        .arguments([options.size.rows, options.size.cols]);
    Ok(header.finish())
}

/// A text that came while attached.
fn understand(text: &tungstenite::Utf8Bytes) -> Incoming {
    #[derive(Deserialize)]
    struct Tagged {
        tag: String,
    }
    if let Ok(event) = serde_json::from_str(text.as_str()) {
        return Incoming::Event(event);
    }
    match serde_json::from_str::<Tagged>(text.as_str()) {
        Ok(answer) if answer.tag == HOLD_TAG => {
            let reply = decode::<HoldReply>(text.clone());
            Incoming::Held(reply.ok().map(|reply| reply.value.held))
        }
        _ => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::Frame;
    use pythond_protocol::verbs::attach::{AttachRequest, TerminalEnd};
    use pythond_protocol::verbs::{Parsed, Request};

    #[test]
    fn an_attach_arrives_as_it_was_asked_for() {
        let size = TerminalSize { rows: 24, cols: 80 };
        let session: SessionPath = "work".parse().unwrap();
        let input = InputKey {
            key: "pysh-0a1b".to_owned(),
            resume: true,
        };
        for (read_only, term, input) in [
            (false, None, Some(input)),
            (true, Some("xterm-256color".to_owned()), None),
        ] {
            let options = AttachOptions {
                size,
                read_only,
                term: term.clone(),
                colorterm: term.clone(),
                input: input.clone(),
            };
            let frame = attach_frame(&session, &options).unwrap();
            let expected = AttachRequest {
                session: session.session.clone(),
                size: Some(size),
                read_only,
                term: term.clone(),
                colorterm: term,
                input,
            };
            let parsed = Parsed::of(&Frame::parse(&frame).unwrap());
            assert_eq!(parsed.request, Ok(Request::Attach(expected)), "{frame}");
        }
    }

    #[test]
    fn events_and_answers_are_told_apart() {
        let understood =
            |text: &'static str| understand(&tungstenite::Utf8Bytes::from_static(text));
        let text = r#"{"event":"terminal_closed","reason":"died","message":"m"}"#;
        let Incoming::Event(AttachEvent::TerminalClosed { reason, .. }) = understood(text) else {
            panic!()
        };
        assert_eq!(reason, TerminalEnd::Died);
        let text = r#"{"tag":"hold","ok":true,"session":"work","held":true,"waiting":0}"#;
        assert!(matches!(understood(text), Incoming::Held(Some(true))));
        let text = r#"{"tag":"hold","ok":false,"error":{"code":"busy","message":"m"}}"#;
        assert!(matches!(understood(text), Incoming::Held(None)));
        for text in [
            "OK detached",
            r#"{"event":"of_tomorrow"}"#,
            r#"{"tag":"resize","ok":true,"session":"work","rows":1,"cols":2}"#,
        ] {
            assert!(matches!(understood(text), Incoming::Other), "{text}");
        }
    }
}
