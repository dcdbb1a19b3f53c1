//! `int` until the cell has ended.

use anyhow::Result;

use crate::bench::{Bench, WarmTrips, median};
use crate::table::{Aim, Row, Unit};
use crate::worker::Worker;

/// Cells that only an interrupt ends.
const CELLS: [&str; 2] = ["while True: pass", "time.sleep(60)"];

impl Bench {
    /// From sending `int` on one connection until the other one, which waits for
    /// the cell, has its reply.
    pub(crate) fn interrupt(&self) -> Result<Vec<Row>> {
        let mut worker = Worker::start(self, "interrupted", "import time")?;
        let mut floor = WarmTrips::start(self)?;
        let mut ours = CELLS.map(|_| Vec::new());
        for _ in 0..self.rounds(300) {
            for (cell, samples) in CELLS.iter().zip(&mut ours) {
                worker.begin(cell)?;
                samples.push(worker.interrupt()?);
                floor.take(10)?;
            }
        }
        let floor = floor.median();
        let rows = CELLS.iter().zip(ours).map(|(cell, samples)| Row {
            measure: format!("`int` of `{cell}` until it has ended / warm round trip"),
            unit: Unit::Seconds,
            ours: median(samples),
            floor,
            aim: Aim::AtMostTimes(5.0),
        });
        Ok(rows.collect())
    }
}
