//! A cell beside the others, from `fire` until it is known to have ended.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, WarmTrips, median, timed};
use crate::client::frame;
use crate::table::{Aim, Row, Unit};

impl Bench {
    /// `fire`, then `wait` for its id on the same connection.
    pub(crate) fn fire(&self) -> Result<Vec<Row>> {
        let mut connection = self.daemon.connect()?;
        self.new_session(&mut connection, "fired")?;
        let mut floor = WarmTrips::start(self)?;
        let fire = frame("fire fired --json\n1");
        let mut ours = Vec::new();
        for _ in 0..self.rounds(200) {
            for _ in 0..10 {
                ours.push(timed(|| {
                    let fired: serde_json::Value =
                        serde_json::from_str(connection.request(&fire)?)?;
                    let id = fired["cell_id"].as_str();
                    let id = id.with_context(|| format!("`fire` was answered with {fired}"))?;
                    let waited = connection.request(&frame(&format!("wait fired {id} --json")))?;
                    ensure!(waited.contains("\"done\""), "a wrong answer: {waited}");
                    Ok(())
                })?);
            }
            floor.take(10)?;
        }
        Ok(vec![Row {
            measure: "`fire` until `wait` has returned / warm round trip".to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: floor.median(),
            aim: Aim::None,
        }])
    }
}
