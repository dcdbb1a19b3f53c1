//! Failures as people and programs read them. Text only: prints nothing.

use pythond_protocol::shown::escape_controls;
use std::error::Error as _;

use pythond_protocol::verbs::connect::RemoteSummary;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, ExitCode, Fate, verbs};

use crate::{ClientError, TransportError};

/// The exit codes, for the help of both clients.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the cell raised an exception (`exit(n)` counts)
  2    wrong usage
  3    no daemon answers
  4    refused by the daemon or the session
  5    the session died before the cell ended
  124  timed out
  130  interrupted";

/// How a daemon on another machine is reached, for the help of both clients.
pub const ANOTHER_MACHINE: &str = "\
Variables for a daemon on another machine:
  PYTHOND_HOST   HOST or HOST:PORT, or ssh://USER@HOST, which needs none of these
  PYTHOND_PORT   the port, if the host does not say it [default: 7399]
  PYTHOND_TLS    1: encrypt; needed but for this machine's own addresses
  PYTHOND_TOKEN  what `pyctl token show` prints there";

/// Code of a daemon that was there and says nothing any more.
pub const NO_ANSWER: &str = "no_answer";

/// One failure, ready to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// For programs: the protocol's word, or one of ours where there was no
    /// answer (`no_daemon`, `connection`, `usage`, …).
    pub code: String,
    /// What failed.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// How far the cell came, and which it was, if its session died.
    pub fate: Option<Fate>,
    /// Why a remote cannot be used, as a word.
    pub reason: Option<Box<str>>,
    /// That cell.
    pub cell_id: Option<CellId>,
    /// How the way is to the remote whose session's status was asked for.
    pub remote: Option<Box<RemoteSummary>>,
    /// How the process ends.
    pub exit: ExitCode,
}

impl Report {
    /// A failure that the client found itself.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, exit: ExitCode) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            fate: None,
            reason: None,
            cell_id: None,
            remote: None,
            exit,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The form for people: `error: …`, an empty line, `hint: …`, each line
    /// ended. Control characters, which may come from a session, are escaped.
    #[must_use]
    pub fn to_human(&self, colour: bool) -> String {
        let (red, cyan, plain) = if colour {
            ("\x1b[1;31m", "\x1b[36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let mut text = format!("{red}error{plain}: {}\n", escape_controls(&self.message));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\n{cyan}hint{plain}: {}\n", escape_controls(hint)));
        }
        text
    }

    /// The form for programs, as the wire has it: one line without its end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut error = serde_json::json!({ "code": self.code, "message": self.message });
        if let Some(hint) = &self.hint {
            error["hint"] = hint.as_str().into();
        }
        if let Some(fate) = self.fate {
            error["fate"] = verbs::word(&fate).into();
        }
        if let Some(reason) = &self.reason {
            error["reason"] = reason.as_ref().into();
        }
        let mut report = serde_json::json!({ "ok": false, "error": error });
        if let Some(cell) = self.cell_id {
            report["cell_id"] = cell.to_string().into();
        }
        if let Some(remote) = &self.remote {
            report["remote"] = serde_json::json!(remote);
        }
        report.to_string()
    }
}

impl From<ErrorReply> for Report {
    fn from(error: ErrorReply) -> Self {
        let exit = error.exit_code();
        Self {
            code: word(error.code),
            message: error.message,
            hint: error.hint,
            fate: error.fate,
            reason: error.reason.map(Into::into),
            cell_id: error.cell_id,
            remote: error.remote,
            exit,
        }
    }
}

/// The word of the wire for a code.
fn word(code: ErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "internal".to_owned(),
    }
}

