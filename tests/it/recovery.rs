//! Lanes that break and come again, under a daemon that lives on or for the next
//! one: each cell runs once, and each client gets the result of its own.

use std::fs;
use std::path::PathBuf;

use pythond_protocol::lane::{HostCommand, HostEvent};
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::interrupt::InterruptOutcome;
use pythond_protocol::verbs::list::SessionState;
use pythond_protocol::verbs::submit::FireReply;
use pythond_protocol::{CellId, ErrorCode};

use rustix::process::Signal;

use crate::host_lane::HostLane;
use crate::support::{Gate, TestDaemon, Wire, eventually};

/// A `fire` cell that holds the interpreter's lock from when `begin` returns until
/// `end` is called.
struct Holder {
    fifo: PathBuf,
}

impl Holder {
    fn begin(daemon: &TestDaemon, wire: &mut Wire, session: &str) -> Self {
        let (ready, fifo) = (daemon.root().join("held"), daemon.root().join("let-go"));
        let code = format!(
            "import ctypes, os\nos.mkfifo({fifo:?})\n\
             ctypes.PyDLL(None).system(b\": > '{}'; read x < '{}'\")",
            ready.display(),
            fifo.display()
        );
        let answer = wire.ask(&format!("fire {session}\n{code}"));
        assert!(answer.contains("fired"), "{answer}");
        eventually("the interpreter's lock is held", || ready.exists());
        Self { fifo }
    }

    fn end(self) {
        // Without a word: the end of the file is what the shell waits for.
        drop(fs::File::options().write(true).open(self.fifo).unwrap());
    }
}

/// Waits until the main thread of a host asks for the interpreter's lock: every few
/// milliseconds, while one that waits for a cell stays where it is.
fn wait_for_main_thread(pid: i32) {
    let waits = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    };
    let before = waits();
    eventually("the main thread asks for the lock", || {
        waits() > before + 20
    });
}

/// How often new lanes were opened to sessions that go on.
fn recoveries(daemon: &TestDaemon) -> usize {
    daemon.log_text().matches("new lanes are open").count()
}

#[test]
fn a_cell_that_waits_on_a_broken_cell_lane_runs_once() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let pid = wire.create("work").pid;
    assert!(wire.run("work", "ran = []").ok);
    let holder = Holder::begin(&daemon, &mut wire, "work");
    let mut client = daemon.connect();
    client.submit("work", "ran.append(1); 'first'");
    wait_for_main_thread(pid);

    let (lane, _) = HostLane::open(&daemon, 99);
    eventually("the daemon has opened new lanes", || {
        recoveries(&daemon) == 1
    });
    drop(lane);
    // What it asked over them is answered before this.
    assert!(wire.ask("vars work").starts_with("ERR"));
    holder.end();
    assert_eq!(client.outcome().result.as_deref(), Some("first"));
    assert_eq!(wire.value("work", "ran"), "[1]");
}

#[test]
fn a_cell_on_the_lane_of_an_earlier_daemon_is_not_taken_for_one_of_the_next() {
    let mut daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let pid = wire.create("work").pid;
    let cell = wire.run("work", "ran = []").cell_id.unwrap();
    let holder = Holder::begin(&daemon, &mut wire, "work");
    wire.submit("work", "ran.append(1); 'of the first daemon'");
    wait_for_main_thread(pid);

    daemon.crash();
    daemon.start_again();
    let mut wire = daemon.connect();
    eventually("the session is taken over", || wire.sessions().len() == 1);
    wire.submit("work", "ran.append(2); 'of the second daemon'");
    let next = CellId::from_u64(cell.as_u64() + 1).unwrap();
    let mut other = daemon.connect();
    eventually("the cell is on its way", || {
        let answer = other.ask(&format!("poll work {next} --json"));
        !answer.contains("unknown_cell")
    });
    holder.end();
    let reply = wire.outcome();
    assert_eq!(reply.status, CellStatus::Done, "{reply:?}");
    assert_eq!(reply.result.as_deref(), Some("of the second daemon"));
    assert_eq!(wire.value("work", "ran"), "[2]");
}

#[test]
fn a_host_answers_no_question_of_a_daemon_that_is_gone() {
    let mut daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let holder = Holder::begin(&daemon, &mut wire, "work");
    daemon.crash();
    let (mut gone, _) = HostLane::open(&daemon, 98);
    gone.send(&HostCommand::Vars { request: 5 });
    gone.send(&HostCommand::Status { request: 6 });
    let answer = gone.next();
    assert!(
        matches!(answer, HostEvent::Status { request: 6, .. }),
        "{answer:?}"
    );

    let (mut lane, _) = HostLane::open(&daemon, 99);
    lane.send(&HostCommand::Vars { request: 7 });
    // It is late as well, and later than the other.
    let answer = lane.next();
    assert!(
        matches!(&answer, HostEvent::Refused { request: 7, error } if error.code == ErrorCode::Busy),
        "{answer:?}"
    );
    drop((gone, lane));
    holder.end();
    daemon.start_again();
    assert_eq!(daemon.connect().value("work", "1 + 1"), "2");
}

