//! Which requests are for a remote, and how they are said there.

use std::sync::Arc;

use pythond_protocol::outcome::CellKind;
use pythond_protocol::verbs::options::hops;
use pythond_protocol::verbs::submit::{SubmitOptions, SubmitRequest};
use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};
use pythond_protocol::{CellId, ErrorCode, ErrorReply, Frame, SessionName};

use super::{Remote, Remotes};

/// Verbs that have a session's name as their first word.
const OF_SESSIONS: [&str; 19] = [
    "attach", "cells", "complete", "events", "fire", "fork", "hold", "int", "kill", "new", "out",
    "poll", "release", "resize", "run", "stack", "status", "vars", "wait",
];
/// Verbs that may have a remote's name as their only word.
const OF_DAEMONS: [&str; 2] = ["info", "ls"];
/// So many daemons pass a request on. Who names a daemon that names another has a
/// few; those that name each other would have no end.
const MOST_HOPS: u32 = 8;

/// A request for a remote.
pub(crate) struct Routed {
    pub(crate) remote: Arc<Remote>,
    verb: String,
    /// None for what is asked of the daemon there.
    pub(super) session: Option<SessionName>,
    /// That is the name of a remote here.
    pub(super) comes_back: bool,
    /// How many daemons have passed it on, this one included.
    hops: u32,
    /// What follows the name in the first line.
    rest: String,
    /// Empty where the line ends right after its options: no code at all.
    body: Option<String>,
}

impl Remotes {
    /// Whether a request is for a remote: by its alias, by `REMOTE/SESSION`, or by
    /// both as two words.
    ///
    /// # Errors
    /// If it is for one that is not there.
    pub(crate) fn route(&self, frame: &Frame<'_>) -> Result<Option<Routed>, ErrorReply> {
        let of_daemon = OF_DAEMONS.contains(&frame.verb);
        if !of_daemon && !OF_SESSIONS.contains(&frame.verb) {
            return Ok(None);
        }
        let Some((before, name, after)) = around_name(frame.header) else {
            return Ok(None);
        };
        let (remote, session) = match name.split_once('/') {
            Some((remote, session)) => {
                let found = remote.parse().ok().and_then(|remote| self.get(&remote));
                let remote = found.ok_or_else(|| match frame.verb {
                    // As 0.4 says it.
                    "new" => no_remote(remote).with_plain("invalid session name"),
                    _ => no_remote(remote),
                })?;
                let session = session
                    .parse()
                    .map_err(|_| ErrorReply::no_session(session))?;
                (remote, Some(session))
            }
            None => match name.parse().ok().and_then(|name| self.get(&name)) {
                Some(remote) => (remote, None),
                // As 0.4 says it.
                None if of_daemon => {
                    let usage = format!("usage: {}", frame.verb);
                    return Err(no_remote(name).with_plain(usage));
                }
                None => return Ok(None),
            },
        };
        let mut rest = join(before, after);
        let session = match session {
            Some(session) => Some(session),
            None if of_daemon => None,
            None => Some(match second_name(frame, &rest) {
                Some((session, shorter)) => {
                    rest = shorter;
                    session
                }
                None => remote.spec.session.clone(),
            }),
        };
        // What is asked of that daemon goes no further.
        let hops = match session {
            Some(_) => hops(frame)?.saturating_add(1),
            None => 1,
        };
        if hops > MOST_HOPS {
            return Err(round_in_circles());
        }
        let is_remote = |session: &SessionName| self.get(session).is_some();
        Ok(Some(Routed {
            comes_back: session.as_ref().is_some_and(is_remote),
            remote,
            verb: frame.verb.to_owned(),
            session,
            hops,
            rest,
            body: match frame.body {
                None if frame.trailing_newline => Some(String::new()),
                body => body.map(str::to_owned),
            },
        }))
    }
}

/// The first word that is no option, and what stands around it.
fn around_name(header: &str) -> Option<(&str, &str, &str)> {
    let mut rest = header;
    loop {
        let trimmed = rest.trim_start();
        let end = trimmed.find(char::is_whitespace).unwrap_or(trimmed.len());
        let (word, after) = trimmed.split_at(end);
        if word.is_empty() {
            return None;
        }
        if !word.starts_with("--") {
            let at = header.len() - trimmed.len();
            return Some((&header[..at], word, after));
        }
        rest = after;
    }
}

