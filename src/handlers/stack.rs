//! `stack NAME`: where every thread of a session is.

use pythond_protocol::ErrorReply;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::stack::{StackReply, StackRequest, ThreadStack};

use super::{Context, Reply};
use crate::session::Question;

pub(super) async fn handle(
    context: &Context,
    request: StackRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let HostEvent::Stack {
        method, threads, ..
    } = session.ask(Question::Stack).await?
    else {
        return Err(super::ask::unexpected());
    };
    Ok(match format {
        ReplyFormat::Plain => {
            let texts: Vec<_> = threads.iter().map(ThreadStack::to_plain).collect();
            Reply::ok(texts.join("\n"))
        }
        ReplyFormat::Json => Reply::json(&StackReply {
            ok: true,
            session: request.session,
            method,
            threads,
        }),
    })
}
