//! What is typed, in whole characters and whole pastes: readline would wait for
//! the rest of one that is torn, and everybody with it.

use crate::terminal::{PASTE_BEGIN, PASTE_END};

/// Most of a paste that is kept, in bytes.
const LONGEST_PASTE: usize = 16 << 20;
/// The interrupt key, Ctrl-C.
const INTERRUPT: u8 = 3;

/// Something whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A character, or the first bytes of a sequence that is no paste.
    Character(Vec<u8>),
    /// A whole paste, its lines ended by newlines.
    Paste(Vec<u8>),
    /// Ctrl-C.
    Interrupt,
}

/// Puts bytes together.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    bytes: Vec<u8>,
    /// Inside a paste.
    pasting: bool,
}

impl Keys {
    /// Takes one byte; what is whole with it.
    pub(crate) fn take(&mut self, byte: u8) -> Option<Key> {
        if byte == INTERRUPT {
            // Also in a paste whose end never came.
            self.clear();
            return Some(Key::Interrupt);
        }
        self.bytes.push(byte);
        if self.pasting {
            return self.paste();
        }
        if PASTE_BEGIN.starts_with(&self.bytes) {
            if self.bytes.len() == PASTE_BEGIN.len() {
                self.bytes.clear();
                self.pasting = true;
            }
            return None;
        }
        if is_torn(&self.bytes) {
            return None;
        }
        Some(Key::Character(std::mem::take(&mut self.bytes)))
    }

    fn paste(&mut self) -> Option<Key> {
        if self.bytes.ends_with(PASTE_BEGIN) {
            // The one before was abandoned.
            self.bytes.clear();
            return None;
        }
        if self.bytes.ends_with(PASTE_END) {
            let mut text = std::mem::take(&mut self.bytes);
            self.pasting = false;
            text.truncate(text.len() - PASTE_END.len());
            return Some(Key::Paste(with_newlines(&text)));
        }
        if self.bytes.len() > LONGEST_PASTE + PASTE_END.len() {
            // The end of the paste is looked for, its middle is not kept.
            let rest = self.bytes.split_off(self.bytes.len() - PASTE_END.len());
            self.bytes.truncate(LONGEST_PASTE);
            self.bytes.extend(rest);
        }
        None
    }

    /// Nobody ends what was typed by half; a paste has an end of its own then.
    pub(crate) fn clear_torn(&mut self) {
        if !self.pasting {
            self.bytes.clear();
        }
    }

    /// What waits for its rest, a lone escape apart, is forgotten.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.pasting = false;
    }
}

/// A character whose bytes are not all there.
fn is_torn(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Lines end as terminals send them: with carriage returns.
fn with_newlines(text: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(text.len());
    let mut bytes = text.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b'\r' {
            bytes.next_if(|next| **next == b'\n');
            lines.push(b'\n');
        } else {
            lines.push(byte);
        }
    }
    lines
}
