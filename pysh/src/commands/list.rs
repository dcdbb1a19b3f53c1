//! `pysh ls`.

use pythond_protocol::ExitCode;

use super::dispatch::connect;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn list(render: &Render) -> Outcome {
    let reply = connect(render)?.list()?;
    if render.json {
        render.line(reply.json())?;
    } else if reply.value.sessions.is_empty() {
        render.line("(no sessions)")?;
    } else {
        let lines: Vec<_> = reply
            .value
            .sessions
            .iter()
            .map(|session| session.to_plain())
            .collect();
        render.line(&lines.join("\n"))?;
    }
    Ok(ExitCode::Success)
}
