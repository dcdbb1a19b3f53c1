//! `pyctl disconnect`.

use pythond_protocol::ExitCode;
use pythond_transport::Client;

use super::dispatch::address;
use crate::args::DisconnectArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn disconnect(args: &DisconnectArgs, render: &Render) -> Outcome {
    let reply = Client::connect(&address()?)?.disconnect_remote(&args.name)?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&format!("OK disconnected {}", reply.value.disconnected))?;
    }
    Ok(ExitCode::Success)
}
