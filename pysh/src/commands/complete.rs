//! `pysh complete NAME TEXT`.

use pythond_protocol::ExitCode;

use super::dispatch::connect;
use crate::args::CompleteArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn complete(args: &CompleteArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.complete(&args.name, &args.text)?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&super::vars::object_of_names(
            "matches",
            &reply.value.matches,
        ))?;
    }
    Ok(ExitCode::Success)
}
