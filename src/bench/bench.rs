//! What all measures share.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::client::{Connection, frame};
use crate::setup::{Daemon, Floor, pids};

/// What all measures need.
pub(crate) struct Bench {
    /// The daemon that is measured.
    pub(crate) daemon: Daemon,
    /// The interpreter of its sessions, for the floors.
    pub(crate) python: PathBuf,
    /// An environment with numpy and pandas.
    pub(crate) venv: Option<PathBuf>,
    /// A short run.
    pub(crate) quick: bool,
}

/// The middle of some samples.
pub(crate) fn median(samples: Vec<f64>) -> f64 {
    percentiles(samples)[0]
}

/// What half of some samples are below, and 99 of 100.
pub(crate) fn percentiles(mut samples: Vec<f64>) -> [f64; 2] {
    samples.sort_by(f64::total_cmp);
    let at = |place: usize| samples.get(place).copied().unwrap_or(f64::NAN);
    [at(samples.len() / 2), at(samples.len() * 99 / 100)]
}

/// Seconds that something takes.
pub(crate) fn timed(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    what()?;
    Ok(start.elapsed().as_secs_f64())
}

/// `1+1` on an idle session of the same daemon, one after another: the floor of
/// what is compared with a warm round trip.
pub(crate) struct WarmTrips {
    connection: Connection,
    request: Vec<u8>,
    samples: Vec<f64>,
}

impl WarmTrips {
    /// Makes the session.
    pub(crate) fn start(bench: &Bench) -> Result<Self> {
        let mut connection = bench.daemon.connect()?;
        bench.new_session(&mut connection, "warm")?;
        let mut trips = Self {
            connection,
            request: frame("run warm 1+1"),
            samples: Vec::new(),
        };
        // The first ones load what all later ones find loaded.
        trips.take(20)?;
        trips.samples.clear();
        Ok(trips)
    }

    /// Takes some samples.
    pub(crate) fn take(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let Self {
                connection,
                request,
                ..
            } = self;
            self.samples.push(timed(|| {
                ensure!(connection.request(request)? == "2", "a wrong answer");
                Ok(())
            })?);
        }
        Ok(())
    }

    /// The middle of all.
    pub(crate) fn median(self) -> f64 {
        median(self.samples)
    }
}

impl Bench {
    /// How often: a tenth in a short run.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    /// A new session of the default interpreter.
    pub(crate) fn new_session(&self, connection: &mut Connection, name: &str) -> Result<()> {
        connection.ask(&format!("new {name} --json")).map(drop)
    }

    /// The floor of a new session.
    pub(crate) fn zygote(&self, python: &Path, preload: &[&str]) -> Result<Floor> {
        Floor::start(
            Command::new(python)
                .arg("-c")
                .arg(include_str!("floors/zygote.py"))
                .args(preload),
        )
    }

    /// The processes of this daemon: hosts of sessions, then the daemon itself
    /// and its zygotes.
    pub(crate) fn processes(&self, connection: &mut Connection) -> Result<Vec<u32>> {
        let mut all = pids(&connection.ask("ls --json")?["sessions"])?;
        all.push(self.daemon.pid());
        all.extend(pids(&connection.ask("info --json")?["zygotes"])?);
        Ok(all)
    }
}
