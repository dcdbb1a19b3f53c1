//! A link that is cut again and again while cells run through the proxy.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bench::Bench;
use crate::client::{Connection, frame};
use crate::cutter::Cutter;
use crate::far::Far;
use crate::table::{Aim, Row, Unit};

/// Clients at the same time, each with a session of its own.
const CLIENTS: u64 = 4;
/// Cuts come so long after a connection was begun, at most, or so many times as
/// long as making one takes: some hit the handshake, but most hit cells.
const UNCUT: (Duration, u32) = (Duration::from_millis(40), 20);
/// No more cuts after that time.
const LIMIT: Duration = Duration::from_secs(600);
/// A cell whose result did not come in that time is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a refusal has where no connection can be made: nothing was begun.
const UNREACHABLE: &str = r#""session_unreachable""#;
/// Where all random numbers come from.
const SEED: u64 = 1;

/// What the clients saw and the sessions counted.
#[derive(Default)]
struct Seen {
    /// Cells that were asked for.
    calls: u64,
    /// Those whose result did not come, or was not what they had written.
    lost: u64,
    /// Those that ran never or twice.
    not_once: u64,
    /// Answers that the remote cannot be reached; the cell was sent again.
    refused: u64,
}

impl Bench {
    /// Results that are lost while the link is reset at random moments.
    pub(crate) fn cuts(&self) -> Result<Vec<Row>> {
        let far = Far::start(self)?;
        let cutter = Cutter::start(far.address)?;
        let mut connection = far.daemon.connect()?;
        for client in 0..CLIENTS {
            self.new_session(&mut connection, &format!("work{client}"))?;
            connection.ask(&format!("run work{client} --json\nruns = {{}}"))?;
        }
        let start = Instant::now();
        far.known_as("alias", self, cutter.address)?;
        let most = UNCUT.0.max(start.elapsed() * UNCUT.1);
        let wanted = self.rounds(1000);
        let over = AtomicBool::new(false);
        let (cuts, seen) = thread::scope(|scope| {
            let (over, socket) = (&over, &self.daemon.socket);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| scope.spawn(move || client(number, socket, over)))
                .collect();
            let cuts = cut_often(&cutter, wanted, most);
            over.store(true, Ordering::Relaxed);
            let mut all = Seen::default();
            for (number, client) in clients.into_iter().enumerate() {
                let seen = client.join().map_err(|_| anyhow!("a client fell"))??;
                all.not_once += not_once(&mut connection, number, seen.calls)?;
                all.calls += seen.calls;
                all.lost += seen.lost;
                all.refused += seen.refused;
            }
            Ok::<_, anyhow::Error>((cuts?, all))
        })?;
        let row = |measure: String, ours: u64, aim| Row {
            measure,
            unit: Unit::Count,
            ours: ours as f64,
            floor: f64::NAN,
            aim,
        };
        let calls = seen.calls;
        Ok(vec![
            row(
                format!("results lost in {cuts} cuts of the link of a proxy, of {calls} cells"),
                seen.lost,
                Aim::AtMost(0.0),
            ),
            row(
                "of these cells ran never or twice".to_owned(),
                seen.not_once,
                Aim::AtMost(0.0),
            ),
            row(
                "times that one was refused, for there was no link, and was sent again".to_owned(),
                seen.refused,
                Aim::None,
            ),
        ])
    }
}

/// Cuts that often, or until the time is up; tells how often it was.
fn cut_often(cutter: &Cutter, wanted: usize, most: Duration) -> Result<usize> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let end = Instant::now() + LIMIT;
    let mut cuts = 0;
    while cuts < wanted && Instant::now() < end {
        cutter.cut(most.mul_f64(random.f64()))?;
        cuts += 1;
    }
    Ok(cuts)
}

/// Runs cells one after another until the cuts are over.
fn client(number: u64, socket: &Path, over: &AtomicBool) -> Result<Seen> {
    let mut random = fastrand::Rng::with_seed(SEED + 1 + number);
    let mut connection = Connection::open(socket)?;
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let key = seen.calls;
        seen.calls += 1;
        // Most are short; some take longer than the link lasts, or write more than
        // fits into one message.
        let size = random.choice([1, 1, 1, 1000, 300_000]).context("no size")?;
        let sleep = random.choice([0, 0, 0, 5, 50]).context("no sleep")?;
        let run = frame(&format!(
            "run alias/work{number} --json --id={key}\nruns[{key}] = runs.get({key}, 0) + 1\n\
             print('x' * {size})\ntime.sleep({sleep} / 1000)\nprint(runs[{key}])"
        ));
        let end = Instant::now() + PATIENCE;
        let answer = loop {
            let answer = connection.request(&run).map(str::to_owned);
            match answer {
                Ok(text) if text.contains(UNREACHABLE) && Instant::now() < end => seen.refused += 1,
                answer => break answer,
            }
        };
        let answer = match answer {
            Ok(text) => serde_json::from_str(&text)?,
            // An answer that comes too late must not be taken for that of the next.
            Err(_) => {
                connection = Connection::open(socket)?;
                serde_json::Value::Null
            }
        };
        let stdout = answer["stdout"].as_str().unwrap_or_default();
        let written = stdout.strip_suffix("\n1\n");
        let written = written.is_some_and(|it| it.bytes().eq(std::iter::repeat_n(b'x', size)));
        if answer["ok"] != true || !written {
            seen.lost += 1;
            let answer: String = answer.to_string().chars().take(500).collect();
            writeln!(std::io::stderr(), "cell {key} was answered with {answer}")?;
        }
    }
    Ok(seen)
}

/// How many cells of a client its session has counted never or twice.
fn not_once(connection: &mut Connection, client: usize, calls: u64) -> Result<u64> {
    let code = "import json\nprint(json.dumps(runs))";
    let answer = connection.ask(&format!("run work{client} --json\n{code}"))?;
    let stdout = answer["stdout"].as_str().context("no stdout")?;
    let runs: HashMap<u64, u64> = serde_json::from_str(stdout)?;
    ensure!(
        runs.keys().all(|key| *key < calls),
        "a cell that nobody sent"
    );
    let once = runs.values().filter(|count| **count == 1).count();
    Ok(calls - once as u64)
}
