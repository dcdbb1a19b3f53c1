//! How much of each client's typing was taken, over all its connections: a client
//! that lost its connection asks, and sends again what was not. Counts, and knows
//! no lane.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pythond_protocol::lane::{InputKey, InputTaken};

/// Keys that are remembered beside those of terminals that are attached.
const MOST_REMEMBERED: usize = 64;
/// How long the daemon's clients may take to be there again after its end, from
/// the first on.
const RETURN: Duration = Duration::from_secs(10);

/// What is known of all keys.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The one that was attached last at the end.
    known: VecDeque<Known>,
    /// How many daemons there were.
    daemons: u64,
    /// Who left when nobody else was there to type, and may come back to go on.
    left: Vec<Left>,
    /// When the first came after them.
    first_came: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    key: String,
    taken: u64,
}

#[derive(Debug)]
struct Left {
    key: String,
    /// Under which daemon.
    daemon: u64,
}

impl Inputs {
    /// Another daemon is there.
    pub(crate) fn another_daemon(&mut self) {
        self.daemons += 1;
    }

    /// A terminal is attached with this key. The oldest that `is_attached` denies
    /// is forgotten if there are too many.
    pub(crate) fn begin(
        &mut self,
        input: &InputKey,
        is_attached: impl Fn(&str) -> bool,
    ) -> InputTaken {
        let at = self.known.iter().position(|known| known.key == input.key);
        let before = at.and_then(|at| self.known.remove(at));
        let resumed = before.is_some();
        let known = before.unwrap_or_else(|| Known {
            key: input.key.clone(),
            taken: 0,
        });
        let taken = known.taken;
        self.known.push_back(known);
        let idle = |known: &Known| known.key != input.key && !is_attached(&known.key);
        if self.known.iter().filter(|known| idle(known)).count() > MOST_REMEMBERED
            && let Some(oldest) = self.known.iter().position(idle)
        {
            self.known.remove(oldest);
        }
        InputTaken { taken, resumed }
    }

    /// So many bytes more were taken.
    pub(crate) fn take(&mut self, key: &str, bytes: usize) {
        // It is attached, and so it is known.
        if let Some(known) = self.known.iter_mut().rev().find(|known| known.key == key) {
            known.taken += bytes as u64;
        }
    }

    /// How many bytes were taken in all.
    pub(crate) fn taken(&self, key: &str) -> Option<u64> {
        let mut known = self.known.iter().rev();
        known.find(|known| known.key == key).map(|it| it.taken)
    }

    /// The last who could type is gone; with this key, perhaps not for long.
    pub(crate) fn left(&mut self, key: &str) {
        self.left.retain(|left| left.key != key);
        self.left.push(Left {
            key: key.to_owned(),
            daemon: self.daemons,
        });
        self.first_came = None;
    }

    /// Somebody comes who can type. True if nobody is waited for any more who
    /// could end what they had begun to type.
    pub(crate) fn came(&mut self, key: Option<&str>) -> bool {
        self.left.retain(|left| Some(left.key.as_str()) != key);
        self.first_came.get_or_insert_with(Instant::now);
        // Who leaves a daemon that lives does not come back, or would have been
        // first; after a daemon's end its clients come in any order.
        let gone = |left: &Left| left.daemon == self.daemons;
        let given_up = !self.left.is_empty() && self.left.iter().all(gone);
        if given_up {
            self.left.clear();
        }
        given_up
    }

    /// True once if those who left have had their time.
    pub(crate) fn gives_up(&mut self) -> bool {
        let over = self.first_came.is_some_and(|at| at.elapsed() >= RETURN);
        let given_up = over && !self.left.is_empty();
        if given_up {
            self.left.clear();
        }
        given_up
    }
}
