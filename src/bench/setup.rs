//! What is measured: a daemon of its own, and the floors.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::client::{Connection, frame};

/// A process that must not outlive the run.
pub(crate) struct Owned(pub(crate) Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may be gone already, and nothing depends on it any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon with directories of its own. Dropping it ends it and its sessions.
pub(crate) struct Daemon {
    process: Owned,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// Holds home, runtime directory, and what the floors need.
    pub(crate) directory: TempDir,
    /// Directory of the built programs.
    pub(crate) programs: PathBuf,
    /// What it is started with.
    options: &'static [&'static str],
}

impl Daemon {
    /// Starts one from the directory of the built programs.
    pub(crate) fn start(programs: &Path) -> Result<Self> {
        Self::start_with(programs, &[])
    }

    /// The same with options of `pythond daemon`.
    pub(crate) fn start_with(programs: &Path, options: &'static [&'static str]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pythond-bench-")
            .tempdir()?;
        let run = directory.path().join("run");
        fs::create_dir(&run)?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700))?;
        let daemon = Self {
            process: launch(programs, directory.path(), options)?,
            socket: run.join("pythond.sock"),
            directory,
            programs: programs.to_owned(),
            options,
        };
        daemon.wait_for_answer()?;
        Ok(daemon)
    }

    /// Kills it and starts the next one at once, which finds its sessions; tells
    /// when that began.
    pub(crate) fn kill_and_start(&mut self) -> Result<Instant> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        let began = Instant::now();
        self.process = launch(&self.programs, self.directory.path(), self.options)?;
        Ok(began)
    }

    /// Waits until somebody takes connections; gives the first.
    pub(crate) fn wait_for_answer(&self) -> Result<Connection> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.connect() {
                Ok(connection) => return Ok(connection),
                Err(_) => ensure!(
                    Instant::now() < deadline,
                    "the daemon does not answer: {}",
                    fs::read_to_string(self.directory.path().join("daemon.log"))
                        .unwrap_or_default()
                ),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.socket)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// A command with this daemon's directories.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        environment(&mut command, self.directory.path());
        command
    }
}

/// Starts a daemon in a directory, with what it says appended to a file there.
fn launch(programs: &Path, directory: &Path, options: &[&str]) -> Result<Owned> {
    let mut log = fs::File::options();
    let log = log.create(true).append(true);
    let log = log.open(directory.join("daemon.log"))?;
    let mut command = Command::new(programs.join("pythond"));
    command
        .arg("daemon")
        .args(options)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let process = environment(&mut command, directory).spawn();
    Ok(Owned(process.context(
        "`pythond` does not start; run `make build` first",
    )?))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only a daemon that stops in order ends its sessions; one that is killed
        // leaves them to the next.
        let Ok(mut connection) = self.connect() else {
            return;
        };
        let zygotes = connection
            .ask("info --json")
            .map(|info| pids(&info["zygotes"]));
        if connection.send(&frame("stop")).is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && matches!(self.process.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // They would wait a minute for another daemon.
        for pid in zygotes.into_iter().flatten().flatten() {
            end(pid);
        }
    }
}

/// Waits until none of these processes is there any more.
pub(crate) fn wait_for_ends(pids: &[u32]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for pid in pids {
        while Path::new(&format!("/proc/{pid}")).exists() {
            ensure!(Instant::now() < deadline, "process {pid} did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// The process ids in a list of an answer.
pub(crate) fn pids(list: &serde_json::Value) -> Result<Vec<u32>> {
    let pid = |entry: &serde_json::Value| {
        let pid = entry["pid"].as_u64().context("no pid")?;
        Ok(u32::try_from(pid)?)
    };
    list.as_array()
        .context("no list")?
        .iter()
        .map(pid)
        .collect()
}

/// Ends a process; one that is gone already is what is wanted.
pub(crate) fn end(pid: u32) {
    if let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn environment<'a>(command: &'a mut Command, directory: &Path) -> &'a mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PYTHOND_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("VIRTUAL_ENV")
        // Where it is set, a printing CPython writes every line by itself.
        .env_remove("PYTHONUNBUFFERED")
        .env("HOME", directory)
        .env("XDG_RUNTIME_DIR", directory.join("run"))
        .current_dir(directory)
}

/// A floor that was started and said `ready`.
pub(crate) struct Floor {
    /// The process.
    pub(crate) process: Owned,
    /// What it reads.
    pub(crate) input: ChildStdin,
    /// What it writes.
    pub(crate) output: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts a floor and waits until it is ready.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("stdin was piped")?;
        let output = BufReader::new(child.stdout.take().context("stdout was piped")?);
        let mut floor = Self {
            process: Owned(child),
            input,
            output,
        };
        let line = floor.line()?;
        ensure!(line == "ready", "the floor {command:?} says `{line}`");
        Ok(floor)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Writes a command.
    pub(crate) fn tell(&mut self, text: &str) -> Result<()> {
        Ok(self.input.write_all(text.as_bytes())?)
    }

    /// The next line it writes.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "a floor ended");
        line.pop();
        Ok(line)
    }
}

/// Compiles a C floor.
pub(crate) fn compile(directory: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let program = directory.join(name);
    let mut gcc = Command::new("gcc")
        .args(["-O2", "-static", "-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(Stdio::piped())
        .spawn()
        .context("gcc is needed to build the floors")?;
    gcc.stdin
        .take()
        .context("stdin was piped")?
        .write_all(source.as_bytes())?;
    ensure!(gcc.wait()?.success(), "gcc cannot build {name}");
    Ok(program)
}

/// CPU time that the threads of a process have used (`schedstat` of proc(5)).
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text
            .split(' ')
            .next()
            .context("an empty schedstat")?
            .parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// The same of several processes.
pub(crate) fn all_cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// Lets the peak of a process's memory begin at what it has now, where that is
/// permitted (`clear_refs` of proc(5)). Else it goes on from its greatest yet.
pub(crate) fn reset_peak(pid: u32) {
    let file = fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"));
    let _ = file.and_then(|mut file| file.write_all(b"5"));
}

/// Bytes of memory that a process has had at most (`VmHWM` of proc(5)).
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("no VmHWM in status")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}

/// Open descriptors and threads of a process (`fd` and `task` of proc(5)).
pub(crate) fn descriptors_and_threads(pid: u32) -> Result<(usize, usize)> {
    let count =
        |what: &str| Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    Ok((count("fd")?, count("task")?))
}

/// Bytes of memory that only this process has (`smaps_rollup` of proc(5)).
pub(crate) fn private_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut kibibytes = 0;
    for line in text.lines().filter(|line| line.starts_with("Private_")) {
        if line.starts_with("Private_Hugetlb") {
            continue;
        }
        let number = line
            .split_whitespace()
            .nth(1)
            .context("a short line in smaps_rollup")?;
        kibibytes += number.parse::<u64>()?;
    }
    Ok(kibibytes * 1024)
}
