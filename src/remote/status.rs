//! `status` of a session elsewhere tells of the way there too.

use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::verbs::status::StatusReply;
use serde_json::Value;

use super::Remote;
use crate::handlers::Reply;

/// Adds how the way is to what the daemon there has said of its session.
pub(super) fn with_way(mut reply: Reply, remote: &Remote) -> Reply {
    if let Some(text) = told(&reply.text, remote.summary()) {
        reply.text = text;
    }
    reply
}

/// The same status with this way; none if it is no status.
fn told(text: &str, mut way: RemoteSummary) -> Option<String> {
    // Refusals have another shape. What we do not know of a newer daemon's answer
    // stays in it.
    let status: StatusReply = serde_json::from_str(text).ok()?;
    let Some(further) = status.remote else {
        let way = serde_json::to_string(&way).expect("it has text keys only");
        let end = text.rfind('}')?;
        return Some(format!("{},\"remote\":{way}{}", &text[..end], &text[end..]));
    };
    // That daemon has it from another: a second member of the name would make the
    // answer unreadable.
    way.remote = Some(Box::new(further));
    let mut status: Value = serde_json::from_str(text).ok()?;
    status["remote"] = serde_json::to_value(&way).ok()?;
    Some(status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(name: &str) -> RemoteSummary {
        let json = format!(
            r#"{{"name":"{name}","session":"work","endpoints":["h:1"],"tls":true,
            "state":"up","connections":1}}"#
        );
        serde_json::from_str(&json).expect(&json)
    }

    #[test]
    fn each_daemon_on_the_way_adds_its_part() {
        let status = r#"{"ok":true,"session":"work","session_id":"0123456789abcdef","gen":1,
            "pid":7,"state":"idle","running":[],"queued":[],"vars":0,"cells":0,"python":{
            "version":"3.12.1","executable":"/python","reason":"r"},"start":"cold","cwd":"/","created_at":"t",
            "host":"h","newer":[1]}"#;
        assert_eq!(told(r#"{"ok":false}"#, way("far")), None);
        let mut text = status.to_owned();
        for name in ["last", "middle", "first"] {
            text = told(&text, way(name)).expect("it is a status");
            assert_eq!(text.matches("\"newer\":[1]").count(), 1, "{text}");
        }
        let read: StatusReply = serde_json::from_str(&text).expect(&text);
        let first = read.remote.expect(&text);
        assert_eq!(first.name.as_str(), "first");
        let middle = first.remote.expect(&text);
        assert_eq!(middle.name.as_str(), "middle");
        assert_eq!(middle.remote.expect(&text).name.as_str(), "last");
    }
}
