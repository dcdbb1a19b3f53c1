//! Many sessions and as many clients, connected at once.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::bench::{Bench, percentiles, timed};
use crate::client::{Connection, frame};
use crate::setup::{Daemon, descriptors_and_threads, pids, private_memory, wait_for_ends};
use crate::table::{Aim, Row, Unit};

/// A client with a session of its own.
struct Client {
    connection: Connection,
    request: Vec<u8>,
}

impl Client {
    fn new(daemon: &Daemon, name: &str) -> Result<Self> {
        let mut connection = daemon.connect()?;
        connection.ask(&format!("new {name} --json"))?;
        let request = frame(&format!("run {name} 1+1"));
        let mut client = Self {
            connection,
            request,
        };
        client.run()?;
        Ok(client)
    }

    fn run(&mut self) -> Result<f64> {
        timed(|| {
            self.connection.send(&self.request)?;
            self.answered()
        })
    }

    fn answered(&mut self) -> Result<()> {
        let answer = self.connection.receive()?;
        ensure!(answer == "2", "a wrong answer: {answer}");
        Ok(())
    }
}

impl Bench {
    /// What they cost the daemon and each other, against one session and one
    /// client of another daemon.
    pub(crate) fn crowd(&self) -> Result<Vec<Row>> {
        let count = if self.quick { 50 } else { 500 };
        let lone_daemon = Daemon::start(&self.daemon.programs)?;
        let mut lone = Client::new(&lone_daemon, "lone")?;
        let mut crowd = Vec::new();
        for number in 0..count {
            crowd.push(Client::new(&self.daemon, &format!("crowd{number}"))?);
        }
        let (mut floor, mut one, mut each) = (Vec::new(), Vec::new(), Vec::new());
        let (mut together, mut all, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds(50) {
            for _ in 0..100 {
                floor.push(lone.run()?);
            }
            for _ in 0..100 {
                one.push(crowd[count / 2].run()?);
            }
            for client in 0..100 {
                each.push(crowd[(round * 100 + client) % count].run()?);
            }
            let (times, last) = all_at_once(&mut crowd)?;
            together.extend(times);
            all.push(last);
            alone.push(timed(|| (0..count).try_for_each(|_| lone.run().map(drop)))?);
        }
        let mut rows = self.costs(&lone_daemon, count)?;
        let floor = percentiles(floor);
        let who = format!("of {count} sessions and clients");
        for (what, samples) in [
            (format!("warm `1+1` of one {who}, the others idle"), one),
            (format!("warm `1+1` of each {who} in turn"), each),
            (format!("warm `1+1` of all {who} at once"), together),
        ] {
            for ((name, ours), floor) in ["p50", "p99"].iter().zip(percentiles(samples)).zip(floor)
            {
                rows.push(Row {
                    measure: format!("{name} of a {what} / of one session and client"),
                    unit: Unit::Seconds,
                    ours,
                    floor,
                    aim: Aim::None,
                });
            }
        }
        rows.push(Row {
            measure: format!("all {who} at once, until the last answer / {count} of one"),
            unit: Unit::Seconds,
            ours: percentiles(all)[0],
            floor: percentiles(alone)[0],
            aim: Aim::AtMostTimes(1.0),
        });
        let hosts = pids(&crowd[0].connection.ask("ls --json")?["sessions"])?;
        crowd[0].connection.request(&frame("kill --all"))?;
        wait_for_ends(&hosts)?;
        Ok(rows)
    }

    /// Memory, descriptors and threads of both daemons.
    fn costs(&self, lone: &Daemon, count: usize) -> Result<Vec<Row>> {
        let of = |daemon: &Daemon| {
            let (descriptors, threads) = descriptors_and_threads(daemon.pid())?;
            let memory = private_memory(daemon.pid())?;
            Ok::<_, anyhow::Error>([memory as f64, descriptors as f64, threads as f64])
        };
        let rows = of(&self.daemon)?.into_iter().zip(of(lone)?).zip([
            ("private memory", Unit::Bytes, Aim::AtMost(32.0 * 1048576.0)),
            // Two lanes for a session, and its client.
            (
                "descriptors",
                Unit::Count,
                Aim::AtMost(3.0 * count as f64 + 64.0),
            ),
            ("threads", Unit::Count, Aim::AtMostTimes(1.0)),
        ]);
        let row = |((ours, floor), (what, unit, aim))| Row {
            measure: format!("{what} of the daemon with {count} sessions and clients / with one"),
            unit,
            ours,
            floor,
            aim,
        };
        Ok(rows.map(row).collect())
    }
}

/// Every client asks before any reads: seconds of each, and until the last has
/// its answer.
fn all_at_once(clients: &mut [Client]) -> Result<(Vec<f64>, f64)> {
    let start = Instant::now();
    let mut sent = Vec::new();
    for client in &mut *clients {
        sent.push(Instant::now());
        client.connection.send(&client.request)?;
    }
    // Whoever is read late counts late: as in a program that reads them in turn.
    let mut times = Vec::new();
    for (client, sent) in clients.iter_mut().zip(sent) {
        client.answered()?;
        times.push(sent.elapsed().as_secs_f64());
    }
    Ok((times, start.elapsed().as_secs_f64()))
}
