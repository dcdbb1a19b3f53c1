//! A person at the terminal: how soon a key is shown, and what it costs agents.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bench::{Bench, WarmTrips, median, timed};
use crate::client::frame;
use crate::table::{Aim, Row, Unit};
use crate::terminal::Terminal;

/// Pause between two keys of somebody who types fast.
const BETWEEN_KEYS: Duration = Duration::from_millis(20);

impl Bench {
    /// Keys through `pysh attach`, beside keys at the same Python's own prompt;
    /// then an agent's `1+1` while somebody is attached.
    pub(crate) fn attach(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        self.new_session(&mut connection, "attended")?;
        let mut attach = self.daemon.command(self.daemon.programs.join("pysh"));
        let mut person = Terminal::start(attach.args(["attach", "attended"]))?;
        person.wait_for(b">>> ")?;
        let mut bare = Terminal::start(Command::new(&self.python).arg("-q"))?;
        bare.wait_for(b">>> ")?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(500) {
            ours.push(person.echo()?);
            floor.push(bare.echo()?);
        }
        let echo = Row {
            measure: "key until shown, `pysh attach` / python on a bare terminal".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::None,
        };
        drop(bare);
        let mut rows = vec![echo];
        let request = frame("run attended 1+1");
        for typing in [false, true] {
            let mut warm = WarmTrips::start(self)?;
            let mut ours = Vec::new();
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| -> Result<()> {
                let typist = typing.then(|| {
                    scope.spawn(|| -> Result<()> {
                        while !over.load(SeqCst) {
                            person.echo()?;
                            std::thread::sleep(BETWEEN_KEYS);
                        }
                        Ok(())
                    })
                });
                let measured = (|| {
                    for _ in 0..self.rounds(200) {
                        for _ in 0..10 {
                            ours.push(timed(|| {
                                let answer = connection.request(&request)?;
                                ensure!(answer == "2", "a wrong answer: {answer}");
                                Ok(())
                            })?);
                        }
                        warm.take(10)?;
                    }
                    Ok(())
                })();
                over.store(true, SeqCst);
                if let Some(typist) = typist {
                    typist
                        .join()
                        .map_err(|_| anyhow::anyhow!("the typist fell"))??;
                }
                measured
            })?;
            let what = if typing { "types" } else { "is attached" };
            rows.push(Row {
                measure: format!("`1+1` while a person {what} / warm round trip"),
                unit: Unit::Seconds,
                ours: median(ours),
                floor: warm.median(),
                aim: Aim::None,
            });
            connection.ask("kill warm --json").map(drop)?;
        }
        Ok(rows)
    }
}
