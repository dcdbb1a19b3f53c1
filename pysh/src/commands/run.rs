//! `pysh run NAME CODE`.

use std::time::Duration;

use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::cell::CellReply;
use pythond_protocol::verbs::out::StreamEvent;
use pythond_protocol::verbs::submit::SubmitOptions;
use pythond_protocol::verbs::word;
use pythond_protocol::{CellId, ExitCode, SessionPath};
use pythond_transport::Reply;

use super::dispatch::address;
use super::run_interrupt::RunWatch;
use super::submission::{self, Sent};
use crate::args::{Busy, RunArgs};
use crate::cell_output::{Ending, ending, exit_code, pieces};
use crate::failure::{Failure, Outcome};
use crate::interrupts::Interrupts;
use crate::lasting::Lasting;
use crate::render::Render;
use crate::watch::{Target, follow};

pub(super) fn run(args: RunArgs, render: &Render) -> Outcome {
    let submission = submission::read(args.source, &args.echo, render)?;
    let mut options = SubmitOptions {
        stream: !render.json && !args.detach,
        detach: args.detach,
        wait: args.wait,
        timeout: args.timeout,
        busy_fails: args.busy == Busy::Fail,
        cancel_on_disconnect: args.cancel_on_disconnect,
        ..submission::labelled(args.label)?
    };
    let address = address()?;
    let line = Lasting::new(address.clone(), render)?;
    let mut watch = RunWatch::new(
        Interrupts::install()?,
        address,
        submission.name.clone(),
        args.cancel_on_disconnect,
        render,
    );
    let target = Target {
        render,
        // What stdout gets twice on one terminal is no echo but a stutter.
        echo: submission.echo && !render.stdout_is_terminal,
        merged: false,
    };
    let mut sent = Sent::default();
    let mut shown = 0;
    let reply = line.attempt(&mut watch, |client, watch| {
        options.resent = sent.again();
        if let Some(ago) = options.resent {
            options.wait = args.wait.map(|most| most.saturating_sub(ago));
        }
        let shown_before = shown;
        // From the beginning, a way that breaks often never gets further.
        options.since = (shown > 0).then_some(shown);
        let running = client.run(&submission.name, &submission.code, &options)?;
        follow(running, watch, |event, watch| match &event.value {
            Some(StreamEvent::Accepted {
                cell_id, held_by, ..
            }) => {
                let known = watch.cell().is_some();
                watch.accepted(*cell_id);
                if let (Some(by), false) = (held_by, known) {
                    render.note(&waits(&submission.name, *cell_id, by));
                }
                Ok(())
            }
            Some(event) => {
                // An answer of before may be told once more.
                let Some(unseen) = event.from(shown_before) else {
                    return Ok(());
                };
                shown = unseen.end().unwrap_or(shown);
                target.show(&unseen, watch)
            }
            None => Ok(()),
        })
    });
    let reply = reply.map_err(|failure| name_cell(failure, &submission.name, watch.cell()))?;
    if args.detach {
        return show_id(&reply, render);
    }
    show(&reply, &submission.name, target, args.timeout)
}

/// Why nothing happens yet.
fn waits(name: &SessionPath, cell: CellId, by: &str) -> String {
    format!("cell {cell} waits: the session is held by {by} (`pysh release {name}` lets it go)")
}

/// The cell's id alone, for scripts.
fn show_id(reply: &Reply<CellReply>, render: &Render) -> Outcome {
    match reply.value.cell_id {
        Some(id) if !render.json => render.line(&id.to_string())?,
        _ => render.line(reply.json())?,
    }
    Ok(ExitCode::Success)
}

fn show(
    reply: &Reply<CellReply>,
    session: &SessionPath,
    target: Target<'_>,
    timeout: Option<Duration>,
) -> Outcome {
    let (cell, render) = (&reply.value, target.render);
    let exit = exit_code(cell);
    if render.json {
        render.line(reply.json())?;
        return Ok(exit);
    }
    let mut written = render.finish();
    if !cell.streamed {
        written = render
            .output(pieces(cell), target.echo)
            .and_then(|()| render.finish());
        if cell.truncated > 0 {
            render.note(&format!("{} bytes of output were not kept", cell.truncated));
        }
    }
    match ending(cell) {
        None => {}
        Some(Ending::Traceback(text)) => render.foreign_talk(&text),
        Some(Ending::Report(report)) => render.error(&report),
    }
    for note in notes(cell, session, timeout) {
        render.note(&note);
    }
    written?;
    Ok(exit)
}

/// What there is to say beside the output and the exception, with the name by which
/// the session was asked: a remote's has another where it is.
fn notes(cell: &CellReply, session: &SessionPath, timeout: Option<Duration>) -> Vec<String> {
    let mut notes = Vec::new();
    if cell.timed_out {
        notes.push(match timeout {
            Some(span) => format!("timed out after {} s", span.as_secs_f64()),
            None => "timed out".to_owned(),
        });
    }
    if let (CellStatus::Queued | CellStatus::Running, Some(id)) = (cell.status, cell.cell_id) {
        notes.push(format!(
            "cell {id} is still {}; follow it with `pysh out {session} {id} --follow`, \
             wait with `pysh wait {session} {id}`",
            word(&cell.status)
        ));
    }
    if let Some(reason) = &cell.not_recorded {
        notes.push(format!("not recorded: {reason}"));
    }
    notes
}

/// A connection that broke takes nothing from the cell: says which it is.
fn name_cell(failure: Failure, session: &SessionPath, cell: Option<CellId>) -> Failure {
    match (failure, cell) {
        (Failure::Reported(report), Some(id)) if report.code == "connection" => {
            let hint = format!("cell `{id}` may go on; see `pysh poll {session} {id}`");
            Failure::Reported(report.with_hint(hint))
        }
        (failure, _) => failure,
    }
}
