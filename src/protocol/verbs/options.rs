//! Options and arguments of a frame's header.

use std::time::Duration;

use crate::frame::take_word;
use crate::names::{CellId, SessionName};
use crate::{ErrorCode, ErrorReply, Frame};

/// Longest time span that an option can have: ten years.
const MAX_SPAN: Duration = Duration::from_secs(3652 * 24 * 3600);

/// The header of a frame, split into options (`--json`, `--key=value`) and
/// arguments.
#[derive(Debug, Default)]
pub struct Header<'a> {
    /// Words that begin with `--`, without it.
    pub options: Vec<(&'a str, Option<&'a str>)>,
    /// All other words.
    pub arguments: Vec<&'a str>,
}

impl<'a> Header<'a> {
    /// Splits the header of a verb that takes options anywhere.
    #[must_use]
    pub fn of(frame: &Frame<'a>) -> Self {
        let mut header = Self::default();
        for word in frame.header.split_whitespace() {
            match word.strip_prefix("--") {
                Some(option) if !option.is_empty() => header.push_option(option),
                _ => header.arguments.push(word),
            }
        }
        header
    }

    fn push_option(&mut self, option: &'a str) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        self.options.push((key, value));
    }

    /// Takes a flag out; true if it was there.
    pub fn take_flag(&mut self, name: &str) -> bool {
        let before = self.options.len();
        self.options
            .retain(|(key, value)| *key != name || value.is_some());
        self.options.len() != before
    }

    /// Takes an option with a value out; the last one counts.
    ///
    /// # Errors
    /// A word about the form, if the option came without a value.
    pub fn take_value(&mut self, name: &str) -> Result<Option<&'a str>, ErrorReply> {
        let mut found = None;
        let mut bare = false;
        self.options.retain(|(key, value)| {
            if *key == name {
                bare |= value.is_none();
                found = value.or(found);
            }
            *key != name
        });
        if bare {
            let message = format!("`--{name}` needs a value: `--{name}=…`");
            return Err(ErrorReply::new(ErrorCode::Usage, message));
        }
        Ok(found)
    }

    /// Refuses what nobody took.
    ///
    /// # Errors
    /// Names the first unknown option, or gives the usage line if there are
    /// more arguments than `most`.
    pub fn finish(&self, most: usize, usage: &str) -> Result<(), ErrorReply> {
        if let Some((key, _)) = self.options.first() {
            return Err(unknown_option(key));
        }
        if self.arguments.len() > most {
            return Err(ErrorReply::usage(usage));
        }
        Ok(())
    }

    /// The first argument as a session's name.
    ///
    /// # Errors
    /// The usage line if there is none, [`ErrorReply::bad_name`] if it is not
    /// allowed.
    pub fn session(&self, usage: &str) -> Result<SessionName, ErrorReply> {
        let name = self
            .arguments
            .first()
            .ok_or_else(|| ErrorReply::usage(usage))?;
        existing_session(name)
    }
}

/// A name that must belong to a session already: one that is not allowed is
/// simply not there, as in 0.4.
///
/// # Errors
/// [`ErrorReply::no_session`] if no session can have this name.
pub fn existing_session(name: &str) -> Result<SessionName, ErrorReply> {
    name.parse().map_err(|_| {
        let shown: String = name.chars().take(100).filter(|c| !c.is_control()).collect();
        ErrorReply::no_session(&shown)
            .with_hint(ErrorReply::bad_name().hint.expect("bad_name has a hint"))
    })
}

/// A time span in seconds, `--name=1.5`.
///
/// # Errors
/// A word about the form.
pub fn seconds(header: &mut Header<'_>, name: &str) -> Result<Option<Duration>, ErrorReply> {
    let Some(value) = header.take_value(name)? else {
        return Ok(None);
    };
    let span = value.parse::<f64>().ok();
    let span = span.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match span {
        Some(span) if span <= MAX_SPAN => Ok(Some(span)),
        _ => Err(ErrorReply::new(
            ErrorCode::Usage,
            format!("`--{name}` takes seconds from 0 to {}", MAX_SPAN.as_secs()),
        )),
    }
}

/// A cell's id.
///
/// # Errors
/// [`ErrorCode::UnknownCell`]: what is no id names no cell.
pub fn cell_id(text: &str) -> Result<CellId, ErrorReply> {
    text.parse().map_err(|_| ErrorReply::unknown_cell(text))
}

/// Refuses an option that the verb does not have.
#[must_use]
pub fn unknown_option(key: &str) -> ErrorReply {
    let shown: String = key.chars().take(40).filter(|c| !c.is_control()).collect();
    ErrorReply::new(ErrorCode::Usage, format!("unknown option `--{shown}`"))
        .with_hint("send `help` for the verbs and their options")
}

/// How many daemons have passed a request on: `--hops=N` right behind the session's
/// name, where a daemon puts it; only a tag may stand before it.
///
/// # Errors
/// A word about the form.
pub fn hops(frame: &Frame<'_>) -> Result<u32, ErrorReply> {
    let is_code = matches!(frame.verb, "run" | "fire" | "fork");
    if is_code && frame.body.is_none() && !frame.trailing_newline {
        return Ok(0);
    }
    let mut rest = take_word(frame.header).map_or("", |(_, rest)| rest);
    while let Some((word, after)) = take_word(rest)
        && let Some((option, value)) = word.split_once('=')
    {
        match option {
            "--tag" | "--plain-tag" => rest = after,
            "--hops" => return checked_hops(value),
            _ => break,
        }
    }
    Ok(0)
}

/// The value of `--hops`.
pub(super) fn checked_hops(value: &str) -> Result<u32, ErrorReply> {
    let message = "`--hops` takes how many daemons have passed the request on";
    value
        .parse()
        .map_err(|_| ErrorReply::new(ErrorCode::Usage, message))
}

/// The words of a header that stand before the code of `run`, `fire`, `fork`:
/// the session's name, then options as long as words begin with `--`.
///
/// Returns name, options, and the rest of the header as it was sent.
///
/// # Errors
/// The usage line if there is no name.
pub fn before_code<'a>(frame: &Frame<'a>) -> Result<(&'a str, Header<'a>, &'a str), ErrorReply> {
    let (name, mut rest) = take_word(frame.header)
        .ok_or_else(|| ErrorReply::new(ErrorCode::Usage, "need session name"))?;
    let mut options = Header::default();
    // Without a body everything after the name is code: that is how frames of
    // 0.4 keep their meaning. A line that ends right after its options is an
    // empty body.
    if frame.body.is_some() || frame.trailing_newline {
        while let Some((word, after)) = take_word(rest) {
            match word.strip_prefix("--") {
                Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    options.push_option(option);
                    rest = after;
                }
                _ => break,
            }
        }
    }
    Ok((name, options, rest.trim()))
}
