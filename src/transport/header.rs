//! The first line of a frame: verb, session, options, arguments.

use std::fmt::{Display, Write as _};

use pythond_protocol::{ErrorCode, ErrorReply, SessionPath};

use crate::ClientError;

/// A header that grows word by word; always asks for the structured form.
#[derive(Debug)]
pub(crate) struct Header {
    line: String,
}

impl Header {
    /// A verb that is about no session, or about all.
    pub(crate) fn new(verb: &str) -> Self {
        Self {
            line: format!("{verb} --json"),
        }
    }

    /// A verb and its session.
    pub(crate) fn of(verb: &str, session: &SessionPath) -> Result<Self, ClientError> {
        // The wire reads words that begin with `--` as options, so that a
        // session called `--all` would end every other one.
        if session.to_string().starts_with("--") {
            let error = ErrorReply::bad_name().with_hint("session names do not begin with `--`");
            return Err(ClientError::Refused(error));
        }
        Ok(Self {
            line: format!("{verb} {session} --json"),
        })
    }

    /// `--name`, if it is on.
    pub(crate) fn flag(mut self, name: &str, on: bool) -> Self {
        if on {
            self.push(&format!("--{name}"));
        }
        self
    }

    /// `--name=value`, if there is a value.
    ///
    /// # Errors
    /// A usage error for a value that would not arrive as one word.
    pub(crate) fn value(
        mut self,
        name: &str,
        value: Option<impl Display>,
    ) -> Result<Self, ClientError> {
        if let Some(value) = value {
            let value = value.to_string();
            if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control()) {
                let message = format!("`--{name}` takes one word without white space");
                return Err(ClientError::Refused(ErrorReply::new(
                    ErrorCode::Usage,
                    message,
                )));
            }
            self.push(&format!("--{name}={value}"));
        }
        Ok(self)
    }

    /// Further arguments, one word each.
    pub(crate) fn arguments<T: Display>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        for word in words {
            // Writing to a String cannot fail.
            let _ = write!(self.line, " {word}");
        }
        self
    }

    /// The whole frame. The newline is always there: options of `run` and
    /// `fire` count only before a body, were it an empty one.
    pub(crate) fn with_body(mut self, body: &str) -> String {
        self.line.reserve(1 + body.len());
        self.line.push('\n');
        self.line.push_str(body);
        self.line
    }

    /// The whole frame of a verb that takes no body.
    pub(crate) fn finish(self) -> String {
        self.line
    }

    fn push(&mut self, word: &str) {
        self.line.push(' ');
        self.line.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_reads_as_an_option_is_never_sent() {
        let error = Header::of("kill", &"--all".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    }

    #[test]
    fn a_value_that_would_fall_apart_is_never_sent() {
        for value in ["", "Ann Lee", "a\nb", "a\u{3000}b", "\u{7}"] {
            let error = Header::new("ls").value("author", Some(value)).unwrap_err();
            assert!(matches!(error, ClientError::Refused(_)), "{value:?}");
        }
        let header = Header::new("ls").value("author", Some("é@x=1")).unwrap();
        assert_eq!(header.finish(), "ls --json --author=é@x=1");
    }
}