/// Keeps a daemon from noticing anything, and takes its control lane from it.
fn cut_off(daemon: &TestDaemon) -> HostLane {
    daemon.signal(Signal::STOP);
    HostLane::open(daemon, 99).0
}

/// Lets it notice, and waits until it has lanes again.
fn reach_again(daemon: &TestDaemon, lane: HostLane) {
    let before = recoveries(daemon);
    daemon.signal(Signal::CONT);
    eventually("the daemon has opened new lanes", || {
        recoveries(daemon) > before
    });
    drop(lane);
}

#[test]
fn a_cell_that_ended_and_was_forgotten_before_the_lanes_were_back_is_lost_and_not_run_again() {
    let daemon = TestDaemon::start_with("[records]\ncells = 1\n");
    let mut wire = daemon.connect();
    wire.create("work");
    assert!(wire.run("work", "ran = []").ok);
    let gate = Gate::new(&daemon, "gate");
    let mut clients = [daemon.connect(), daemon.connect(), daemon.connect()];
    clients[0].submit("work", &gate.code());
    // One that waits as well would be counted below in place of the last.
    eventually("the cell runs", || wire.status("work").running.len() == 1);
    for (number, client) in clients.iter_mut().enumerate().skip(1) {
        client.submit("work", &format!("ran.append({number}); 'told'"));
        eventually("the cell waits", || {
            wire.status("work").queued.len() == number
        });
    }

    let mut lane = cut_off(&daemon);
    gate.open();
    eventually("all cells but the last are forgotten", || {
        lane.send(&HostCommand::Cells { request: 1 });
        let answer = lane.next();
        matches!(
            answer,
            HostEvent::Cells {
                request: 1,
                forgotten: 3,
                ..
            }
        )
    });
    reach_again(&daemon, lane);
    let [_, forgotten, kept] = clients.each_mut().map(Wire::outcome);
    assert_eq!(forgotten.status, CellStatus::Lost, "{forgotten:?}");
    assert_eq!(kept.result.as_deref(), Some("told"), "{kept:?}");
    assert_eq!(wire.value("work", "ran"), "[1, 2]");
    assert_eq!(wire.status("work").running, []);
}

#[test]
fn a_cell_that_was_sent_before_the_daemon_knew_that_cells_are_to_wait_waits() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let mut lane = cut_off(&daemon);
    let mut cells = HostLane::cells(&daemon, 98);
    let hold = |lane: &mut HostLane, by: Option<&str>| {
        let by = by.map(str::to_owned);
        lane.send(&HostCommand::Hold {
            request: 1,
            by,
            terminal: None,
        });
        while !matches!(lane.next(), HostEvent::Hold { .. }) {}
    };
    hold(&mut lane, Some("ann"));
    cells.run(2, "ran = 1");
    eventually("the cell waits", || {
        lane.send(&HostCommand::Status { request: 3 });
        let answer = lane.next();
        matches!(answer, HostEvent::Status { status, .. } if status.queued.len() == 1)
    });
    hold(&mut lane, None);
    let end = cells.next();
    assert!(
        matches!(&end, HostEvent::Finished(end) if end.status == CellStatus::Done),
        "{end:?}"
    );
    reach_again(&daemon, lane);
    assert_eq!(wire.value("work", "ran"), "1");
}

#[test]
fn an_id_that_was_kept_free_for_a_cell_in_vain_is_no_running_cell() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let pid = wire.create("work").pid;
    let first = wire.run("work", "ran = []").cell_id.unwrap();
    let holder = Holder::begin(&daemon, &mut wire, "work");
    let mut client = daemon.connect();
    client.submit("work", "ran.append(1)");
    wait_for_main_thread(pid);
    // Whoever asks something lets the host expect the cell.
    wire.status("work");
    let (lane, _) = HostLane::open(&daemon, 99);
    eventually("the daemon has opened new lanes", || {
        recoveries(&daemon) == 1
    });
    drop(lane);
    holder.end();
    let cell = client.outcome().cell_id.unwrap();
    assert_eq!(cell.as_u64(), first.as_u64() + 2, "another id than before");
    assert_eq!(wire.value("work", "ran"), "[1]");
    eventually("no cell runs", || wire.status("work").running.is_empty());
    assert_eq!(wire.interrupt("work").interrupted, []);
    eventually("the session is idle", || {
        wire.sessions()[0].state == SessionState::Idle
    });
}

