//! What a session has switched on in the terminal, and the way back.

use std::collections::BTreeSet;

/// Private modes that are on when nobody has touched them.
const ON_BY_DEFAULT: [u16; 2] = [7, 25];
/// The mode in which a terminal puts marks around pasted text.
const PASTES: u16 = 2004;

/// The state of a terminal as far as a session has changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Modes {
    /// Private modes that are not as they were; the alternate screen excepted.
    changed: BTreeSet<u16>,
    /// The mode that led to the alternate screen.
    alternate: Option<u16>,
    keypad: bool,
    insert: bool,
    region: bool,
    cursor_style: bool,
    charsets: BTreeSet<u8>,
    shifted: bool,
    link: bool,
}

impl Modes {
    /// The terminal may have typed what no person did: reports of mouse and
    /// focus that are still on their way.
    pub(crate) fn reports(&self) -> bool {
        self.changed
            .iter()
            .any(|mode| matches!(mode, 9 | 1000..=1004))
    }

    /// Pastes are marked.
    pub(crate) fn pastes(&self) -> bool {
        self.changed.contains(&PASTES)
    }

    /// As it was, but that pastes are marked.
    pub(crate) fn only_pastes() -> Self {
        Self {
            changed: BTreeSet::from([PASTES]),
            ..Self::default()
        }
    }

    pub(super) fn private(&mut self, mode: u16, on: bool) {
        match (mode, on) {
            // Only the cursor, and that one is not ours to restore.
            (1048, _) => {}
            (47 | 1047 | 1049, true) => self.alternate = Some(mode),
            (47 | 1047 | 1049, false) => self.alternate = None,
            (66, _) => self.keypad = on,
            _ if on == ON_BY_DEFAULT.contains(&mode) => {
                self.changed.remove(&mode);
            }
            _ => {
                self.changed.insert(mode);
            }
        }
        if mode == 12 {
            // What it was is not known; the shape's default has it.
            self.changed.remove(&mode);
            self.cursor_style = true;
        }
    }

    pub(super) fn insert(&mut self, on: bool) {
        self.insert = on;
    }

    pub(super) fn keypad(&mut self, on: bool) {
        self.keypad = on;
    }

    pub(super) fn region(&mut self, set: bool) {
        self.region = set;
    }

    pub(super) fn cursor_style(&mut self, set: bool) {
        self.cursor_style = set;
    }

    pub(super) fn charset(&mut self, slot: u8, final_byte: u8) {
        if final_byte == b'B' {
            self.charsets.remove(&slot);
        } else {
            self.charsets.insert(slot);
        }
    }

    pub(super) fn shifted(&mut self, out: bool) {
        self.shifted = out;
    }

    pub(super) fn has_link(&self) -> bool {
        self.link
    }

    pub(super) fn link(&mut self, open: bool) {
        self.link = open;
    }

    /// Soft reset (DECSTR) by the session.
    pub(super) fn soft_reset(&mut self) {
        for mode in [1, 6, 7, 25] {
            self.changed.remove(&mode);
        }
        self.keypad = false;
        self.insert = false;
        self.region = false;
        self.charsets.clear();
        self.shifted = false;
    }

    /// Bytes that make the terminal what it was. Written twice they do the same
    /// as once. Colours end and the cursor shows whatever was seen.
    pub(crate) fn leave(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.link {
            bytes.extend_from_slice(b"\x1b]8;;\x1b\\");
        }
        for &mode in &self.changed {
            let switch = if ON_BY_DEFAULT.contains(&mode) {
                'h'
            } else {
                'l'
            };
            bytes.extend_from_slice(format!("\x1b[?{mode}{switch}").as_bytes());
        }
        if self.region {
            // It moves the cursor, which is put back.
            bytes.extend_from_slice(b"\x1b7\x1b[0r\x1b8");
        }
        if self.insert {
            bytes.extend_from_slice(b"\x1b[4l");
        }
        if self.keypad {
            bytes.extend_from_slice(b"\x1b>");
        }
        if self.cursor_style {
            bytes.extend_from_slice(b"\x1b[0 q");
        }
        for &slot in &self.charsets {
            bytes.extend_from_slice(&[0x1b, slot, b'B']);
        }
        if self.shifted {
            bytes.push(0x0f);
        }
        bytes.extend_from_slice(b"\x1b[0m");
        if let Some(mode) = self.alternate {
            bytes.extend_from_slice(format!("\x1b[?{mode}l").as_bytes());
        }
        bytes.extend_from_slice(b"\x1b[?25h");
        bytes
    }
}
