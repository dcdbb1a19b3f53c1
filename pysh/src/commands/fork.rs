//! `pysh fork NAME CODE`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::submit::SubmitOptions;

use super::dispatch::lasting;
use super::submission::{self, Sent};
use crate::args::ForkArgs;
use crate::failure::Outcome;
use crate::lasting::Nothing;
use crate::render::Render;

pub(super) fn fork(args: ForkArgs, render: &Render) -> Outcome {
    let submission = submission::read(args.source, &args.echo, render)?;
    let mut options = SubmitOptions {
        timeout: args.timeout,
        max_result: args.max_result,
        ..submission::labelled(args.label)?
    };
    let mut sent = Sent::default();
    let reply = lasting(render)?.attempt(&mut Nothing, |client, _| {
        options.resent = sent.again();
        Ok(client.fork(&submission.name, &submission.code, &options)?)
    })?;
    if render.json {
        render.line(reply.json())?;
    } else {
        // The plain wire's form, blanks included.
        render.line(&format!(
            r#"{{"cell_id": "{}", "status": "forked"}}"#,
            reply.value.cell_id
        ))?;
    }
    Ok(ExitCode::Success)
}
