//! `events [NAME]`: what happens, as it happens, until the client goes away.

use std::sync::Arc;

use pythond_protocol::ErrorReply;
use pythond_protocol::verbs::events::EventsRequest;
use serde_json::json;

use super::{Caller, Context, Reply};

pub(super) async fn handle(
    context: &Arc<Context>,
    caller: &Caller,
    request: EventsRequest,
) -> Result<Reply, ErrorReply> {
    let mut follower = context.hosts.events.follow(request.since.as_deref());
    caller.event(&follower.ready()).await;
    let follow = async {
        loop {
            let message = follower.next(request.session.as_ref()).await;
            caller.event(&message).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = context.stop.cancelled() => {}
    }
    Ok(Reply::json(&json!({ "ok": true })))
}
