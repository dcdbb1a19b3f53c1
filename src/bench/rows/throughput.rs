//! Requests per second of many connections, each on a session of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use crate::bench::{Bench, median};
use crate::client::{Connection, frame};
use crate::relay::Relay;
use crate::setup::all_cpu;
use crate::table::{Aim, Row, Unit};

/// How many connections, and which requests they send.
const LOADS: [(usize, Form); 7] = [
    (16, Form::Plain),
    (1, Form::Json),
    (16, Form::Json),
    (64, Form::Json),
    (1, Form::Tagged),
    (16, Form::Tagged),
    (64, Form::Tagged),
];

/// Tagged requests in flight on one connection.
const TAGS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One after another, answered with text.
    Plain,
    /// One after another, answered with JSON.
    Json,
    /// Many at once, answered with JSON.
    Tagged,
}

impl Form {
    /// What is in flight on a connection.
    fn requests(self, session: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Plain => vec![frame(&format!("run many{session} 1+1"))],
            Self::Json => vec![frame(&format!("run many{session} --json\n1+1"))],
            Self::Tagged => (0..TAGS)
                .map(|tag| frame(&format!("run many{session} --tag={tag}\n1+1")))
                .collect(),
        }
    }

    /// Which of them was answered.
    fn answered(self, answer: &str) -> Result<usize> {
        let right = match self {
            Self::Plain => answer == "2",
            Self::Json | Self::Tagged => answer.contains(r#""stdout":"2\n""#),
        };
        ensure!(right, "a wrong answer: {answer}");
        if self != Self::Tagged {
            return Ok(0);
        }
        let tag = answer
            .strip_prefix(r#"{"tag":""#)
            .and_then(|rest| rest.split('"').next())
            .and_then(|tag| tag.parse().ok())
            .filter(|tag| *tag < TAGS);
        tag.with_context(|| format!("an answer without our tag: {answer}"))
    }

    fn words(self) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Json => ", --json".to_owned(),
            Self::Tagged => format!(", {TAGS} tagged in flight on each"),
        }
    }
}

impl Bench {
    /// What many clients at once get, against what the cores could do if each
    /// request cost no more than in the relay loop.
    pub(crate) fn throughput(&self) -> Result<Vec<Row>> {
        let mut relay = Relay::start(self)?;
        let most = LOADS.iter().map(|(connections, _)| *connections).max();
        let mut connections = Vec::new();
        for number in 0..most.unwrap_or_default() {
            let mut connection = self.daemon.connect()?;
            self.new_session(&mut connection, &format!("many{number}"))?;
            connections.push(connection);
        }
        let served_by = self.processes(&mut self.daemon.connect()?)?;
        let window = Duration::from_millis(if self.quick { 200 } else { 500 });
        let cores = std::thread::available_parallelism()?.get() as f64;
        let (mut ours, mut our_cpu) = (LOADS.map(|_| Vec::new()), Vec::new());
        let (mut floor, mut floor_cpu) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(10).max(3) {
            for ((count, form), rates) in LOADS.iter().zip(&mut ours) {
                let before = all_cpu(&served_by)?;
                let (requests, rate) = serve(&mut connections[..*count], *form, window)?;
                rates.push(rate);
                if *form == Form::Plain {
                    our_cpu.push((all_cpu(&served_by)? - before).as_secs_f64() / requests);
                }
            }

            let before = relay.cpu_time()?;
            let mut requests = 0.0;
            let end = Instant::now() + window / 2;
            while Instant::now() < end {
                relay.request()?;
                requests += 1.0;
            }
            let each = (relay.cpu_time()? - before).as_secs_f64() / requests;
            floor_cpu.push(each);
            floor.push(cores / each);
        }
        let floor = median(floor);
        let mut rows = Vec::new();
        for ((count, form), rates) in LOADS.iter().zip(ours) {
            let (aim, under) = match form {
                Form::Plain => (
                    Aim::AtLeastShare(0.4),
                    format!("{cores} cores ÷ CPU time of the relay loop"),
                ),
                Form::Json | Form::Tagged => (Aim::Share, "the same".to_owned()),
            };
            let what = match count {
                1 => "1 connection on 1 session".to_owned(),
                _ => format!("{count} connections on {count} sessions"),
            };
            rows.push(Row {
                measure: format!("{what}{} / {under}", form.words()),
                unit: Unit::PerSecond,
                ours: median(rates),
                floor,
                aim,
            });
        }
        let cpu = Row {
            measure: "CPU time of daemon and hosts for each of these / of the relay loop"
                .to_owned(),
            unit: Unit::Seconds,
            ours: median(our_cpu),
            floor: median(floor_cpu),
            aim: Aim::None,
        };
        // It belongs to the first load.
        rows.insert(1, cpu);
        Ok(rows)
    }
}

/// Keeps the requests of a form in flight on every connection for some time;
/// gives how many were answered, and how many in a second.
fn serve(connections: &mut [Connection], form: Form, window: Duration) -> Result<(f64, f64)> {
    let requests: Vec<_> = (0..connections.len())
        .map(|session| form.requests(session))
        .collect();
    let start = Instant::now();
    for (connection, requests) in connections.iter_mut().zip(&requests) {
        for request in requests {
            connection.send(request)?;
        }
    }
    let mut served = 0.0;
    let mut in_flight: usize = requests.iter().map(Vec::len).sum();
    while in_flight > 0 {
        let ready: Vec<bool> = {
            let mut entries: Vec<PollFd<'_>> = connections
                .iter()
                .map(|connection| PollFd::from_borrowed_fd(connection.descriptor(), PollFlags::IN))
                .collect();
            poll(&mut entries, None)?;
            entries
                .iter()
                .map(|entry| !entry.revents().is_empty())
                .collect()
        };
        let over = start.elapsed() >= window;
        for (number, connection) in connections.iter_mut().enumerate() {
            if !ready[number] {
                continue;
            }
            loop {
                let answered = form.answered(connection.receive()?)?;
                served += 1.0;
                if over {
                    in_flight -= 1;
                } else {
                    connection.send(&requests[number][answered])?;
                }
                if !connection.has_more() {
                    break;
                }
            }
        }
    }
    Ok((served, served / start.elapsed().as_secs_f64()))
}
