//! The list of what may pass to an attached terminal. What is not here does
//! not pass: a terminal that learns something new is not thereby open to it.
//!
//! Source of the names and numbers: ctlseqs of xterm.

/// C0 controls: bell, backspace, tab, line feeds, return, shift out and in.
/// Not ENQ, which is answered with a text.
pub(super) fn control(byte: u8) -> bool {
    matches!(byte, 0x07..=0x0f)
}

/// Escape sequences of two characters: save and restore the cursor, index,
/// next line, set a tab stop, reverse index, the keypad's modes. Not DECID,
/// which is answered.
pub(super) fn escape(final_byte: u8) -> bool {
    matches!(
        final_byte,
        b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'=' | b'>'
    )
}

/// Charset designations: G0 to G3 as ASCII, British or line drawing. Not
/// `ESC % @`, which ends UTF-8.
pub(super) fn charset(intermediate: u8, final_byte: u8) -> bool {
    matches!(intermediate, b'('..=b'+') && matches!(final_byte, b'0' | b'A' | b'B')
}

/// Control sequences by their intermediates and final character. Modes are
/// looked at one by one, see [`private_mode`] and [`ansi_mode`].
pub(super) fn control_sequence(intermediates: &[u8], action: char, params: &[u16]) -> bool {
    let first = params.first().copied().unwrap_or(0);
    match (intermediates, action) {
        // Insert and delete, cursor, scrolling, tabs, repeat, SGR, region.
        (
            [],
            '@'
            | 'A'..='I'
            | 'K'..='M'
            | 'P'
            | 'S'
            | 'X'
            | 'Z'
            | '`'
            | 'a'
            | 'b'
            | 'd'
            | 'e'
            | 'f'
            | 'g'
            | 'm'
            | 'r',
        ) => true,
        // Erase, but not the lines that were scrolled away: they are the
        // person's.
        ([], 'J') => first <= 2,
        // With more parameters these are mouse tracking and margins.
        ([], 'T' | 's' | 'u') => params.len() <= 1,
        // Erase what is not protected; tab stops at every eighth column.
        ([b'?'], 'J' | 'K') => first <= 2,
        ([b'?'], 'W') => first == 5,
        // Scroll sideways; the cursor's shape.
        ([b' '], '@' | 'A') => true,
        ([b' '], 'q') => first <= 6,
        // Soft reset.
        ([b'!'], 'p') => true,
        _ => false,
    }
}

/// ANSI modes: insert alone. Not the keyboard's lock.
pub(super) fn ansi_mode(mode: u16) -> bool {
    mode == 4
}

/// Private modes. Not those that make the terminal type (colour-scheme and
/// size reports), that encode keys in other ways (Ctrl-] would be lost), or
/// that resize the window.
pub(super) fn private_mode(mode: u16) -> bool {
    matches!(
        mode,
        // Cursor keys, reversed screen, origin, wrap, the cursor's blinking
        // and visibility, keypad.
        1 | 5 | 6 | 7 | 12 | 25 | 66
        // The alternate screen and the saved cursor.
        | 47 | 1047 | 1048 | 1049
        // Mouse, its encodings, focus; bracketed paste; synchronised output.
        | 9 | 1000 | 1002 | 1003 | 1004 | 1005 | 1006 | 1015 | 1016
        | 2004 | 2026
    )
}

/// Most bytes of a hyperlink that passes.
pub(super) const MAX_LINK: usize = 2048;

/// Where a hyperlink may lead: the web. Not to files, which a click would open
/// on the person's machine.
pub(super) fn link(uri: &[u8]) -> bool {
    let web = [&b"http://"[..], b"https://"]
        .iter()
        .any(|scheme| uri.len() > scheme.len() && uri.starts_with(scheme));
    web && uri.len() <= MAX_LINK && uri.iter().all(u8::is_ascii_graphic)
}

/// The identity of a hyperlink: `id=` and a word.
pub(super) fn link_parameters(parameters: &[u8]) -> bool {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    parameters
        .strip_prefix(b"id=")
        .is_some_and(|id| id.len() <= 250 && id.iter().all(word))
}
