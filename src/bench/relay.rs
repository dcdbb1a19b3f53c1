//! The floor of a warm request: a relay in front of a Python loop.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bench::Bench;
use crate::setup::{Floor, compile, cpu_time};

/// The relay and its Python loop, connected.
pub(crate) struct Relay {
    relay: Floor,
    python: Floor,
    stream: UnixStream,
}

impl Relay {
    /// Starts and connects both.
    pub(crate) fn start(bench: &Bench) -> Result<Self> {
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

    /// Has `1+1` evaluated.
    pub(crate) fn request(&mut self) -> Result<()> {
        let mut answer = [0; 64];
        self.stream.write_all(b"1+1")?;
        let length = self.stream.read(&mut answer)?;
        ensure!(&answer[..length] == b"2\n", "the relay answered wrongly");
        Ok(())
    }

    /// CPU time that both have used.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        Ok(cpu_time(self.relay.pid())? + cpu_time(self.python.pid())?)
    }
}
