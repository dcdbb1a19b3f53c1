//! The one table that a run prints.

use std::fmt;

/// What a number counts, and so how it is shown.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Seconds, shown as µs or ms.
    Seconds,
    /// Requests per second.
    PerSecond,
    /// Bytes per second, shown as MB/s.
    BytesPerSecond,
    /// Bytes, shown as KiB or MiB.
    Bytes,
    /// Share of one core, shown in per cent.
    Core,
    /// How many.
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            _ if !value.is_finite() => "–".to_owned(),
            Self::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Self::Seconds => format!("{:.2} ms", value * 1e3),
            Self::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Bytes if value < 1048576.0 => format!("{:.0} KiB", value / 1024.0),
            Self::Bytes => format!("{:.2} MiB", value / 1048576.0),
            Self::Count => format!("{value:.0}"),
            Self::Core => format!("{:.2} %", value * 100.0),
        }
    }
}

/// What was hoped for.
pub(crate) enum Aim {
    /// At most this many times the floor.
    AtMostTimes(f64),
    /// At least this share of the floor.
    AtLeastShare(f64),
    /// At most this much, whatever the floor.
    AtMost(f64),
    /// Shown for comparison, as a multiple of the floor.
    None,
    /// Shown for comparison, as a share of the floor.
    Share,
}

/// One measure: medians of ours and of the floor.
pub(crate) struct Row {
    /// What was measured.
    pub(crate) measure: String,
    /// What the numbers count.
    pub(crate) unit: Unit,
    /// Ours.
    pub(crate) ours: f64,
    /// The floor, measured in the same run; not a number if there is none.
    pub(crate) floor: f64,
    /// What was hoped for.
    pub(crate) aim: Aim,
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let ratio = self.ours / self.floor;
        let (aim, met) = match self.aim {
            Aim::AtMostTimes(times) => (format!("≤ {times} ×"), Some(ratio <= times)),
            Aim::AtLeastShare(share) => (format!("≥ {:.0} %", share * 100.0), Some(ratio >= share)),
            Aim::AtMost(most) => (
                format!("≤ {}", self.unit.show(most)),
                Some(self.ours <= most),
            ),
            Aim::None | Aim::Share => ("–".to_owned(), None),
        };
        let ratio = match self.aim {
            _ if !ratio.is_finite() => "–".to_owned(),
            Aim::AtLeastShare(_) | Aim::Share => format!("{:.0} %", ratio * 100.0),
            _ => format!("{ratio:.2} ×"),
        };
        let met = match met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "–",
        };
        [
            self.measure.clone(),
            self.unit.show(self.ours),
            self.unit.show(self.floor),
            ratio,
            aim,
            met.to_owned(),
        ]
    }
}

/// All rows, aligned.
pub(crate) struct Table(pub(crate) Vec<Row>);

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["measure", "ours", "floor", "ratio", "aim", "met"].map(str::to_owned);
        let mut lines = vec![head];
        lines.extend(self.0.iter().map(Row::cells));
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..6).map(width).collect();
        for (number, line) in lines.iter().enumerate() {
            write!(formatter, "{:<1$}", line[0], widths[0])?;
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                write!(formatter, "  {cell:>width$}")?;
            }
            writeln!(formatter)?;
            if number == 0 {
                writeln!(
                    formatter,
                    "{}",
                    "-".repeat(widths.iter().sum::<usize>() + 10)
                )?;
            }
        }
        Ok(())
    }
}
