//! A daemon that is killed, and the next one that takes its sessions over.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::bench::{Bench, median};
use crate::client::frame;
use crate::setup::{Daemon, pids, wait_for_ends};
use crate::table::{Aim, Row, Unit};

impl Bench {
    /// Seconds from the kill until all sessions are listed, and until each has
    /// answered, against the same of a daemon without sessions.
    pub(crate) fn restart(&mut self) -> Result<Vec<Row>> {
        let mut empty = Daemon::start(&self.daemon.programs)?;
        // A zygote that still imports keeps whoever takes it over waiting.
        let mut connection = empty.connect()?;
        self.new_session(&mut connection, "first")?;
        connection.request(&frame("kill first"))?;
        let mut rows = Vec::new();
        let mut alive = 0;
        for wanted in if self.quick {
            [1, 20, 100]
        } else {
            [1, 100, 500]
        } {
            let mut connection = self.daemon.connect()?;
            while alive < wanted {
                self.new_session(&mut connection, &format!("kept{alive}"))?;
                let answer = connection.request(&frame(&format!("run kept{alive} x = {alive}")))?;
                ensure!(answer.is_empty(), "a wrong answer: {answer}");
                alive += 1;
            }
            let (mut listed, mut answered, mut floor) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.rounds(20).max(3) {
                let times = take_over(&mut self.daemon, alive)?;
                listed.push(times.0);
                answered.push(times.1);
                floor.push(take_over(&mut empty, 0)?.0);
            }
            let floor = median(floor);
            let row = |what: &str, ours| Row {
                measure: format!("kill -9 of the daemon until {what} / with no session"),
                unit: Unit::Seconds,
                ours: median(ours),
                floor,
                aim: Aim::AtMost(1.0),
            };
            rows.push(row(&format!("`ls` lists {alive} sessions"), listed));
            rows.push(row(&format!("each of {alive} has answered"), answered));
        }
        let mut connection = self.daemon.connect()?;
        let hosts = pids(&connection.ask("ls --json")?["sessions"])?;
        connection.request(&frame("kill --all"))?;
        wait_for_ends(&hosts)?;
        Ok(rows)
    }
}

/// Kills the daemon and starts the next one. Seconds until all sessions are
/// listed, and until each has answered with what only it knows.
fn take_over(daemon: &mut Daemon, sessions: usize) -> Result<(f64, f64)> {
    let start = Instant::now();
    daemon.kill_and_start()?;
    let mut connection = daemon.wait_for_answer()?;
    let listed = loop {
        let answer = connection.ask("ls --json")?;
        let listed = answer["sessions"].as_array().map_or(0, |all| {
            let alive = all.iter().filter(|session| session["state"] == "idle");
            alive.count()
        });
        if listed == sessions {
            break start.elapsed();
        }
        ensure!(
            start.elapsed().as_secs() < 30,
            "{listed} of {sessions} sessions are there: {answer}"
        );
    };
    for session in 0..sessions {
        let answer = connection.request(&frame(&format!("run kept{session} x")))?;
        ensure!(answer == session.to_string(), "a wrong answer: {answer}");
    }
    Ok((listed.as_secs_f64(), start.elapsed().as_secs_f64()))
}
