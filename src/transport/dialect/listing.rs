//! What `ls` and `new` of 0.4 say, line by line.

use pythond_protocol::SessionId;
use pythond_protocol::verbs::connect::{RemoteState, RemoteSummary};
use pythond_protocol::verbs::list::{ListReply, SessionState, SessionSummary};

/// All sessions, and what else has a name there. Lines that mean nothing are passed
/// over: `(no sessions)` is one.
pub(super) fn list(text: &str) -> ListReply {
    let mut reply = ListReply {
        ok: true,
        sessions: Vec::new(),
        remotes: Vec::new(),
    };
    for line in text.lines() {
        let Some((name, rest)) = line.trim_start().split_once(": ") else {
            continue;
        };
        let Ok(name) = name.parse() else { continue };
        if let Some(rest) = rest.strip_prefix("-> ") {
            let mut words = rest.split_whitespace();
            reply.remotes.push(RemoteSummary {
                session: pythond_protocol::SessionName::clone(&name),
                name,
                endpoints: words.next().map(str::to_owned).into_iter().collect(),
                tls: words.next() == Some("tls"),
                state: RemoteState::Idle,
                endpoint: None,
                protocol: None,
                rtt_ms: None,
                connections: 0,
                last_error: None,
                endpoint_attempts: Vec::new(),
                remote: None,
            });
            continue;
        }
        reply.sessions.push(SessionSummary {
            session: name,
            session_id: SessionId::unknown(),
            generation: 0,
            // Whether a cell runs is not told.
            state: match rest.starts_with("alive") {
                true => SessionState::Idle,
                false => SessionState::Dead,
            },
            pid: pid(rest),
            python: String::new(),
            cause: None,
        });
    }
    reply
}

/// The number in `pid=123`; 0 if there is none.
pub(super) fn pid(text: &str) -> i32 {
    let word = text
        .split_whitespace()
        .find_map(|it| it.strip_prefix("pid="));
    word.and_then(|number| number.parse().ok()).unwrap_or(0)
}
