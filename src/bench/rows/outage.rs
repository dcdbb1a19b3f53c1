//! What a client notices of a daemon that is killed and started again.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::{Bench, median};
use crate::client::frame;
use crate::setup::{Daemon, pids, wait_for_ends};
use crate::table::{Aim, Row, Unit};

/// A client that gets no answer for this long never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers before the kill, and after it.
const ANSWERS: usize = 20;

impl Bench {
    /// The longest time between two answers of `pysh run` in a loop, against
    /// what a daemon without sessions takes from its exec to its first answer.
    pub(crate) fn outage(&mut self) -> Result<Vec<Row>> {
        let mut empty = Daemon::start(&self.daemon.programs)?;
        let mut connection = empty.connect()?;
        self.new_session(&mut connection, "first")?;
        connection.request(&frame("kill first"))?;
        let mut rows = Vec::new();
        let mut alive = 0;
        for wanted in [1, if self.quick { 50 } else { 500 }] {
            let mut connection = self.daemon.connect()?;
            while alive < wanted {
                self.new_session(&mut connection, &format!("out{alive}"))?;
                alive += 1;
            }
            let (mut ours, mut floor) = (Vec::new(), Vec::new());
            for _ in 0..self.rounds(20).max(3) {
                let mut pysh = self.daemon.command(self.daemon.programs.join("pysh"));
                pysh.args(["run", "--no-echo", "out0", "1+1"]);
                ours.push(longest_gap(pysh, || self.daemon.kill_and_start())?);
                let started = empty.kill_and_start()?;
                empty.wait_for_answer()?;
                floor.push(started.elapsed().as_secs_f64());
            }
            rows.push(Row {
                measure: format!(
                    "`pysh run` in a loop, longest gap by a kill -9 with {alive} sessions \
                     / exec of a daemon until it answers"
                ),
                unit: Unit::Seconds,
                ours: median(ours),
                floor: median(floor),
                aim: Aim::AtMost(0.3),
            });
        }
        let mut connection = self.daemon.connect()?;
        let hosts = pids(&connection.ask("ls --json")?["sessions"])?;
        connection.request(&frame("kill --all"))?;
        wait_for_ends(&hosts)?;
        Ok(rows)
    }
}

/// Runs a command again and again, does something meanwhile, and gives the
/// longest time in seconds between two runs that ended well.
fn longest_gap<T>(mut command: Command, meanwhile: impl FnOnce() -> Result<T>) -> Result<f64> {
    // One that finds no daemon at first ends at once, and is run again.
    let mut answers = move |tell: Sender<Instant>| {
        while let Ok(status) = command.stderr(Stdio::null()).status() {
            if status.success() && tell.send(Instant::now()).is_err() {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        scope.spawn(move || answers(tell));
        let mut times = some(&told)?;
        meanwhile()?;
        times.extend(some(&told)?);
        let gaps = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64());
        Ok(gaps.fold(0.0, f64::max))
    })
}

/// When the next answers came: all that are there, and some more.
fn some(told: &Receiver<Instant>) -> Result<Vec<Instant>> {
    let mut times: Vec<_> = told.try_iter().collect();
    for _ in 0..ANSWERS {
        let next = told.recv_timeout(PATIENCE);
        if next == Err(RecvTimeoutError::Timeout) {
            return next.map(|_| times).context("no answer any more");
        }
        times.push(next?);
    }
    Ok(times)
}
