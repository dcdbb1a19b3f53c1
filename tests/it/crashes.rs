//! The daemon is killed; sessions, cells and their order stay.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use pythond_protocol::ErrorCode;
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::list::SessionState;

use crate::support::{Gate, Instants, TestDaemon, eventually, kill};

#[test]
fn the_next_daemon_finds_variables_the_running_cell_and_the_queue_in_order() {
    let mut daemon = TestDaemon::start();
    let gate = Gate::new(&daemon, "gate");
    let mut wire = daemon.connect();
    let created = wire.create("work");
    wire.value("work", "order = []\nkept = object()\nidentity = id(kept)");

    let mut waiting = Vec::new();
    for (place, code) in [gate.code(), String::new(), String::new()]
        .into_iter()
        .enumerate()
    {
        let mut client = daemon.connect();
        client.submit("work", &format!("{code}order.append({place})"));
        eventually("the first runs, and this one waits behind it", || {
            let status = wire.status("work");
            status.running.len() == 1 && status.queued.len() == place
        });
        waiting.push(client);
    }
    let before = wire.status("work");
    daemon.crash();
    for mut client in waiting {
        client.try_receive().unwrap_err();
    }

    daemon.start_again();
    let mut wire = daemon.connect();
    let after = wire.status("work");
    assert_eq!(after.state, SessionState::Running);
    assert_eq!(
        (after.pid, &after.session_id),
        (created.pid, &created.session_id)
    );
    assert_eq!(
        (&after.running, &after.queued),
        (&before.running, &before.queued)
    );
    let mut late = daemon.connect();
    late.submit("work", "order.append(3)\norder");
    eventually("the late cell waits behind the others", || {
        wire.status("work").queued.len() == 3
    });
    gate.open();
    let reply = late.outcome();
    assert_eq!(reply.result.as_deref(), Some("[0, 1, 2, 3]"), "{reply:?}");
    assert_eq!(wire.value("work", "id(kept) == identity"), "True");
    assert_eq!(wire.status("work").state, SessionState::Idle);
}

/// Each cell has a number of its own and runs once or, if nobody was told how
/// it ended, perhaps not at all.
#[test]
fn ten_crashes_of_the_daemon_lose_no_answered_cell_and_run_none_twice() {
    let mut instants = Instants::new(1);
    let mut daemon = TestDaemon::start();
    let pid = daemon.connect().create("work").pid;
    daemon.connect().value("work", "counter, ran = 0, []");
    let mut sent = 0_u64;
    let mut answered = Vec::new();
    for _ in 0..10 {
        let mut wire = daemon.connect();
        let progress = AtomicU64::new(0);
        let enough = 1 + instants.below(30);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut told = Vec::new();
                loop {
                    let code =
                        format!("sum(range(3000))\ncounter += 1\nran.append({sent})\n{sent}");
                    if wire.try_send(&format!("run work\n{code}")).is_err() {
                        return told;
                    }
                    sent += 1;
                    match wire.try_receive() {
                        Ok(text) => {
                            assert_eq!(text, (sent - 1).to_string());
                            told.push(sent - 1);
                            progress.fetch_add(1, SeqCst);
                        }
                        Err(_) => return told,
                    }
                }
            });
            eventually("cells are answered", || progress.load(SeqCst) >= enough);
            instants.pass(Duration::from_millis(4));
            daemon.crash();
            answered.extend(client.join().unwrap());
        });
        daemon.start_again();
    }
    let mut wire = daemon.connect();
    assert_eq!(wire.status("work").pid, pid);
    let ran: Vec<u64> = serde_json::from_str(&wire.value("work", "ran")).unwrap();
    assert_eq!(wire.value("work", "counter"), ran.len().to_string());
    assert!(
        ran.is_sorted_by(|one, next| one < next),
        "twice or out of order: {ran:?}"
    );
    let lost: Vec<_> = answered.iter().filter(|cell| !ran.contains(cell)).collect();
    assert!(lost.is_empty(), "answered and not there: {lost:?}");
    // One cell at most was on its way in each crash.
    assert!(
        ran.len() <= answered.len() + 10,
        "{} {}",
        ran.len(),
        answered.len()
    );
    assert!(ran.iter().all(|cell| *cell < sent), "{ran:?}");
}

#[test]
fn the_death_of_a_session_is_told_to_the_running_client_and_to_all_that_wait() {
    let daemon = TestDaemon::start();
    let gate = Gate::new(&daemon, "never");
    let witness = daemon.root().join("witness");
    let mut wire = daemon.connect();
    let pid = wire.create("work").pid;
    wire.create("other");
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    clients[0].submit(
        "work",
        &format!("print('early', flush=True)\n{}", gate.code()),
    );
    eventually("the first cell runs", || {
        wire.status("work").running.len() == 1
    });
    for client in &mut clients[1..] {
        client.submit("work", &format!("open({witness:?}, 'w')"));
    }
    eventually("two cells wait", || wire.status("work").queued.len() == 2);
    kill(pid);
    for client in &mut clients {
        let reply = client.outcome();
        assert_eq!(reply.status, CellStatus::Killed, "{reply:?}");
        let error = reply.error.expect("a killed cell has an error");
        assert_eq!(error.code, Some(ErrorCode::SessionDied));
        assert!(error.exception.message.contains("SIGKILL"), "{error:?}");
    }
    assert!(
        !witness.exists(),
        "a cell ran after the death of its session"
    );
    let death = wire
        .status("work")
        .death
        .expect("a dead session has a tombstone");
    assert_eq!(death.cause, "killed by SIGKILL");
    assert!(death.cell_id.is_some(), "{death:?}");
    assert_eq!(wire.value("other", "1 + 1"), "2");
    assert_ne!(wire.create("work").pid, pid);
    assert_eq!(wire.value("work", "2 + 2"), "4");
}
