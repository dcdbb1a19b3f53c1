//! `pysh kill NAME` and `pysh kill --all`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::kill::KillReply;
use pythond_transport::{Reply, Report};

use super::dispatch::connect;
use crate::args::KillArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn kill(args: &KillArgs, render: &Render) -> Outcome {
    let mut client = connect(render)?;
    let reply: Reply<KillReply> = match &args.name {
        Some(name) => client.kill(name)?,
        None => client.kill_all()?,
    };
    match &args.name {
        Some(name) if !render.json => {
            if !reply.value.ok {
                return Err(not_ended(&name.to_string()).into());
            }
            render.line(&format!("OK killed {name}"))?;
        }
        _ => render.line(reply.json())?,
    }
    Ok(if reply.value.ok {
        ExitCode::Success
    } else {
        ExitCode::Refused
    })
}

fn not_ended(name: &str) -> Report {
    Report::new(
        "busy",
        format!("session `{name}` did not end"),
        ExitCode::Refused,
    )
    .with_hint(format!("see `pysh status {name}`"))
}
