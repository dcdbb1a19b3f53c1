//! What is said when a request cannot be carried out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::shown::escape_controls;
use crate::verbs::connect::RemoteSummary;
use crate::{CellId, ExitCode};

/// Why a request was not carried out: for programs. Words never change their
/// meaning; new ones may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The frame or its arguments are malformed.
    Usage,
    /// The first word is no verb.
    UnknownVerb,
    /// The verb is known and not available in this version.
    NotAvailable,
    /// The session name is not allowed.
    BadName,
    /// No session has this name.
    NoSession,
    /// A live session has this name already.
    SessionExists,
    /// Another daemon uses this name's directory.
    NameInUse,
    /// The session died.
    SessionDied,
    /// The session's process does not answer, or the way to its daemon is broken.
    SessionUnreachable,
    /// A remote daemon cannot be used until somebody sees to why.
    RemoteRefused,
    /// The Python environment cannot be used.
    Environment,
    /// The session's process could not be started.
    SpawnFailed,
    /// A limit would be exceeded; the message names it.
    Limit,
    /// The daemon is stopping.
    Stopping,
    /// Cells run where none may, or the interpreter does not let go of its lock
    /// in time.
    Busy,
    /// The session remembers no cell of this id.
    UnknownCell,
    /// The `--id` belongs to a cell with other code.
    IdReused,
    /// Nobody can know whether the cell ran; it is not run again.
    Lost,
    /// The client took its request back.
    Cancelled,
    /// Only who is on the daemon's own machine may ask for it.
    LocalOnly,
    /// The daemon does not listen where it would have to.
    NotListening,
    /// Time was up.
    Lapsed,
    /// Nobody was paired.
    PairingFailed,
    /// A fault of ours; the log has the details.
    Internal,
    /// A word that came after this version.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

/// How far a cell came in a session that died: for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The session never had it: it may be sent elsewhere.
    NeverAccepted,
    /// It waited and never ran.
    NotStarted,
    /// It ran when the session died.
    WasRunning,
    /// It had ended; nobody knows how any more.
    HadEnded,
    /// A word that came after this version.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

/// One refusal: `code` for programs, `message` and `hint` for people.
///
/// `message` is lower case, without a full stop, values in backticks; `hint`
/// says what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// What failed.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How far the cell came that is asked for, if its session died and that is
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fate: Option<Fate>,
    /// Of a remote that cannot be used: why, as a word for programs. The words are
    /// those that clients have for a daemon that they reach directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// That cell; it stands beside the error.
    #[serde(skip)]
    pub cell_id: Option<CellId>,
    /// Of a `status` that a remote was asked for: how the way there is; it stands
    /// beside the error.
    #[serde(skip)]
    pub remote: Option<Box<RemoteSummary>>,
    /// The text of the plain wire after `ERR `, where it is an older one.
    #[serde(skip)]
    pub plain: Option<Box<str>>,
}

/// What a client or a session has said may be part of it.
fn shown(text: impl Into<String>) -> String {
    let text = text.into();
    match escape_controls(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(escaped) => escaped,
    }
}

impl ErrorReply {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: shown(message),
            hint: None,
            fate: None,
            reason: None,
            cell_id: None,
            remote: None,
            plain: None,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shown(hint));
        self
    }

    /// Sets the text that clients of 0.3 and 0.4 know.
    #[must_use]
    pub fn with_plain(mut self, text: impl Into<String>) -> Self {
        self.plain = Some(shown(text).into());
        self
    }

    /// No session has this name.
    #[must_use]
    pub fn no_session(name: &str) -> Self {
        Self::new(ErrorCode::NoSession, format!("no session named `{name}`"))
            .with_hint(format!(
                "list sessions with `pysh ls`, or create it with `pysh new {name}`"
            ))
            .with_plain(format!(
                "no session '{name}' -- create it first with: new {name}"
            ))
    }

    /// The name is not allowed.
    #[must_use]
    pub fn bad_name() -> Self {
        Self::new(ErrorCode::BadName, "invalid session name").with_hint(
            "session names are 1 to 80 characters of `a-z`, `0-9`, `_` and `-`; \
             Windows device names are refused",
        )
    }

    /// The session remembers no cell of this id.
    #[must_use]
    pub fn unknown_cell(id: &str) -> Self {
        let shown: String = id.chars().take(80).filter(|c| !c.is_control()).collect();
        Self::new(ErrorCode::UnknownCell, format!("unknown cell `{shown}`"))
            .with_hint("list the cells that are remembered with `pysh cells NAME`")
    }

    /// The client's key belongs to another cell.
    #[must_use]
    pub fn id_reused(key: &str, cell: CellId) -> Self {
        Self::new(
            ErrorCode::IdReused,
            format!("the id `{key}` belongs to cell {cell}, which has other code"),
        )
        .with_hint("choose a new id for new code")
    }

    /// A wrong frame, with the line that shows the right one.
    #[must_use]
    pub fn usage(line: impl Into<String>) -> Self {
        Self::new(ErrorCode::Usage, format!("usage: {}", line.into()))
    }

    /// The reply of the plain wire: one line, `ERR ` first.
    #[must_use]
    pub fn to_plain(&self) -> String {
        match (&self.plain, &self.hint) {
            (Some(plain), _) => format!("ERR {plain}"),
            (None, Some(hint)) => format!("ERR {} -- {hint}", self.message),
            (None, None) => format!("ERR {}", self.message),
        }
    }

    /// The reply under `--json`: `{"ok":false,"error":{…}}`, with the cell's id
    /// and the way to the remote where there are such.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut reply = serde_json::json!({ "ok": false, "error": self });
        if let Some(cell_id) = self.cell_id {
            reply["cell_id"] = serde_json::json!(cell_id);
        }
        if let Some(remote) = &self.remote {
            reply["remote"] = serde_json::json!(remote);
        }
        reply
    }

    /// The exit code of a client that got this refusal.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self.code {
            ErrorCode::Usage | ErrorCode::BadName => ExitCode::Usage,
            ErrorCode::SessionDied | ErrorCode::Lost => ExitCode::SessionDied,
            ErrorCode::Lapsed => ExitCode::TimedOut,
            ErrorCode::UnknownVerb
            | ErrorCode::NotAvailable
            | ErrorCode::NoSession
            | ErrorCode::SessionExists
            | ErrorCode::NameInUse
            | ErrorCode::SessionUnreachable
            | ErrorCode::RemoteRefused
            | ErrorCode::Environment
            | ErrorCode::SpawnFailed
            | ErrorCode::Limit
            | ErrorCode::Stopping
            | ErrorCode::Busy
            | ErrorCode::UnknownCell
            | ErrorCode::IdReused
            | ErrorCode::Cancelled
            | ErrorCode::LocalOnly
            | ErrorCode::NotListening
            | ErrorCode::PairingFailed
            | ErrorCode::Internal
            | ErrorCode::Unknown => ExitCode::Refused,
        }
    }
}
