//! `hold NAME`, `release NAME`: agents' new cells wait while a person works.

use pythond_protocol::ErrorReply;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::hold::{HoldReply, HoldRequest};

use super::{Caller, Context, Reply};
use crate::session::Question;

pub(super) async fn handle(
    context: &Context,
    caller: &Caller,
    request: HoldRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let author = request.author.unwrap_or_else(|| caller.author.clone());
    let question = Question::Hold {
        by: request.held.then_some(author),
        // What is held at a terminal is let go when that one is gone.
        terminal: caller
            .terminal
            .clone()
            .and_then(|(session, terminal)| (session == request.session).then_some(terminal)),
    };
    let HostEvent::Hold {
        held_by, waiting, ..
    } = session.ask(question).await?
    else {
        return Err(super::unexpected());
    };
    Ok(match format {
        ReplyFormat::Plain if request.held => Reply::ok("OK hold"),
        ReplyFormat::Plain => Reply::ok("OK release"),
        ReplyFormat::Json => Reply::json(&HoldReply {
            ok: true,
            session: request.session,
            held: held_by.is_some(),
            waiting,
        }),
    })
}
