//! `pysh stack NAME`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::stack::StackMethod;

use super::dispatch::connect;
use crate::args::SessionArgs;
use crate::failure::Outcome;
use crate::render::Render;
use crate::text;

pub(super) fn stack(args: &SessionArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.stack(&args.name)?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    if reply.value.method == StackMethod::Copy {
        render.note("C code holds the interpreter; read from a copy of the process");
    }
    let threads: Vec<_> = reply.value.threads.iter().map(text::stack).collect();
    render.raw(threads.join("\n").as_bytes())?;
    Ok(ExitCode::Success)
}
