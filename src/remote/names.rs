//! What a remote daemon says of its session, in the names of this machine: there it has
//! another, and what a hint says is typed here.

use serde_json::Value;

use crate::handlers::Reply;

/// Longest refusal that is looked at; ours are a few lines.
const MOST: usize = 64 << 10;

/// The same reply; a refusal speaks of `REMOTE/SESSION`.
pub(super) fn of_here(reply: Reply, remote: &str, session: &str) -> Reply {
    match text_of_here(&reply.text, remote, session) {
        Some(text) if !reply.ok => Reply::of_text(false, text),
        _ => reply,
    }
}

/// The same text in the names of this machine; none if it is no refusal, or says
/// nothing of the session.
pub(super) fn text_of_here(text: &str, remote: &str, session: &str) -> Option<String> {
    (text.len() <= MOST)
        .then(|| renamed(text, remote, session))
        .flatten()
}

fn renamed(text: &str, remote: &str, session: &str) -> Option<String> {
    let mut reply: Value = serde_json::from_str(text).ok()?;
    let error = reply.get_mut("error")?;
    // What a cell raised has none, and its words are its own.
    error.get("code")?.as_str()?;
    let here = format!("{remote}/{session}");
    let mut changed = false;
    let mut rename = |member: &str, renamed: fn(&str, &str, &str) -> String| {
        if let Some(Value::String(words)) = error.get_mut(member) {
            let new = renamed(words, session, &here);
            changed |= new != *words;
            *words = new;
        }
    };
    rename("message", in_message);
    rename("hint", in_hint);
    changed.then(|| reply.to_string())
}

fn in_message(words: &str, session: &str, here: &str) -> String {
    let mut words = words.to_owned();
    for before in ["session ", "session named "] {
        let there = format!("{before}`{session}`");
        words = words.replace(&there, &format!("{before}`{here}`"));
    }
    words
}

/// The session is the second word after `pysh`.
fn in_hint(words: &str, session: &str, here: &str) -> String {
    let command = |piece: &str| -> Option<String> {
        let (verb, rest) = piece.strip_prefix("pysh ")?.split_once(' ')?;
        let rest = rest.strip_prefix(session)?;
        let is_whole = rest.is_empty() || rest.starts_with(' ');
        is_whole.then(|| format!("pysh {verb} {here}{rest}"))
    };
    let pieces = words.split('`');
    let pieces: Vec<String> = pieces
        .map(|piece| command(piece).unwrap_or_else(|| piece.to_owned()))
        .collect();
    pieces.join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Value> {
        let text = renamed(text, "gpu", "work")?;
        Some(serde_json::from_str(&text).expect("it is JSON"))
    }

    #[test]
    fn a_refusal_names_the_session_as_it_is_named_here() {
        let text = r#"{"error":{"code":"no_session","hint":"list with `pysh ls`, or create it with `pysh new work` or `pysh new work --replace`, not `pysh new worker`","message":"no session named `work`"},"ok":false,"cell_id":"0a"}"#;
        let reply = of(text).expect("it is renamed");
        assert_eq!(reply["error"]["message"], "no session named `gpu/work`");
        assert_eq!(
            reply["error"]["hint"],
            "list with `pysh ls`, or create it with `pysh new gpu/work` or \
             `pysh new gpu/work --replace`, not `pysh new worker`"
        );
        assert_eq!(reply["cell_id"], "0a");
    }

    #[test]
    fn what_a_cell_raised_and_what_is_no_refusal_stays_as_it_is() {
        for text in [
            r#"{"ok":false,"error":{"type":"E","message":"session `work`","traceback":""}}"#,
            r#"{"ok":false,"error":{"code":"busy","message":"cells run"}}"#,
            r#"{"ok":false}"#,
            "ERR session `work`",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
