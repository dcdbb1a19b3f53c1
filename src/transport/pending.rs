//! A request that was sent, and its answer.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use pythond_protocol::{CellId, ErrorCode, ErrorReply, Fate};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tungstenite::Utf8Bytes;

use crate::ClientError;
use crate::connection::{Connection, Received};

/// Most characters of an answer that is not understood which are shown.
const SHOWN_CHARACTERS: usize = 200;

/// A structured answer.
#[derive(Debug)]
pub struct Reply<T> {
    /// Its fields.
    pub value: T,
    text: Utf8Bytes,
}

impl<T> Reply<T> {
    /// The answer as it was sent, fields that this client does not know
    /// included: one line of JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        self.text.as_str().trim_end()
    }
}

/// What ended a wait.
#[derive(Debug)]
pub enum Waited<T> {
    /// The answer.
    Reply(Reply<T>),
    /// One of the other descriptors became readable; the request goes on.
    Woken,
}

/// A request that was sent and not answered yet. Dropping it drops nothing of
/// its cell.
#[derive(Debug)]
pub struct Pending<'a, T> {
    connection: &'a mut Connection,
    kind: PhantomData<T>,
}

impl<'a, T: DeserializeOwned> Pending<'a, T> {
    pub(crate) fn new(connection: &'a mut Connection) -> Self {
        Self {
            connection,
            kind: PhantomData,
        }
    }

    /// Waits for the answer, for as long as it takes.
    ///
    /// # Errors
    /// [`ClientError`] if the request was refused or the connection broke.
    pub fn wait(mut self) -> Result<Reply<T>, ClientError> {
        loop {
            if let Waited::Reply(reply) = self.wait_or_wake(&[])? {
                return Ok(reply);
            }
        }
    }

    /// Waits for the answer or until one of `wake` can be read. May be called
    /// again after [`Waited::Woken`].
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_or_wake(&mut self, wake: &[BorrowedFd<'_>]) -> Result<Waited<T>, ClientError> {
        match self.connection.receive_text(wake)? {
            Received::Woken => Ok(Waited::Woken),
            Received::Text(text) => decode(text).map(Waited::Reply),
        }
    }
}

/// A text as a reply, or else as the refusal that it is.
pub(crate) fn decode<T: DeserializeOwned>(text: Utf8Bytes) -> Result<Reply<T>, ClientError> {
    // The reply is tried first: one that tells of a failed cell has an `error`
    // that could be taken for a refusal.
    match serde_json::from_str(text.as_str()) {
        Ok(value) => Ok(Reply { value, text }),
        Err(_) => Err(refusal(text.as_str())),
    }
}

/// The refusal in an answer.
pub(crate) fn refusal(text: &str) -> ClientError {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        cell_id: Option<CellId>,
        /// As it came, for the same reason as the code.
        remote: Option<serde_json::Value>,
        error: RefusalError,
    }
    #[derive(Deserialize)]
    struct RefusalError {
        /// Text first: a newer daemon may have codes that we do not know.
        code: serde_json::Value,
        message: String,
        hint: Option<String>,
        fate: Option<Fate>,
        reason: Option<String>,
    }
    match serde_json::from_str::<Refusal>(text) {
        Ok(Refusal {
            cell_id,
            remote,
            error,
        }) => ClientError::Refused(ErrorReply {
            code: serde_json::from_value(error.code).unwrap_or(ErrorCode::Internal),
            message: error.message,
            hint: error.hint,
            fate: error.fate,
            reason: error.reason,
            cell_id,
            remote: remote.and_then(|way| serde_json::from_value(way).ok()),
            plain: None,
        }),
        Err(_) => ClientError::Unexpected {
            answer: beginning(text),
        },
    }
}

/// The first line of an answer, bounded.
fn beginning(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(SHOWN_CHARACTERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::verbs::cell::CellReply;
    use pythond_protocol::verbs::kill::KillReply;

    fn refused<T: DeserializeOwned + std::fmt::Debug>(text: &'static str) -> ClientError {
        decode::<T>(Utf8Bytes::from_static(text)).expect_err(text)
    }

    #[test]
    fn refusals_are_told_from_replies() {
        let text = r#"{"error":{"code":"no_session","hint":"h","message":"m"},"ok":false}"#;
        for error in [refused::<CellReply>(text), refused::<KillReply>(text)] {
            let ClientError::Refused(error) = error else {
                panic!("{error:?}")
            };
            assert_eq!(
                (error.code, error.message.as_str()),
                (ErrorCode::NoSession, "m")
            );
        }
    }

    #[test]
    fn a_refusal_with_a_code_of_a_newer_daemon_keeps_its_words() {
        let text = r#"{"ok":false,"error":{"code":"not_today","message":"m"}}"#;
        let ClientError::Refused(error) = refused::<CellReply>(text) else {
            panic!()
        };
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::Unknown, "m")
        );
    }

    #[test]
    fn a_failed_cell_is_a_reply_and_not_a_refusal() {
        let text = r#"{"session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007",
            "kind":"run","status":"killed","ok":false,"stdout":"a","stderr":"",
            "result":null,"error":{"type":"SessionDied","message":"killed by SIGKILL",
            "traceback":"","code":"session_died","hint":"h"},"started_at":null,
            "duration_ms":1.5,"output_bytes":1,"truncated":0,"host":"h","changed":[],
            "a_field_of_tomorrow":1}"#;
        let reply = decode::<CellReply>(Utf8Bytes::from_static(text)).unwrap();
        assert_eq!(
            reply.value.error.unwrap().code,
            Some(ErrorCode::SessionDied)
        );
    }

    #[test]
    fn what_is_no_json_is_shown_and_bounded() {
        let ClientError::Unexpected { answer } = refused::<KillReply>("ERR internal error\nx")
        else {
            panic!()
        };
        assert_eq!(answer, "ERR internal error");
    }
}
