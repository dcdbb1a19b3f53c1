//! A session that is kept busy on purpose, with one connection that waits for
//! its cell and another beside it.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bench::Bench;
use crate::client::{Connection, frame};

/// Time for a cell that has said that it runs to get into its loop or call.
const SETTLE: Duration = Duration::from_millis(2);

/// A session whose cells tell when they run.
pub(crate) struct Worker {
    name: String,
    /// Submits the cell and waits for it.
    waiting: Connection,
    /// Sends whatever is sent beside it.
    pub(crate) control: Connection,
    interrupt: Vec<u8>,
    told: UnixDatagram,
}

impl Worker {
    /// Makes the session and runs a first cell, for what the later ones need.
    pub(crate) fn start(bench: &Bench, name: &str, first: &str) -> Result<Self> {
        let mut waiting = bench.daemon.connect()?;
        bench.new_session(&mut waiting, name)?;
        let path = bench.daemon.directory.path().join(name);
        let told = UnixDatagram::bind(&path)?;
        told.set_read_timeout(Some(Duration::from_secs(60)))?;
        let path = serde_json::to_string(&path)?;
        let answer = waiting.request(&frame(&format!(
            "run {name}\nimport socket\n\
             _told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
             _told.connect({path})\n{first}"
        )))?;
        ensure!(answer.is_empty(), "the first cell answered {answer}");
        Ok(Self {
            name: name.to_owned(),
            waiting,
            control: bench.daemon.connect()?,
            interrupt: frame(&format!("int {name}")),
            told,
        })
    }

    /// Submits a cell that does not end and waits until it runs.
    pub(crate) fn begin(&mut self, code: &str) -> Result<()> {
        let name = &self.name;
        let request = frame(&format!("run {name}\n_told.send(b'.')\n{code}"));
        self.waiting.send(&request)?;
        self.told
            .recv(&mut [0])
            .context("a cell does not say that it runs")?;
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Fails if the cell has ended.
    pub(crate) fn still_runs(&self) -> Result<()> {
        let entry = PollFd::from_borrowed_fd(self.waiting.descriptor(), PollFlags::IN);
        let ended = poll(&mut [entry], Some(&Timespec::default()))?;
        ensure!(ended == 0, "the cell ended while it was looked at");
        Ok(())
    }

    /// Interrupts the cell; gives the seconds until whoever waited for it has
    /// its reply.
    pub(crate) fn interrupt(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.control.send(&self.interrupt)?;
        let reply = self.waiting.receive()?;
        let elapsed = start.elapsed().as_secs_f64();
        ensure!(reply.contains("KeyboardInterrupt"), "it ended with {reply}");
        let answer = self.control.receive()?;
        ensure!(answer.starts_with("OK int"), "`int` said {answer}");
        Ok(elapsed)
    }
}
