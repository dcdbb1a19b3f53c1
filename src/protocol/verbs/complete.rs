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

pub(super) fn parse<'a>(
    frame: &Frame<'a>,
) -> (ReplyFormat, Option<&'a str>, Result<Request, ErrorReply>) {
    let Some((name, mut rest)) = take_word(frame.header) else {
        let error = ErrorReply::new(ErrorCode::Usage, "need session name");
        return (ReplyFormat::Plain, None, Err(error));
    };
    let (mut format, mut tag) = (ReplyFormat::Plain, None);
    while let Some((word, after)) = take_word(rest) {
        let tagged = word.strip_prefix("--tag=");
        let value = tagged.or_else(|| word.strip_prefix("--plain-tag="));
        if word == "--json" || tagged.is_some() {
            format = ReplyFormat::Json;
        }
        match value.map(super::request::checked_tag) {
            Some(Ok(value)) => tag = Some(value),
            Some(Err(error)) => return (ReplyFormat::Json, None, Err(error)),
            None if word == "--json" || word.starts_with("--hops=") => {}
            None => break,
        }
        rest = after;
    }
    let text = frame.body.unwrap_or(rest).trim().to_owned();
    let request =
        existing_session(name).map(|session| Request::Complete(CompleteRequest { session, text }));
    (format, tag, request)
}

/// The structured answer to `complete`. The plain wire has `{"matches": […]}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CompleteReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// What the text may become.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_MATCHES)))]
    pub matches: Vec<String>,
}
