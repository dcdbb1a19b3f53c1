//! A trivial `run`: as one command, and on an open connection.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::bench::{Bench, median, timed};
use crate::client::frame;
use crate::relay::Relay;
use crate::setup::compile;
use crate::table::{Aim, Row, Unit};

impl Bench {
    /// `pysh run work 1+1` against the spawn of a program that does nothing.
    pub(crate) fn oneshot(&self) -> Result<Vec<Row>> {
        let nothing = compile(
            self.daemon.directory.path(),
            "nothing",
            include_str!("../floors/nothing.c"),
        )?;
        self.new_session(&mut self.daemon.connect()?, "oneshot")?;
        let mut pysh = self.daemon.command(self.daemon.programs.join("pysh"));
        // On a terminal it would echo what goes to nowhere.
        pysh.args(["run", "--no-echo", "oneshot", "1+1"]);
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
}
