//! `pysh int NAME`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::interrupt::InterruptReply;

use super::dispatch::connect;
use crate::args::SessionArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn interrupt(args: &SessionArgs, render: &Render) -> Outcome {
    let mut client = connect()?;
    let reply = client.interrupt(&args.name)?.wait()?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&plain(&reply.value))?;
    }
    Ok(ExitCode::Success)
}

fn plain(reply: &InterruptReply) -> String {
    let name = &reply.session;
    match reply.interrupted.len() {
        0 => format!("OK no running cells in {name}"),
        1 => format!("OK int {name}: 1 cell"),
        count => format!("OK int {name}: {count} cells"),
    }
}
