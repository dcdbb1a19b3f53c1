//! The daemon's board of a session's cells and the host's table of them, with
//! lanes between that break at any time: no cell runs twice, each who waits gets
//! one answer, nobody is forgotten.
//!
//! Both state machines are the real ones. What carries their words is the model's:
//! a lane is a queue. The main thread takes a cell from the cell lane in one step
//! and accepts it in another: it may wait for the interpreter between them, while
//! the lanes break and new ones come.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Mutex as GhostMutex;
use std::time::Duration;

use pythond_protocol::lane::{CellSpec, FinishedCell, Lane};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorCode};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::{Arc, Mutex};
use shuttle::{Config, thread};

use super::rounds;
use crate::cells::{Acceptance, Cells, Found, Moment, Offer, QueuedCell};
use crate::state::{CellBoard, Resume};

/// Who waits, by number; what they want run.
const CLIENTS: usize = 4;
const BREAKS: usize = 3;
/// One that a program of ours chose.
const SHARED_KEY: &str = "proxy-1";

#[derive(Clone, Debug)]
enum Command {
    Run(u64, CellSpec, String, Option<CellId>),
    Await(u64, CellId),
    Expect(CellId),
    Interrupt,
}

#[derive(Clone, Debug)]
enum Event {
    Accepted(u64, CellId, bool),
    Refused(u64, ErrorCode),
    Finished(Box<FinishedCell>),
}

/// Turns of the daemon without a word, after which there will be none.
const SILENCE: u32 = 2000;

/// What is on its way, and the host's table: one lock, so that each step of a
/// thread is one step of the model.
struct World {
    up: bool,
    /// The tag of the newest cell lane, and what each still carries to the main
    /// thread, those that are broken included.
    lane: u64,
    to_main: BTreeMap<u64, VecDeque<Command>>,
    to_io: VecDeque<Command>,
    from_main: VecDeque<Event>,
    from_io: VecDeque<Event>,
    cells: Cells,
    keeps_one: bool,
    newest_end: Option<CellId>,
    over: bool,
}

#[derive(Default)]
struct Ghost {
    /// How often each source ran.
    ran: HashMap<String, u32>,
    /// What each client was told.
    answers: [Vec<&'static str>; CLIENTS],
}

struct Model {
    world: Mutex<World>,
    ghost: GhostMutex<Ghost>,
}

fn end(id: CellId, status: CellStatus) -> FinishedCell {
    FinishedCell {
        request: None,
        cell: id,
        kind: CellKind::Run,
        status,
        exception: None,
        result: None,
        started_us: 0,
        duration_ns: 0,
        output_bytes: 0,
        truncated: 0,
        timed_out: false,
        changed: Vec::new(),
        next_cell: id,
        not_recorded: None,
        merge: None,
    }
}

impl World {
    fn accept(&mut self, command: Command, lane: Option<u64>) -> Option<QueuedCell> {
        let direct = lane.is_some();
        let (request, id) = match command {
            Command::Run(request, how, source, after) => {
                if let Some(before) = after {
                    self.cells.reserve(before);
                }
                let kind = CellKind::Run;
                let offer = Offer {
                    request,
                    kind,
                    lane,
                    how: &how,
                    source: &source,
                    age: Duration::ZERO,
                    held: false,
                };
                let accepted = self.cells.accept(&offer, offer.digest(), Moment::now());
                match accepted {
                    Acceptance::New(id) => {
                        let cell = QueuedCell {
                            id,
                            direct,
                            changed: false,
                            source,
                            most_back: None,
                        };
                        let accepted = Event::Accepted(request, id, false);
                        if direct {
                            return Some(cell);
                        }
                        self.cells.enqueue(cell);
                        self.from_io.push_back(accepted);
                        return None;
                    }
                    Acceptance::Existing(id, _) => {
                        self.from_io.push_back(Event::Accepted(request, id, true));
                        (request, id)
                    }
                    Acceptance::Refused(error) => {
                        self.from_io.push_back(Event::Refused(request, error.code));
                        return None;
                    }
                    Acceptance::Stale => return None,
                }
            }
            Command::Await(request, id) => (request, id),
            Command::Expect(id) => {
                self.cells.reserve(id);
                return None;
            }
            Command::Interrupt => {
                let waiting = self.cells.queued().into_iter().next();
                if let Some(cell) = waiting.and_then(|id| self.cells.dequeue(id)) {
                    self.ended(&cell, CellStatus::Interrupted);
                }
                return None;
            }
        };
        match self.cells.find(id, request) {
            Found::Ended(end) => self.from_io.push_back(Event::Finished(end)),
            Found::Later => {}
            Found::Unknown(error) => {
                self.from_io.push_back(Event::Refused(request, error.code));
            }
        }
        None
    }

