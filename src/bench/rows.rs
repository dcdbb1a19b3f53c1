//! The measures. Ours and floor take turns in each, so that what the machine
//! does meanwhile hits both.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use crate::client::{Connection, frame};
use crate::setup::{Daemon, Floor, compile, cpu_time, end, pids, private_memory};
use crate::table::{Aim, Row, Unit};

/// Time for what a new session sets off in the background.
const PAUSE: Duration = Duration::from_millis(25);

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
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds that something takes.
fn timed(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    what()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The relay and its Python loop, connected.
struct Relay {
    relay: Floor,
    python: Floor,
    stream: UnixStream,
}

impl Relay {
    fn start(bench: &Bench) -> Result<Self> {
        let directory = tempfile::tempdir_in(bench.daemon.directory.path())?.keep();
        let program = compile(&directory, "relay", include_str!("floors/relay.c"))?;
        let (outer, inner) = (directory.join("outer"), directory.join("inner"));
        let python = Floor::start(
            Command::new(&bench.python)
                .arg("-c")
                .arg(include_str!("floors/loop.py"))
                .arg(&inner),
        )?;
        let relay = Floor::start(Command::new(program).arg(&outer).arg(&inner))?;
        Ok(Self {
            relay,
            python,
            stream: UnixStream::connect(outer)?,
        })
    }

    fn request(&mut self) -> Result<()> {
        let mut answer = [0; 64];
        self.stream.write_all(b"1+1")?;
        let length = self.stream.read(&mut answer)?;
        ensure!(&answer[..length] == b"2\n", "the relay answered wrongly");
        Ok(())
    }

    fn cpu_time(&self) -> Result<Duration> {
        Ok(cpu_time(self.relay.pid())? + cpu_time(self.python.pid())?)
    }
}

impl Bench {
    fn rounds(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    fn new_session(&self, connection: &mut Connection, name: &str) -> Result<()> {
        connection.ask(&format!("new {name} --json")).map(drop)
    }

    /// `pysh run work 1+1` against the spawn of a program that does nothing.
    pub(crate) fn oneshot(&self) -> Result<Vec<Row>> {
        let nothing = compile(
            self.daemon.directory.path(),
            "nothing",
            include_str!("floors/nothing.c"),
        )?;
        self.new_session(&mut self.daemon.connect()?, "oneshot")?;
        let mut pysh = self.daemon.command(self.daemon.programs.join("pysh"));
        pysh.args(["run", "oneshot", "1+1"]);
        let mut trivial = self.daemon.command(nothing);
        let once = |command: &mut Command| {
            timed(|| {
                ensure!(command.status()?.success(), "{command:?} failed");
                Ok(())
            })
        };
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(1000) {
            ours.push(once(&mut pysh)?);
            floor.push(once(&mut trivial)?);
        }
        Ok(vec![Row {
            measure: "one-shot `pysh run work 1+1` / spawn of a static program".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::AtMostTimes(5.0),
        }])
    }

    /// `1+1` on one open connection against the relay.
    pub(crate) fn warm(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        self.new_session(&mut connection, "warm")?;
        let mut relay = Relay::start(self)?;
        let (plain, json) = (frame("run warm 1+1"), frame("run warm --json\n1+1"));
        let (mut ours, mut structured, mut floor) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds(200) {
            for _ in 0..50 {
                ours.push(timed(|| {
                    ensure!(connection.request(&plain)? == "2", "a wrong answer");
                    Ok(())
                })?);
            }
            for _ in 0..50 {
                floor.push(timed(|| relay.request())?);
            }
            for _ in 0..50 {
                structured.push(timed(|| connection.request(&json).map(drop))?);
            }
        }
        let answer: serde_json::Value = serde_json::from_str(connection.request(&json)?)?;
        ensure!(answer["stdout"] == "2\n", "a wrong answer: {answer}");
        let floor = median(floor);
        let row = |measure: &str, ours: Vec<f64>, aim| Row {
            measure: measure.to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor,
            aim,
        };
        Ok(vec![
            row(
                "warm `1+1` / relay to a Python loop",
                ours,
                Aim::AtMostTimes(2.5),
            ),
            row("warm `1+1` with --json / the same", structured, Aim::None),
        ])
    }

    /// Requests per second of 16 connections on 16 sessions.
    pub(crate) fn throughput(&self) -> Result<Vec<Row>> {
        const CONNECTIONS: usize = 16;
        let mut relay = Relay::start(self)?;
        let mut lanes = Vec::new();
        for number in 0..CONNECTIONS {
            let mut connection = self.daemon.connect()?;
            self.new_session(&mut connection, &format!("many{number}"))?;
            lanes.push((connection, frame(&format!("run many{number} 1+1"))));
        }
        let served_by = self.processes(&mut self.daemon.connect()?)?;
        let window = Duration::from_millis(if self.quick { 200 } else { 1000 });
        let cores = std::thread::available_parallelism()?.get() as f64;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        let (mut our_cpu, mut floor_cpu) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(10).max(3) {
            let before = all_cpu(&served_by)?;
            let (requests, rate) = serve(&mut lanes, window)?;
            our_cpu.push((all_cpu(&served_by)? - before).as_secs_f64() / requests);
            ours.push(rate);

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
        Ok(vec![
            Row {
                measure: format!(
                    "16 connections on 16 sessions / {cores} cores ÷ CPU time of the relay loop"
                ),
                unit: Unit::PerSecond,
                ours: median(ours),
                floor: median(floor),
                aim: Aim::AtLeastShare(0.4),
            },
            Row {
                measure: "CPU time of daemon and hosts for each of these / of the relay loop"
                    .to_owned(),
                unit: Unit::Seconds,
                ours: median(our_cpu),
                floor: median(floor_cpu),
                aim: Aim::None,
            },
        ])
    }

    /// `new` until the first result against a fork and one eval.
    pub(crate) fn new_to_first(&self) -> Result<Vec<Row>> {
        let mut rows = vec![self.new_with("bare", &self.python, &[])?];
        if let Some(venv) = &self.venv {
            let python = venv.join("bin/python");
            rows.push(self.new_with("numpy and pandas", &python, &["numpy", "pandas"])?);
        }
        Ok(rows)
    }

    fn new_with(&self, what: &str, python: &Path, preload: &[&str]) -> Result<Row> {
        let mut connection = self.daemon.connect()?;
        let options = serde_json::json!({ "python": python, "preload": preload });
        let new = frame(&format!("new first --json\n{options}"));
        let run = frame("run first 1+1");
        let kill = frame("kill first");
        // The first one of an environment makes its zygote.
        let warm_up = Instant::now() + Duration::from_secs(60);
        loop {
            let answer: serde_json::Value = serde_json::from_str(connection.request(&new)?)?;
            ensure!(answer["ok"] == true, "`new` was answered with {answer}");
            connection.request(&kill)?;
            if answer["start"] != "cold" {
                break;
            }
            ensure!(
                Instant::now() < warm_up,
                "sessions only start cold: {answer}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut zygote = self.zygote(python, preload)?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(200) {
            // What ended and what is made in advance after it costs time too, but
            // not the time of whoever comes next.
            std::thread::sleep(PAUSE);
            ours.push(timed(|| {
                connection.request(&new)?;
                ensure!(connection.request(&run)? == "2", "a wrong answer");
                Ok(())
            })?);
            connection.request(&kill)?;
            std::thread::sleep(PAUSE);
            floor.push(timed(|| {
                zygote.tell("once\n")?;
                ensure!(zygote.line()?.ends_with(" 2"), "a wrong answer");
                Ok(())
            })?);
        }
        Ok(Row {
            measure: format!("`new` to first result, {what} / fork of a zygote and one eval"),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::AtMostTimes(1.5),
        })
    }

    fn zygote(&self, python: &Path, preload: &[&str]) -> Result<Floor> {
        Floor::start(
            Command::new(python)
                .arg("-c")
                .arg(include_str!("floors/zygote.py"))
                .args(preload),
        )
    }

    /// Private memory and CPU of idle sessions against forks of a zygote.
    pub(crate) fn idle(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        connection.request(&frame("kill --all"))?;
        let mut zygote = self.zygote(&self.python, &[])?;
        let mut rows = Vec::new();
        let mut forks = Vec::new();
        let mut alive = 0;
        for wanted in if self.quick {
            [1, 20, 100]
        } else {
            [1, 100, 500]
        } {
            while alive < wanted {
                self.new_session(&mut connection, &format!("idle{alive}"))?;
                let answer = connection.request(&frame(&format!("run idle{alive} 1+1")))?;
                ensure!(answer == "2", "a wrong answer: {answer}");
                zygote.tell("stay\n")?;
                forks.push(pid_of(&zygote.line()?)?);
                alive += 1;
            }
            // Spare processes are made for some time after the last `new`.
            std::thread::sleep(Duration::from_secs(2));
            rows.extend(self.idle_rows(&mut connection, &forks)?);
        }
        for pid in &forks {
            end(*pid);
        }
        connection.request(&frame("kill --all"))?;
        Ok(rows)
    }

    /// The processes of this daemon: hosts of sessions, then the daemon itself
    /// and its zygotes.
    fn processes(&self, connection: &mut Connection) -> Result<Vec<u32>> {
        let mut all = pids(&connection.ask("ls --json")?["sessions"])?;
        all.push(self.daemon.pid());
        all.extend(pids(&connection.ask("info --json")?["zygotes"])?);
        Ok(all)
    }

    fn idle_rows(&self, connection: &mut Connection, forks: &[u32]) -> Result<[Row; 2]> {
        let ours = self.processes(connection)?;
        ensure!(
            ours[forks.len()] == self.daemon.pid(),
            "not as many sessions as forks"
        );
        let hosts = &ours[..forks.len()];
        let (before, floor_before) = (all_cpu(&ours)?, all_cpu(forks)?);
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(if self.quick { 2 } else { 5 }));
        let elapsed = start.elapsed().as_secs_f64();
        let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / elapsed;
        let memory = |pids: &[u32]| {
            let each = pids.iter().map(|pid| Ok(private_memory(*pid)? as f64));
            Ok::<_, anyhow::Error>(median(each.collect::<Result<Vec<_>>>()?))
        };
        let count = hosts.len();
        Ok([
            Row {
                measure: format!("private memory of each of {count} idle sessions / a fork"),
                unit: Unit::Bytes,
                ours: memory(hosts)?,
                floor: memory(forks)?,
                aim: Aim::AtMost(2.0 * 1048576.0),
            },
            Row {
                measure: format!("CPU of daemon, zygotes, {count} idle sessions / forks"),
                unit: Unit::Core,
                ours: share(before, all_cpu(&ours)?),
                floor: share(floor_before, all_cpu(forks)?),
                aim: Aim::AtMost(0.001),
            },
        ])
    }
}

fn all_cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// The process id in a floor's answer.
fn pid_of(line: &str) -> Result<u32> {
    Ok(line.split(' ').next().context("an empty answer")?.parse()?)
}

/// Keeps one request in flight on every connection for some time; gives how many
/// were answered, and how many in a second.
fn serve(lanes: &mut [(Connection, Vec<u8>)], window: Duration) -> Result<(f64, f64)> {
    let start = Instant::now();
    for (connection, request) in lanes.iter_mut() {
        connection.send(request)?;
    }
    let (mut served, mut open) = (0.0, lanes.len());
    let mut waiting = vec![true; lanes.len()];
    while open > 0 {
        let ready: Vec<bool> = {
            let mut entries: Vec<PollFd<'_>> = lanes
                .iter()
                .map(|(connection, _)| {
                    PollFd::from_borrowed_fd(connection.descriptor(), PollFlags::IN)
                })
                .collect();
            poll(&mut entries, None)?;
            entries
                .iter()
                .map(|entry| !entry.revents().is_empty())
                .collect()
        };
        let over = start.elapsed() >= window;
        for (number, (connection, request)) in lanes.iter_mut().enumerate() {
            if !ready[number] || !waiting[number] {
                continue;
            }
            ensure!(connection.receive()? == "2", "a wrong answer");
            served += 1.0;
            if over {
                waiting[number] = false;
                open -= 1;
            } else {
                connection.send(request)?;
            }
        }
    }
    Ok((served, served / start.elapsed().as_secs_f64()))
}
