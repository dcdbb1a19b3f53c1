//! A new session until its first result.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bench::{Bench, median, timed};
use crate::client::frame;
use crate::table::{Aim, Row, Unit};

/// Time for what a new session sets off in the background.
const PAUSE: Duration = Duration::from_millis(25);

impl Bench {
    /// `new` until the first result against a fork and one eval.
    pub(crate) fn new_to_first(&self) -> Result<Vec<Row>> {
        let mut rows = vec![self.new_with("bare", &self.python, &[])?];
        if let Some(venv) = &self.venv {
            let python = venv.join("bin/python");
            rows.push(self.new_with("numpy and pandas", &python, &["numpy", "pandas"])?);
        }
        Ok(rows)
    }

    fn new_with(&self, what: &str, python: &Path, preload: &[&str]) -> Result<Row> {
        let mut connection = self.daemon.connect()?;
        let options = serde_json::json!({ "python": python, "preload": preload });
        let new = frame(&format!("new first --json\n{options}"));
        let run = frame("run first 1+1");
        let kill = frame("kill first");
        // The first one of an environment makes its zygote.
        let warm_up = Instant::now() + Duration::from_secs(60);
        loop {
            let answer: serde_json::Value = serde_json::from_str(connection.request(&new)?)?;
            ensure!(answer["ok"] == true, "`new` was answered with {answer}");
            connection.request(&kill)?;
            if answer["start"] != "cold" {
                break;
            }
            ensure!(
                Instant::now() < warm_up,
                "sessions only start cold: {answer}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut zygote = self.zygote(python, preload)?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(200) {
            // What ended and what is made in advance after it costs time too, but
            // not the time of whoever comes next.
            std::thread::sleep(PAUSE);
            ours.push(timed(|| {
                connection.request(&new)?;
                ensure!(connection.request(&run)? == "2", "a wrong answer");
                Ok(())
            })?);
            connection.request(&kill)?;
            std::thread::sleep(PAUSE);
            floor.push(timed(|| {
                zygote.tell("once\n")?;
                ensure!(zygote.line()?.ends_with(" 2"), "a wrong answer");
                Ok(())
            })?);
        }
        Ok(Row {
            measure: format!("`new` to first result, {what} / fork of a zygote and one eval"),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::AtMostTimes(1.5),
        })
    }
}
