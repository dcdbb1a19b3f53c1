//! Questions to a session that computes.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, WarmTrips, median, timed};
use crate::client::frame;
use crate::table::{Aim, Row, Unit};
use crate::worker::Worker;

/// What the session does meanwhile: in words, and as code. A call through
/// `PyDLL` keeps the interpreter lock; it ends by itself, so that a session that
/// does not answer meanwhile costs seconds and no more.
const CELLS: [(&str, &str); 2] = [
    ("a cell computes", "while True: pass"),
    ("C code holds the GIL", "_libc.sleep(5)"),
];

const VERBS: [&str; 3] = ["status", "poll", "ls"];

/// Requests of each verb while one cell runs.
const BURST: usize = 50;

impl Bench {
    /// Control requests while a cell runs against `1+1` on an idle session.
    pub(crate) fn control(&self) -> Result<Vec<Row>> {
        let first = "import ctypes\n_libc = ctypes.PyDLL(None)";
        let mut worker = Worker::start(self, "busy", first)?;
        let mut floor = WarmTrips::start(self)?;
        let mut ours = CELLS.map(|_| VERBS.map(|_| Vec::new()));
        for _ in 0..self.rounds(40) {
            for ((_, cell), samples) in CELLS.iter().zip(&mut ours) {
                worker.begin(cell)?;
                ask(&mut worker, samples)?;
                worker.interrupt()?;
                floor.take(BURST)?;
            }
        }
        let floor = floor.median();
        let mut rows = Vec::new();
        for ((what, _), samples) in CELLS.iter().zip(ours) {
            for (verb, samples) in VERBS.iter().zip(samples) {
                rows.push(Row {
                    measure: format!("`{verb}` while {what} / warm round trip"),
                    unit: Unit::Seconds,
                    ours: median(samples),
                    floor,
                    aim: Aim::AtMostTimes(2.0),
                });
            }
        }
        Ok(rows)
    }
}

/// Takes a burst of samples of each verb from a session whose cell runs all the
/// time.
fn ask(worker: &mut Worker, samples: &mut [Vec<f64>]) -> Result<()> {
    let status = worker.control.ask("status busy --json")?;
    let running = status["running"][0].as_str();
    let id = running.with_context(|| format!("no cell runs: {status}"))?;
    let requests = [
        frame("status busy --json"),
        frame(&format!("poll busy {id} --json")),
        frame("ls --json"),
    ];
    for (request, samples) in requests.iter().zip(samples) {
        for _ in 0..BURST {
            samples.push(timed(|| {
                let answer = worker.control.request(request)?;
                ensure!(answer.contains("\"running\""), "a wrong answer: {answer}");
                Ok(())
            })?);
        }
    }
    worker.still_runs()
}