    fn ended(&mut self, cell: &QueuedCell, status: CellStatus) {
        let mut end = end(cell.id, status);
        let waiting = self.cells.ended(&mut end);
        let lane = if cell.direct {
            &mut self.from_main
        } else {
            &mut self.from_io
        };
        lane.push_back(Event::Finished(Box::new(end.clone())));
        for request in waiting {
            end.request = Some(request);
            self.from_io
                .push_back(Event::Finished(Box::new(end.clone())));
        }
        // There is room for one or for all.
        if let Some(older) = self.newest_end.replace(cell.id)
            && self.keeps_one
        {
            self.cells.forget([older]);
        }
    }
}

/// The session's task, as far as cells go.
struct Daemon<'a> {
    model: &'a Model,
    board: CellBoard<usize>,
    resending: HashSet<u64>,
    /// The cell with the key was sent once.
    sent_shared: bool,
}

impl Daemon<'_> {
    fn answer(&self, client: usize, what: &'static str) {
        self.model.ghost.lock().unwrap().answers[client].push(what);
    }

    fn send(&mut self, world: &mut World, request: u64) {
        if !world.up {
            return;
        }
        let before = self.board.on_cell_lane();
        let Some(cell) = self.board.get(request) else {
            return;
        };
        let after = before.filter(|_| cell.lane == Lane::Control);
        let command = Command::Run(request, cell.how.clone(), cell.source.to_string(), after);
        match cell.lane {
            Lane::Cell => world
                .to_main
                .entry(world.lane)
                .or_default()
                .push_back(command),
            Lane::Control | Lane::Terminal => world.to_io.push_back(command),
        }
        self.board.mark_sent(request);
    }

    fn submit(&mut self, world: &mut World, client: usize) {
        let keyed = client >= 2;
        let how = CellSpec {
            key: keyed.then(|| SHARED_KEY.to_owned()),
            resent_ms: (keyed && std::mem::replace(&mut self.sent_shared, true)).then_some(0),
            ..CellSpec::default()
        };
        let source = format!("cell {}", client.min(2));
        let on_lane = self.board.keyed_on_cell_lane(SHARED_KEY);
        if let Some(id) = on_lane.and_then(|cell| cell.id).filter(|_| keyed) {
            let request = self
                .board
                .join(id, source.into(), CellKind::Run, how, client);
            self.resending.insert(request);
            let words = [Command::Expect(id), Command::Await(request, id)];
            world.to_io.extend(words.into_iter().filter(|_| world.up));
            return;
        }
        let added = self.board.add(source, CellKind::Run, how, client);
        self.send(world, added.expect("there is room").0);
    }

    fn event(&mut self, world: &mut World, event: Event) {
        match event {
            Event::Accepted(request, id, existing) => {
                if existing {
                    self.board.is_not_new(request);
                }
                let _ = self.board.accepted(request, id);
            }
            Event::Finished(end) => {
                if let Some((request, cell)) = self.board.finished(&end) {
                    let told = cell.id.is_none_or(|id| id == end.cell);
                    assert!(told, "told as {:?}: {end:?}", cell.id);
                    self.resending.remove(&request);
                    self.answer(cell.waiter, "finished");
                }
            }
            Event::Refused(request, code) => {
                let unknown = code == ErrorCode::UnknownCell;
                if self.resending.remove(&request) && unknown {
                    self.board.send_again(request);
                    self.send(world, request);
                } else if let Some(cell) = {
                    self.board.is_not_new(request);
                    self.board.remove(request)
                } {
                    let lost = code == ErrorCode::Lost;
                    self.answer(cell.waiter, if lost { "lost" } else { "refused" });
                }
            }
        }
    }

    fn recover(&mut self, world: &mut World) {
        while let Some(event) = world.from_main.pop_front() {
            self.event(world, event);
        }
        while let Some(event) = world.from_io.pop_front() {
            self.event(world, event);
        }
        world.to_io.clear();
        world.cells.forget_requests();
        world.lane += 1;
        world.cells.use_lane(world.lane);
        world.up = true;
        for step in self.board.resume(world.cells.next_id()) {
            match step {
                Resume::Await { request, cell } => {
                    self.resending.insert(request);
                    world.to_io.push_back(Command::Await(request, cell));
                }
                Resume::Send { request } => {
                    self.board.send_again(request);
                    self.send(world, request);
                }
                Resume::Lost { request } => {
                    if let Some(cell) = self.board.remove(request) {
                        self.answer(cell.waiter, "lost");
                    }
                }
            }
        }
    }

    fn all_were_told(&self) -> bool {
        let ghost = self.model.ghost.lock().unwrap();
        ghost.answers.iter().all(|answers| !answers.is_empty())
    }

    fn run(mut self) {
        let (mut next, mut silence) = (0, 0);
        // Who is the first, and whether the others wait until nothing is under way.
        let first = thread_rng().gen_range(0..CLIENTS);
        let one_by_one = thread_rng().gen_bool(0.5);
        loop {
            thread::yield_now();
            silence += 1;
            assert!(silence < SILENCE, "forgotten: {:?}", self.board);
            let mut world = self.model.world.lock().unwrap();
            let world = &mut *world;
            if !world.up {
                self.recover(world);
            } else if let Some(event) = world.from_main.pop_front() {
                self.event(world, event);
                silence = 0;
            } else if let Some(event) = world.from_io.pop_front() {
                self.event(world, event);
                silence = 0;
            } else if next < CLIENTS && (!one_by_one || self.board.is_idle()) {
                self.submit(world, (first + next) % CLIENTS);
                next += 1;
                if let Some(cell) = self.board.on_cell_lane()
                    && thread_rng().gen_bool(0.5)
                {
                    world.to_io.push_back(Command::Expect(cell));
                }
            } else if self.all_were_told() {
                world.over = true;
                return;
            }
        }
    }
}

