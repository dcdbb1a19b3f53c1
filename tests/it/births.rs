//! Sessions made in a crowd, and sessions whose making is cut.

use std::collections::BTreeSet;
use std::time::Duration;

use pythond_protocol::verbs::new::NewReply;

use crate::support::{Instants, TestDaemon, eventually};

#[test]
fn stop_takes_a_hundred_sessions_of_eight_threads_and_leaves_no_process() {
    let mut daemon = TestDaemon::start();
    let pids: BTreeSet<i32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let mut wire = daemon.connect();
                scope.spawn(move || {
                    let numbers = (thread..100).step_by(8);
                    let create = |number| wire.create(&format!("s{number}")).pid;
                    numbers.map(create).collect::<Vec<i32>>()
                })
            })
            .collect();
        let made = threads.into_iter().map(|thread| thread.join().unwrap());
        made.flatten().collect()
    });
    assert_eq!(pids.len(), 100, "a process holds two sessions");
    let mut wire = daemon.connect();
    assert_eq!(wire.sessions().len(), 100);
    assert_eq!(wire.value("s99", "1 + 1"), "2");
    daemon.stop();
    assert_eq!(daemon.processes_left(), []);
    assert_eq!(daemon.host_sockets(), Vec::<String>::new());
}

#[test]
fn a_crash_during_new_leaves_a_name_of_use_and_no_host_without_a_name() {
    let mut instants = Instants::new(3);
    let mut daemon = TestDaemon::start();
    for round in 0..12 {
        let name = format!("s{round}");
        let mut wire = daemon.connect();
        wire.send(&format!("new {name} --json"));
        instants.pass(Duration::from_millis(60));
        daemon.crash();
        // Whether an answer was on its way already is left to chance.
        let told = wire
            .try_receive()
            .ok()
            .map(|text| serde_json::from_str::<NewReply>(&text).expect(&text));
        daemon.start_again();

        let mut wire = daemon.connect();
        let again = wire.ask(&format!("new {name}"));
        let made = again.starts_with(&format!("OK {name} pid="));
        assert!(made || again.contains("exists"), "round {round}: {again}");
        assert!(!made || told.is_none(), "round {round}: {told:?} is lost");
        assert_eq!(wire.value(&name, "6 * 7"), "42", "round {round}");
        let pid = wire.status(&name).pid;
        assert!(told.is_none_or(|told| told.pid == pid), "round {round}");
        eventually("every host that is no spare has a name", || {
            daemon.host_sockets().len() == wire.sessions().len()
        });
    }
    assert_eq!(daemon.connect().sessions().len(), 12);
    daemon.stop();
    assert_eq!(daemon.processes_left(), []);
}
