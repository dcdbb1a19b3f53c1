//! `pysh status NAME`.

use pythond_protocol::ExitCode;

use super::dispatch::connect;
use crate::args::SessionArgs;
use crate::failure::Outcome;
use crate::render::Render;

/// Prints the JSON object with and without `--json`; a dead session is an
/// answer, not a failure.
pub(super) fn status(args: &SessionArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.status(&args.name)?;
    render.line(reply.json())?;
    Ok(ExitCode::Success)
}
