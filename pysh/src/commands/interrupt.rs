//! `pysh int NAME [ID…]`.

use pythond_protocol::verbs::interrupt::{InterruptOutcome, InterruptReply};
use pythond_protocol::{ExitCode, SessionPath};

use super::dispatch::connect;
use crate::args::IntArgs;
use crate::failure::Outcome;
use crate::render::Render;
use crate::text;

pub(super) fn interrupt(args: &IntArgs, render: &Render) -> Outcome {
    let mut client = connect(render)?;
    let reply = client
        .interrupt(&args.name, &args.ids, args.kill, args.soft)?
        .wait()?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    render.line(&plain(&reply.value))?;
    for note in notes(&reply.value, &args.name) {
        render.note(&note);
    }
    Ok(ExitCode::Success)
}

fn plain(reply: &InterruptReply) -> String {
    let name = &reply.session;
    let known = reply.interrupted.len() as u64;
    match reply.interrupted_count.unwrap_or(known) {
        0 => format!("OK no running cells in {name}"),
        1 => format!("OK int {name}: 1 cell"),
        count => format!("OK int {name}: {count} cells"),
    }
}

/// What did not go as it should, and what was done about it, with the name by which
/// the session was asked: a remote's has another where it is.
fn notes(reply: &InterruptReply, name: &SessionPath) -> Vec<String> {
    let mut notes: Vec<_> = reply.actions.iter().map(|it| text::one_line(it)).collect();
    if reply.killed && reply.actions.is_empty() {
        notes.push(format!("session `{name}` was ended"));
    }
    for cell in &reply.cells {
        if cell.outcome == InterruptOutcome::Pending && !reply.killed {
            let id = cell.cell_id;
            notes.push(format!(
                "{}\nend it with `pysh int {name} {id} --kill`",
                text::pending(cell, usize::MAX)
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &str, line: &str, said: &[&str]) {
        let json = format!(r#"{{"ok":true,"session":"work",{fields}}}"#);
        let reply = serde_json::from_str(&json).expect(&json);
        assert_eq!(plain(&reply), line);
        assert_eq!(
            notes(&reply, &"far/work".parse().expect("it is a path")),
            said
        );
    }

    #[test]
    fn cells_are_counted_and_pending_ones_named() {
        check(r#""interrupted":[]"#, "OK no running cells in work", &[]);
        check(
            r#""interrupted":["00ab00000007","00ab00000008"],"cells":[
            {"cell_id":"00ab00000007","kind":"run","outcome":"pending"},
            {"cell_id":"00ab00000008","kind":"fire","outcome":"ended"}]"#,
            "OK int work: 2 cells",
            &["cell 00ab00000007 was interrupted and has not ended yet\n\
               end it with `pysh int far/work 00ab00000007 --kill`"],
        );
    }

    #[test]
    fn an_escalation_says_what_it_did() {
        let cells = r#""interrupted":["00ab00000007"],"cells":[
            {"cell_id":"00ab00000007","kind":"run","outcome":"pending"}],"killed":true"#;
        check(
            &format!(r#"{cells},"actions":["interrupted","killed\nit"]"#),
            "OK int work: 1 cell",
            &["interrupted", "killed\\nit"],
        );
        check(
            cells,
            "OK int work: 1 cell",
            &["session `far/work` was ended"],
        );
    }
}
