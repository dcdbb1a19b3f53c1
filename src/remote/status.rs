//! `status` of a session elsewhere tells of the way there too, also where it is refused.

use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::verbs::status::StatusReply;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Remote;
use crate::handlers::Reply;

/// Adds how the way is to what the daemon there has answered.
pub(super) fn with_way(mut reply: Reply, remote: &Remote) -> Reply {
    if let Some(text) = told(&reply.text, remote.summary()) {
        reply.text = text;
    }
    reply
}

/// The way from there on, as the answer of the daemon there has it; none if this
/// is neither a status nor a refusal of one.
fn further(text: &str) -> Option<Option<RemoteSummary>> {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(rename = "error")]
        _error: IgnoredAny,
        remote: Option<RemoteSummary>,
    }
    let of_status = serde_json::from_str(text).map(|it: StatusReply| it.remote);
    let told = of_status.or_else(|_| serde_json::from_str(text).map(|it: Refusal| it.remote));
    told.ok()
}

/// The same answer with this way; none if it is no answer to `status`.
fn told(text: &str, mut way: RemoteSummary) -> Option<String> {
    // What we do not know of a newer daemon's answer stays in it.
    let Some(further) = further(text)? else {
        let way = serde_json::to_string(&way).expect("it has text keys only");
        let end = text.rfind('}')?;
        return Some(format!("{},\"remote\":{way}{}", &text[..end], &text[end..]));
    };
    // That daemon has it from another: a second member of the name would make the
    // answer unreadable.
    way.remote = Some(Box::new(further));
    let mut answer: Value = serde_json::from_str(text).ok()?;
    answer["remote"] = serde_json::to_value(&way).ok()?;
    Some(answer.to_string())
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

    fn names(way: Option<RemoteSummary>) -> Vec<String> {
        let further = |way: &RemoteSummary| way.remote.as_deref().cloned();
        let ways = std::iter::successors(way, further);
        ways.map(|way| way.name.to_string()).collect()
    }

    #[test]
    fn each_daemon_on_the_way_adds_its_part_to_a_refusal() {
        let refusal = r#"{"ok":false,"error":{"code":"no_session","message":"m"},"newer":[1]}"#;
        let mut text = refusal.to_owned();
        for name in ["last", "middle", "first"] {
            text = told(&text, way(name)).expect("it is a refusal");
        }
        let value: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(
            (&value["newer"][0], &value["error"]["code"]),
            (&1.into(), &"no_session".into())
        );
        let first = serde_json::from_value(value["remote"].clone()).expect(&text);
        assert_eq!(names(first), ["first", "middle", "last"]);
    }

    #[test]
    fn each_daemon_on_the_way_adds_its_part() {
        let status = r#"{"ok":true,"session":"work","session_id":"0123456789abcdef","gen":1,
            "pid":7,"state":"idle","running":[],"queued":[],"vars":0,"cells":0,"python":{
            "version":"3.12.1","executable":"/python","reason":"r"},"start":"cold","cwd":"/","created_at":"t",
            "host":"h","newer":[1]}"#;
        assert_eq!(told(r#"{"ok":false}"#, way("far")), None);
        assert_eq!(told("ERR no session named `work`", way("far")), None);
        let mut text = status.to_owned();
        for name in ["last", "middle", "first"] {
            text = told(&text, way(name)).expect("it is a status");
            assert_eq!(text.matches("\"newer\":[1]").count(), 1, "{text}");
        }
        let read: StatusReply = serde_json::from_str(&text).expect(&text);
        assert_eq!(names(read.remote), ["first", "middle", "last"]);
    }
}
