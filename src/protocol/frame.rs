//! One text message taken apart: verb, header words, raw body.
//!
//! Knows no verb's fields and decides nothing about them.

/// One text message of a client.
///
/// Shape: the first line is the command; after the first newline comes raw
/// code, never escaped. A single line ending at the very end of a one-line
/// message is what terminals send, no empty body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// First word of the header, after an optional `pysh` or `pyctl`.
    pub verb: &'a str,
    /// The header after the verb, trimmed at both ends.
    pub header: &'a str,
    /// Everything after the first newline, as it was sent.
    pub body: Option<&'a str>,
    /// The message was one line that ended in a newline.
    pub trailing_newline: bool,
}

impl<'a> Frame<'a> {
    /// Takes a message apart. None for a message without a verb, which is
    /// ignored (PROTOCOL.md, "Frames").
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (line, rest) = match text.split_once('\n') {
            Some((line, rest)) => (line, Some(rest)),
            None => (text, None),
        };
        let trailing_newline = rest == Some("");
        let body = rest.filter(|rest| !rest.is_empty());
        let (mut verb, mut header) = take_word(line)?;
        if matches!(verb, "pysh" | "pyctl") {
            (verb, header) = take_word(header)?;
        }
        Some(Self {
            verb,
            header: header.trim(),
            body,
            trailing_newline,
        })
    }

    /// Number of code bytes that travelled as a body, for the access log.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body.map_or(0, str::len)
    }
}

/// The first word of a text and what follows it. None if there is no word.
#[must_use]
pub fn take_word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    if text.is_empty() {
        return None;
    }
    Some(text.split_once(char::is_whitespace).unwrap_or((text, "")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, verb: &str, header: &str, body: Option<&str>) {
        let frame = Frame::parse(text).expect(text);
        assert_eq!(
            (frame.verb, frame.header, frame.body),
            (verb, header, body),
            "{text:?}"
        );
    }

    #[test]
    fn frames_are_taken_apart_as_pythond_0_4_did() {
        check("ls", "ls", "", None);
        check("ls\n", "ls", "", None);
        check("ls\r\n", "ls", "", None);
        check("  pysh  ls ", "ls", "", None);
        check("pyctl stop", "stop", "", None);
        check("run work 1 + 1", "run", "work 1 + 1", None);
        check("run work 1 + 1\r\n", "run", "work 1 + 1", None);
        check("run work\nprint(1)\n", "run", "work", Some("print(1)\n"));
        check(
            "run work\r\nx = 1\r\ny = 2",
            "run",
            "work",
            Some("x = 1\r\ny = 2"),
        );
        check("run work\n\n", "run", "work", Some("\n"));
        for empty in ["", "\n", "  \r\n", "pysh", "pyctl  ", "\nrun work"] {
            assert_eq!(Frame::parse(empty), None, "{empty:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_ignored(text in ".*") {
            let _ = Frame::parse(&text);
        }

        #[test]
        fn a_body_is_never_changed(body in "(?s).+") {
            let text = format!("run work\n{body}");
            let frame = Frame::parse(&text);
            prop_assert_eq!(frame.and_then(|frame| frame.body), Some(body.as_str()));
        }
    }
}
