//! `pysh out NAME ID`.

use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::out::{MAX_BYTES, OutRequest, StreamEvent};
use pythond_protocol::{ExitCode, SessionPath};

use super::dispatch::lasting;
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
    let mut request = request(args, render.json);
    let reply = lasting(render)?.attempt(&mut leaving, |client, leaving| {
        let mut next = request.since;
        let output = client.out(&request)?;
        let reply = follow(output, leaving, |event, leaving| {
            if render.json {
                print_line(event.json(), render, leaving)?;
            } else if let Some(event) = &event.value {
                target.show(event, leaving)?;
            }
            if let Some(end) = event.value.as_ref().and_then(StreamEvent::end) {
                next = end;
                leaving.say(&left, hint(next));
            }
            Ok(())
        });
        // A new connection goes on where this one broke.
        request.since = next;
        reply
    })?;
    if render.json {
        render.line(reply.json())?;
    }
    Ok(ExitCode::Success)
}

fn request(args: OutArgs, json: bool) -> OutRequest<SessionPath> {
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
