//! `kill NAME` and `kill --all`.

use std::sync::Arc;

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::kill::{KillReply, KillRequest};
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};

use super::{Context, GRACE, Reply};
use crate::session::{EndReason, SessionHandle};

pub(super) async fn handle(
    context: &Arc<Context>,
    request: KillRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    match request {
        KillRequest::One(name) => one(context, &name, format).await,
        KillRequest::All => Ok(all(context).await),
    }
}

async fn one(
    context: &Arc<Context>,
    name: &SessionName,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context
        .registry
        .get(name)
        .map_err(|error| error.with_plain(format!("no session '{name}'")))?;
    if !end(context, session).await {
        return Err(ErrorReply::new(
            ErrorCode::SessionUnreachable,
            format!("the process of session `{name}` does not end"),
        )
        .with_hint("the kernel holds it; look at its state with `ps`"));
    }
    Ok(match format {
        ReplyFormat::Plain => Reply::ok(format!("OK killed {name}")),
        ReplyFormat::Json => Reply::json(&KillReply {
            ok: true,
            killed: vec![name.clone()],
            failed: Vec::new(),
        }),
    })
}

async fn all(context: &Arc<Context>) -> Reply {
    let ends = context
        .registry
        .all()
        .into_iter()
        .map(|session| async move {
            let name = session.name().clone();
            (name, end(context, session).await)
        });
    let ended = futures_util::future::join_all(ends).await;
    let (mut killed, mut failed) = (Vec::new(), Vec::new());
    for (name, gone) in ended {
        if gone { &mut killed } else { &mut failed }.push(name);
    }
    Reply::json(&KillReply {
        ok: failed.is_empty(),
        killed,
        failed,
    })
}

/// Ends a session and forgets it. It goes on even if the client goes away:
/// half a kill helps nobody.
async fn end(context: &Arc<Context>, session: SessionHandle) -> bool {
    let context = Arc::clone(context);
    let tracker = context.hosts.tracker.clone();
    let work = tracker.spawn(async move {
        let gone = session.end(EndReason::Killed, GRACE, &context.hurry).await;
        if gone {
            context.registry.forget(&session);
        }
        gone
    });
    work.await.unwrap_or(false)
}
