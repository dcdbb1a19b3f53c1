//! What a person typed: bytes for the session, and the two keys that are ours.

/// A terminal puts pasted text between these, once a program has asked for it.
const PASTE_BEGIN: &[u8] = b"\x1b[200~";
const PASTE_END: &[u8] = b"\x1b[201~";

/// Our keys as bytes, and as terminals encode them for programs that have asked
/// for that (CSI u, xterm's `modifyOtherKeys`). Those come in one piece.
const DETACH: [&[u8]; 3] = [b"\x1d", b"\x1b[93;5u", b"\x1b[27;5;93~"];
const HOLD: [&[u8]; 3] = [b"\x1c", b"\x1b[92;5u", b"\x1b[27;5;92~"];

/// What was typed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Typed<'a> {
    /// For the session.
    Bytes(&'a [u8]),
    /// Ctrl-].
    Detach,
    /// Ctrl-\.
    Hold,
}

/// Tells keys from pasted text, over any number of pieces.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pasting: bool,
    /// Bytes of the next paste mark that have come.
    matched: usize,
}

impl Keys {
    /// What comes next is pasted.
    pub(crate) fn pasting(&self) -> bool {
        self.pasting
    }

    /// Takes a piece apart. Nothing is kept back: what is not a key of ours is
    /// for the session, at once.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Vec<Typed<'a>> {
        let mut typed = Vec::new();
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() {
            let key = |keys: &[&[u8]]| {
                let found = keys.iter().find(|key| bytes[at..].starts_with(key));
                found.filter(|_| !self.pasting).map(|key| key.len())
            };
            let (length, what) = match (key(&DETACH), key(&HOLD)) {
                (Some(length), _) => (length, Typed::Detach),
                (_, Some(length)) => (length, Typed::Hold),
                (None, None) => {
                    self.mark(bytes[at]);
                    at += 1;
                    continue;
                }
            };
            if from < at {
                typed.push(Typed::Bytes(&bytes[from..at]));
            }
            typed.push(what);
            self.matched = 0;
            at += length;
            from = at;
        }
        if from < at {
            typed.push(Typed::Bytes(&bytes[from..at]));
        }
        typed
    }

    /// Looks for the begin or the end of a paste.
    fn mark(&mut self, byte: u8) {
        let mark = if self.pasting { PASTE_END } else { PASTE_BEGIN };
        if byte == mark[self.matched] {
            self.matched += 1;
        } else {
            // Both begin with the one ESC that they have.
            self.matched = usize::from(byte == mark[0]);
        }
        if self.matched == mark.len() {
            self.pasting = !self.pasting;
            self.matched = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `D` for Ctrl-], `H` for Ctrl-\, all else as it is.
    fn told(pieces: &[&[u8]]) -> String {
        let mut keys = Keys::default();
        let mut told = String::new();
        for piece in pieces {
            for typed in keys.take(piece) {
                match typed {
                    Typed::Bytes(bytes) => told.push_str(&String::from_utf8_lossy(bytes)),
                    Typed::Detach => told.push('D'),
                    Typed::Hold => told.push('H'),
                }
            }
        }
        told.replace('\x1b', "^")
            .replace('\x1d', "]")
            .replace('\x1c', "|")
    }

    #[test]
    fn two_keys_are_ours_and_all_else_is_typed() {
        assert_eq!(told(&[b"a\x1d"]), "aD");
        assert_eq!(told(&[b"a\x1cb\x1d", b"c"]), "aHbDc");
        assert_eq!(told(&[b"\x03\x1a\x04\x1b[A\x1bOP"]), "\x03\x1a\x04^[A^OP");
        assert_eq!(told(&[b"x\x1b[93;5uy\x1b[27;5;92~z"]), "xDyHz");
        assert_eq!(told(&[b"\x1b"]), "^");
    }

    #[test]
    fn pasted_keys_are_text_however_the_paste_is_torn() {
        let pasted = b"a\x1b[200~x\x1d\x1c\x1b[93;5u\x1b[200~\x1d\x1b\x1b[201~\x1d";
        let expected = "a^[200~x]|^[93;5u^[200~]^^[201~D";
        for cut in 0..=pasted.len() {
            for second in cut..=pasted.len() {
                let pieces = [&pasted[..cut], &pasted[cut..second], &pasted[second..]];
                assert_eq!(told(&pieces), expected, "cut at {cut} and {second}");
            }
        }
    }
}
