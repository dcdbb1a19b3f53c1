//! `ls`.

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::verbs::list::{ListReply, SessionSummary};

use super::{Context, Reply};

pub(super) fn handle(context: &Context, format: ReplyFormat) -> Reply {
    let sessions = context.registry.summaries();
    let remotes = context.remotes.summaries();
    match format {
        ReplyFormat::Json => Reply::json(&ListReply {
            ok: true,
            sessions,
            remotes,
        }),
        ReplyFormat::Plain if sessions.is_empty() && remotes.is_empty() => {
            Reply::ok("(no sessions)")
        }
        ReplyFormat::Plain => {
            let sessions = sessions.iter().map(SessionSummary::to_plain);
            let remotes = remotes.iter().map(RemoteSummary::to_plain);
            let lines: Vec<_> = sessions.chain(remotes).collect();
            Reply::ok(lines.join("\n"))
        }
    }
}
