//! What a cell writes on its way to the client: the first byte, and many.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::bench::{Bench, WarmTrips, median};
use crate::client::frame;
use crate::setup::{Owned, compile, peak_memory, reset_peak};
use crate::table::{Aim, Row, Unit};

/// Prints 100 MB, in CPython and in a cell.
pub(crate) const PRINT: &str = "line = 'x' * 99\nfor _ in range(1_000_000):\n    print(line)";

/// What that writes.
pub(crate) const PRINTED: u64 = 100_000_000;

/// How much more memory a process may need for it.
pub(crate) const GROWTH: f64 = 32.0 * 1048576.0;

impl Bench {
    /// From sending a cell that prints and goes on until its output is there.
    pub(crate) fn first_byte(&self) -> Result<Vec<Row>> {
        let (mut connection, mut control) = (self.daemon.connect()?, self.daemon.connect()?);
        self.new_session(&mut connection, "streamed")?;
        let mut floor = WarmTrips::start(self)?;
        let run = frame("run streamed --json --stream\nprint(1)\ntime.sleep(60)");
        let interrupt = frame("int streamed");
        let mut ours = Vec::new();
        for _ in 0..self.rounds(200) {
            let start = Instant::now();
            connection.send(&run)?;
            loop {
                let message = connection.receive()?;
                if message.contains("\"event\":\"output\"") {
                    break;
                }
                if !message.contains("\"event\":") {
                    bail!("it ended without output: {message}");
                }
            }
            ours.push(start.elapsed().as_secs_f64());
            control.request(&interrupt)?;
            while connection.receive()?.contains("\"event\":") {}
            floor.take(10)?;
        }
        Ok(vec![Row {
            measure: "`run --stream` until the first output / warm round trip".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: floor.median(),
            aim: Aim::None,
        }])
    }

    /// `pysh run` of a cell that prints 100 MB against CPython that prints it,
    /// both to a pipe, and the memory that each process needs for it.
    pub(crate) fn print(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        let session = connection.ask("new print --json")?;
        let host = u32::try_from(session["pid"].as_u64().context("no pid")?)?;
        let daemon = self.daemon.pid();
        let reader = Reader::new(self)?;
        let pysh = self.daemon.programs.join("pysh");
        let python = reader.real_python()?;
        let pysh = |code| reader.read(&pysh, &["run", "--no-echo", "print", code]);

        let first = pysh("print(1)")?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        let mut growth = [0, 0, 0];
        for _ in 0..self.rounds(10).max(2) {
            reset_peak(host);
            reset_peak(daemon);
            let before = (peak_memory(host)?, peak_memory(daemon)?);
            let run = pysh(PRINT)?;
            ensure!(run.bytes == PRINTED, "{} bytes came", run.bytes);
            for (growth, more) in growth.iter_mut().zip([
                peak_memory(host)?.saturating_sub(before.0),
                peak_memory(daemon)?.saturating_sub(before.1),
                run.peak.saturating_sub(first.peak),
            ]) {
                *growth = more.max(*growth);
            }
            ours.push(run.seconds);

            let run = reader.read(&python, &["-c", PRINT])?;
            ensure!(run.bytes == PRINTED, "{} bytes came", run.bytes);
            floor.push(run.seconds);
        }
        let mut rows = vec![Row {
            measure: "100 MB print through `pysh run` to a pipe / CPython to a pipe".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::AtMostTimes(1.5),
        }];
        for (process, growth) in ["the host", "the daemon", "pysh"].iter().zip(growth) {
            rows.push(Row {
                measure: format!("growth of {process}'s memory by this print, at most"),
                unit: Unit::Bytes,
                ours: growth as f64,
                floor: f64::NAN,
                aim: Aim::AtMost(GROWTH),
            });
        }
        Ok(rows)
    }
}

/// A program whose output was read to its end.
struct Printed {
    seconds: f64,
    bytes: u64,
    /// Bytes of memory that it had at most.
    peak: u64,
}

/// Runs programs, reads what they write and counts it.
struct Reader<'a> {
    bench: &'a Bench,
    launcher: PathBuf,
    peak: PathBuf,
}

impl<'a> Reader<'a> {
    fn new(bench: &'a Bench) -> Result<Self> {
        let directory = bench.daemon.directory.path();
        Ok(Self {
            bench,
            launcher: compile(directory, "peak", include_str!("../floors/peak.c"))?,
            peak: directory.join("peak-memory"),
        })
    }

    fn read(&self, program: &Path, arguments: &[&str]) -> Result<Printed> {
        let mut command = self.bench.daemon.command(&self.launcher);
        command.arg(&self.peak).arg(program).args(arguments);
        let start = Instant::now();
        let mut child = Owned(command.stdout(Stdio::piped()).spawn()?);
        let mut output = child.0.stdout.take().context("stdout was piped")?;
        let (mut bytes, mut part) = (0, vec![0; 65536]);
        loop {
            match output.read(&mut part)? {
                0 => break,
                count => bytes += count as u64,
            }
        }
        ensure!(child.0.wait()?.success(), "{command:?} failed");
        let seconds = start.elapsed().as_secs_f64();
        let kibibytes = fs::read_to_string(&self.peak)?.trim().parse::<u64>()?;
        Ok(Printed {
            seconds,
            bytes,
            peak: kibibytes * 1024,
        })
    }

    /// The interpreter itself: the path that sessions were given may be a script
    /// that looks for it, which would be the floor's time.
    fn real_python(&self) -> Result<PathBuf> {
        let mut command = self.bench.daemon.command(&self.bench.python);
        command.args(["-c", "import sys; print(sys.executable, end='')"]);
        let output = command.stdout(Stdio::piped()).output()?;
        ensure!(output.status.success(), "{command:?} failed");
        Ok(String::from_utf8(output.stdout)?.into())
    }
}
