//! A client's key as it is written down for those who come after the host.

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::outcome::CellKind;
use crate::verbs::word;

/// A client's key and the cell that came with it, as hashes that are the same in
/// every process and every build: the key itself may be long. SHA-1 is strong
/// enough, for whoever may send cells has nothing to gain from two that agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDigest([u64; 3]);

impl KeyDigest {
    /// Of a cell that came with a key.
    #[must_use]
    pub fn new(key: &str, kind: CellKind, source: &str) -> Self {
        let [first, second, _] = words(Sha1::new().chain_update(key));
        let cell = Sha1::new().chain_update(word(&kind)).chain_update("\n");
        let [cell, ..] = words(cell.chain_update(source));
        Self([first, second, cell])
    }

    /// As three words: two of the key, one of verb and code.
    #[must_use]
    pub fn to_words(self) -> [u64; 3] {
        self.0
    }

    /// From what [`Self::to_words`] gave; none if that was nothing.
    #[must_use]
    pub fn from_words(words: [u64; 3]) -> Option<Self> {
        (words != [0; 3]).then_some(Self(words))
    }

    /// Both are of the same key.
    #[must_use]
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.0[..2] == other.0[..2]
    }

    /// Of the key alone, in short.
    #[must_use]
    pub fn of_key(&self) -> u64 {
        self.0[0]
    }

    /// Of verb and code.
    #[must_use]
    pub fn of_cell(&self) -> u64 {
        self.0[2]
    }
}

/// The first 24 bytes of a hash, of which SHA-1 has 20.
fn words(hash: Sha1) -> [u64; 3] {
    let mut bytes = [0; 24];
    bytes[..20].copy_from_slice(&hash.finalize());
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    [word(0), word(8), word(16)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts and daemons of different builds must agree: these never change.
    #[test]
    fn the_same_key_and_code_are_the_same_for_ever() {
        let digest = KeyDigest::new("k", CellKind::Run, "1 + 1");
        // `printf k | sha1sum`, `printf 'run\n1 + 1' | sha1sum`, bytes turned round.
        let expected = [
            0x5d0e_393d_9cd7_fb13,
            0xc15e_ff11_1ea2_8565,
            0x98a0_2bbf_2344_60a0,
        ];
        assert_eq!(digest.to_words(), expected);
        assert_eq!(KeyDigest::from_words(expected), Some(digest));
        let others = [
            KeyDigest::new("k", CellKind::Fire, "1 + 1"),
            KeyDigest::new("k", CellKind::Run, "1 + 2"),
        ];
        for other in others {
            assert!(digest.is_same_key(&other) && digest != other);
        }
        assert!(!digest.is_same_key(&KeyDigest::new("l", CellKind::Run, "1 + 1")));
        assert_eq!(KeyDigest::from_words([0; 3]), None);
    }
}
