//! What the daemon knows of a session's cells: which are not finished, which
//! lane the next one takes. Pure: no clock, no I/O, no async.

use std::collections::BTreeMap;
use std::sync::Arc;

use pythond_protocol::CellId;
use pythond_protocol::lane::{CellSpec, FinishedCell, Lane};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::verbs::submit::is_implied_key;

/// Most bytes of source that wait in one session.
pub(crate) const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Where a session's process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It serves.
    Live,
    /// It was told to end.
    Ending,
    /// It is gone.
    Dead,
}

/// What somebody wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Run a cell.
    Run,
    /// Ask something on the control lane.
    Ask,
    /// End.
    End,
}

/// What the table does not permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The session is being ended.
    Ending,
    /// The session is dead.
    Dead,
}

/// The table: what is permitted, and the phase afterwards.
pub(crate) fn permit(phase: Phase, demand: Demand) -> Result<Phase, Refusal> {
    match (phase, demand) {
        (Phase::Live, Demand::Run | Demand::Ask) => Ok(Phase::Live),
        (Phase::Live | Phase::Ending, Demand::End) => Ok(Phase::Ending),
        // `status` of a session that takes long to end must answer.
        (Phase::Ending, Demand::Ask) => Ok(Phase::Ending),
        (Phase::Ending, Demand::Run) => Err(Refusal::Ending),
        (Phase::Dead, Demand::Run | Demand::Ask | Demand::End) => Err(Refusal::Dead),
    }
}

/// One cell that is not finished, and who waits for it.
#[derive(Debug)]
pub(crate) struct Cell<W> {
    /// Its id, once it is known.
    pub(crate) id: Option<CellId>,
    /// The lane it goes by.
    pub(crate) lane: Lane,
    /// The id that it has by the cell lane.
    pub(crate) lane_id: Option<CellId>,
    /// It was handed to that lane.
    pub(crate) sent: bool,
    /// Kept until the host certainly has it.
    pub(crate) source: Arc<str>,
    /// Bytes of source that it adds to what waits.
    counted: usize,
    /// `run`, or one that does not take the main thread.
    pub(crate) kind: CellKind,
    /// How it is to be run.
    pub(crate) how: CellSpec,
    /// Who waits.
    pub(crate) waiter: W,
}

/// What to do about a cell after new lanes were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Ask for its end.
    Await {
        /// The daemon's number for it.
        request: u64,
        /// Which.
        cell: CellId,
    },
    /// It never left, or has a key by which the host knows it: send it.
    Send {
        /// The daemon's number for it.
        request: u64,
    },
    /// Nobody can know whether it arrived.
    Lost {
        /// The daemon's number for it.
        request: u64,
    },
}

/// The cells of one session that are not finished.
#[derive(Debug)]
pub(crate) struct CellBoard<W> {
    next_request: u64,
    next_cell: CellId,
    cells: BTreeMap<u64, Cell<W>>,
    /// Cells that an earlier daemon asked for, with our numbers for them.
    inherited: BTreeMap<u64, CellId>,
    queued_bytes: usize,
    /// New cells wait in the host.
    held: bool,
    /// The host takes cells with keys by the cell lane.
    keys_by_cell_lane: bool,
}

impl<W> CellBoard<W> {
    /// The board of a host that just welcomed us. Requests are numbered from
    /// `first_request` on: no other board's numbers may come near, as answers to
    /// an earlier daemon may still be on their way in the host.
    pub(crate) fn new(next_cell: CellId, first_request: u64, keys_by_cell_lane: bool) -> Self {
        Self {
            keys_by_cell_lane,
            next_request: first_request,
            next_cell,
            cells: BTreeMap::new(),
            inherited: BTreeMap::new(),
            queued_bytes: 0,
            held: false,
        }
    }

