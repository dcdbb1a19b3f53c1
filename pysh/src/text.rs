//! Numbers, tables and foreign texts as people read them. Prints nothing.

use pythond_protocol::outcome::MergeReport;
use pythond_protocol::shown::escape_controls;
use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::interrupt::InterruptedCell;
use pythond_protocol::verbs::stack::{Frame, ThreadStack};
use pythond_protocol::verbs::word;

/// A text that a session or a client gave, on one line and unable to drive a
/// terminal.
pub(crate) fn one_line(text: &str) -> String {
    escape_controls(text)
        .replace('\n', "\\n")
        .replace('\t', "\\t")
}

/// What the child of a `fork` cell brought back and what not, in words.
pub(crate) fn merge_notes(merge: &MergeReport) -> Vec<String> {
    let mut notes = Vec::new();
    if !merge.merged.is_empty() {
        notes.push(format!("set in the session: {}", merge.merged.join(", ")));
    }
    for (name, why) in &merge.skipped {
        notes.push(format!("`{name}` did not come back: {why}"));
    }
    for name in &merge.mutated {
        notes.push(format!(
            "`{name}` was changed in place in the child and is unchanged in the session; bind \
             the name anew to bring it back"
        ));
    }
    notes.extend(merge.warnings.iter().cloned());
    notes.iter().map(|note| one_line(note)).collect()
}

/// A time span.
pub(crate) fn duration(milliseconds: f64) -> String {
    let seconds = milliseconds / 1000.0;
    if milliseconds < 1000.0 {
        format!("{milliseconds:.1} ms")
    } else if seconds < 60.0 {
        format!("{seconds:.2} s")
    } else if seconds < 3600.0 {
        let minutes = (seconds / 60.0).floor();
        format!("{minutes} min {:.0} s", (seconds % 60.0).floor())
    } else {
        let hours = (seconds / 3600.0).floor();
        format!("{hours} h {:.0} min", (seconds % 3600.0 / 60.0).floor())
    }
}

/// A number of bytes.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        // A tenth of a unit is all that is shown.
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// The head of [`cell_row`].
pub(crate) const CELL_HEAD: [&str; 7] = ["ID", "KIND", "STATE", "AUTHOR", "TIME", "OUTPUT", "CODE"];

/// What a listing says of a cell.
pub(crate) fn cell_row(cell: &CellSummary) -> [String; 7] {
    let mut state = word(&cell.status);
    if let Some(position) = cell.queue_position {
        state.push_str(&format!(" #{position}"));
    }
    if cell.interrupt_pending {
        state.push_str(" (interrupt pending)");
    }
    if cell.timed_out {
        state.push_str(" (timed out)");
    }
    let time = match cell.started_at {
        Some(_) => duration(cell.duration_ms),
        None => "-".to_owned(),
    };
    let mut output = size(cell.output_bytes);
    if cell.truncated > 0 {
        output.push_str(&format!(" ({} not kept)", size(cell.truncated)));
    }
    [
        cell.cell_id.to_string(),
        word(&cell.kind),
        state,
        one_line(&cell.author),
        time,
        output,
        one_line(&cell.code),
    ]
}

/// Rows with their columns aligned, each line ended; the last column is as wide
/// as it is.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, field) in widths.iter_mut().zip(row) {
            *width = field.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, field) in widths.iter().zip(row) {
            line.push_str(&format!("{field:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A thread's stack with all that came from the session made harmless.
pub(crate) fn stack(thread: &ThreadStack) -> String {
    let text = |text: &Option<String>| text.as_deref().map(one_line);
    let frame = |frame: &Frame| Frame {
        file: one_line(&frame.file),
        line: frame.line,
        function: one_line(&frame.function),
        source: text(&frame.source),
    };
    ThreadStack {
        name: text(&thread.name),
        ident: thread.ident,
        cell_id: thread.cell_id,
        state: text(&thread.state),
        frames: thread.frames.iter().map(frame).collect(),
    }
    .to_plain()
}

/// Where a cell is that was interrupted and has not ended: a line, then the
/// innermost `frames` of its stack; without a newline at the end.
pub(crate) fn pending(cell: &InterruptedCell, frames: usize) -> String {
    let said = format!(
        "cell {} was interrupted and has not ended yet",
        cell.cell_id
    );
    let Some(thread) = &cell.stack else {
        return said;
    };
    let mut innermost = thread.clone();
    let left_out = innermost.frames.len().saturating_sub(frames);
    innermost.frames.drain(..left_out);
    format!("{said}\n{}", stack(&innermost).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::outcome::CellKind;
    use pythond_protocol::verbs::interrupt::InterruptOutcome;

    fn summary(fields: &str) -> CellSummary {
        let json = format!(
            r#"{{"cell_id":"00ab00000007","kind":"run","accepted_at":"t","duration_ms":1.25,
            "output_bytes":2048,{fields}}}"#
        );
        serde_json::from_str(&json).expect(&json)
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (milliseconds, text) in [
            (0.04, "0.0 ms"),
            (999.94, "999.9 ms"),
            (1500.0, "1.50 s"),
            (61_900.0, "1 min 1 s"),
            (7_260_000.0, "2 h 1 min"),
        ] {
            assert_eq!(duration(milliseconds), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn cells_stand_in_columns_and_cannot_drive_the_terminal() {
        let rows = [
            CELL_HEAD.map(str::to_owned),
            cell_row(&summary(
                r#""status":"queued","queue_position":2,"author":"a\u001b[2J","started_at":null,
                "code":"x\n\ty""#,
            )),
            cell_row(&summary(
                r#""status":"interrupted","timed_out":true,"truncated":1024,"author":"é",
                "started_at":"t","code":"""#,
            )),
        ];
        let expected = "\
ID            KIND  STATE                    AUTHOR    TIME    OUTPUT                      CODE
00ab00000007  run   queued #2                a\\x1b[2J  -       2.0 KiB                     x\\n\\ty
00ab00000007  run   interrupted (timed out)  é         1.2 ms  2.0 KiB (1.0 KiB not kept)
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn a_pending_cell_shows_where_it_is() {
        let frame = |line| Frame {
            file: "<cell 3>".to_owned(),
            line,
            function: "f\n".to_owned(),
            source: Some("sort(\u{9b}x)".to_owned()),
        };
        let mut cell = InterruptedCell {
            cell_id: "00ab00000007".parse().unwrap(),
            kind: CellKind::Run,
            outcome: InterruptOutcome::Pending,
            stack: Some(ThreadStack {
                name: Some("MainThread".to_owned()),
                ident: 16,
                cell_id: None,
                state: None,
                frames: vec![frame(1), frame(2)],
            }),
        };
        let expected = "\
cell 00ab00000007 was interrupted and has not ended yet
Thread 0x10 MainThread (most recent call last):
  File \"<cell 3>\", line 2, in f\\n
    sort(\\x9bx)";
        assert_eq!(pending(&cell, 1), expected);
        cell.stack = None;
        assert_eq!(pending(&cell, 1), expected.lines().next().unwrap());
    }
}
