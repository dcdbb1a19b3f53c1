//! `complete NAME TEXT`: completions of a text.

use serde::{Deserialize, Serialize};

use super::options::existing_session;
use super::{ReplyFormat, Request};
use crate::frame::take_word;
use crate::names::SessionName;
use crate::{ErrorCode, ErrorReply, Frame};

/// Most completions in one answer.
pub const MAX_MATCHES: usize = 200;

/// What to complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteRequest {
    /// The session.
    pub session: SessionName,
    /// The text so far.
    pub text: String,
}

pub(super) fn parse(frame: &Frame<'_>) -> (ReplyFormat, Result<Request, ErrorReply>) {
    let Some((name, mut rest)) = take_word(frame.header) else {
        return (
            ReplyFormat::Plain,
            Err(ErrorReply::new(ErrorCode::Usage, "need session name")),
        );
    };
    let mut format = ReplyFormat::Plain;
    if let Some(("--json", after)) = take_word(rest) {
        format = ReplyFormat::Json;
        rest = after;
    }
    let text = frame.body.unwrap_or(rest).trim().to_owned();
    let request =
        existing_session(name).map(|session| Request::Complete(CompleteRequest { session, text }));
    (format, request)
}

/// The structured answer to `complete`. The plain wire has `{"matches": […]}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompleteReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// At most [`MAX_MATCHES`].
    pub matches: Vec<String>,
}
