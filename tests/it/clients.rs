//! What clients see of one session: plain and structured answers, their own
//! answers, and nothing of other clients' fates.

use crate::support::{Gate, TestDaemon, eventually};

const CLIENTS: usize = 40;
const CELLS_EACH: usize = 10;

#[test]
fn variables_persist_between_plain_and_structured_cells_of_many_connections() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    let created = wire.ask("new work");
    assert!(created.starts_with("OK work pid="), "{created}");
    assert_eq!(wire.ask("run work x = 41"), "");
    assert_eq!(daemon.connect().ask("run work\nprint('a')\nx + 1"), "a\n42");
    let reply = daemon.connect().run("work", "y = [x]\nprint('b')\ny");
    assert!(reply.ok, "{reply:?}");
    assert_eq!(reply.stdout.0, b"b\n[41]\n");
    assert_eq!(reply.result.as_deref(), Some("[41]"));
    assert_eq!(reply.changed, ["y"]);
    let failed = wire.ask("run work\ny.append(2)\n1 / 0");
    assert!(
        failed.starts_with("ERR execution failed\nTraceback"),
        "{failed}"
    );
    assert!(
        failed.ends_with("ZeroDivisionError: division by zero"),
        "{failed}"
    );
    assert_eq!(wire.value("work", "y"), "[41, 2]");
}

#[test]
fn forty_clients_of_one_session_each_get_their_own_answers_in_their_own_order() {
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    wire.value("work", "arrived = []");
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let mut wire = daemon.connect();
            scope.spawn(move || {
                for cell in 0..CELLS_EACH {
                    let code = format!("arrived.append([{client}, {cell}])\n[{client}, {cell}]");
                    wire.submit("work", &code);
                }
                for cell in 0..CELLS_EACH {
                    let reply = wire.outcome();
                    assert!(reply.ok, "{reply:?}");
                    assert_eq!(reply.result, Some(format!("[{client}, {cell}]")));
                }
            });
        }
    });
    let arrived: Vec<(usize, usize)> =
        serde_json::from_str(&wire.value("work", "arrived")).unwrap();
    assert_eq!(arrived.len(), CLIENTS * CELLS_EACH);
    for client in 0..CLIENTS {
        let cells: Vec<_> = arrived.iter().filter(|(from, _)| *from == client).collect();
        assert!(
            cells.iter().map(|(_, cell)| *cell).eq(0..CELLS_EACH),
            "{cells:?}"
        );
    }
}

#[test]
fn clients_that_vanish_while_their_cells_run_and_wait_change_nothing() {
    let daemon = TestDaemon::start();
    let gate = Gate::new(&daemon, "gate");
    let mut wire = daemon.connect();
    wire.create("work");
    wire.value("work", "done = []");
    let mut running = daemon.connect();
    running.submit("work", &format!("{}done.append('ran')", gate.code()));
    eventually("the cell runs", || wire.status("work").running.len() == 1);
    let mut waiting = daemon.connect();
    waiting.submit("work", "done.append('waited')");
    eventually("a cell waits", || wire.status("work").queued.len() == 1);
    let mut staying = daemon.connect();
    staying.submit("work", "done.append('stayed')\ndone");
    eventually("two cells wait", || wire.status("work").queued.len() == 2);
    drop((running, waiting));
    gate.open();
    let reply = staying.outcome();
    assert_eq!(
        reply.result.as_deref(),
        Some("['ran', 'waited', 'stayed']"),
        "{reply:?}"
    );
}
