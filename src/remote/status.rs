//! `status` of a session elsewhere tells of the way there too, also where it is refused.

use pythond_protocol::verbs::connect::RemoteSummary;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
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

/// The same answer with this way; none if it is neither a status nor a refusal of
/// one.
fn told(text: &str, way: RemoteSummary) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default, deserialize_with = "is_there")]
        remote: bool,
        ok: Option<IgnoredAny>,
        state: Option<IgnoredAny>,
        error: Option<IgnoredAny>,
    }
    let answer: Answer = serde_json::from_str(text).ok()?;
    let (ok, of_status) = (answer.ok.is_some(), answer.state.is_some());
    if !ok || !(of_status || answer.error.is_some()) {
        return None;
    }
    let mut way = serde_json::to_value(&way).expect("it has text keys only");
    // What we do not know of a newer daemon's answer stays in it.
    if !answer.remote {
        let end = text.rfind('}')?;
        return Some(format!("{},\"remote\":{way}{}", &text[..end], &text[end..]));
    }
    // That daemon has it from another: a second member of the name would make the
    // answer unreadable.
    let mut answer: Value = serde_json::from_str(text).ok()?;
    let further = answer["remote"].take();
    if further.is_object() {
        way["remote"] = further;
    }
    answer["remote"] = way;
    Some(answer.to_string())
}

/// True whatever the member is.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use pythond_protocol::verbs::status::StatusReply;

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
    fn what_is_said_of_the_way_there_is_never_taken_for_ours() {
        for remote in ["null", "\"x\"", "7", r#"{"state":"newer"}"#] {
            let text = format!(r#"{{"ok":false,"error":{{"code":"c"}},"remote":{remote}}}"#);
            let text = told(&text, way("far")).expect("it is a refusal");
            assert_eq!(text.matches("\"name\":\"far\"").count(), 1, "{text}");
            let value: Value = serde_json::from_str(&text).expect(&text);
            assert_eq!(value["remote"]["name"], "far");
            assert_eq!(
                value["remote"]["remote"].is_object(),
                remote.starts_with('{')
            );
        }
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