impl Model {
    /// The host's main thread. Only it runs cells.
    fn main_thread(&self) {
        let mut lane = 0;
        loop {
            thread::yield_now();
            let handed = {
                let world = self.world.lock().unwrap();
                if world.over {
                    return;
                }
                world.lane
            };
            // It has looked, and waits for the interpreter.
            thread::yield_now();
            let mut world = self.world.lock().unwrap();
            let came = world.to_main.get_mut(&lane);
            let cell = match came.and_then(VecDeque::pop_front) {
                Some(command) => world.accept(command, Some(lane)),
                None => {
                    lane = handed;
                    world.cells.next_queued()
                }
            };
            let Some(cell) = cell else { continue };
            world.cells.started(cell.id, Moment::now());
            drop(world);
            let source = cell.source.clone();
            *self.ghost.lock().unwrap().ran.entry(source).or_default() += 1;
            thread::yield_now();
            self.world.lock().unwrap().ended(&cell, CellStatus::Done);
        }
    }

    fn io_thread(&self) {
        loop {
            thread::yield_now();
            let mut world = self.world.lock().unwrap();
            if world.over {
                return;
            }
            if let Some(command) = world.to_io.pop_front() {
                world.accept(command, None);
            }
        }
    }

    /// Breaks the lanes: what is on them may arrive yet, or not.
    fn breaker(&self) {
        for _ in 0..thread_rng().gen_range(0..=BREAKS) {
            for _ in 0..thread_rng().gen_range(0..20) {
                thread::yield_now();
            }
            let mut world = self.world.lock().unwrap();
            if thread_rng().gen_bool(0.3) {
                world.to_io.push_back(Command::Interrupt);
                continue;
            }
            let world = &mut *world;
            world.up = false;
            for lane in world.to_main.values_mut().chain([&mut world.to_io]) {
                lane.truncate(thread_rng().gen_range(0..3));
            }
            for lane in [&mut world.from_main, &mut world.from_io] {
                lane.truncate(thread_rng().gen_range(0..3));
            }
        }
    }
}

fn model() {
    let model = Arc::new(Model {
        world: Mutex::new(World {
            up: true,
            lane: 0,
            to_main: BTreeMap::new(),
            to_io: VecDeque::new(),
            from_main: VecDeque::new(),
            from_io: VecDeque::new(),
            cells: Cells::new(7),
            keeps_one: thread_rng().gen_bool(0.5),
            newest_end: None,
            over: false,
        }),
        ghost: GhostMutex::default(),
    });
    let next = {
        let mut world = model.world.lock().unwrap();
        world.cells.use_lane(0);
        world.cells.next_id()
    };
    let threads = [Model::main_thread, Model::io_thread, Model::breaker].map(|work| {
        let model = Arc::clone(&model);
        thread::spawn(move || work(&model))
    });
    Daemon {
        model: &model,
        board: CellBoard::new(next, 1, true),
        resending: HashSet::new(),
        sent_shared: false,
    }
    .run();
    for thread in threads {
        thread.join().unwrap();
    }
    let ghost = model.ghost.lock().unwrap();
    assert!(ghost.ran.values().all(|ran| *ran == 1), "{:?}", ghost.ran);
    for (client, answers) in ghost.answers.iter().enumerate() {
        assert_eq!(answers.len(), 1, "client {client}: {answers:?}");
        assert_ne!(answers[0], "refused", "client {client}");
    }
}

#[test]
fn each_cell_runs_once_and_each_waiter_is_told_once_whatever_breaks() {
    let mut config = Config::new();
    // More than any run needs that forgets nobody.
    config.max_steps = shuttle::MaxSteps::FailAfter(100_000);
    let scheduler = shuttle::scheduler::RandomScheduler::new(rounds(800));
    shuttle::Runner::new(scheduler, config).run(model);
}
