//! `attach NAME`: a terminal on a session. After the answer the connection
//! carries bytes both ways, and what happens as one JSON object each.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use super::submit::take_label;
use crate::lane::InputKey;
use crate::names::{SessionId, SessionName};
use crate::{ErrorCode, ErrorReply};

/// What a client may type instead of closing the connection.
pub const DETACH: &str = "detach";

/// The greatest length of `--term` and `--colorterm`, in bytes.
const MAX_TERM: usize = 64;

/// How many characters a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines, from 1.
    pub rows: u16,
    /// Characters in a line, from 1.
    pub cols: u16,
}

/// Which terminal wants to be attached, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Where.
    pub session: SessionName,
    /// The terminal's size; none leaves the session's as it is.
    pub size: Option<TerminalSize>,
    /// Nothing that it sends is typed.
    pub read_only: bool,
    /// Its `TERM`.
    pub term: Option<String>,
    /// Its `COLORTERM`.
    pub colorterm: Option<String>,
    /// What it types is to be counted, and it is told how much was taken.
    pub input: Option<InputKey>,
}

pub(super) fn parse(header: &mut Header<'_>) -> Result<AttachRequest, ErrorReply> {
    let read_only = header.take_flag("read-only");
    let term = terminal_word(header, "term")?;
    let colorterm = terminal_word(header, "colorterm")?;
    let input = input_key(header)?;
    let usage = "attach <name> [<rows> <cols>]";
    header.finish(3, usage)?;
    let Some(name) = header.arguments.first() else {
        return Err(ErrorReply::usage(usage));
    };
    let session = session_with_terminal(name)?;
    let size = match header.arguments[1..] {
        [rows, cols] => Some(size(rows, cols)?),
        // 0.4 does not look at a lone number of rows.
        _ => None,
    };
    Ok(AttachRequest {
        session,
        size,
        read_only,
        term,
        colorterm,
        input,
    })
}

fn input_key(header: &mut Header<'_>) -> Result<Option<InputKey>, ErrorReply> {
    let key = take_label(header, "input-key")?;
    let resume = header.take_flag("resume");
    match key {
        Some(key) => Ok(Some(InputKey { key, resume })),
        None if resume => Err(ErrorReply::new(
            ErrorCode::Usage,
            "`--resume` needs an `--input-key`",
        )),
        None => Ok(None),
    }
}

/// The name of a session that must be there, with 0.4's words if it is not.
///
/// # Errors
/// [`no_session`] if no session can have this name.
pub(super) fn session_with_terminal(name: &str) -> Result<SessionName, ErrorReply> {
    existing_session(name).map_err(|error| {
        let shown: String = name.chars().take(100).filter(|c| !c.is_control()).collect();
        error.with_plain(no_session(&shown).plain.unwrap_or_default())
    })
}

/// No session has this name, in the words that 0.4 has for `attach` and
/// `resize`.
#[must_use]
pub fn no_session(name: &str) -> ErrorReply {
    ErrorReply::no_session(name).with_plain(format!("no session '{name}'"))
}

/// A terminal's size as two words.
///
/// # Errors
/// 0.4's words: no integers, or out of range.
pub(super) fn size(rows: &str, cols: &str) -> Result<TerminalSize, ErrorReply> {
    if !is_integer(rows) || !is_integer(cols) {
        return Err(ErrorReply::new(
            ErrorCode::Usage,
            "rows/cols must be integers",
        ));
    }
    let number = |word: &str| word.replace('_', "").parse::<u16>().ok();
    match (number(rows), number(cols)) {
        (Some(rows @ 1..), Some(cols @ 1..)) => Ok(TerminalSize { rows, cols }),
        _ => Err(ErrorReply::new(ErrorCode::Usage, "rows/cols out of range")),
    }
}

/// What Python's `int` takes for an integer, in ASCII.
fn is_integer(word: &str) -> bool {
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    let group = |group: &str| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
    digits.split('_').all(group)
}

/// A word that becomes a variable of the session's terminal: nothing that a
/// shell or terminfo(5) would read as more than a name.
fn terminal_word(header: &mut Header<'_>, name: &str) -> Result<Option<String>, ErrorReply> {
    let Some(value) = header.take_value(name)? else {
        return Ok(None);
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if value.is_empty() || value.len() > MAX_TERM || !value.chars().all(allowed) {
        return Err(ErrorReply::new(
            ErrorCode::Usage,
            format!("`--{name}` takes 1 to {MAX_TERM} letters, digits, `-`, `_`, `.` and `+`"),
        ));
    }
    Ok(Some(value.to_owned()))
}

/// Whether a word may stand after `--term=` and `--colorterm=`.
#[must_use]
pub fn is_terminal_word(word: &str) -> bool {
    let mut header = Header {
        options: vec![("term", Some(word))],
        ..Header::default()
    };
    terminal_word(&mut header, "term").is_ok()
}

/// The structured answer to `attach`; the plain one is `OK attached`. After it
/// each binary message holds bytes for the terminal, the first one draws the
/// screen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AttachReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Lines of the session's terminal.
    pub rows: u16,
    /// Characters in a line of it.
    pub cols: u16,
    /// Nothing that this client sends is typed.
    pub read_only: bool,
    /// Agents' cells wait.
    pub held: bool,
    /// Terminals that are attached now, this one included.
    pub attached: u64,
    /// Name of the machine.
    pub host: String,
    /// With `--input-key`: how many bytes that this client typed the session has
    /// taken, over all connections with the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<u64>,
    /// With `--input-key`: the session knew the key. Else `taken` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
}

