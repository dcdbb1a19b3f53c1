//! The cells of a session: which wait, which run, how those ended that are
//! remembered, who asked for them. Pure state; the clock is handed in.

mod accept;
mod queues;
mod report;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use pythond_protocol::lane::{CellSpec, FinishedCell, KeyDigest};
use pythond_protocol::limits::CellLimits;
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use self::accept::SpentKeys;

/// Marks the numbers of cells that do not take turns on the main thread.
const BESIDE: u32 = 1 << 31;

/// A moment, for people and for measuring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Microseconds since 1970, UTC.
    pub(crate) us: i64,
    pub(crate) instant: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            us: jiff::Timestamp::now().as_microsecond(),
            instant: Instant::now(),
        }
    }
}

/// A cell that waits for its turn.
#[derive(Debug)]
pub(crate) struct QueuedCell {
    pub(crate) id: CellId,
    /// It came by the cell lane, and so does its end go; what is told of the
    /// others goes by the control lane, in order.
    pub(crate) direct: bool,
    /// Work out which names changed.
    pub(crate) changed: bool,
    pub(crate) source: String,
    /// Most bytes that a `fork` cell may bring back, if it says so.
    pub(crate) most_back: Option<u64>,
}

/// A cell that is submitted.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    /// The daemon's number for it.
    pub(crate) request: u64,
    pub(crate) kind: CellKind,
    /// The tag of the cell lane that it came by; none if it came by another way.
    pub(crate) lane: Option<u64>,
    pub(crate) how: &'a CellSpec,
    pub(crate) source: &'a str,
    /// How long the session is there.
    pub(crate) age: Duration,
    /// Agents' cells are to wait.
    pub(crate) held: bool,
}

impl Offer<'_> {
    /// The key that it came with. Takes as long as the code is.
    pub(crate) fn digest(&self) -> Option<KeyDigest> {
        let key = self.how.key.as_ref()?;
        Some(KeyDigest::new(key, self.kind, self.source))
    }
}

/// What came of submitting a cell.
#[derive(Debug)]
pub(crate) enum Acceptance {
    /// It is new.
    New(CellId),
    /// The key belongs to this one, which has the same code.
    Existing(CellId, CellStatus),
    /// It is not taken.
    Refused(ErrorReply),
    /// It was read from a cell lane that is not in use any more: whoever sent it
    /// was told since then that it has not arrived.
    Stale,
}

#[derive(Debug)]
struct Record {
    kind: CellKind,
    author: String,
    status: CellStatus,
    accepted: Moment,
    started: Option<Moment>,
    timeout: Option<Duration>,
    timed_out: bool,
    interrupted: bool,
    key: Option<String>,
    digest: Option<KeyDigest>,
    code: String,
    /// The daemon's number for it; none once that daemon is gone.
    request: Option<u64>,
    end: Option<Box<FinishedCell>>,
}

/// What came of asking for a cell's end.
#[derive(Debug)]
pub(crate) enum Found {
    /// It has ended.
    Ended(Box<FinishedCell>),
    /// It has not; the asker will be told.
    Later,
    /// No such cell is known. [`ErrorCode::UnknownCell`]: it never arrived;
    /// [`ErrorCode::Lost`]: it is not kept any more.
    Unknown(ErrorReply),
}

/// All cells of a session.
#[derive(Debug)]
pub(crate) struct Cells {
    salt: u16,
    limits: CellLimits,
    /// Cells of the main thread. They are numbered apart: the daemon must know
    /// the id of one that it sends to an idle session.
    counter: u32,
    /// All others; their numbers have the upper bit set.
    beside_counter: u32,
    records: BTreeMap<CellId, Record>,
    keys: HashMap<String, CellId>,
    spent_keys: SpentKeys,
    /// The id of a cell that the main thread has not read yet and that comes
    /// before all that wait.
    reserved: Option<CellId>,
    /// The last one that no cell got: its cell did not come before its lane was out
    /// of use, or was not new.
    never_given: Option<CellId>,
    /// The tag of the cell lane; none since a daemon was welcomed whose cell lane
    /// is not there yet.
    lane: Option<u64>,
    /// Those that wait for the main thread.
    queue: VecDeque<QueuedCell>,
    /// Those that wait for the `fire` cells before them.
    beside: VecDeque<QueuedCell>,
    /// `fire` and `fork` cells that wait since agents' cells are to wait.
    held: VecDeque<QueuedCell>,
    /// Who asked for the end of which cell.
    waiting: Vec<(CellId, u64)>,
    forgotten: u64,
    /// `fire` cells that run.
    beside_running: usize,
    /// `fork` cells that run.
    forks_running: usize,
}

