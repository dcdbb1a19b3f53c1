//! Output as a text that can be read and that drives nothing but colours.

use pythond_protocol::shown::is_bidi_control;
use std::fmt::Write as _;

/// Longest colour sequence that passes, in bytes; also all that is ever kept.
const MAX_SEQUENCE: usize = 128;

/// Makes a stream of bytes visible: text, newline, tab, carriage return and
/// colours (SGR) pass, other controls become `\x1b` and the like, bytes that
/// are no UTF-8 too.
///
/// Pieces may end anywhere: what cannot be judged yet is kept for the next.
#[derive(Debug, Default)]
pub(crate) struct Visible {
    /// The beginning of a character or of a colour.
    kept: Vec<u8>,
    coloured: bool,
}

impl Visible {
    /// Takes the next piece, and gives what of it can be shown now.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = String::with_capacity(bytes.len());
        let joined;
        let mut rest = if self.kept.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.kept).as_slice(), bytes].concat();
            &joined
        };
        while !rest.is_empty() {
            match colour(rest) {
                Found::Whole(length, resets) => {
                    let (sequence, after) = rest.split_at(length);
                    out.push_str(&String::from_utf8_lossy(sequence));
                    self.coloured = !resets;
                    rest = after;
                    continue;
                }
                Found::Begun => {
                    self.kept = rest.to_vec();
                    break;
                }
                Found::None => {}
            }
            // Up to the next sequence.
            let end = rest[1..]
                .iter()
                .position(|byte| *byte == 0x1b)
                .map_or(rest.len(), |at| at + 1);
            let (text, after) = rest.split_at(end);
            let kept = push_bytes(&mut out, text, after.is_empty());
            self.kept = text[text.len() - kept..].to_vec();
            rest = after;
        }
        out.into_bytes()
    }

    /// The end of the stream: shows what was kept, and ends its colours.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut out = String::new();
        for byte in std::mem::take(&mut self.kept) {
            match byte {
                b' '..=b'~' => out.push(char::from(byte)),
                // Writing to a String cannot fail.
                _ => drop(write!(out, "\\x{byte:02x}")),
            }
        }
        if std::mem::take(&mut self.coloured) {
            out.push_str("\x1b[m");
        }
        out.into_bytes()
    }
}

enum Found {
    /// A colour of this length; whether it only resets.
    Whole(usize, bool),
    /// What may become one.
    Begun,
    None,
}

/// Looks for a colour at the beginning: `ESC [`, digits and separators, `m`.
fn colour(bytes: &[u8]) -> Found {
    let body = match bytes {
        [0x1b] => return Found::Begun,
        [0x1b, b'[', body @ ..] => body,
        _ => return Found::None,
    };
    let length = body
        .iter()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'));
    match length {
        Some(length) if body[length] == b'm' && length < MAX_SEQUENCE => {
            Found::Whole(length + 3, body[..length].iter().all(|byte| *byte == b'0'))
        }
        None if body.len() < MAX_SEQUENCE => Found::Begun,
        _ => Found::None,
    }
}

/// Shows bytes; returns how many at their end begin a character that may still
/// come.
fn push_bytes(out: &mut String, mut bytes: &[u8], more_may_come: bool) -> usize {
    loop {
        let (valid, invalid) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                let valid = std::str::from_utf8(valid).expect("valid up to here");
                if error.error_len().is_none() && more_may_come {
                    valid.chars().for_each(|it| push(out, it));
                    return rest.len();
                }
                (valid, Some((rest, error.error_len().unwrap_or(rest.len()))))
            }
        };
        valid.chars().for_each(|it| push(out, it));
        let Some((rest, length)) = invalid else {
            return 0;
        };
        for byte in &rest[..length] {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
        bytes = &rest[length..];
    }
}

fn push(out: &mut String, character: char) {
    match character {
        '\n' | '\t' | '\r' => out.push(character),
        control if control.is_control() => {
            let _ = write!(out, "\\x{:02x}", u32::from(control));
        }
        // They show text in another order than it has.
        steering if is_bidi_control(steering) => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        other => out.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expected: &str) {
        for cut in 0..=bytes.len() {
            let mut it = Visible::default();
            let mut shown = it.show(&bytes[..cut]);
            shown.extend(it.show(&bytes[cut..]));
            shown.extend(it.finish());
            assert_eq!(
                String::from_utf8(shown).expect("UTF-8"),
                expected,
                "{bytes:?} cut at {cut}"
            );
        }
    }

    #[test]
    fn text_and_colours_pass() {
        check("é🐍\ta\r\n".as_bytes(), "é🐍\ta\r\n");
        check(b"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m");
        check(b"\x1b[38:2::1:2:3mx\x1b[m", "\x1b[38:2::1:2:3mx\x1b[m");
    }

    #[test]
    fn a_colour_ends_with_the_output() {
        check(b"\x1b[31mred", "\x1b[31mred\x1b[m");
    }

    #[test]
    fn all_else_becomes_readable() {
        check(b"\x1b[2J", "\\x1b[2J");
        check(b"\x1b]52;c;YQ==\x07", "\\x1b]52;c;YQ==\\x07");
        check(b"\x1b\x1b[31m", "\\x1b\x1b[31m\x1b[m");
        check(b"\x1b[?25l\x08\x00\x7f", "\\x1b[?25l\\x08\\x00\\x7f");
        check(b"\x1b[>4;2m", "\\x1b[>4;2m");
        check("\u{9b}31m".as_bytes(), "\\x9b31m");
        check("a\u{202e}b\u{2069}".as_bytes(), "a\\u202eb\\u2069");
        check(b"\x1b", "\\x1b");
        check(b"\x1b[31", "\\x1b[31");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        check(b"a\x9bb\xff", "a\\x9bb\\xff");
        check(b"\xf0\x9f\x1b[m", "\\xf0\\x9f\x1b[m");
        check(b"\xe2\x82", "\\xe2\\x82");
    }

    #[test]
    fn an_endless_colour_is_none_and_is_not_kept() {
        let mut it = Visible::default();
        let mut shown = it.show(b"\x1b[");
        for _ in 0..1000 {
            shown.extend(it.show(b"1;"));
            assert!(it.kept.len() < MAX_SEQUENCE + 8);
        }
        let text = String::from_utf8(shown).unwrap();
        assert!(text.starts_with("\\x1b[1;1;"), "{text}");
    }

    proptest! {
        #[test]
        fn nothing_but_colours_drives_the_terminal(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..12)
        ) {
            let mut it = Visible::default();
            let mut shown: Vec<u8> = pieces.iter().flat_map(|piece| it.show(piece)).collect();
            shown.extend(it.finish());
            let text = String::from_utf8(shown).unwrap();
            let mut rest = text.as_str();
            while let Some(at) = rest.find(|c: char| c.is_control() && !"\n\t\r".contains(c)) {
                let Found::Whole(length, _) = colour(&rest.as_bytes()[at..]) else {
                    panic!("{text:?}");
                };
                rest = &rest[at + length..];
            }
        }
    }
}
