//! `pysh poll NAME [ID]`.

use pythond_protocol::ExitCode;
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::cell::CellReply;
use pythond_transport::PollReply;

use super::dispatch::connect;
use crate::args::PollArgs;
use crate::cell_output::{Ending, ending, pieces};
use crate::failure::Outcome;
use crate::render::Render;
use crate::text;

/// The cell's state is data: the exit code does not tell of it.
pub(super) fn poll(args: &PollArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.poll(&args.name, args.id)?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&plain(&reply.value))?;
        if let PollReply::Cell(cell) = &reply.value
            && let Some(merge) = &cell.merge
        {
            for note in text::merge_notes(merge) {
                render.note(&note);
            }
        }
    }
    Ok(ExitCode::Success)
}

/// The plain wire's form, blanks included. Taken from the structured answer,
/// which alone tells a refusal from an output that looks like one.
fn plain(reply: &PollReply) -> String {
    let PollReply::Cell(cell) = reply else {
        return r#"{"status": "idle"}"#.to_owned();
    };
    let id = cell.cell_id.map(|id| id.to_string()).unwrap_or_default();
    let (status, output, error) = match cell.status {
        CellStatus::Queued | CellStatus::Running => ("running", String::new(), ""),
        CellStatus::Done => ("done", output(cell), ""),
        CellStatus::Failed | CellStatus::Interrupted | CellStatus::Killed | CellStatus::Lost => {
            ("done", output(cell), r#", "error": true"#)
        }
    };
    let output = serde_json::Value::from(output);
    let merge = cell.merge.as_ref().map_or_else(String::new, |merge| {
        let skipped: Vec<_> = merge.skipped.keys().map(String::as_str).collect();
        format!(
            r#", "merged": {}, "skipped": {}"#,
            names(merge.merged.iter().map(String::as_str)),
            names(skipped.into_iter())
        )
    });
    format!(r#"{{"cell_id": "{id}", "status": "{status}", "output": {output}{error}{merge}}}"#)
}

/// Names as a JSON array, with the plain wire's blanks.
fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names
        .map(|name| serde_json::Value::from(name).to_string())
        .collect();
    format!("[{}]", names.join(", "))
}

/// What the cell wrote and the traceback, without newlines at the end.
fn output(cell: &CellReply) -> String {
    let mut bytes = Vec::new();
    for (_, piece) in pieces(cell) {
        bytes.extend_from_slice(piece);
    }
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    match ending(cell) {
        None => {}
        Some(Ending::Traceback(traceback)) => text.push_str(&traceback),
        Some(Ending::Report(report)) => text.push_str(&report.message),
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: &str, fields: &str, expected: &str) {
        let json = format!(
            r#"{{"session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007",
            "kind":"fire","status":"{status}","ok":false,"result":null,"started_at":null,
            "duration_ms":1.5,"output_bytes":1,"truncated":0,"host":"h","changed":[],{fields}}}"#
        );
        assert_eq!(plain(&serde_json::from_str(&json).expect(&json)), expected);
    }

    #[test]
    fn a_cell_has_the_form_of_the_plain_wire() {
        let wrote = r#""stdout":"ac\n\n","stderr":"b","order":[[1,1],[2,1],[1,3]],"#;
        let running = r#"{"cell_id": "00ab00000007", "status": "running", "output": ""}"#;
        for status in ["queued", "running"] {
            check(status, &format!(r#"{wrote}"error":null"#), running);
        }
        check(
            "done",
            &format!(r#"{wrote}"error":null"#),
            r#"{"cell_id": "00ab00000007", "status": "done", "output": "abc"}"#,
        );
        check(
            "failed",
            r#""stdout":"é\n","stderr":"","error":{"type":"T","message":"m","traceback":"T: \"m\"\n"}"#,
            r#"{"cell_id": "00ab00000007", "status": "done", "output": "é\nT: \"m\"", "error": true}"#,
        );
        check(
            "killed",
            r#""stdout":{"text":"\ufffd","data_b64":"/w=="},"stderr":"","error":{"type":"T",
            "message":"killed by SIGKILL","traceback":"","code":"session_died"}"#,
            "{\"cell_id\": \"00ab00000007\", \"status\": \"done\", \"output\": \"\u{fffd}killed by SIGKILL\", \"error\": true}",
        );
    }

    #[test]
    fn a_session_without_cells_is_idle() {
        let idle = serde_json::from_str(r#"{"ok":true,"status":"idle"}"#).unwrap();
        assert_eq!(plain(&idle), r#"{"status": "idle"}"#);
    }
}