impl From<ClientError> for Report {
    fn from(error: ClientError) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            message.push_str(&format!(": {source}"));
            cause = source.source();
        }
        let report = |code, exit| Self::new(code, message.clone(), exit);
        match error {
            ClientError::Refused(error) => error.into(),
            ClientError::NoDaemon { .. } => {
                report("no_daemon", ExitCode::NoDaemon).with_hint("start it with `pyctl start -d`")
            }
            ClientError::Socket(_) => {
                report("socket", ExitCode::Refused).with_hint("`PYTHOND_SOCK` names another socket")
            }
            ClientError::BadVariable {
                name: "PYTHOND_TOKEN",
                ..
            } => report("usage", ExitCode::Usage)
                .with_hint("set it to what `pyctl token show` prints on the server"),
            ClientError::BadVariable {
                name: "PYTHOND_PORT",
                ..
            } => report("usage", ExitCode::Usage)
                .with_hint("set it to the port where that daemon listens, or unset it"),
            ClientError::BadVariable {
                name: "PYTHOND_TLS",
                ..
            } => report("usage", ExitCode::Usage)
                .with_hint("set `PYTHOND_TLS=1` if that daemon speaks TLS, or unset it"),
            ClientError::BadVariable { .. } => report("usage", ExitCode::Usage)
                .with_hint("unset `PYTHOND_HOST` to use the daemon of this machine"),
            ClientError::TlsNeeded { .. } => {
                report("tls_needed", ExitCode::Usage).with_hint("set `PYTHOND_TLS=1`")
            }
            ClientError::NotConnected(error) => {
                let report = report(error.code(), error.exit());
                match error.hint() {
                    Some(hint) => report.with_hint(hint),
                    None => report,
                }
            }
            ClientError::Transport(TransportError::Busy) => report("busy", ExitCode::Refused)
                .with_hint("nothing was submitted; try again when other clients have left"),
            ClientError::Transport(error) => {
                let code = match error {
                    TransportError::Silent(_) => NO_ANSWER,
                    _ => "connection",
                };
                let report = report(code, ExitCode::NoDaemon);
                match error {
                    TransportError::Closed | TransportError::Io(_) | TransportError::Silent(_) => {
                        report.with_hint(
                            "what was submitted may go on; see `pyctl status`, then `pysh ls`",
                        )
                    }
                    TransportError::NotBegun => {
                        report.with_hint("nothing was begun; try again, and see `pyctl status`")
                    }
                    TransportError::Busy
                    | TransportError::NoAnswer
                    | TransportError::HandshakeRefused { .. }
                    | TransportError::Protocol(_) => report.with_hint("see `pyctl status`"),
                }
            }
            ClientError::CodeTooBig { .. } => report("limit", ExitCode::Refused)
                .with_hint("write the data to a file that the code reads, or split the code"),
            ClientError::Unexpected { .. } => report("unexpected_answer", ExitCode::Refused)
                .with_hint("compare `pysh version` with `pyctl status`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_error_and_hint_apart_and_without_control_characters() {
        let report =
            Report::new("x", "bad `\x1b[2J\u{202e}`", ExitCode::Refused).with_hint("do this");
        assert_eq!(
            report.to_human(false),
            "error: bad `\\x1b[2J\\u202e`\n\nhint: do this\n"
        );
        assert!(
            report
                .to_human(true)
                .starts_with("\x1b[1;31merror\x1b[0m: ")
        );
    }

    #[test]
    fn programs_read_the_form_of_the_wire() {
        let report: Report = ErrorReply::no_session("work").into();
        assert_eq!(
            report.to_json(),
            r#"{"error":{"code":"no_session","hint":"list sessions with `pysh ls`, or create it with `pysh new work`","message":"no session named `work`"},"ok":false}"#
        );
        assert_eq!(report.exit, ExitCode::Refused);
    }

    #[test]
    fn no_daemon_says_how_to_start_one() {
        let report: Report = ClientError::NoDaemon {
            socket: "/run/x.sock".into(),
        }
        .into();
        assert_eq!(report.exit, ExitCode::NoDaemon);
        assert_eq!(report.message, "no daemon listens on `/run/x.sock`");
        assert_eq!(
            report.hint.as_deref(),
            Some("start it with `pyctl start -d`")
        );
    }
}
