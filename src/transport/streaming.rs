//! A request that is answered by events and one reply after them.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tungstenite::Utf8Bytes;

use crate::connection::{Connection, Received};
use crate::pending::decode;
use crate::{ClientError, Reply};

/// One event of a request.
#[derive(Debug)]
pub struct Event<E> {
    /// What happened; none if it is an event that came after this version.
    pub value: Option<E>,
    text: Utf8Bytes,
}

impl<E> Event<E> {
    /// The event as it was sent: one line of JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        self.text.as_str().trim_end()
    }
}

/// What ended a wait.
#[derive(Debug)]
pub enum Streamed<E, T> {
    /// An event; more follows.
    Event(Event<E>),
    /// The reply; nothing follows.
    Reply(Reply<T>),
    /// One of the other descriptors became readable; the request goes on.
    Woken,
}

/// The reply of a request that is followed until the daemon goes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonGoes {
    /// It did as it was asked until now. A refusal says more than this.
    pub ok: bool,
}

/// A request whose answer comes in pieces. Dropping it drops nothing of its
/// cell, unless `--cancel-on-disconnect` was asked for.
#[derive(Debug)]
pub struct Streaming<'a, E, T> {
    connection: &'a mut Connection,
    kind: PhantomData<(E, T)>,
}

impl<'a, E: DeserializeOwned, T: DeserializeOwned> Streaming<'a, E, T> {
    pub(crate) fn new(connection: &'a mut Connection) -> Self {
        Self {
            connection,
            kind: PhantomData,
        }
    }

    /// Waits for the next event, for the reply, or until one of `wake` can be
    /// read. Not to be called after the reply.
    ///
    /// # Errors
    /// [`ClientError`] if the request was refused or the connection broke.
    pub fn next(&mut self, wake: &[BorrowedFd<'_>]) -> Result<Streamed<E, T>, ClientError> {
        match self.connection.receive_text(wake)? {
            Received::Woken => Ok(Streamed::Woken),
            Received::Text(text) => classify(text),
        }
    }
}

/// A message with a key `event` is an event, anything else the reply.
fn classify<E: DeserializeOwned, T: DeserializeOwned>(
    text: Utf8Bytes,
) -> Result<Streamed<E, T>, ClientError> {
    #[derive(Deserialize)]
    struct AnyEvent {
        #[serde(rename = "event")]
        _event: IgnoredAny,
    }
    // Nearly all messages are events that we know: they are read only once.
    if let Ok(value) = serde_json::from_str(text.as_str()) {
        return Ok(Streamed::Event(Event {
            value: Some(value),
            text,
        }));
    }
    match serde_json::from_str::<AnyEvent>(text.as_str()) {
        Ok(_) => Ok(Streamed::Event(Event { value: None, text })),
        Err(_) => decode(text).map(Streamed::Reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::ErrorCode;
    use pythond_protocol::outcome::CellStatus;
    use pythond_protocol::verbs::events::{Event as SessionEvent, EventMessage};
    use pythond_protocol::verbs::out::{OutReply, StreamEvent};

    fn streamed(text: &'static str) -> Streamed<StreamEvent, OutReply> {
        classify(Utf8Bytes::from_static(text)).expect(text)
    }

    #[test]
    fn events_are_told_from_the_reply() {
        let text = r#"{"event":"output","cell_id":"00ab00000007","stream":2,"offset":7,
            "data":{"text":"\ufffd","data_b64":"/w=="},"of_tomorrow":1}"#;
        let Streamed::Event(event) = streamed(text) else {
            panic!()
        };
        assert_eq!(event.json(), text);
        let Some(StreamEvent::Output { stream, data, .. }) = event.value else {
            panic!()
        };
        assert_eq!((stream, data.0.as_slice()), (2, &b"\xff"[..]));

        // The word stands inside of the text only.
        let text = r#"{"ok":true,"session":"work","cell_id":"00ab00000007","status":"done",
            "offset":0,"next":9,"missing":0,"ended":true,"stdout":"\"event\":1","stderr":""}"#;
        let Streamed::Reply(reply) = streamed(text) else {
            panic!()
        };
        assert_eq!(reply.value.status, CellStatus::Done);
    }

    #[test]
    fn an_event_of_a_newer_daemon_is_passed_on_and_ends_nothing() {
        for text in [
            r#"{"event":"progress","percent":5}"#,
            r#"{"cell_id":"00ab00000007","event":"gap"}"#,
        ] {
            let Streamed::Event(event) = streamed(text) else {
                panic!("{text}")
            };
            assert_eq!((event.json(), &event.value), (text, &None));
        }
    }

    #[test]
    fn a_refusal_ends_what_is_only_followed() {
        let text = r#"{"ok":false,"error":{"code":"no_session","message":"m"}}"#;
        let found = classify::<EventMessage, DaemonGoes>(Utf8Bytes::from_static(text));
        let Err(ClientError::Refused(error)) = found else {
            panic!("{found:?}")
        };
        assert_eq!(error.code, ErrorCode::NoSession);
        let text = r#"{"cursor":"a.1","time":"t","event":"reset"}"#;
        let found = classify::<EventMessage, DaemonGoes>(Utf8Bytes::from_static(text));
        let Ok(Streamed::Event(event)) = found else {
            panic!("{found:?}")
        };
        assert_eq!(event.value.unwrap().event, SessionEvent::Reset);
    }
}