/// What happens while a terminal is attached. Clients pass over what they do
/// not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AttachEvent {
    /// The session's terminal has another size.
    TerminalResized {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        cols: u16,
    },
    /// Agents' cells wait from now on, or do not any more.
    Held {
        /// They wait.
        held: bool,
        /// Who has asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        author: Option<String>,
    },
    /// With `--input-key`: the session has taken so many bytes that this client
    /// typed, over all connections with the key. It has them whatever happens to
    /// the daemon.
    InputTaken {
        /// Bytes, from the first.
        taken: u64,
    },
    /// Last: the connection is closed after it.
    TerminalClosed {
        /// Why, for programs.
        reason: TerminalEnd,
        /// Why, for people: one sentence.
        message: String,
    },
}

/// Why a terminal is attached no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TerminalEnd {
    /// The person at the prompt ended the session.
    Exited,
    /// The session was ended by `kill`.
    Killed,
    /// It was replaced by a new one.
    Replaced,
    /// It ended with the daemon.
    Stopped,
    /// Its process died.
    Died,
    /// The client did not take what the session wrote (close code 1013), or its
    /// remote was disconnected.
    CutOff,
    /// A terminal with the same input key was attached in its place.
    Reattached,
    /// A word that came after this version.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frame;
    use crate::verbs::{Parsed, ReplyFormat, Request};

    fn parsed(text: &str) -> Result<Request, ErrorReply> {
        Parsed::of(&Frame::parse(text).unwrap()).request
    }

    fn attach(text: &str) -> AttachRequest {
        match parsed(text) {
            Ok(Request::Attach(request)) => request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        parsed(text).expect_err(text).to_plain()
    }

    #[test]
    fn the_form_of_0_4_is_understood() {
        let size = |rows, cols| Some(TerminalSize { rows, cols });
        assert_eq!(attach("attach work").size, None);
        assert_eq!(attach("attach work 24").size, None);
        assert_eq!(attach("attach work 24 80").size, size(24, 80));
        assert_eq!(attach("attach work +1 65_535").size, size(1, 65535));
        assert!(!attach("attach work 24 80").read_only);
    }

    #[test]
    fn refusals_keep_the_texts_of_0_4() {
        for (words, text) in [
            ("x 80", "ERR rows/cols must be integers"),
            ("24 _80", "ERR rows/cols must be integers"),
            ("24 8_", "ERR rows/cols must be integers"),
            ("24 -", "ERR rows/cols must be integers"),
            ("0 80", "ERR rows/cols out of range"),
            ("-1 80", "ERR rows/cols out of range"),
            ("24 65536", "ERR rows/cols out of range"),
            ("24 99999999999999999999999", "ERR rows/cols out of range"),
        ] {
            assert_eq!(refused(&format!("attach work {words}")), text);
            assert_eq!(refused(&format!("resize work {words}")), text);
        }
        assert_eq!(refused("attach No"), "ERR no session 'No'");
        assert!(refused("attach work 24 80 more").starts_with("ERR usage: attach"));
    }

    #[test]
    fn options_say_what_the_terminal_is() {
        let request = attach(
            "attach work 24 80 --json --read-only --term=xterm-256color --colorterm=truecolor",
        );
        assert!(request.read_only);
        assert_eq!(request.term.as_deref(), Some("xterm-256color"));
        assert_eq!(request.colorterm.as_deref(), Some("truecolor"));
        for wrong in ["--term", "--term=", "--term=a/b", "--colorterm=\u{1b}x"] {
            assert!(
                refused(&format!("attach work 24 80 {wrong}")).contains("term`"),
                "{wrong:?}"
            );
        }
        assert!(refused(&format!("attach work --term={}", "x".repeat(65))).contains("1 to 64"));
    }

    #[test]
    fn input_is_counted_for_who_asks() {
        assert_eq!(attach("attach work --json").input, None);
        let input = |resume| InputKey {
            key: "k1".to_owned(),
            resume,
        };
        let text = "attach work 24 80 --json --input-key=k1";
        assert_eq!(attach(text).input, Some(input(false)));
        assert_eq!(attach(&format!("{text} --resume")).input, Some(input(true)));
        for wrong in ["--input-key", "--input-key=", "--input-key=\u{1b}"] {
            assert!(
                refused(&format!("attach work --json {wrong}")).contains("input-key"),
                "{wrong:?}"
            );
        }
        let long = "x".repeat(129);
        assert!(refused(&format!("attach work --json --input-key={long}")).contains("128"));
        assert!(refused("attach work --json --resume").contains("--input-key"));
        // Who is told of it is told in JSON.
        let parsed = Parsed::of(&Frame::parse("attach work --input-key=k1").unwrap());
        assert_eq!(parsed.format, ReplyFormat::Json);
    }

    #[test]
    fn an_end_of_a_newer_daemon_is_an_end() {
        let text = r#"{"event":"terminal_closed","reason":"moved","message":"m","more":1}"#;
        let event: AttachEvent = serde_json::from_str(text).unwrap();
        let expected = AttachEvent::TerminalClosed {
            reason: TerminalEnd::Unknown,
            message: "m".to_owned(),
        };
        assert_eq!(event, expected);
    }
}
