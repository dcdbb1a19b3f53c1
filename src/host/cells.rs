//! The cells of a session: which wait, which run, how those ended that are
//! remembered, who asked for them. Pure state; the clock is handed in.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use pythond_protocol::lane::{CellRecord, CellSpec, FinishedCell, KeyDigest};
use pythond_protocol::limits::CellLimits;
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::cell::PREVIEW;
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use crate::fork;

/// Marks the numbers of cells that do not take turns on the main thread.
const BESIDE: u32 = 1 << 31;
/// Keys of forgotten cells that are remembered: these cells are not run again.
const MOST_SPENT_KEYS: usize = 16_384;
/// Bytes of code that may wait in one session.
const MOST_QUEUED_BYTES: usize = 64 << 20;

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

/// Keys of cells that are forgotten, the newest: as hashes, for a wrong "spent"
/// in 2^50 costs less than the memory.
#[derive(Debug, Default)]
struct SpentKeys {
    order: VecDeque<u64>,
    all: HashSet<u64>,
}

impl SpentKeys {
    fn add(&mut self, hash: u64) {
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
            age: _,
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

    /// Lets a cell wait for the main thread, in the order of the ids.
    pub(crate) fn enqueue(&mut self, cell: QueuedCell) {
        match self.queue.front() {
            Some(first) if first.id > cell.id => self.queue.push_front(cell),
            _ => self.queue.push_back(cell),
        }
    }

    /// The next cell for the main thread; none while one that comes before is
    /// on its way.
    pub(crate) fn next_queued(&mut self) -> Option<QueuedCell> {
        if self.reserved.is_some() {
            return None;
        }
        self.queue.pop_front()
    }

    /// No cell waits that the main thread may take.
    pub(crate) fn queue_is_empty(&self) -> bool {
        self.queue.is_empty() || self.reserved.is_some()
    }

    /// Lets a `fire` cell wait for those before it.
    pub(crate) fn enqueue_beside(&mut self, cell: QueuedCell) {
        self.beside.push_back(cell);
    }

    /// Lets a `fire` or `fork` cell wait until agents' cells may run again.
    pub(crate) fn hold_back(&mut self, cell: QueuedCell) {
        self.held.push_back(cell);
    }

    /// Agents' cells may run again: those beside the main thread whose turn it
    /// is, `fork` cells last.
    pub(crate) fn take_held(&mut self) -> (Vec<QueuedCell>, Vec<QueuedCell>) {
        let held: Vec<_> = std::mem::take(&mut self.held).into();
        let is_fork = |cell: &QueuedCell| {
            let record = self.records.get(&cell.id);
            record.is_some_and(|record| record.kind == CellKind::Fork)
        };
        let (forks, mut fires): (Vec<_>, Vec<_>) = held.into_iter().partition(is_fork);
        fires.extend(self.due_beside());
        (fires, forks)
    }

    /// The `fire` cells whose turn it is.
    pub(crate) fn due_beside(&mut self) -> Vec<QueuedCell> {
        let mut due = Vec::new();
        while let Some(first) = self.beside.front() {
            let earlier = self
                .records
                .range(..first.id)
                .any(|(_, record)| record.kind == CellKind::Fire && record.end.is_none());
            if earlier {
                break;
            }
            due.extend(self.beside.pop_front());
        }
        due
    }

    /// Takes a waiting cell back.
    pub(crate) fn dequeue(&mut self, id: CellId) -> Option<QueuedCell> {
        for queue in [&mut self.queue, &mut self.beside, &mut self.held] {
            if let Some(at) = queue.iter().position(|cell| cell.id == id) {
                return queue.remove(at);
            }
        }
        None
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

    fn with_status(&self, status: CellStatus) -> impl Iterator<Item = (&CellId, &Record)> {
        let found = move |(_, record): &(&CellId, &Record)| record.status == status;
        self.records.iter().filter(found)
    }

    /// Cells that run, by age.
    pub(crate) fn running(&self) -> Vec<CellId> {
        self.with_status(CellStatus::Running)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Cells that wait: for the main thread, then for `fire` cells.
    pub(crate) fn queued(&self) -> Vec<CellId> {
        let queues = self.queue.iter().chain(&self.beside).chain(&self.held);
        queues.map(|cell| cell.id).collect()
    }

    /// Cells that are not finished: those of the main thread in order, and all
    /// others.
    pub(crate) fn unfinished(&self) -> (Vec<CellId>, Vec<CellId>) {
        let unfinished = self
            .records
            .iter()
            .filter(|(_, record)| record.end.is_none());
        let (main, beside): (Vec<_>, Vec<_>) = unfinished
            .map(|(id, record)| (*id, record.kind))
            .partition(|(_, kind)| matches!(kind, CellKind::Run | CellKind::Human));
        let ids = |cells: Vec<(CellId, CellKind)>| cells.into_iter().map(|(id, _)| id).collect();
        (ids(main), ids(beside))
    }

    /// The cells of one kind that are not finished.
    pub(crate) fn unfinished_of(&self, kind: CellKind) -> Vec<CellId> {
        let records = self.records.iter();
        let found = records.filter(|(_, record)| record.kind == kind && record.end.is_none());
        found.map(|(id, _)| *id).collect()
    }

    /// The newest cell that runs beside the main thread.
    pub(crate) fn newest_beside(&self) -> Option<CellId> {
        let mut newest_first = self.records.iter().rev();
        let found =
            newest_first.find(|(_, record)| matches!(record.kind, CellKind::Fire | CellKind::Fork));
        found.map(|(id, _)| *id)
    }

    /// What is known of one cell, its output apart.
    pub(crate) fn record(&self, id: CellId, now: Moment) -> Option<CellRecord> {
        if self.is_expected(id) {
            return Some(on_its_way(id, now));
        }
        let places = [&self.queue, &self.beside, &self.held].into_iter();
        let mut places = places.map(|queue| queue.iter().position(|cell| cell.id == id));
        let place = places.find_map(|place| place);
        self.described(id, place, now)
    }

    /// The same of all cells, by age.
    pub(crate) fn all(&self, now: Moment) -> Vec<CellRecord> {
        let queues = [&self.queue, &self.beside, &self.held].into_iter();
        let places: HashMap<CellId, usize> = queues
            .flat_map(|queue| queue.iter().enumerate())
            .map(|(place, cell)| (cell.id, place))
            .collect();
        let mut ids: Vec<_> = self.records.iter().collect();
        ids.sort_by_key(|(_, record)| record.accepted.instant);
        ids.into_iter()
            .filter_map(|(id, _)| self.described(*id, places.get(id).copied(), now))
            .collect()
    }

    fn described(&self, id: CellId, place: Option<usize>, now: Moment) -> Option<CellRecord> {
        let record = self.records.get(&id)?;
        let duration = match (&record.end, record.started) {
            (Some(end), _) => end.duration_ns,
            (None, Some(started)) => {
                let span = now.instant.saturating_duration_since(started.instant);
                u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
            }
            (None, None) => 0,
        };
        Some(CellRecord {
            cell: id,
            kind: record.kind,
            author: record.author.clone(),
            status: record.status,
            queue_position: place.and_then(|place| u64::try_from(place + 1).ok()),
            accepted_us: record.accepted.us,
            started_us: record.started.map(|started| started.us),
            duration_ns: duration,
            output_bytes: 0,
            truncated: 0,
            interrupt_pending: record.interrupted && record.end.is_none(),
            timed_out: record.timed_out,
            key: record.key.clone(),
            code: record.code.clone(),
        })
    }
}

/// A cell that the main thread has not read yet.
fn on_its_way(id: CellId, now: Moment) -> CellRecord {
    CellRecord {
        cell: id,
        kind: CellKind::Run,
        author: String::new(),
        status: CellStatus::Queued,
        queue_position: None,
        accepted_us: now.us,
        started_us: None,
        duration_ns: 0,
        output_bytes: 0,
        truncated: 0,
        interrupt_pending: false,
        timed_out: false,
        key: None,
        code: String::new(),
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
