//! What sessions cost that do nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, median};
use crate::client::{Connection, frame};
use crate::setup::{all_cpu, end, private_memory};
use crate::table::{Aim, Row, Unit};

impl Bench {
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

/// The process id in a floor's answer.
fn pid_of(line: &str) -> Result<u32> {
    Ok(line.split(' ').next().context("an empty answer")?.parse()?)
}
