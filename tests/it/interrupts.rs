//! An interrupt hits the cell it names and no other.

use std::time::Duration;

use pythond_protocol::outcome::CellStatus;

use crate::support::{Instants, TestDaemon};

/// Two cells in a row, so that one follows the end of the other at once, and
/// an interrupt at any instant of both.
#[test]
fn an_interrupt_at_any_instant_hits_only_the_cell_that_its_answer_names() {
    let mut instants = Instants::new(2);
    let daemon = TestDaemon::start();
    let mut wire = daemon.connect();
    wire.create("work");
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    let mut hits = 0;
    for round in 0..150 {
        let length = instants.below(200_000);
        let code = format!("for _ in range({length}): pass\n{round}");
        first.submit("work", &code);
        second.submit("work", &code);
        instants.pass(Duration::from_millis(12));
        let named = wire.interrupt("work").interrupted;
        assert!(named.len() <= 1, "round {round}: {named:?}");
        for client in [&mut first, &mut second] {
            let reply = client.outcome();
            let cell = reply.cell_id.expect("a cell that ended has an id");
            match reply.status {
                CellStatus::Done => assert_eq!(reply.result, Some(round.to_string())),
                CellStatus::Interrupted => {
                    assert!(
                        named.contains(&cell),
                        "round {round}: {named:?} and not {cell}"
                    );
                    hits += 1;
                }
                other => panic!("round {round}: {other:?}: {reply:?}"),
            }
        }
        let next = wire.run("work", "sum(range(2000))");
        assert_eq!(next.status, CellStatus::Done, "round {round}: {next:?}");
        assert_eq!(next.result.as_deref(), Some("1999000"), "round {round}");
    }
    assert!(hits > 0, "no interrupt hit anything, so nothing was tested");
}