    /// New cells wait in the host from now on, or do not any more.
    pub(crate) fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// New cells wait in the host.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// A number for a request that is no cell.
    pub(crate) fn next_request(&mut self) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        request
    }

    /// Takes a cell that an earlier daemon asked for.
    pub(crate) fn inherit(&mut self, cell: CellId) -> u64 {
        let request = self.next_request();
        self.inherited.insert(request, cell);
        request
    }

    /// True if this cell is one that is not finished.
    pub(crate) fn knows(&self, id: CellId) -> bool {
        let ids = self.cells.values().filter_map(|cell| cell.id);
        ids.chain(self.inherited.values().copied())
            .any(|known| known == id)
    }

    /// Takes a new cell: its number, and the lane it must go by. The cell lane
    /// is for a session without unfinished cells; all others queue in the
    /// host, where they are known.
    ///
    /// # Errors
    /// Gives back the waiter if too many bytes wait already.
    pub(crate) fn add(
        &mut self,
        source: String,
        kind: CellKind,
        how: CellSpec,
        waiter: W,
    ) -> Result<(u64, Lane), W> {
        if !self.cells.is_empty() && self.queued_bytes + source.len() > MAX_QUEUED_BYTES {
            return Err(waiter);
        }
        // Another key may belong to an earlier cell: only the host knows.
        let is_new = match &how.key {
            None => true,
            Some(key) => self.keys_by_cell_lane && how.resent_ms.is_none() && is_implied_key(key),
        };
        let direct = kind == CellKind::Run && is_new && self.is_idle() && !self.held;
        let (id, lane) = match direct {
            true => (Some(self.next_cell), Lane::Cell),
            false => (None, Lane::Control),
        };
        let request = self.next_request();
        self.queued_bytes += source.len();
        self.cells.insert(
            request,
            Cell {
                id,
                lane,
                lane_id: id,
                sent: false,
                counted: source.len(),
                source: source.into(),
                kind,
                how,
                waiter,
            },
        );
        Ok((request, lane))
    }

    /// The cell of a number.
    pub(crate) fn get(&self, request: u64) -> Option<&Cell<W>> {
        self.cells.get(&request)
    }

    /// It was handed to its lane.
    pub(crate) fn mark_sent(&mut self, request: u64) {
        if let Some(cell) = self.cells.get_mut(&request) {
            cell.sent = true;
        }
    }

    /// The host has it, under this id.
    pub(crate) fn accepted(&mut self, request: u64, id: CellId) -> Option<&mut Cell<W>> {
        let cell = self.cells.get_mut(&request)?;
        cell.id = Some(id);
        Some(cell)
    }

    /// The host runs no new cell for one that it was sent. The id that it has spent,
    /// if that went by the cell lane.
    pub(crate) fn is_not_new(&mut self, request: u64) -> Option<CellId> {
        let spent = self.cells.get_mut(&request)?.lane_id.take()?;
        self.next_cell = self.next_cell.max(spent.next());
        Some(spent)
    }

    /// The cell of this key that went by the cell lane: the host may not have read it.
    pub(crate) fn keyed_on_cell_lane(&self, key: &str) -> Option<&Cell<W>> {
        let has = |cell: &&Cell<W>| cell.lane_id.is_some() && cell.how.key.as_deref() == Some(key);
        self.cells.values().find(has)
    }

    /// Takes one more who waits for a cell that went by the cell lane, and has sent the
    /// same source.
    pub(crate) fn join(
        &mut self,
        id: CellId,
        source: Arc<str>,
        kind: CellKind,
        how: CellSpec,
        waiter: W,
    ) -> u64 {
        let request = self.next_request();
        let cell = Cell {
            id: Some(id),
            lane: Lane::Control,
            lane_id: None,
            sent: true,
            counted: 0,
            source,
            kind,
            how,
            waiter,
        };
        self.cells.insert(request, cell);
        request
    }

    /// It ended; gives back the cell if somebody waits for it.
    pub(crate) fn finished(&mut self, finished: &FinishedCell) -> Option<(u64, Cell<W>)> {
        // Ends of cells come by two lanes: an older word may come later.
        self.next_cell = self.next_cell.max(finished.next_cell);
        self.inherited.retain(|_, id| *id != finished.cell);
        let by_id = || {
            let found = self
                .cells
                .iter()
                .find(|(_, cell)| cell.id == Some(finished.cell));
            found.map(|(request, _)| *request)
        };
        let request = finished
            .request
            .filter(|request| self.cells.contains_key(request));
        let request = request.or_else(by_id)?;
        self.remove(request).map(|cell| (request, cell))
    }

    /// Bytes of source that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Forgets a cell.
    pub(crate) fn remove(&mut self, request: u64) -> Option<Cell<W>> {
        self.inherited.remove(&request);
        let cell = self.cells.remove(&request)?;
        self.queued_bytes = self.queued_bytes.saturating_sub(cell.counted);
        Some(cell)
    }

    /// The host says it never saw this cell: it goes again, by this lane.
    pub(crate) fn send_again(&mut self, request: u64) -> Option<Lane> {
        let others = self.cells.iter();
        let mut others =
            others.filter(|(number, cell)| **number != request && cell.kind == CellKind::Run);
        let alone = others.next().is_none() && self.inherited.is_empty();
        let next_cell = self.next_cell;
        let cell = self.cells.get_mut(&request)?;
        let direct = alone && cell.kind == CellKind::Run && cell.how.key.is_none() && !self.held;
        (cell.id, cell.lane) = if direct {
            (Some(next_cell), Lane::Cell)
        } else {
            (None, Lane::Control)
        };
        cell.lane_id = cell.id;
        Some(cell.lane)
    }

    /// What to do about each cell once new lanes are open.
    pub(crate) fn resume(&mut self, next_cell: CellId) -> Vec<Resume> {
        self.next_cell = next_cell;
        // The cell lane that broke has taken along what was on it: a host that was
        // told to expect such a cell would wait for it with all others.
        for cell in self.cells.values_mut() {
            cell.lane = Lane::Control;
            cell.lane_id = None;
        }
        let own = self
            .cells
            .iter()
            .map(|(request, cell)| match (cell.sent, cell.id) {
                (false, _) => Resume::Send { request: *request },
                (true, Some(id)) => Resume::Await {
                    request: *request,
                    cell: id,
                },
                // The host knows its key if it has it.
                (true, None) if cell.how.key.is_some() => Resume::Send { request: *request },
                (true, None) => Resume::Lost { request: *request },
            });
        let inherited = self.inherited.iter().map(|(request, id)| Resume::Await {
            request: *request,
            cell: *id,
        });
        own.chain(inherited).collect()
    }

    /// No cell is known that has or wants the main thread.
    pub(crate) fn is_idle(&self) -> bool {
        let main = |cell: &Cell<W>| cell.kind == CellKind::Run;
        self.inherited.is_empty() && !self.cells.values().any(main)
    }

    /// The unfinished cell that went by the cell lane.
    pub(crate) fn on_cell_lane(&self) -> Option<CellId> {
        let sent = |cell: &Cell<W>| cell.lane_id.filter(|_| cell.sent);
        self.cells.values().find_map(sent)
    }

    /// The cell that runs on the main thread, as far as is known.
    pub(crate) fn current(&self) -> Option<CellId> {
        let inherited = self.inherited.values().next().copied();
        let main = |cell: &&Cell<W>| cell.kind == CellKind::Run;
        inherited.or_else(|| self.cells.values().find(main).and_then(|cell| cell.id))
    }

    /// Takes all cells away, oldest first.
    pub(crate) fn drain(&mut self) -> Vec<(u64, Cell<W>)> {
        self.queued_bytes = 0;
        self.inherited.clear();
        std::mem::take(&mut self.cells).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::outcome::CellStatus;

    fn add<W>(board: &mut CellBoard<W>, source: &str, waiter: W) -> Result<(u64, Lane), W> {
        board.add(source.into(), CellKind::Run, CellSpec::default(), waiter)
    }

    fn id(counter: u32) -> CellId {
        CellId::from_parts(9, counter)
    }

    fn finished(request: Option<u64>, cell: CellId, next_cell: CellId) -> FinishedCell {
        FinishedCell {
            request,
            cell,
            kind: CellKind::Run,
            status: CellStatus::Done,
            exception: None,
            result: None,
            started_us: 0,
            duration_ns: 0,
            output_bytes: 0,
            truncated: 0,
            timed_out: false,
            changed: Vec::new(),
            next_cell,
            not_recorded: None,
            merge: None,
        }
    }

    #[test]
    fn the_table_permits_what_it_should() {
        use {Demand::*, Phase::*};
        let check = |phase, demand, expected| assert_eq!(permit(phase, demand), expected);
        check(Live, Run, Ok(Live));
        check(Live, Ask, Ok(Live));
        check(Live, End, Ok(Ending));
        check(Ending, Run, Err(Refusal::Ending));
        check(Ending, Ask, Ok(Ending));
        check(Ending, End, Ok(Ending));
        for demand in [Run, Ask, End] {
            check(Dead, demand, Err(Refusal::Dead));
        }
    }

    #[test]
    fn only_a_cell_that_meets_no_other_takes_the_cell_lane() {
        let mut board = CellBoard::new(id(0), 1, false);
        assert_eq!(add(&mut board, "a", 'a'), Ok((1, Lane::Cell)));
        assert_eq!(add(&mut board, "b", 'b'), Ok((2, Lane::Control)));
        assert_eq!(board.current(), Some(id(0)));
        board.accepted(2, id(1));
        let (_, cell) = board.finished(&finished(Some(1), id(0), id(2))).unwrap();
        assert_eq!(cell.waiter, 'a');
        assert_eq!(board.current(), Some(id(1)));
        assert_eq!(add(&mut board, "c", 'c'), Ok((3, Lane::Control)));
        // Without our number it is known by its id.
        let (_, cell) = board.finished(&finished(None, id(1), id(2))).unwrap();
        assert_eq!(cell.waiter, 'b');
        assert!(board.finished(&finished(None, id(7), id(2))).is_none());
    }

    #[test]
    fn an_end_that_answers_an_earlier_daemon_goes_to_the_cell_that_ended() {
        let mut board = CellBoard::new(id(0), 1 << 40, false);
        let (mine, _) = add(&mut board, "a", 'a').unwrap();
        let (other, _) = add(&mut board, "b", 'b').unwrap();
        assert_eq!((mine, other), (1 << 40, (1 << 40) + 1));
        board.accepted(other, id(1));
        for number in 0..4 {
            assert!(board.remove(number).is_none());
            let end = finished(Some(number), id(9), id(2));
            assert!(board.finished(&end).is_none());
        }
        let end = finished(Some(1), id(1), id(2));
        assert_eq!(board.finished(&end).unwrap().1.waiter, 'b');
    }

    #[test]
    fn cells_beside_the_main_thread_never_take_its_lane() {
        let mut board = CellBoard::new(id(0), 1, false);
        let fire = |board: &mut CellBoard<()>| {
            board.add("a".into(), CellKind::Fire, CellSpec::default(), ())
        };
        assert_eq!(fire(&mut board), Ok((1, Lane::Control)));
        assert!(board.is_idle());
        assert_eq!(add(&mut board, "b", ()), Ok((2, Lane::Cell)));
        assert_eq!(board.current(), Some(id(0)));
    }

    fn keyed(board: &mut CellBoard<()>, key: &str, resent_ms: Option<u64>) -> (u64, Lane) {
        let how = CellSpec {
            key: Some(key.to_owned()),
            resent_ms,
            ..CellSpec::default()
        };
        board.add("1".into(), CellKind::Run, how, ()).unwrap()
    }

    #[test]
    fn a_key_that_a_program_of_ours_chose_is_new_unless_it_was_sent_before() {
        let mut board = CellBoard::new(id(4), 1, true);
        for (key, resent) in [("k", None), ("pysh-1", Some(0))] {
            let (request, lane) = keyed(&mut board, key, resent);
            assert_eq!(lane, Lane::Control);
            assert_eq!(board.get(request).unwrap().id, None);
            board.remove(request);
        }
        assert_eq!(keyed(&mut board, "pysh-1", None), (3, Lane::Cell));
        board.mark_sent(3);
        assert_eq!(board.get(3).unwrap().id, Some(id(4)));
        assert!(board.keyed_on_cell_lane("pysh-2").is_none());
        assert!(board.keyed_on_cell_lane("pysh-1").is_some());
        // New lanes: it is looked for, and goes again by its key.
        let cell = id(4);
        let request = 3;
        let resumed = board.resume(id(4));
        assert_eq!(resumed, [Resume::Await { request, cell }]);
        assert_eq!(board.send_again(3), Some(Lane::Control));
        assert!(board.keyed_on_cell_lane("pysh-1").is_none());
        let mut earlier = CellBoard::new(id(4), 1, false);
        assert_eq!(keyed(&mut earlier, "pysh-1", None), (1, Lane::Control));
    }

    #[test]
    fn a_cell_of_the_cell_lane_that_is_not_new_spends_an_id() {
        let mut board = CellBoard::new(id(4), 1, true);
        keyed(&mut board, "pysh-1", None);
        board.mark_sent(1);
        assert_eq!(board.is_not_new(1), Some(id(4)));
        assert_eq!(board.on_cell_lane(), None);
        assert_eq!(board.is_not_new(1), None);
        board.remove(1);
        add(&mut board, "2", ()).unwrap();
        assert_eq!(board.current(), Some(id(5)));
        // None that waits in the host spends one.
        keyed(&mut board, "pysh-2", None);
        assert_eq!(board.is_not_new(3), None);
        board.remove(2);
        board.remove(3);
        add(&mut board, "2", ()).unwrap();
        assert_eq!(board.current(), Some(id(5)));
    }

    #[test]
    fn two_who_wait_for_one_cell_are_both_told() {
        let mut board = CellBoard::new(id(4), 1, true);
        let (first, _) = keyed(&mut board, "pysh-1", None);
        board.mark_sent(first);
        let second = board.join(id(4), "1".into(), CellKind::Run, CellSpec::default(), ());
        for request in [second, first] {
            let end = finished(Some(request), id(4), id(5));
            assert_eq!(board.finished(&end).map(|(it, _)| it), Some(request));
        }
        assert!(board.is_idle());
    }

    #[test]
    fn the_id_of_a_cell_with_a_key_is_the_hosts_to_say() {
        let mut board = CellBoard::new(id(0), 1, false);
        let how = CellSpec {
            key: Some("k".to_owned()),
            ..CellSpec::default()
        };
        let added = board.add("a".into(), CellKind::Run, how, ());
        assert_eq!(added, Ok((1, Lane::Control)));
        assert_eq!(board.get(1).unwrap().id, None);
    }

    #[test]
    fn an_end_that_is_told_late_does_not_turn_the_count_back() {
        let mut board = CellBoard::new(id(0), 1, false);
        add(&mut board, "a", ()).unwrap();
        add(&mut board, "b", ()).unwrap();
        board.finished(&finished(Some(2), id(1), id(2)));
        board.finished(&finished(Some(1), id(0), id(1)));
        add(&mut board, "c", ()).unwrap();
        assert_eq!(board.current(), Some(id(2)));
    }

    #[test]
    fn inherited_cells_keep_the_cell_lane_free() {
        let mut board = CellBoard::new(id(5), 1, false);
        board.inherit(id(4));
        assert_eq!(add(&mut board, "a", ()), Ok((2, Lane::Control)));
        board.remove(2);
        board.finished(&finished(None, id(4), id(6)));
        assert!(board.is_idle());
        assert_eq!(add(&mut board, "a", ()), Ok((3, Lane::Cell)));
    }

    #[test]
    fn nothing_is_on_the_cell_lane_that_was_opened_anew() {
        let mut board = CellBoard::new(id(0), 1, false);
        add(&mut board, "a", ()).unwrap();
        board.mark_sent(1);
        assert_eq!(board.on_cell_lane(), Some(id(0)));
        board.resume(id(0));
        assert_eq!(board.on_cell_lane(), None);
        assert_eq!(board.send_again(1), Some(Lane::Cell));
        assert_eq!(board.on_cell_lane(), Some(id(0)));
    }

    #[test]
    fn a_cell_without_an_id_is_lost_with_its_lane_and_never_sent_twice() {
        let mut board = CellBoard::new(id(0), 1, false);
        add(&mut board, "a", ()).unwrap();
        add(&mut board, "b", ()).unwrap();
        add(&mut board, "c", ()).unwrap();
        board.mark_sent(1);
        board.mark_sent(2);
        assert_eq!(
            board.resume(id(0)),
            [
                Resume::Await {
                    request: 1,
                    cell: id(0)
                },
                Resume::Lost { request: 2 },
                Resume::Send { request: 3 },
            ]
        );
        board.remove(3);
        board.remove(2);
        assert_eq!(board.send_again(1), Some(Lane::Cell));
    }

    #[test]
    fn a_cell_whose_key_the_host_knows_is_sent_again() {
        let mut board = CellBoard::new(id(0), 1, false);
        add(&mut board, "a", ()).unwrap();
        let keyed = CellSpec {
            key: Some("mine".into()),
            ..CellSpec::default()
        };
        board.add("b".into(), CellKind::Fire, keyed, ()).unwrap();
        board.mark_sent(2);
        let resume = board.resume(id(0));
        assert!(resume.contains(&Resume::Send { request: 2 }));
        assert_eq!(board.send_again(2), Some(Lane::Control));
    }

    #[test]
    fn waiting_bytes_are_limited_and_given_back() {
        let mut board = CellBoard::new(id(0), 1, false);
        let big = "x".repeat(MAX_QUEUED_BYTES);
        assert!(add(&mut board, &big, ()).is_ok());
        assert!(add(&mut board, "y", ()).is_err());
        // Whoever waits for the same cell brings no more code.
        let source = Arc::clone(&board.get(1).unwrap().source);
        let joined = board.join(id(0), source, CellKind::Run, CellSpec::default(), ());
        board.remove(joined);
        assert!(add(&mut board, "y", ()).is_err());
        board.remove(1);
        assert!(add(&mut board, &big, ()).is_ok());
    }
}
