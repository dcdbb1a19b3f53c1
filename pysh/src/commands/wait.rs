//! `pysh wait NAME [ID…]`.

use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::cells::CellsReply;
use pythond_protocol::verbs::wait::{MAX_CELLS, WaitReply};
use pythond_protocol::{CellId, ExitCode};

use super::dispatch::lasting;
use super::submission::Sent;
use crate::args::WaitArgs;
use crate::failure::{Failure, Outcome};
use crate::interrupts::Leaving;
use crate::render::Render;
use crate::text::{self, cell_row, table};
use crate::watch;

pub(super) fn wait(args: &WaitArgs, render: &Render) -> Outcome {
    let name = &args.name;
    let mut leaving = Leaving::with(
        &format!("left `{name}` before its cells ended; they go on"),
        format!("see `pysh cells {name}`"),
    )?;
    let mut sent = Sent::default();
    let mut ids = args.ids.clone();
    let reply = lasting(render)?.attempt(&mut leaving, |client, leaving| {
        let waited = sent.again().unwrap_or_default();
        // When it is asked again after a break, cells that ended meanwhile are asked
        // for as well.
        if ids.is_empty() {
            ids = match watch::wait(client.cells(name)?, leaving) {
                Ok(reply) => unfinished(&reply.value),
                // `wait` itself says why.
                Err(Failure::Reported(_)) => Vec::new(),
                Err(failure) => return Err(failure),
            };
        }
        let timeout = args.timeout.map(|most| most.saturating_sub(waited));
        watch::wait(client.wait(name, &ids, timeout)?, leaving)
    })?;
    if render.json {
        render.line(reply.json())?;
    } else {
        let rows: Vec<_> = reply.value.cells.iter().map(cell_row).collect();
        render.raw(table(&rows).as_bytes())?;
        for merge in reply.value.cells.iter().filter_map(|it| it.merge.as_ref()) {
            for note in text::merge_notes(merge) {
                render.note(&note);
            }
        }
        if rows.is_empty() {
            render.note(&format!("no cell of `{name}` is left to wait for"));
        }
        if reply.value.timed_out {
            render.note("time is up; the cells that have not ended go on");
        }
    }
    Ok(exit_code(&reply.value))
}

/// The cells that a `wait` without ids means now; none if there are more than it may
/// name.
fn unfinished(reply: &CellsReply) -> Vec<CellId> {
    let is_unfinished =
        |cell: &&CellSummary| matches!(cell.status, CellStatus::Queued | CellStatus::Running);
    let ids = reply.cells.iter().filter(is_unfinished);
    let ids: Vec<_> = ids.map(|cell| cell.cell_id).collect();
    match ids.len() {
        ..=MAX_CELLS => ids,
        _ => Vec::new(),
    }
}

fn exit_code(reply: &WaitReply) -> ExitCode {
    if reply.timed_out {
        return ExitCode::TimedOut;
    }
    // The process of a fork cell is its own, and not the session's.
    let with_session = |cell: &CellSummary| match cell.status {
        CellStatus::Killed | CellStatus::Lost => cell.kind != CellKind::Fork,
        CellStatus::Queued
        | CellStatus::Running
        | CellStatus::Done
        | CellStatus::Failed
        | CellStatus::Interrupted => false,
    };
    if reply.cells.iter().any(with_session) {
        ExitCode::SessionDied
    } else if reply.cells.iter().all(|it| it.status == CellStatus::Done) {
        ExitCode::Success
    } else {
        ExitCode::Raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_worst_cell() {
        let code = |kind: &str, statuses: &[&str], timed_out: bool| {
            let cells: Vec<_> = statuses
                .iter()
                .map(|status| {
                    format!(
                        r#"{{"cell_id":"00ab00000007","kind":"{kind}","author":"a",
                        "status":"{status}","accepted_at":"t","started_at":null,
                        "duration_ms":1,"output_bytes":1,"code":"1"}}"#
                    )
                })
                .collect();
            let json = format!(
                r#"{{"ok":false,"session":"work","cells":[{}],"timed_out":{timed_out}}}"#,
                cells.join(",")
            );
            exit_code(&serde_json::from_str(&json).expect(&json))
        };
        assert_eq!(code("run", &[], false), ExitCode::Success);
        assert_eq!(code("fire", &["done", "done"], false), ExitCode::Success);
        for ending in ["failed", "interrupted"] {
            assert_eq!(code("run", &["done", ending], false), ExitCode::Raised);
        }
        assert_eq!(code("fork", &["killed"], false), ExitCode::Raised);
        assert_eq!(
            code("fire", &["failed", "killed"], false),
            ExitCode::SessionDied
        );
        assert_eq!(code("run", &["done", "running"], true), ExitCode::TimedOut);
    }
}
