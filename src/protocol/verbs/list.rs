//! `ls`: all sessions.

use serde::{Deserialize, Serialize};

use super::connect::RemoteSummary;
use crate::names::{SessionId, SessionName};

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Its process is being made.
    Starting,
    /// Nothing runs.
    Idle,
    /// A cell runs.
    Running,
    /// Its process is stopped (SIGSTOP).
    Stopped,
    /// Its process is gone; kept until the name is used again.
    Dead,
}

/// One session in a listing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionSummary {
    /// Its name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// Which state of the session.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Where it is in its life.
    pub state: SessionState,
    /// Process id of its host.
    pub pid: i32,
    /// `sys.executable`.
    pub python: String,
    /// How it died, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl SessionSummary {
    /// The line of the plain wire: `  work: alive pid=123 (pty)`.
    #[must_use]
    pub fn to_plain(&self) -> String {
        match (&self.state, &self.cause) {
            (SessionState::Dead, Some(cause)) => {
                format!("  {}: DEAD pid={} ({cause})", self.session, self.pid)
            }
            (SessionState::Dead, None) => format!("  {}: DEAD pid={}", self.session, self.pid),
            // Whether its terminal can be had is not known then.
            (SessionState::Stopped, _) => {
                format!("  {}: alive pid={} (stopped)", self.session, self.pid)
            }
            _ => format!("  {}: alive pid={} (pty)", self.session, self.pid),
        }
    }
}

/// The structured answer to `ls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListReply {
    /// Always true.
    pub ok: bool,
    /// By name.
    pub sessions: Vec<SessionSummary>,
    /// Daemons of other machines that are connected, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<RemoteSummary>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_answers_has_a_terminal() {
        let line = |state, cause: Option<&str>| {
            SessionSummary {
                session: "work".parse().expect("a name"),
                session_id: SessionId::from_random([0; 8]),
                generation: 1,
                state,
                pid: 7,
                python: String::new(),
                cause: cause.map(str::to_owned),
            }
            .to_plain()
        };
        let dead = SessionState::Dead;
        assert_eq!(line(SessionState::Idle, None), "  work: alive pid=7 (pty)");
        assert_eq!(
            line(SessionState::Stopped, None),
            "  work: alive pid=7 (stopped)"
        );
        assert_eq!(line(dead, None), "  work: DEAD pid=7");
        assert_eq!(line(dead, Some("gone")), "  work: DEAD pid=7 (gone)");
    }
}
