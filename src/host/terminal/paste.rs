//! Whether somebody has begun a paste and not ended it, told from what is typed.

/// What a terminal writes before and after a paste.
pub(crate) const PASTE_BEGIN: &[u8] = b"\x1b[200~";
pub(crate) const PASTE_END: &[u8] = b"\x1b[201~";
/// Ends a paste whose end never comes, for whoever reads it: a program finds an end;
/// our prompt finds that it begins anew, which no paste does within, and forgets what
/// came before. In the stream itself, as nobody else could say where it stands there.
pub(crate) const ABANDONED: &[u8] = b"\x1b[200~\x1b[201~";
/// The interrupt key, Ctrl-C, gives up a paste at our prompt.
const INTERRUPT: u8 = 3;

/// Follows what is typed.
#[derive(Debug, Default)]
pub(crate) struct OpenPaste {
    /// How much of one of the sequences has passed.
    matched: Matched,
    open: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Matched {
    #[default]
    Nothing,
    /// So many bytes of what both begin with.
    Both(usize),
    /// All but the last byte.
    Begin,
    End,
}

impl OpenPaste {
    /// These bytes were typed.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.matched = match (self.matched, byte) {
                (_, 0x1b) => Matched::Both(1),
                (Matched::Both(1), b'[') => Matched::Both(2),
                (Matched::Both(2), b'2') => Matched::Both(3),
                (Matched::Both(3), b'0') => Matched::Both(4),
                (Matched::Both(4), b'0') => Matched::Begin,
                (Matched::Both(4), b'1') => Matched::End,
                (last, byte) => {
                    match (last, byte) {
                        (Matched::Begin, b'~') => self.open = true,
                        (Matched::End, b'~') | (_, INTERRUPT) => self.open = false,
                        _ => {}
                    }
                    Matched::Nothing
                }
            };
        }
    }

    /// What was typed was given up, or ended. True if a paste was open.
    pub(crate) fn close(&mut self) -> bool {
        std::mem::take(self).open
    }
}
