//! Text of others as it may be shown: nothing in it steers a terminal or makes a
//! line read otherwise than it is.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters that change the order in which others are shown, and are no
/// control characters: the property `Bidi_Control` of Unicode.
#[must_use]
pub fn is_bidi_control(character: char) -> bool {
    matches!(
        character,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Text with control characters, newline and tab excepted, as `\x1b` and the
/// like, and with [bidirectional ones](is_bidi_control) as `\u202e` and the like.
#[must_use]
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    let is_bad = |it: char| (it.is_control() && !matches!(it, '\n' | '\t')) || is_bidi_control(it);
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if !is_bad(character) {
            escaped.push(character);
            continue;
        }
        // Writing to a String cannot fail.
        let _ = if character.is_control() {
            write!(escaped, "\\x{:02x}", u32::from(character))
        } else {
            write!(escaped, "\\u{:04x}", u32::from(character))
        };
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_shown_and_the_rest_is_as_it_was() {
        assert!(matches!(escape_controls("é\n\tאב"), Cow::Borrowed(_)));
        assert_eq!(
            escape_controls("a\x1b\u{9b}\u{61c}\u{200f}\u{202e}\u{2069}b\r"),
            "a\\x1b\\x9b\\u061c\\u200f\\u202e\\u2069b\\x0d"
        );
    }
}