fn join(before: &str, after: &str) -> String {
    format!("{} {}", before.trim(), after.trim())
        .trim()
        .to_owned()
}

/// The session that is named after the remote: `status REMOTE SESSION`. Of code
/// only in a body: the first word of code in the first line is code.
fn second_name(frame: &Frame<'_>, rest: &str) -> Option<(SessionName, String)> {
    let is_code = matches!(frame.verb, "run" | "fire" | "fork");
    if frame.verb == "complete" || is_code && frame.body.is_none() {
        return None;
    }
    let (before, word, after) = around_name(rest)?;
    let is_other = word.parse::<CellId>().is_ok() || word.bytes().all(|it| it.is_ascii_digit());
    if is_other || is_code && around_name(after).is_some() {
        return None;
    }
    Some((word.parse().ok()?, join(before, after)))
}

fn no_remote(name: &str) -> ErrorReply {
    let shown: String = name.chars().take(100).filter(|c| !c.is_control()).collect();
    ErrorReply::new(ErrorCode::NoSession, format!("no remote named `{shown}`"))
        .with_hint("list remotes with `pysh ls`, or connect one with `pyctl connect`")
}

fn round_in_circles() -> ErrorReply {
    let message = format!("passed on {MOST_HOPS} times to no session: remotes lead in circles");
    ErrorReply::new(ErrorCode::RemoteRefused, message).with_hint(
        "`pysh ls` on each machine shows its remotes; `pyctl disconnect` the one that leads back",
    )
}

impl Routed {
    /// The same as a frame for the daemon there.
    pub(crate) fn as_frame(&self) -> String {
        self.frame_with("")
    }

    /// The same frame on a connection of its own.
    pub(crate) fn passed_on(&self) -> String {
        self.frame_with(&self.hop())
    }

    /// The option that says how often it was passed on.
    fn hop(&self) -> String {
        match self.session {
            Some(_) => format!("--hops={}", self.hops),
            None => String::new(),
        }
    }

    fn frame_with(&self, option: &str) -> String {
        let mut text = self.verb.clone();
        let session = self.session.as_ref().map_or("", |it| it.as_str());
        for part in [session, option, &self.rest] {
            if !part.is_empty() {
                text.push(' ');
                text.push_str(part);
            }
        }
        if let Some(body) = &self.body {
            text.push('\n');
            text.push_str(body);
        }
        text
    }

    /// The same, decoded.
    pub(crate) fn parsed(&self) -> Parsed {
        let text = self.as_frame();
        let frame = Frame::parse(&text).expect("it begins with a verb");
        Parsed::of(&frame)
    }

    /// The words without the options that the client's own connection needs, and
    /// without those that are said otherwise this time.
    fn rest_on_link(&self, asked: &Asked<'_>) -> String {
        let is_ours = |word: &str| {
            let option = word.strip_prefix("--").and_then(|it| it.split_once('='));
            option.is_some_and(|(key, _)| {
                ["tag", "plain-tag", "hops"].contains(&key)
                    || asked.instead.iter().any(|it| it.0 == key)
            })
        };
        let mut left = self.rest.as_str();
        let mut words = Vec::new();
        while let Some((word, after)) = pythond_protocol::frame::take_word(left) {
            // Here options come first, and what follows is text.
            if self.verb == "complete" && !word.starts_with("--") {
                break;
            }
            if !is_ours(word) {
                words.push(word);
            }
            left = after;
        }
        words.push(left);
        words.join(" ").trim().to_owned()
    }

    /// What is sent in its place on a link.
    pub(super) fn on_link(&self, tag: u64, asked: &Asked<'_>) -> String {
        let word = match asked.format {
            ReplyFormat::Json => "tag",
            ReplyFormat::Plain => "plain-tag",
        };
        let session = self.session.as_ref().map_or("", |it| it.as_str());
        let (rest, body) = match asked.submit {
            Some(submit) => (submitted(submit), Some(submit.source.as_str())),
            None => (
                self.rest_on_link(asked),
                asked.body.or(self.body.as_deref()),
            ),
        };
        let hop = self.hop();
        let mut text = format!("{} {session} --{word}={tag} {hop}", self.verb);
        for (option, value) in &asked.instead {
            text.push_str(&format!(" --{option}={value}"));
        }
        text.push(' ');
        text.push_str(&rest);
        if let Some(body) = body {
            text.push('\n');
            text.push_str(body);
        }
        text
    }
}

