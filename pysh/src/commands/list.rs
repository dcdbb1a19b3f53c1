//! `pysh ls`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::verbs::list::SessionSummary;

use super::dispatch::connect;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn list(render: &Render) -> Outcome {
    let reply = connect(render)?.list()?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    let sessions = reply.value.sessions.iter().map(SessionSummary::to_plain);
    let remotes = reply.value.remotes.iter().map(RemoteSummary::to_plain);
    let lines: Vec<_> = sessions.chain(remotes).collect();
    render.line(
        match &lines[..] {
            [] => "(no sessions)".to_owned(),
            lines => lines.join("\n"),
        }
        .as_str(),
    )?;
    Ok(ExitCode::Success)
}
