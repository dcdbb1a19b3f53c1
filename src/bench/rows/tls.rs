//! Sessions on other machines, by TLS and through the proxy of the daemon here.

use std::io::{Read, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::output::{GROWTH, PRINT, PRINTED};
use crate::bench::{Bench, median, timed};
use crate::client::{Connection, frame};
use crate::far::Far;
use crate::raw_tls::RawTls;
use crate::setup::{peak_memory, reset_peak};
use crate::table::{Aim, Row, Unit};

impl Bench {
    /// A new TLS connection until its first answer against the handshake alone.
    pub(crate) fn tls_new(&self) -> Result<Vec<Row>> {
        let far = Far::start(self)?;
        let raw = RawTls::start()?;
        let ls = frame("ls");
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds(1000) {
            let start = Instant::now();
            let mut connection = far.connect()?;
            let answer = connection.request(&ls)?;
            ours.push(start.elapsed().as_secs_f64());
            ensure!(
                !answer.starts_with("ERR"),
                "`ls` was answered with {answer}"
            );
            // Closing is no part of it, neither here nor there.
            drop(connection);
            let start = Instant::now();
            let stream = raw.connect()?;
            floor.push(start.elapsed().as_secs_f64());
            drop(stream);
        }
        Ok(vec![Row {
            measure: "new TLS connection, token, `ls` / TLS 1.3 handshake with P-256, \
                      rustls in a thread"
                .to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor: median(floor),
            aim: Aim::AtMostTimes(1.5),
        }])
    }

    /// `1+1` on one session: by TLS and through the proxy, against the unix socket
    /// of its own daemon.
    pub(crate) fn tls_warm(&self) -> Result<Vec<Row>> {
        let far = Far::start(self)?;
        let mut local = far.daemon.connect()?;
        self.new_session(&mut local, "work")?;
        far.known_as("alias", self, far.address)?;
        let mut direct = far.connect()?;
        let mut proxy = self.daemon.connect()?;
        let mut raw = RawTls::start()?.connect()?;
        let (run, by_alias) = (
            frame("run work --json\n1+1"),
            frame("run alias --json\n1+1"),
        );
        let [mut floor, mut tls, mut proxied, mut ping] = [const { Vec::new() }; 4];
        for round in 0..=self.rounds(200) {
            for _ in 0..50 {
                floor.push(timed(|| sum(&mut local, &run))?);
            }
            for _ in 0..50 {
                tls.push(timed(|| sum(&mut direct, &run))?);
            }
            for _ in 0..50 {
                proxied.push(timed(|| sum(&mut proxy, &by_alias))?);
            }
            for _ in 0..50 {
                ping.push(timed(|| {
                    raw.write_all(&run)?;
                    Ok(raw.read_exact(&mut [0])?)
                })?);
            }
            // The first ones load what all later ones find loaded.
            if round == 0 {
                for samples in [&mut floor, &mut tls, &mut proxied, &mut ping] {
                    samples.clear();
                }
            }
        }
        let floor = median(floor);
        let row = |measure: &str, ours, aim| Row {
            measure: measure.to_owned(),
            unit: Unit::Seconds,
            ours: median(ours),
            floor,
            aim,
        };
        Ok(vec![
            row(
                "warm `1+1` --json by TLS / by the unix socket of the same daemon",
                tls,
                Aim::AtMostTimes(1.5),
            ),
            row(
                "the same through the proxy of another daemon / the same",
                proxied,
                Aim::AtMostTimes(2.5),
            ),
            row(
                "the request and one byte by rustls alone / the same",
                ping,
                Aim::None,
            ),
        ])
    }

    /// 100 MB of a cell's output by TLS against the unix socket, and the memory
    /// that the daemon needs for it.
    pub(crate) fn tls_output(&self) -> Result<Vec<Row>> {
        let far = Far::start(self)?;
        let mut local = far.daemon.connect()?;
        self.new_session(&mut local, "work")?;
        let mut direct = far.connect()?;
        let daemon = far.daemon.pid();
        let (mut ours, mut floor, mut growth) = (Vec::new(), Vec::new(), 0);
        for _ in 0..self.rounds(10).max(2) {
            reset_peak(daemon);
            let before = peak_memory(daemon)?;
            ours.push(timed(|| printed(&mut direct))?);
            growth = growth.max(peak_memory(daemon)?.saturating_sub(before));
            floor.push(timed(|| printed(&mut local))?);
        }
        let (ours, floor) = (median(ours), median(floor));
        Ok(vec![
            Row {
                measure: "100 MB print through `run --stream` by TLS / by the unix socket"
                    .to_owned(),
                unit: Unit::Seconds,
                ours,
                floor,
                aim: Aim::AtMostTimes(1.5),
            },
            Row {
                measure: "the same as throughput / the same".to_owned(),
                unit: Unit::BytesPerSecond,
                ours: PRINTED as f64 / ours,
                floor: PRINTED as f64 / floor,
                aim: Aim::Share,
            },
            Row {
                measure: "growth of the daemon's memory by this print by TLS, at most".to_owned(),
                unit: Unit::Bytes,
                ours: growth as f64,
                floor: f64::NAN,
                aim: Aim::AtMost(GROWTH),
            },
        ])
    }
}

/// Has `1+1` evaluated.
fn sum<S: Read + Write>(connection: &mut Connection<S>, run: &[u8]) -> Result<()> {
    let answer = connection.request(run)?;
    ensure!(
        answer.contains(r#""stdout":"2\n""#),
        "a wrong answer: {answer}"
    );
    Ok(())
}

/// Has 100 MB printed and counts what comes. Nothing is parsed: that would cost
/// more than what is measured.
fn printed<S: Read + Write>(connection: &mut Connection<S>) -> Result<()> {
    connection.send(&frame(&format!("run work --json --stream\n{PRINT}")))?;
    let mut bytes = 0;
    loop {
        let message = connection.receive()?;
        if message.starts_with(r#"{"event":"output""#) {
            let (_, data) = message.split_once(r#""data":""#).context("no data")?;
            let data = data.strip_suffix("\"}").context("more than data")?;
            // Each newline is written as two characters.
            let newlines = data.bytes().filter(|byte| *byte == b'\\').count();
            bytes += (data.len() - newlines) as u64;
        } else if !message.starts_with(r#"{"event":"#) {
            ensure!(message.contains(r#""ok":true"#), "it ended with {message}");
            break;
        }
    }
    ensure!(bytes == PRINTED, "{bytes} bytes came");
    Ok(())
}
