//! Who asked what of the daemon: one line each, never code, never tokens.
//!
//! Shape: `ACCESS ts=… event=… conn_id=… peer=…` and further `key=value`
//! fields, in the form that readers of 0.4 know. At most 4 KiB a line, so that
//! lines of several writers never mix (write(2) to a file opened for appending).

use pythond_protocol::shown::is_bidi_control;
use std::fmt::Write as _;

use pythond_protocol::SessionPath;

use crate::log::Log;
use crate::peer::Peer;

/// Greatest length of a line, in bytes.
const MAX_LINE: usize = 4096;
/// Most characters of one value.
const MAX_VALUE: usize = 256;

/// The fields that an event has beyond its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields<'a> {
    /// The verb.
    pub(crate) command: Option<&'a str>,
    /// The first word after the verb, whatever it is.
    pub(crate) session: Option<&'a str>,
    /// How it went.
    pub(crate) status: Option<&'a str>,
    /// Bytes of code that came as a body.
    pub(crate) body_bytes: Option<usize>,
    /// Anything else.
    pub(crate) detail: Option<&'a str>,
}

/// Writes the lines of one connection.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    log: Log,
    connection: u64,
    peer: Peer,
    line: String,
}

impl AccessLog {
    /// The lines of this connection.
    pub(crate) fn new(log: Log, connection: u64, peer: Peer) -> Self {
        Self {
            log,
            connection,
            peer,
            line: String::with_capacity(256),
        }
    }

    /// The connection comes by the daemon's own socket.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.peer, Peer::Unix(_))
    }

    /// Writes one line.
    pub(crate) fn event(&mut self, event: &str, fields: &Fields<'_>) {
        self.line.clear();
        let now = jiff::Timestamp::now();
        // Writing to a String cannot fail.
        let _ = write!(
            self.line,
            "ACCESS ts={now:.3} event={event} conn_id={} peer={}",
            self.connection, self.peer
        );
        if let Some(command) = fields.command {
            self.line.push_str(" cmd=");
            push_value(&mut self.line, command);
        }
        if let Some(session) = fields.session {
            self.line.push_str(" session=");
            self.line.push_str(match session {
                "" => "-",
                name if name.parse::<SessionPath>().is_ok() => name,
                _ => "invalid",
            });
        }
        if let Some(status) = fields.status {
            self.line.push_str(" status=");
            push_value(&mut self.line, status);
        }
        if let Some(body_bytes) = fields.body_bytes {
            let _ = write!(self.line, " body_bytes={body_bytes}");
        }
        if let Some(detail) = fields.detail {
            self.line.push_str(" detail=");
            push_value(&mut self.line, detail);
        }
        while self.line.len() >= MAX_LINE {
            self.line.pop();
        }
        self.line.push('\n');
        self.log.access(self.line.as_bytes());
    }
}

/// Says how many lines of a kind were left out.
pub(crate) fn left_out(log: &Log, kind: &str, count: u64) {
    let now = jiff::Timestamp::now();
    log.access(format!("ACCESS ts={now:.3} event=left_out kind={kind} count={count}\n").as_bytes());
}

/// A value without anything that could end a field or a line, or steer a
/// terminal.
fn push_value(line: &mut String, value: &str) {
    for character in value.chars().take(MAX_VALUE) {
        match character {
            '\\' => line.push_str("\\\\"),
            '\r' => line.push_str("\\r"),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            ' ' => line.push_str("\\s"),
            other if other.is_control() || is_steering(other) => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(other));
            }
            other => line.push(other),
        }
    }
}

/// Separators and direction marks that are no control characters for Unicode
/// and still change how a line is shown.
fn is_steering(character: char) -> bool {
    matches!(character, '\u{2028}' | '\u{2029}') || is_bidi_control(character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(value: &str) -> String {
        let mut line = String::new();
        push_value(&mut line, value);
        line
    }

    #[test]
    fn values_are_escaped_as_in_0_4_and_more() {
        assert_eq!(escaped("a b\t\\\r\n"), "a\\sb\\t\\\\\\r\\n");
        assert_eq!(escaped("\x1b[2J\u{9b}"), "\\u{1b}[2J\\u{9b}");
        assert_eq!(escaped("é"), "é");
    }

    proptest! {
        #[test]
        fn no_value_breaks_a_line(value in "(?s).*") {
            let shown = escaped(&value);
            let bad = shown.chars().any(|c| c.is_control() || c == ' ' || is_steering(c));
            prop_assert!(!bad);
            prop_assert!(shown.len() < MAX_LINE - 200 || shown.len() <= MAX_VALUE * 10);
        }
    }
}
