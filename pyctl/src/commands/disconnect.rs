//! `pyctl disconnect`.

use pythond_protocol::ExitCode;

use super::dispatch::{self, address};
use crate::args::DisconnectArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn disconnect(args: &DisconnectArgs, render: &Render) -> Outcome {
    let reply = dispatch::connect(&address()?, render)?.disconnect_remote(&args.name)?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&format!("OK disconnected {}", reply.value.disconnected))?;
    }
    Ok(ExitCode::Success)
}
