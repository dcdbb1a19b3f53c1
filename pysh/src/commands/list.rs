//! `pysh ls [REMOTE]`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::verbs::list::{ListReply, SessionSummary};

use super::dispatch::connect;
use crate::args::ListArgs;
use crate::failure::Outcome;
use crate::render::Render;
use crate::text::one_line;

pub(super) fn list(args: &ListArgs, render: &Render) -> Outcome {
    let mut client = connect(render)?;
    let reply = match &args.remote {
        None => client.list()?,
        Some(remote) => client.list_of(remote)?,
    };
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    render.line(&plain(&reply.value))?;
    Ok(ExitCode::Success)
}

fn plain(list: &ListReply) -> String {
    let sessions = list.sessions.iter().map(SessionSummary::to_plain);
    let remotes = list.remotes.iter().map(RemoteSummary::to_plain);
    // A daemon of another machine may say anything.
    let lines = sessions.chain(remotes).map(|line| one_line(&line));
    let lines: Vec<_> = lines.collect();
    match &lines[..] {
        [] => "(no sessions)".to_owned(),
        lines => lines.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_elsewhere_cannot_steer_the_terminal() {
        let list: ListReply = serde_json::from_str(
            r#"{"ok":true,"sessions":[],"remotes":[{"name":"far","session":"far",
            "endpoints":["\u001b]0;x\u0007:1"],"tls":false,"state":"idle","connections":0}]}"#,
        )
        .unwrap();
        let text = plain(&list);
        assert!(text.contains("\\x1b]0;x\\x07:1"), "{text:?}");
    }
}