impl Cells {
    pub(crate) fn new(salt: u16) -> Self {
        Self {
            salt,
            limits: CellLimits::default(),
            counter: 0,
            beside_counter: 0,
            records: BTreeMap::new(),
            keys: HashMap::new(),
            spent_keys: SpentKeys::default(),
            reserved: None,
            never_given: None,
            lane: None,
            queue: VecDeque::new(),
            beside: VecDeque::new(),
            held: VecDeque::new(),
            waiting: Vec::new(),
            forgotten: 0,
            beside_running: 0,
            forks_running: 0,
        }
    }

    /// How many cells there may be.
    pub(crate) fn keep_within(&mut self, limits: CellLimits) {
        self.limits = limits;
    }

    /// The id that the next cell of the main thread will get.
    pub(crate) fn next_id(&self) -> CellId {
        CellId::from_parts(self.salt, self.counter.wrapping_add(1))
    }

    /// The cell that the daemon sent by the cell lane has this id and its turn,
    /// even if the main thread reads it later than what comes by the control
    /// lane.
    pub(crate) fn reserve(&mut self, id: CellId) {
        if id == self.next_id() {
            self.counter = self.counter.wrapping_add(1);
            self.reserved = Some(id);
        }
    }

    /// A cell that the main thread has not read yet has this id.
    pub(crate) fn is_expected(&self, id: CellId) -> bool {
        self.reserved == Some(id)
    }

    /// Cells come by the cell lane with this tag from now on.
    pub(crate) fn use_lane(&mut self, tag: u64) {
        self.lane = Some(tag);
    }

    fn take_id(&mut self, kind: CellKind, direct: bool) -> CellId {
        if direct && let Some(id) = self.reserved.take() {
            return id;
        }
        if kind == CellKind::Run {
            let id = self.next_id();
            self.counter = self.counter.wrapping_add(1);
            return id;
        }
        self.beside_counter = self.beside_counter.wrapping_add(1);
        CellId::from_parts(self.salt, self.beside_counter | BESIDE)
    }

