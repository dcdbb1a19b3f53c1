//! What was typed and the session has not acknowledged: kept until it has, and
//! sent again on the next connection. Numbers and bytes; no I/O.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pythond_protocol::verbs::attach::AttachReply;

/// Bytes that are kept. With more the keyboard is not read.
const MOST: usize = 8 << 20;
/// After so long without room the keyboard is read all the same, for the key that
/// detaches; the rest is lost, and counted.
const FULL: Duration = Duration::from_secs(2);

/// Typed bytes, from the first that the session has not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// How many it has, as it counts them.
    taken: u64,
    bytes: VecDeque<u8>,
    /// How many of these this connection was given.
    sent: usize,
    /// The session counts. Else what was sent is not kept.
    counted: bool,
    /// Which state of which session it is.
    session: Option<(String, u64)>,
    full_since: Option<Instant>,
    /// Bytes for which there was no room, or no session any more.
    lost: u64,
    /// Some were sent to a session that does not count.
    unsure: bool,
    /// That was so when a connection broke.
    unknown: bool,
}

/// Whether the keyboard is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Yes.
    Enough,
    /// Not for so long.
    None(Duration),
    /// Only for the keys that are ours.
    Lost,
}

impl Kept {
    /// Whether more may be typed.
    pub(crate) fn room(&self) -> Room {
        let Some(since) = self.full_since else {
            return Room::Enough;
        };
        match FULL.checked_sub(since.elapsed()) {
            Some(left) if !left.is_zero() => Room::None(left),
            _ => Room::Lost,
        }
    }

    /// There may be room now, or none any more.
    fn look_for_room(&mut self) {
        if self.bytes.len() < MOST {
            self.full_since = None;
        } else {
            self.full_since.get_or_insert_with(Instant::now);
        }
    }

