//! A cell in a child process, from `fork` until it is known to have ended.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, median, timed};
use crate::client::{Connection, frame};
use crate::table::{Aim, Row, Unit};

/// A bare fork of the session's own process, until its child is reaped.
const FLOOR: &str = "_began = time.perf_counter()\n\
    _pid = os.fork()\n\
    if _pid == 0: os._exit(0)\n\
    os.waitpid(_pid, 0)\n\
    print(time.perf_counter() - _began)";

impl Bench {
    /// `fork`, then `wait` for its id on the same connection, in sessions with
    /// little and with much memory.
    pub(crate) fn fork(&self) -> Result<Vec<Row>> {
        let bytes = if self.quick { 1 << 27 } else { 1 << 30 };
        let size = if self.quick { "128 MiB" } else { "1 GiB" };
        let mut rows = vec![self.fork_row("little", None, "", 200, Aim::AtMostTimes(2.5))?];
        let objects = format!("many = [str(n) + 'x' * 50 for n in range({bytes} // 108)]");
        let mut small = self.fork_row("objects", None, &objects, 20, Aim::AtMostTimes(1.3))?;
        small.measure = format!("the same with {size} of small objects");
        rows.push(small);
        if let Some(venv) = &self.venv {
            let python = venv.join("bin/python");
            let python = serde_json::to_string(&python)?;
            let array = format!("import numpy; array = numpy.ones({bytes} // 8)");
            let mut row = self.fork_row("array", Some(&python), &array, 50, Aim::None)?;
            row.measure = format!("the same with {size} in a numpy array");
            rows.push(row);
        }
        Ok(rows)
    }

    fn fork_row(
        &self,
        name: &str,
        python: Option<&str>,
        first: &str,
        rounds: usize,
        aim: Aim,
    ) -> Result<Row> {
        let mut connection = self.daemon.connect()?;
        let options = python.map_or_else(String::new, |it| format!("\n{{\"python\":{it}}}"));
        connection.ask(&format!("new {name} --json{options}"))?;
        let answer =
            connection.request(&frame(&format!("run {name}\nimport os, time\n{first}")))?;
        ensure!(answer.is_empty(), "the first cell answered {answer}");
        let floor = frame(&format!("run {name}\n{FLOOR}"));
        let fork = frame(&format!("fork {name} --json\nx = 1 + 1"));
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(rounds) {
            ours.push(timed(|| ended(&mut connection, name, &fork))?);
            let answer = connection.request(&floor)?;
            floors.push(answer.parse().with_context(|| answer.to_owned())?);
        }
        connection.request(&frame(&format!("kill {name}")))?;
        Ok(Row {
            measure: "`fork` until `wait` has returned / fork and wait in the session".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floors),
            aim,
        })
    }
}

fn ended(connection: &mut Connection, name: &str, fork: &[u8]) -> Result<()> {
    let forked: serde_json::Value = serde_json::from_str(connection.request(fork)?)?;
    let id = forked["cell_id"].as_str();
    let id = id.with_context(|| format!("`fork` was answered with {forked}"))?;
    let waited = connection.request(&frame(&format!("wait {name} {id} --json")))?;
    ensure!(waited.contains("\"done\""), "a wrong answer: {waited}");
    Ok(())
}
