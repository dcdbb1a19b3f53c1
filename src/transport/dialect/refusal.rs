//! What a daemon of 0.4 says when it refuses or fails.

use pythond_protocol::{ErrorCode, ErrorReply};
use serde::Deserialize;

/// The refusal in an answer, if it is one. Not for `run`, whose answers are what a
/// cell wrote.
pub(super) fn refusal(text: &str, session: &str) -> Option<ErrorReply> {
    match text.strip_prefix("ERR ") {
        Some(words) => Some(of_words(words, session)),
        None => failure(text).map(|words| of_words(&words, session)),
    }
}

/// The refusal in an answer to `run`. A cell may print the same: only what 0.4 says,
/// word for word, is taken for it.
pub(super) fn of_run(text: &str, session: &str) -> Option<ErrorReply> {
    let words = match text.strip_prefix("ERR ") {
        Some(words) => {
            let none = format!("no session '{session}' -- create it first with: new {session}");
            let known = [none.as_str(), "internal error", "auth failed"];
            known.contains(&words).then(|| words.to_owned())
        }
        None => failure(text).filter(|words| is_failure(words, session)),
    };
    words.map(|words| of_words(&words, session))
}

/// The words of `{"error": "…"}`.
fn failure(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Failure {
        error: String,
    }
    let failure: Failure = serde_json::from_str(text).ok()?;
    Some(failure.error)
}

const TIMEOUT: &str = "timeout -- command channel may be out of sync";
const OUT_OF_STEP: &str = "command channel out of sync after timeout";

fn is_failure(words: &str, session: &str) -> bool {
    let of_session = words
        .strip_prefix(&format!("session '{session}' "))
        .is_some_and(|rest| {
            rest == "not found" || rest.starts_with("dead -- ") || rest.starts_with(OUT_OF_STEP)
        });
    of_session
        || words.starts_with(TIMEOUT)
        || words.starts_with("malformed worker response; ")
        || words.starts_with("worker response too large; ")
        || ["session command failed", "worker protocol error"].contains(&words)
}

fn of_words(words: &str, session: &str) -> ErrorReply {
    let kill = || format!("`pysh kill {session}`; use `pysh fire` for what takes longer");
    let new = || format!("`pysh new {session}` makes it anew");
    let refused = |code| ErrorReply::new(code, format!("pythond 0.4 says: {words}"));
    if words.starts_with("no session '") || words.ends_with("' not found") {
        ErrorReply::no_session(session)
    } else if words.contains(TIMEOUT) {
        ErrorReply::new(
            ErrorCode::SessionUnreachable,
            "the daemon there is pythond 0.4, which waits 30 s for a session and no longer: what \
             was asked may go on, and the session can only be killed now",
        )
        .with_hint(kill())
    } else if words.contains(OUT_OF_STEP) {
        ErrorReply::new(
            ErrorCode::SessionUnreachable,
            format!(
                "session `{session}` was waited for too long by pythond 0.4, and can only be killed"
            ),
        )
        .with_hint(kill())
    } else if words.contains("' dead -- ") {
        refused(ErrorCode::SessionDied).with_hint(new())
    } else if words == "session command failed" {
        refused(ErrorCode::SessionUnreachable).with_hint(new())
    } else if words == "invalid session name" {
        ErrorReply::bad_name()
    } else if words.starts_with("unknown: ") {
        refused(ErrorCode::NotAvailable)
    } else if words.starts_with("too many sessions") || words.contains("too large") {
        refused(ErrorCode::Limit)
    } else if words.ends_with("requires code") || words.starts_with("usage: ") {
        refused(ErrorCode::Usage)
    } else if words.ends_with("' already attached") {
        ErrorReply::new(
            ErrorCode::Busy,
            format!("somebody is attached to `{session}`, and pythond 0.4 has room for one"),
        )
    } else if words == "internal error" {
        ErrorReply::new(
            ErrorCode::Internal,
            "pythond 0.4 failed with its answer; what was asked may have been carried out",
        )
    } else {
        refused(ErrorCode::Internal)
    }
}
