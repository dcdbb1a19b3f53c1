//! Pastes, whole and abandoned.

use crate::keys::{Key, Keys};
use crate::paste::{ABANDONED, OpenPaste};

#[test]
fn a_paste_is_open_from_its_beginning_to_its_end() {
    for (typed, open) in [
        (&b"x"[..], false),
        (b"\x1b[200~", true),
        (b"\x1b[200~a\x1b[A\x1b[201", true),
        (b"\x1b[200~a\x1b[201~", false),
        (b"\x1b\x1b[200~a", true),
        (b"\x1b[200\x1b[200~", true),
        (b"\x1b[200~a\x03", false),
        (b"\x1b[200~a\x1b[201~\x1b[201~b", false),
        (ABANDONED, false),
    ] {
        for pieces in [1, 2, typed.len()] {
            let mut paste = OpenPaste::default();
            typed.chunks(pieces).for_each(|piece| paste.pass(piece));
            assert_eq!(paste.close(), open, "{typed:?}");
            assert!(!paste.close());
        }
    }
}

#[test]
fn nothing_of_an_abandoned_paste_is_left_wherever_it_was_torn() {
    let typed = b"\x1b[200~never \xc3\xa9nded\x1b[201";
    for torn in 6..typed.len() {
        let mut keys = Keys::default();
        let bytes = [&typed[..torn], ABANDONED, b"x"].concat();
        let mut found = Vec::new();
        for (at, byte) in bytes.into_iter().enumerate() {
            // Whoever reads may be told at any time after it that somebody has gone.
            if at >= torn {
                keys.clear_torn();
            }
            found.extend(keys.take(byte));
        }
        let expected = [Key::Paste(Vec::new()), Key::Character(b"x".to_vec())];
        assert_eq!(found, expected, "torn at {torn}");
    }
}