/// Waits until the host says that so many cells run.
fn wait_for_running(lane: &mut HostLane, count: usize) {
    eventually("the cells run", || {
        lane.send(&HostCommand::Status { request: 1 });
        matches!(lane.next(), HostEvent::Status { status, .. } if status.running.len() == count)
    });
}

#[test]
fn a_cell_that_began_while_the_lanes_were_broken_is_told_as_running() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let mut follower = daemon.connect();
    assert!(follower.ask("events work").contains("ready"));
    let gates = ["one", "two", "three"].map(|name| Gate::new(&daemon, name));
    let mut client = daemon.connect();
    client.submit("work", &gates[0].code());
    eventually("the cell runs", || wire.status("work").running.len() == 1);
    let fired: Vec<FireReply> = gates[1..]
        .iter()
        .map(|gate| wire.json(&format!("fire work --queue --json\n{}", gate.code())))
        .collect();
    let [first, second] = fired.as_slice() else {
        panic!("{fired:?}")
    };
    assert_eq!(second.status, CellStatus::Queued);

    let mut lane = cut_off(&daemon);
    gates[1].open();
    eventually("the first has ended and the second runs", || {
        lane.send(&HostCommand::Status { request: 1 });
        let answer = lane.next();
        matches!(answer, HostEvent::Status { status, .. }
            if status.running.contains(&second.cell_id)
                && !status.running.contains(&first.cell_id))
    });
    reach_again(&daemon, lane);
    let started = r#""event":"cell_started","session":"work""#;
    let id = second.cell_id.to_string();
    eventually("its start is told", || {
        let event = follower.receive();
        event.contains(started) && event.contains(&id)
    });
    let interrupted = wire.interrupt("work").interrupted;
    assert_eq!(interrupted.len(), 2, "{interrupted:?}");
    assert!(interrupted.contains(&second.cell_id), "{interrupted:?}");
    assert_eq!(client.outcome().status, CellStatus::Interrupted);
}

#[test]
fn a_persons_cell_that_began_while_the_lanes_were_broken_makes_the_session_busy() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let gate = Gate::new(&daemon, "gate");
    assert!(
        wire.run(
            "work",
            &format!("def wait():\n    {}", gate.code().replace('\n', "\n    "))
        )
        .ok
    );

    let mut lane = cut_off(&daemon);
    let mut terminal = HostLane::attach(&daemon, 97);
    terminal.type_in("wait()\r");
    wait_for_running(&mut lane, 1);
    reach_again(&daemon, lane);
    let refused = wire.ask("run work --busy=fail --json\n1 + 1");
    assert!(refused.contains(r#""busy""#), "{refused}");
    gate.open();
    eventually("the session is idle", || {
        wire.sessions()[0].state == SessionState::Idle
    });
    assert_eq!(wire.value("work", "1 + 1"), "2");
}

#[test]
fn an_interrupt_that_is_asked_for_again_over_new_lanes_is_one() {
    let mut daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let first = wire.run("work", "seen = []").cell_id.unwrap();
    let cell = CellId::from_u64(first.as_u64() + 1).unwrap();
    let gate = Gate::new(&daemon, "gate");
    let (started, inside) = (daemon.root().join("started"), gate.code());
    let inside = inside.replace('\n', "\n        ");
    let code = format!(
        "import time\ntry:\n    open({started:?}, 'w').close()\n    while True: time.sleep(0.002)\n\
         except KeyboardInterrupt:\n    seen.append(1)\n    try:\n        {inside}\n    \
         except KeyboardInterrupt:\n        seen.append(2)"
    );
    wire.submit("work", &code);
    eventually("the cell runs", || started.exists());
    daemon.crash();

    let interrupt = HostCommand::Interrupt {
        request: 5,
        cells: vec![cell],
        soft: false,
        unnamed: false,
    };
    for tag in [98, 99] {
        let (mut lane, _) = HostLane::open(&daemon, tag);
        lane.send(&interrupt);
        let answer = lane.next();
        let HostEvent::Interrupted { request: 5, cells } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(cells.len(), 1, "{cells:?}");
        assert_eq!(cells[0].cell_id, cell);
        assert_eq!(cells[0].outcome, InterruptOutcome::Pending, "{cells:?}");
    }
    gate.open();
    daemon.start_again();
    assert_eq!(daemon.connect().value("work", "seen"), "[1]");
}
