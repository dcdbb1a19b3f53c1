//! `pysh out NAME ID`.

use pythond_protocol::ExitCode;
use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::out::{MAX_BYTES, OutRequest, StreamEvent};

use super::dispatch::connect;
use crate::args::OutArgs;
use crate::failure::Outcome;
use crate::interrupts::Leaving;
use crate::render::Render;
use crate::watch::{Target, follow, print_line};

/// How the cell ended is not asked here: the exit code does not tell of it.
pub(super) fn out(args: OutArgs, render: &Render) -> Outcome {
    let (name, id) = (args.name.clone(), args.id);
    let hint = |next: u64| format!("go on with `pysh out {name} {id} --since {next}`");
    let left = format!("left `{name}` before the end of the output of cell `{id}`");
    let mut leaving = Leaving::with(&left, hint(args.since))?;
    let target = Target {
        render,
        echo: false,
        merged: args.stdout || args.stderr,
    };
    let mut client = connect()?;
    let output = client.out(&request(args, render.json))?;
    let reply = follow(output, &mut leaving, |event, leaving| {
        if render.json {
            return print_line(event.json(), render, leaving);
        }
        let Some(event) = &event.value else {
            return Ok(());
        };
        target.show(event, leaving)?;
        if let Some(next) = end(event) {
            leaving.say(&left, hint(next));
        }
        Ok(())
    })?;
    if render.json {
        render.line(reply.json())?;
    }
    Ok(ExitCode::Success)
}

fn request(args: OutArgs, json: bool) -> OutRequest {
    OutRequest {
        session: args.name,
        cell: args.id,
        since: args.since,
        stream: match (args.stdout, args.stderr) {
            (true, _) => Some(Stream::Stdout),
            (_, true) => Some(Stream::Stderr),
            (false, false) => None,
        },
        events: !json || args.follow,
        follow: args.follow,
        most: MAX_BYTES,
    }
}

/// Where the next event begins.
fn end(event: &StreamEvent) -> Option<u64> {
    match event {
        StreamEvent::Accepted { .. } => None,
        StreamEvent::Output { offset, data, .. } => {
            offset.checked_add(u64::try_from(data.0.len()).ok()?)
        }
        StreamEvent::Gap {
            offset, missing, ..
        } => offset.checked_add(*missing),
    }
}
