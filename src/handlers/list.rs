//! `ls`.

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::list::{ListReply, SessionSummary};

use super::{Context, Reply};

pub(super) fn handle(context: &Context, format: ReplyFormat) -> Reply {
    let sessions = context.registry.summaries();
    match format {
        ReplyFormat::Json => Reply::json(&ListReply { ok: true, sessions }),
        ReplyFormat::Plain if sessions.is_empty() => Reply::ok("(no sessions)"),
        ReplyFormat::Plain => {
            let lines: Vec<_> = sessions.iter().map(SessionSummary::to_plain).collect();
            Reply::ok(lines.join("\n"))
        }
    }
}
