//! `status` of a session elsewhere tells of the way there too.

use pythond_protocol::verbs::status::StatusReply;

use super::Remote;
use crate::handlers::Reply;

/// Adds how the way is to what the daemon there has said of its session.
pub(super) fn with_way(mut reply: Reply, remote: &Remote) -> Reply {
    // Refusals have another shape. What we do not know of a newer daemon's answer
    // stays in it.
    let is_status = serde_json::from_str::<StatusReply>(&reply.text).is_ok();
    if let Some(end) = reply.text.rfind('}').filter(|_| is_status) {
        let way = serde_json::to_string(&remote.summary()).expect("it has text keys only");
        reply.text.insert_str(end, &format!(",\"remote\":{way}"));
    }
    reply
}
