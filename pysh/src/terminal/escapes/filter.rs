//! The filter between a session and an attached terminal.
//!
//! Nothing is passed on as it came: what is allowed is written anew from what
//! was parsed. So no sequence can be torn, hidden in another one, or read by
//! the terminal in a way that the parser did not.

use std::io::Write as _;

use vte::{Params, Parser, Perform};

use super::allowed;
use super::modes::Modes;

/// Bytes of an operating system command that are kept; a longer one is dropped
/// whole. Room for a hyperlink.
const MAX_OSC: usize = allowed::MAX_LINK + 512;
/// `vte` tells no more parts of an operating system command than this.
const MAX_OSC_PARTS: usize = 16;

/// A stream of bytes for a terminal, without what must not reach it.
///
/// Pieces may end anywhere, inside a character or a sequence. Memory is bounded
/// however long a sequence is.
#[derive(Default)]
pub(crate) struct ScreenFilter {
    parser: Parser<MAX_OSC>,
    screen: Screen,
    /// The beginning of a character. It never reaches the parser alone: `vte`
    /// 0.15 loses what follows a character that was torn.
    torn: Vec<u8>,
}

impl ScreenFilter {
    /// A filter at the start of a stream.
    pub(crate) fn new() -> Self {
        Self {
            parser: Parser::new_with_size(),
            screen: Screen::default(),
            torn: Vec::new(),
        }
    }

    /// Takes the next piece, and gives what of it may pass.
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let joined;
        let bytes = if self.torn.is_empty() {
            bytes
        } else {
            joined = [self.torn.as_slice(), bytes].concat();
            &joined
        };
        let (whole, torn) = bytes.split_at(bytes.len() - torn_at_end(bytes));
        self.torn = torn.to_vec();
        self.screen.out.reserve(whole.len());
        self.parser.advance(&mut self.screen, whole);
        std::mem::take(&mut self.screen.out)
    }

    /// What the stream has switched on so far.
    pub(crate) fn modes(&self) -> &Modes {
        &self.screen.modes
    }
}

/// How many bytes at the end begin a character of UTF-8 that is not complete.
fn torn_at_end(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|count| bytes[bytes.len() - count] >= 0xc0)
        .filter(|count| {
            let end = std::str::from_utf8(&bytes[bytes.len() - count..]);
            end.is_err_and(|error| error.error_len().is_none())
        })
        .unwrap_or(0)
}

#[derive(Default)]
struct Screen {
    out: Vec<u8>,
    modes: Modes,
    /// Inside of `ESC k`, the title of `screen`: text up to the next control.
    in_title: bool,
}

impl Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// `CSI`, the marks before and after the parameters, the final character.
    fn control_sequence(&mut self, params: &Params, intermediates: &[u8], action: char) {
        let (marks, rest): (Vec<u8>, Vec<u8>) =
            intermediates.iter().partition(|byte| **byte >= b'<');
        self.write(b"\x1b[");
        self.write(&marks);
        for (index, param) in params.iter().enumerate() {
            if index > 0 {
                self.write(b";");
            }
            for (index, part) in param.iter().enumerate() {
                if index > 0 {
                    self.write(b":");
                }
                // Writing to a Vec cannot fail.
                let _ = write!(self.out, "{part}");
            }
        }
        self.write(&rest);
        let _ = write!(self.out, "{action}");
    }

    fn private_modes(&mut self, params: &Params, on: bool) {
        for mode in params.iter().map(|param| param[0]) {
            if allowed::private_mode(mode) {
                self.modes.private(mode, on);
                let _ = write!(self.out, "\x1b[?{mode}{}", if on { 'h' } else { 'l' });
            }
        }
    }

    fn ansi_modes(&mut self, params: &Params, on: bool) {
        for mode in params.iter().map(|param| param[0]) {
            if allowed::ansi_mode(mode) {
                self.modes.insert(on);
                let _ = write!(self.out, "\x1b[{mode}{}", if on { 'h' } else { 'l' });
            }
        }
    }

    fn hyperlink(&mut self, parts: &[&[u8]]) {
        let uri = parts.get(2..).unwrap_or_default().join(&b';');
        let length: usize = parts.iter().map(|part| part.len() + 1).sum();
        // Cut short by the parser, it would lead elsewhere.
        let whole = parts.len() < MAX_OSC_PARTS && length < MAX_OSC;
        let open = whole && allowed::link(&uri);
        if open {
            self.write(b"\x1b]8;");
            if parts.get(1).is_some_and(|it| allowed::link_parameters(it)) {
                self.write(parts[1]);
            }
            self.write(b";");
            self.write(&uri);
            self.write(b"\x1b\\");
        } else if self.modes.has_link() {
            self.write(b"\x1b]8;;\x1b\\");
        }
        self.modes.link(open);
    }
}

impl Perform for Screen {
    fn print(&mut self, character: char) {
        // A control that was torn between two pieces comes here too.
        if self.in_title || character.is_control() {
            return;
        }
        let mut bytes = [0; 4];
        self.write(character.encode_utf8(&mut bytes).as_bytes());
    }

    fn execute(&mut self, byte: u8) {
        if std::mem::take(&mut self.in_title) && byte == 0x07 {
            return;
        }
        if allowed::control(byte) {
            if byte >= 0x0e {
                self.modes.shifted(byte == 0x0e);
            }
            self.out.push(byte);
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        self.in_title = false;
        if ignore {
            return;
        }
        match (intermediates, action) {
            ([b'?'], 'h' | 'l') => return self.private_modes(params, action == 'h'),
            ([], 'h' | 'l') => return self.ansi_modes(params, action == 'h'),
            _ => {}
        }
        let firsts: Vec<u16> = params.iter().map(|param| param[0]).collect();
        if !allowed::control_sequence(intermediates, action, &firsts) {
            return;
        }
        match (intermediates, action) {
            ([], 'r') => self.modes.region(firsts.iter().any(|it| *it != 0)),
            ([b' '], 'q') => self.modes.cursor_style(firsts != [0]),
            ([b'!'], 'p') => self.modes.soft_reset(),
            _ => {}
        }
        self.control_sequence(params, intermediates, action);
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        self.in_title = false;
        match (intermediates, byte) {
            _ if ignore => {}
            ([], b'k') => self.in_title = true,
            // A full reset would also take what the person has set: only what
            // the session changed is reset, and the screen is cleared.
            ([], b'c') => {
                let leave = self.modes.leave();
                self.write(&leave);
                self.write(b"\x1b[0H\x1b[2J");
                self.modes = Modes::default();
            }
            ([], final_byte) if allowed::escape(final_byte) => {
                match final_byte {
                    b'=' | b'>' => self.modes.keypad(final_byte == b'='),
                    _ => {}
                }
                self.write(&[0x1b, final_byte]);
            }
            ([b'#'], b'8') => self.write(b"\x1b#8"),
            ([slot], final_byte) if allowed::charset(*slot, final_byte) => {
                self.modes.charset(*slot, final_byte);
                self.write(&[0x1b, *slot, final_byte]);
            }
            _ => {}
        }
    }

    fn osc_dispatch(&mut self, parts: &[&[u8]], _bell_terminated: bool) {
        self.in_title = false;
        if parts.first() == Some(&&b"8"[..]) {
            self.hyperlink(parts);
        }
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
