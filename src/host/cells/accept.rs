//! Takes cells: new ones, those that are known by their key, those that are refused.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use pythond_protocol::lane::KeyDigest;
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::cell::PREVIEW;
use pythond_protocol::{ErrorCode, ErrorReply};

use super::{Acceptance, Cells, Moment, Offer, Record};
use crate::fork;

/// Keys of forgotten cells that are remembered: these cells are not run again.
const MOST_SPENT_KEYS: usize = 16_384;
/// Bytes of code that may wait in one session.
const MOST_QUEUED_BYTES: usize = 64 << 20;

/// Keys of cells that are forgotten, the newest: as hashes, for a wrong "spent"
/// in 2^50 costs less than the memory.
#[derive(Debug, Default)]
pub(super) struct SpentKeys {
    order: VecDeque<u64>,
    all: HashSet<u64>,
}

impl SpentKeys {
    pub(super) fn add(&mut self, hash: u64) {
        if self.all.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > MOST_SPENT_KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }

    fn has(&self, hash: u64) -> bool {
        self.all.contains(&hash)
    }
}

impl Cells {
    /// Takes a cell, or finds the one that has its key, which `digest` is of.
    pub(crate) fn accept(
        &mut self,
        offer: &Offer<'_>,
        digest: Option<KeyDigest>,
        now: Moment,
    ) -> Acceptance {
        let Offer {
            request,
            kind,
            lane,
            how,
            source,
            ..
        } = *offer;
        let direct = lane.is_some();
        if direct && lane != self.lane {
            return Acceptance::Stale;
        }
        if let Some(known_or_refused) = self.not_new(offer, digest) {
            if direct {
                // The daemon may have told of this id on the control lane already, or
                // will: nobody else may get it.
                self.never_given = Some(self.take_id(kind, direct));
            }
            return known_or_refused;
        }
        let id = self.take_id(kind, direct);
        if let Some(key) = &how.key {
            self.keys.insert(key.clone(), id);
        }
        let record = Record {
            kind,
            author: how.author.clone(),
            status: CellStatus::Queued,
            accepted: now,
            started: None,
            timeout: how.timeout_ms.map(Duration::from_millis),
            timed_out: false,
            interrupted: false,
            key: how.key.clone(),
            digest,
            code: preview(source),
            // What the person types nobody asked for.
            request: (kind != CellKind::Human).then_some(request),
            end: None,
        };
        self.records.insert(id, record);
        Acceptance::New(id)
    }

    /// What becomes of a cell that is known already, or cannot be taken.
    fn not_new(&self, offer: &Offer<'_>, digest: Option<KeyDigest>) -> Option<Acceptance> {
        let Offer {
            kind,
            how,
            source,
            age,
            ..
        } = *offer;
        if let (Some(key), Some(digest)) = (&how.key, &digest) {
            if self.spent_keys.has(digest.of_key()) {
                let message = format!("the cell with the id `{key}` is not kept any more");
                let error = ErrorReply::new(ErrorCode::Lost, message);
                let hint = "it was accepted once and is not run again; choose a new id to run it";
                return Some(Acceptance::Refused(error.with_hint(hint)));
            }
            if let Some(id) = self.keys.get(key)
                && let Some(record) = self.records.get(id)
            {
                return Some(if record.digest.as_ref() == Some(digest) {
                    Acceptance::Existing(*id, record.status)
                } else {
                    Acceptance::Refused(ErrorReply::id_reused(key, *id))
                });
            }
        }
        let resent = how.resent_ms.map(Duration::from_millis);
        if resent.is_some_and(|ago| age < ago) {
            let message = "the session is younger than this request: \
                 the one it was sent to is gone";
            let error = ErrorReply::new(ErrorCode::Lost, message.to_owned());
            let hint = "nobody can know whether it ran there; look before you send it again";
            return Some(Acceptance::Refused(error.with_hint(hint)));
        }
        // What is on its way by the cell lane may be this very cell.
        let behind = offer.lane.is_none() && self.reserved.is_some();
        let is_taken = || offer.held || behind || self.main_is_taken();
        if how.busy_fails && kind == CellKind::Run && is_taken() {
            let error = ErrorReply::new(ErrorCode::Busy, "the session is busy");
            return Some(Acceptance::Refused(error));
        }
        let is_full = |running: usize, most: u64| running as u64 >= most;
        if kind == CellKind::Fire && !how.queue && is_full(self.beside_running, self.limits.fires) {
            let most = self.limits.fires;
            let message = format!("{most} `fire` cells run in this session already");
            let error = ErrorReply::new(ErrorCode::Limit, message);
            return Some(Acceptance::Refused(
                error.with_hint("let it wait with `--queue`"),
            ));
        }
        let most = self.limits.forks.min(fork::MOST as u64);
        if kind == CellKind::Fork && is_full(self.forks_running, most) {
            let message = format!("{most} `fork` cells run in this session already");
            let error = ErrorReply::new(ErrorCode::Limit, message);
            return Some(Acceptance::Refused(
                error.with_hint("wait for some of them to end"),
            ));
        }
        // One that came by the cell lane does not wait.
        if offer.lane.is_none()
            && let Err(error) = self.room_for(source.len())
        {
            return Some(Acceptance::Refused(error));
        }
        None
    }

    /// Cells run or wait on the main thread.
    fn main_is_taken(&self) -> bool {
        let takes = |record: &Record| {
            record.end.is_none() && matches!(record.kind, CellKind::Run | CellKind::Human)
        };
        self.records.values().any(takes)
    }

    /// Whether code of this length may wait.
    fn room_for(&self, length: usize) -> Result<(), ErrorReply> {
        let queues = self.queue.iter().chain(&self.beside).chain(&self.held);
        let bytes: usize = queues.map(|cell| cell.source.len()).sum();
        let waiting = self.queue.len() + self.beside.len() + self.held.len();
        let most = self.limits.queued;
        let message = if waiting as u64 >= most {
            format!("{most} cells wait in this session already")
        } else if bytes > 0 && bytes + length > MOST_QUEUED_BYTES {
            let most = MOST_QUEUED_BYTES >> 20;
            format!("more than {most} MiB of code wait in this session")
        } else {
            return Ok(());
        };
        let error = ErrorReply::new(ErrorCode::Limit, message);
        Err(error.with_hint("wait for cells to finish, then send it again"))
    }
}

/// The first line that says something.
fn preview(source: &str) -> String {
    let line = source.lines().map(str::trim).find(|line| !line.is_empty());
    let visible = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let line = line.unwrap_or_default().chars();
    line.take(PREVIEW).map(visible).collect()
}