    /// Keeps what was typed.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        if self.bytes.len() < MOST {
            self.bytes.extend(bytes);
        } else {
            self.lost += bytes.len() as u64;
        }
        self.look_for_room();
    }

    /// The next bytes for the connection, at most so many.
    pub(crate) fn next(&mut self, most: usize) -> Option<Vec<u8>> {
        let count = (self.bytes.len() - self.sent).min(most);
        if count == 0 {
            return None;
        }
        let piece = self.bytes.range(self.sent..self.sent + count).copied();
        let piece = piece.collect();
        if self.counted {
            self.sent += count;
        } else {
            self.bytes.drain(..count);
            self.unsure = true;
            self.look_for_room();
        }
        Some(piece)
    }

    /// The session has so many by now. More than it was sent cannot be.
    pub(crate) fn acknowledged(&mut self, taken: u64) {
        let more = taken.saturating_sub(self.taken);
        let count = usize::try_from(more).unwrap_or(usize::MAX).min(self.sent);
        self.bytes.drain(..count);
        self.sent -= count;
        self.taken += count as u64;
        self.look_for_room();
    }

    /// It is attached. What the session before did not take is not for another
    /// one, nor for one that cannot say what it took.
    pub(crate) fn attached(&mut self, reply: &AttachReply) {
        let session = Some((reply.session_id.to_string(), reply.generation));
        let first = self.session.is_none();
        let same = first || self.session == session;
        self.unknown |= !first && std::mem::take(&mut self.unsure);
        self.session = session;
        self.counted = reply.taken.is_some();
        let taken = reply.taken.unwrap_or(0);
        if !same || (self.counted && reply.resumed != Some(true)) {
            self.lost += self.bytes.len() as u64;
            self.bytes.clear();
            self.taken = taken;
        }
        // Also what was sent may have been taken, and its acknowledgement lost.
        self.sent = self.bytes.len();
        self.acknowledged(taken);
        self.sent = 0;
    }

    /// Bytes that the session has not acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What the person has to know of it at the end.
    pub(crate) fn farewell(&self) -> Option<String> {
        match self.lost + self.bytes.len() as u64 {
            0 if self.unknown => Some(
                "what was typed while the connection broke may be missing: \
                 the session's process is of an older version"
                    .to_owned(),
            ),
            0 => None,
            1 => Some("1 byte that was typed may not have reached the session".to_owned()),
            missing => Some(format!(
                "{missing} bytes that were typed may not have reached the session"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(generation: u64, taken: Option<u64>, resumed: Option<bool>) -> AttachReply {
        let mut reply = serde_json::json!({
            "ok": true, "session": "work", "session_id": "00000000000000ab",
            "gen": generation, "rows": 24, "cols": 80, "read_only": false,
            "held": false, "attached": 1, "host": "h",
        });
        if let (Some(taken), Some(resumed)) = (taken, resumed) {
            reply["taken"] = taken.into();
            reply["resumed"] = resumed.into();
        }
        serde_json::from_value(reply).unwrap()
    }

    fn begun() -> Kept {
        let mut kept = Kept::default();
        kept.attached(&reply(1, Some(0), Some(false)));
        kept
    }

    fn next(kept: &mut Kept) -> String {
        let bytes = kept.next(usize::MAX).unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_was_not_taken_is_sent_again_and_nothing_else() {
        for taken in 0..=6 {
            let mut kept = begun();
            kept.add(b"abc");
            assert_eq!(next(&mut kept), "abc");
            kept.add(b"def");
            assert_eq!(next(&mut kept), "def");
            kept.acknowledged(2.min(taken));
            // The connection breaks, and something is typed meanwhile.
            kept.add(b"ghi");
            kept.attached(&reply(1, Some(taken), Some(true)));
            let rest = &"abcdefghi"[usize::try_from(taken).unwrap()..];
            assert_eq!(next(&mut kept), rest);
            kept.acknowledged(9);
            assert_eq!((kept.len(), kept.farewell()), (0, None));
        }
    }

    #[test]
    fn another_session_gets_nothing_of_it() {
        for (generation, resumed) in [(2, true), (2, false), (1, false)] {
            let mut kept = begun();
            kept.add(b"abc");
            next(&mut kept);
            kept.add(b"d");
            kept.attached(&reply(generation, Some(0), Some(resumed)));
            assert_eq!(kept.next(9), None);
            assert!(kept.farewell().unwrap().starts_with("4 bytes"));
            kept.add(b"new");
            assert_eq!(next(&mut kept), "new");
            kept.acknowledged(3);
            assert_eq!(kept.len(), 0);
        }
    }

    #[test]
    fn a_session_that_does_not_count_gets_everything_once() {
        let mut kept = Kept::default();
        kept.attached(&reply(1, None, None));
        kept.add(b"abc");
        assert_eq!(next(&mut kept), "abc");
        assert_eq!((kept.len(), kept.farewell()), (0, None));
        kept.add(b"def");
        kept.attached(&reply(1, None, None));
        assert_eq!(next(&mut kept), "def");
        assert!(kept.farewell().unwrap().contains("older version"));
    }

    #[test]
    fn numbers_that_cannot_be_true_harm_nothing() {
        let mut kept = begun();
        kept.add(b"abc");
        kept.acknowledged(u64::MAX);
        assert_eq!(next(&mut kept), "abc");
        kept.acknowledged(2);
        kept.acknowledged(1);
        assert_eq!(kept.len(), 1);
        kept.attached(&reply(1, Some(u64::MAX), Some(true)));
        assert_eq!(kept.len(), 0);
    }

    #[test]
    fn without_room_the_keyboard_is_not_read_and_later_for_our_keys_alone() {
        let mut kept = begun();
        assert_eq!(kept.room(), Room::Enough);
        kept.add(&vec![b'x'; MOST]);
        assert!(matches!(kept.room(), Room::None(left) if left <= FULL));
        kept.full_since = Instant::now().checked_sub(FULL);
        assert_eq!(kept.room(), Room::Lost);
        kept.add(b"y");
        assert_eq!(kept.len(), MOST);
        assert_eq!(kept.next(1), Some(b"x".to_vec()));
        kept.acknowledged(1);
        assert_eq!(kept.room(), Room::Enough);
        let told = kept.farewell().unwrap();
        assert!(told.starts_with(&format!("{MOST} bytes")), "{told}");
    }
}
