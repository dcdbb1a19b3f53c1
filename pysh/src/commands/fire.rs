//! `pysh fire NAME CODE`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::submit::SubmitOptions;

use super::dispatch::lasting;
use super::submission::{self, Sent};
use crate::args::FireArgs;
use crate::failure::Outcome;
use crate::lasting::Nothing;
use crate::render::Render;

pub(super) fn fire(args: FireArgs, render: &Render) -> Outcome {
    let submission = submission::read(args.source, &args.echo, render)?;
    let mut options = SubmitOptions {
        queue: args.queue,
        timeout: args.timeout,
        ..submission::labelled(args.label)?
    };
    let mut sent = Sent::default();
    let reply = lasting(render)?.attempt(&mut Nothing, |client, _| {
        options.resent = sent.again();
        Ok(client.fire(&submission.name, &submission.code, &options)?)
    })?;
    if render.json {
        render.line(reply.json())?;
    } else {
        // The plain wire's form, blanks included.
        render.line(&format!(
            r#"{{"cell_id": "{}", "status": "fired"}}"#,
            reply.value.cell_id
        ))?;
    }
    Ok(ExitCode::Success)
}