/// How a request is said this time.
pub(super) struct Asked<'a> {
    pub(super) format: ReplyFormat,
    /// A cell, with the options that it has this time.
    pub(super) submit: Option<&'a SubmitRequest>,
    /// What stands for the body.
    pub(super) body: Option<&'a str>,
    /// Options that have another value this time.
    pub(super) instead: Vec<(&'static str, String)>,
}

/// The options of a cell as they are typed.
fn submitted(submit: &SubmitRequest) -> String {
    let SubmitOptions {
        stream,
        since,
        detach,
        wait,
        timeout,
        busy_fails,
        cancel_on_disconnect,
        queue,
        key,
        resent,
        author,
        max_result,
        ..
    } = &submit.options;
    let seconds = |name, span: &Option<std::time::Duration>| {
        span.map(|span| format!("--{name}={}", span.as_secs_f64()))
    };
    let flag = |name, on: &bool| on.then(|| format!("--{name}"));
    let value = |name, text: &Option<String>| text.as_ref().map(|it| format!("--{name}={it}"));
    let words = [
        flag("stream", stream),
        since.map(|since| format!("--since={since}")),
        flag("detach", detach),
        seconds("wait", wait),
        seconds("timeout", timeout),
        busy_fails.then(|| "--busy=fail".to_owned()),
        flag("cancel-on-disconnect", cancel_on_disconnect),
        flag("queue", &(*queue && submit.kind == CellKind::Fire)),
        value("id", key),
        seconds("resent", resent),
        value("author", author),
        max_result.map(|most| format!("--max-result={most}")),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Whether a request may be answered late: when cells have ended, or an interpreter
/// has started.
pub(super) fn lasts(request: &Request) -> bool {
    matches!(
        request,
        Request::Submit(_)
            | Request::Wait(_)
            | Request::Out(_)
            | Request::Events(_)
            | Request::New(_)
    )
}

/// Whether a request may be sent again when nobody knows whether it was carried
/// out.
pub(super) fn may_repeat(parsed: &Parsed) -> bool {
    match &parsed.request {
        Ok(Request::Interrupt(request)) => !request.cells.is_empty(),
        Ok(Request::New(_) | Request::Kill(_)) => false,
        // Cells have keys; the others only ask.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_word_is_a_session_only_where_it_can_be_none_else() {
        let second = |text: &str, rest: &str| {
            let frame = Frame::parse(text).expect("it is a frame");
            second_name(&frame, rest).map(|(name, rest)| (name.to_string(), rest))
        };
        let found = |name: &str, rest: &str| Some((name.to_owned(), rest.to_owned()));
        assert_eq!(second("run far x\n1", "x"), found("x", ""));
        assert_eq!(
            second("run far --json x\n1", "--json x"),
            found("x", "--json")
        );
        assert_eq!(second("run far x", "x"), None);
        assert_eq!(second("run far x = 1\ny", "x = 1"), None);
        assert_eq!(second("complete far x", "x"), None);
        assert_eq!(second("status far x", "x"), found("x", ""));
        assert_eq!(second("poll far 5f2c00000003", "5f2c00000003"), None);
        assert_eq!(second("resize far 24 80", "24 80"), None);
        assert_eq!(second("resize far x 24 80", "x 24 80"), found("x", "24 80"));
    }

    proptest! {
        #[test]
        fn any_text_has_a_name_or_none(text in "\\PC*|[a-z0-9 /\\n=-]*|(run|poll|complete) [ -~\\n]*") {
            if let Some(frame) = Frame::parse(&text)
                && let Some((before, name, after)) = around_name(frame.header)
            {
                prop_assert!(!name.is_empty() && !name.starts_with("--"));
                prop_assert_eq!(format!("{before}{name}{after}"), frame.header);
                let rest = join(before, after);
                if let Some((session, shorter)) = second_name(&frame, &rest) {
                    prop_assert!(shorter.len() + session.as_str().len() <= rest.len());
                }
            }
        }
    }
}
