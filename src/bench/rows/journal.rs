//! What it costs a cell that its session keeps a journal.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::bench::{Bench, median, timed};
use crate::client::{Connection, frame};
use crate::setup::pids;
use crate::table::{Aim, Row, Unit};

/// No journal fits into files of this many bytes; all else that a host writes
/// here does.
const TOO_SMALL: u64 = 100_000;
/// More than a zygote keeps ready.
const MOST_SPARES: usize = 16;

/// The codes whose cost is compared: the journal has the cell, and its output.
const CELLS: [(&str, &str); 2] = [("`1+1`", "1+1"), ("print of 10 kB", "print('x' * 9999)")];

impl Bench {
    /// The same cells in two sessions of one daemon. One of them was born where
    /// no file may be as long as a journal, so that it runs without.
    pub(crate) fn journal(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        self.new_session(&mut connection, "with")?;
        ensure!(has_journal(&mut connection, "with")?, "a session without");
        let zygotes = pids(&connection.ask("info --json")?["zygotes"])?;
        let limit = Rlimit {
            current: Some(TOO_SMALL),
            maximum: None,
        };
        for zygote in zygotes {
            let zygote = i32::try_from(zygote).ok().and_then(Pid::from_raw);
            prlimit(zygote, Resource::Fsize, limit)?;
        }
        // The spares that were ready have one.
        let without = (0..=MOST_SPARES).map(|number| format!("without{number}"));
        let mut found = None;
        for name in without {
            self.new_session(&mut connection, &name)?;
            if !has_journal(&mut connection, &name)? {
                found = Some(name);
                break;
            }
        }
        let without = found.context("every session has a journal")?;
        let mut rows = Vec::new();
        for (what, code) in CELLS {
            let requests = ["with", &without].map(|name| frame(&format!("run {name} {code}")));
            let mut samples = [Vec::new(), Vec::new()];
            for round in 0..self.rounds(400) {
                // Whoever comes first finds colder caches.
                for turn in [round % 2, 1 - round % 2] {
                    for _ in 0..25 {
                        samples[turn].push(timed(|| {
                            let answer = connection.request(&requests[turn])?;
                            ensure!(!answer.starts_with("ERR"), "a wrong answer: {answer}");
                            Ok(())
                        })?);
                    }
                }
            }
            let [ours, floor] = samples.map(median);
            rows.push(Row {
                measure: format!("warm {what} with a journal / in a session without one"),
                unit: Unit::Seconds,
                ours,
                floor,
                aim: Aim::AtMostTimes(2.0),
            });
        }
        Ok(rows)
    }
}

/// True if the session's process has a journal mapped.
fn has_journal(connection: &mut Connection, name: &str) -> Result<bool> {
    let pid = connection.ask(&format!("status {name} --json"))?["pid"]
        .as_u64()
        .context("no pid")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().any(|line| line.ends_with(".journal")))
}
