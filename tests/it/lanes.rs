//! Lanes between daemon and host: what session code does to them, and what
//! they say to whoever asks.

use pythond_protocol::CellId;
use pythond_protocol::lane::{FinishedCell, HELLO_TAG, HostEvent, LINK_VERSION, encode};
use pythond_protocol::outcome::{CellKind, CellStatus};

use crate::host_lane::HostLane;
use crate::support::{Gate, TestDaemon, eventually};

/// `Finished` of a cell, as the daemon would believe it of a host: the numbers of
/// its requests are hard to guess, but a cell is known by its id as well.
fn forged(tag: u64, cell: CellId) -> Vec<u8> {
    let mut all = Vec::new();
    for request in [None, Some(0), Some(1)] {
        let finished = FinishedCell {
            request,
            cell,
            kind: CellKind::Run,
            status: CellStatus::Done,
            exception: None,
            result: None,
            started_us: 0,
            duration_ns: 1,
            timed_out: false,
            output_bytes: 0,
            truncated: 0,
            changed: vec!["forged".to_owned()],
            next_cell: cell,
            not_recorded: None,
            merge: None,
        };
        let event = HostEvent::Finished(Box::new(finished));
        all.extend(encode(tag, &event, b"").unwrap());
    }
    all
}

/// Code that writes bytes to every descriptor above 2, its own one excepted.
fn write_everywhere(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "import os
for fd in sorted(map(int, os.listdir('/proc/self/fd'))):
    if fd > 2:
        try:
            os.write(fd, bytes.fromhex('{hex}'))
        except OSError:
            pass
"
    )
}

#[test]
fn garbage_and_forged_ends_on_every_descriptor_are_never_believed() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let lies: [&dyn Fn(CellId) -> Vec<u8>; 5] = [
        &|_| b"\x00\xff garbage \x10".repeat(40),
        &|_| vec![0; 256],
        &|cell| forged(0, cell),
        &|cell| forged(0x0123_4567_89ab_cdef, cell),
        &|cell| forged(HELLO_TAG, cell),
    ];
    for (round, lie) in lies.iter().enumerate() {
        // A lane that was lied to may be kept where cells do not reach it, so
        // that each lie needs a session that has not seen one.
        let session = format!("work{round}");
        wire.create(&session);
        let cell = wire.run(&session, "lies = 0").cell_id.unwrap();
        let next = CellId::from_u64(cell.as_u64() + 1).unwrap();
        let gate = Gate::new(&daemon, &format!("gate{round}"));
        // The cell goes on after its lie, so that an end which is believed
        // comes before the true one.
        let code = format!(
            "lies += 1\n{}{}print('truth')\nlies",
            write_everywhere(&lie(next)),
            gate.code()
        );
        wire.submit(&session, &code);
        eventually("the daemon gave the lane up and opened another", || {
            daemon.log_text().matches("new lanes are open").count() > round
        });
        gate.open();
        let reply = wire.outcome();
        assert!(reply.ok, "{reply:?}");
        // Some of the descriptors are the session's own standard output.
        assert!(reply.stdout.0.ends_with(b"truth\n1\n"), "{reply:?}");
        assert_eq!(reply.result, Some("1".to_owned()), "{reply:?}");
        assert!(reply.changed.contains(&"lies".to_owned()), "{reply:?}");
        assert!(!reply.changed.contains(&"forged".to_owned()), "{reply:?}");
        assert_eq!(wire.value(&session, "lies + 1"), "2");
    }
}

#[test]
fn lies_that_go_on_while_cells_run_cost_at_most_the_knowledge_of_an_end() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let cell = wire.run("work", "ran = []").cell_id.unwrap();
    let lie = forged(7, CellId::from_u64(cell.as_u64() + 2).unwrap());
    let body = write_everywhere(&lie).replace('\n', "\n        ");
    let liar = format!(
        "import threading\nquiet = threading.Event()\ndef lie():\n    while not quiet.wait(0.01):\n        {body}\nliar = threading.Thread(target=lie)\nliar.start()"
    );
    wire.value("work", &liar);
    for number in 0..30 {
        let reply = wire.run("work", &format!("ran.append({number})\n'truth {number}'"));
        match reply.status {
            CellStatus::Done => assert_eq!(reply.result, Some(format!("truth {number}"))),
            CellStatus::Lost => assert!(reply.result.is_none(), "{reply:?}"),
            other => panic!("{other:?}: {reply:?}"),
        }
    }
    eventually("the liar can be told to be quiet", || {
        wire.run("work", "quiet.set(); liar.join()").ok
    });
    assert_eq!(wire.value("work", "liar.is_alive()"), "False");
    let ran: Vec<u64> = serde_json::from_str(&wire.value("work", "ran")).unwrap();
    assert!(
        ran.is_sorted_by(|one, next| one < next),
        "a cell ran twice: {ran:?}"
    );
}

#[test]
fn a_session_without_descriptors_still_runs_is_interrupted_and_ends() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let reply = wire.run(
        "work",
        "import os\nos.closerange(3, 65536)\nkept = 1\n'closed'",
    );
    assert_eq!(reply.result.as_deref(), Some("closed"), "{reply:?}");
    assert_eq!(wire.value("work", "kept + 1"), "2");
    let mut busy = daemon.connect();
    busy.submit("work", "while True: pass");
    eventually("the cell runs", || wire.status("work").running.len() == 1);
    assert_eq!(wire.interrupt("work").interrupted.len(), 1);
    assert_eq!(busy.outcome().status, CellStatus::Interrupted);
    let vars = wire.ask("vars work");
    assert!(vars.contains(r#""kept""#), "{vars}");
    assert_eq!(wire.value("work", "kept + 2"), "3");
    assert_eq!(wire.ask("kill work"), "OK killed work");
    assert_eq!(daemon.host_sockets(), Vec::<String>::new());
}

#[test]
fn a_host_welcomes_a_second_control_lane_by_name_and_the_daemon_takes_it_back() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let created = wire.create("work");
    let gate = Gate::new(&daemon, "gate");
    wire.submit("work", &format!("{}'mine'", gate.code()));
    let mut other = daemon.connect();
    eventually("the cell runs", || other.status("work").running.len() == 1);

    let (_lane, info) = HostLane::open(&daemon, 99);
    assert_eq!((info.version, info.pid), (LINK_VERSION, created.pid));
    let hosted = info.session.expect("the host is a session");
    assert_eq!(hosted.spec.session.as_str(), "work");
    assert_eq!(hosted.spec.session_id, created.session_id);
    assert_eq!(hosted.unfinished.len(), 1);
    assert!(
        hosted.spec.env.is_empty(),
        "the environment stays in the host"
    );

    // A question that is on its way when the lane goes is asked again.
    let answer = other.ask("status work --json");
    assert!(answer.contains(r#""state":"running""#), "{answer}");
    gate.open();
    assert_eq!(wire.outcome().result.as_deref(), Some("mine"));
    assert_eq!(wire.value("work", "1 + 1"), "2");
}