    /// Cells accepted so far.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.counter) + u64::from(self.beside_counter)
    }

    /// Finished cells that are not remembered any more.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// A daemon is welcomed. The numbers of an earlier one mean nothing, and what
    /// is read from the cell lane from now on was sent before: this daemon hears
    /// now which cells there are.
    pub(crate) fn forget_requests(&mut self) {
        if let Some(id) = self.reserved.take() {
            self.never_given = Some(id);
        }
        self.lane = None;
        self.waiting.clear();
        for record in self.records.values_mut() {
            record.request = None;
        }
    }

    /// Who asked for the end of a cell that never came, by its id.
    pub(crate) fn take_unmet(&mut self) -> Vec<(CellId, u64)> {
        let never = self.never_given;
        let (unmet, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(cell, _)| Some(*cell) == never);
        self.waiting = waiting;
        unmet
    }

    /// A cell neither runs nor waits any more.
    pub(crate) fn has_ended(&self, id: CellId) -> bool {
        self.never_given == Some(id) || self.end_of(id).is_some()
    }

    /// A cell does not wait any more: its thread is being made.
    pub(crate) fn begins(&mut self, id: CellId) {
        if let Some(record) = self.records.get_mut(&id) {
            record.status = CellStatus::Running;
            match record.kind {
                CellKind::Fork => self.forks_running += 1,
                _ => self.beside_running += 1,
            }
        }
    }

    /// A cell runs. Returns when it is to be interrupted, if it has a time-out.
    pub(crate) fn started(&mut self, id: CellId, now: Moment) -> Option<Instant> {
        let record = self.records.get_mut(&id)?;
        record.status = CellStatus::Running;
        record.started = Some(now);
        record
            .timeout
            .and_then(|span| now.instant.checked_add(span))
    }

    /// A cell was told to stop, by its time-out or by somebody.
    pub(crate) fn interrupted(&mut self, id: CellId, by_timeout: bool) {
        if let Some(record) = self.records.get_mut(&id)
            && record.end.is_none()
        {
            record.interrupted = true;
            record.timed_out |= by_timeout;
        }
    }

    /// A cell has ended. Fills in what the table knows of it and returns the
    /// requests that wait for it, beside the one that submitted it.
    pub(crate) fn ended(&mut self, end: &mut FinishedCell) -> Vec<u64> {
        end.next_cell = self.next_id();
        if let Some(record) = self.records.get_mut(&end.cell) {
            end.request = record.request.take();
            let stopped = matches!(end.status, CellStatus::Interrupted | CellStatus::Killed);
            end.timed_out = record.timed_out && stopped;
            if record.status == CellStatus::Running {
                match record.kind {
                    CellKind::Fire => self.beside_running -= 1,
                    CellKind::Fork => self.forks_running -= 1,
                    CellKind::Run | CellKind::Human => {}
                }
            }
            record.status = end.status;
            record.end = Some(Box::new(end.clone()));
        }
        let mut waiting = Vec::new();
        self.waiting.retain(|(cell, request)| {
            let other = *cell != end.cell;
            if !other {
                waiting.push(*request);
            }
            other
        });
        waiting
    }

    /// Looks for the end of a cell; who asks is told later if it is not there.
    pub(crate) fn find(&mut self, id: CellId, request: u64) -> Found {
        let next_cell = self.next_id();
        match self.records.get(&id) {
            // It is on its way to the main thread.
            None if self.is_expected(id) => {
                self.waiting.push((id, request));
                Found::Later
            }
            None if self.was_given(id) => {
                let message = format!("cell `{id}` is not kept any more");
                let error = ErrorReply::new(ErrorCode::Lost, message);
                Found::Unknown(error.with_hint("it was accepted once and is not run again"))
            }
            None => Found::Unknown(ErrorReply::unknown_cell(&id.to_string())),
            Some(Record { end: Some(end), .. }) => Found::Ended(Box::new(FinishedCell {
                request: Some(request),
                next_cell,
                ..(**end).clone()
            })),
            Some(_) => {
                self.waiting.push((id, request));
                Found::Later
            }
        }
    }

    /// A cell had this id. Only the daemon that sent it asks for one which was kept
    /// free in vain, and it has at most one such cell on its way.
    fn was_given(&self, id: CellId) -> bool {
        let first = |number| CellId::from_parts(self.salt, number);
        let main = first(1)..=first(self.counter);
        let beside = first(BESIDE | 1)..=first(BESIDE | self.beside_counter);
        self.never_given != Some(id) && (main.contains(&id) || beside.contains(&id))
    }

    /// Whoever asked for a cell's end does not wait any more.
    pub(crate) fn forget_asker(&mut self, request: u64) {
        self.waiting.retain(|(_, waiting)| *waiting != request);
    }

    /// How a cell ended, if it has.
    pub(crate) fn end_of(&self, id: CellId) -> Option<&FinishedCell> {
        self.records.get(&id)?.end.as_deref()
    }

    /// What kind of cell it is and where it is in its life.
    pub(crate) fn state_of(&self, id: CellId) -> Option<(CellKind, CellStatus)> {
        let record = self.records.get(&id)?;
        Some((record.kind, record.status))
    }

    /// Forgets finished cells.
    pub(crate) fn forget(&mut self, ids: impl IntoIterator<Item = CellId>) {
        for id in ids {
            if let Some(record) = self.records.remove(&id) {
                self.forgotten += 1;
                if let Some(key) = record.key {
                    self.keys.remove(&key);
                }
                if let Some(digest) = record.digest {
                    self.spent_keys.add(digest.of_key());
                }
            }
        }
    }
}
