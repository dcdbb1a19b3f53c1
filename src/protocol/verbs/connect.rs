//! `connect NAME --json`, newline, one JSON object: reach sessions of another
//! machine's daemon as if they were here.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::options::Header;
use crate::names::SessionName;
use crate::{ErrorCode, ErrorReply, Frame};

/// A remote daemon, and the name that it gets here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Its name here.
    pub name: SessionName,
    /// Everything else.
    pub options: ConnectOptions,
}

/// The JSON body of `connect`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ConnectOptions {
    /// Where it is, `HOST:PORT` each, in the order in which they are tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// By TLS. Needed for whatever is not this machine.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// The session there that the name means. Default: the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionName>,
    /// Its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Absolute path of a file that has its token, read again for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    /// Take the place of a remote that has the name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// Without the token.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ConnectOptions")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("session", &self.session)
            .field("token_file", &self.token_file)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}

const USAGE: &str = "connect <name> <host:port> <token> [--tls]";

pub(super) fn parse(
    frame: &Frame<'_>,
    mut header: Header<'_>,
) -> Result<ConnectRequest, ErrorReply> {
    let (tls, replace) = (header.take_flag("tls"), header.take_flag("replace"));
    header.finish(3, USAGE)?;
    let usage = || ErrorReply::usage(USAGE);
    let mut words = header.arguments.iter();
    let name = words.next().ok_or_else(usage)?;
    let name = name
        .parse()
        .map_err(|_| ErrorReply::bad_name().with_plain("invalid session name"))?;
    let mut options = match (words.as_slice(), frame.body) {
        ([], Some(body)) if body.trim_start().starts_with('{') => {
            // What is wrong is said by its place: the text may be a token's.
            serde_json::from_str::<ConnectOptions>(body).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                let message = format!(
                    "the body of `connect` is no valid JSON object (line {line}, column {column})"
                );
                ErrorReply::new(ErrorCode::Usage, message)
                    .with_hint("fields are endpoints, tls, session, token, token_file, replace")
            })?
        }
        // As 0.4 has it.
        ([address, token], None) => ConnectOptions {
            endpoints: vec![(*address).to_owned()],
            token: Some((*token).to_owned()),
            ..ConnectOptions::default()
        },
        _ => return Err(usage()),
    };
    options.tls |= tls;
    options.replace |= replace;
    Ok(ConnectRequest { name, options })
}

/// How the way to a remote daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RemoteState {
    /// Nobody has needed it yet.
    Idle,
    /// It is being connected to.
    Connecting,
    /// It answers.
    Up,
    /// It could not be reached, and is tried again.
    Down,
    /// It cannot be used until somebody sees to what `last_error` says.
    Refused,
    /// A word that came after this version.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

/// One try to reach an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EndpointAttempt {
    /// `HOST:PORT`.
    pub endpoint: String,
    /// When, RFC 3339.
    pub at: String,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// What went wrong, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A remote daemon that is connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RemoteSummary {
    /// Its name here.
    pub name: SessionName,
    /// The session there that the name means.
    pub session: SessionName,
    /// Where it is, in the order in which they are tried.
    pub endpoints: Vec<String>,
    /// By TLS.
    pub tls: bool,
    /// How the way to it is.
    pub state: RemoteState,
    /// The endpoint that answers, or did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What it speaks: `pythond.1` or `pythond.0.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The last round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Connections made so far.
    pub connections: u64,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The last tries, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoint_attempts: Vec<EndpointAttempt>,
    /// In the answer to `status`: the way from there on, if that daemon has the
    /// session from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Box<RemoteSummary>>,
}

impl RemoteSummary {
    /// The line of the plain wire: `  work: -> 10.0.0.5:7399 tls (remote)`, and its
    /// state where it is not well.
    #[must_use]
    pub fn to_plain(&self) -> String {
        let first = self.endpoints.first().map_or("", String::as_str);
        let endpoint = self.endpoint.as_deref().unwrap_or(first);
        let tls = if self.tls { " tls" } else { "" };
        let state = match (self.state, &self.last_error) {
            // While it is tried again, what was wrong before is all that is known.
            (RemoteState::Down | RemoteState::Refused | RemoteState::Connecting, Some(error)) => {
                format!(" {error}")
            }
            (RemoteState::Down | RemoteState::Refused, None) => " down".to_owned(),
            // What it cannot do is refused: here is why.
            _ if self.protocol.as_deref() == Some("pythond.0.4") => " pythond 0.4".to_owned(),
            _ => String::new(),
        };
        format!("  {}: -> {endpoint}{tls} (remote){state}", self.name)
    }
}

/// The structured answer to `connect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectReply {
    /// Always true.
    pub ok: bool,
    /// What is connected now.
    pub remote: RemoteSummary,
    /// What somebody should know of it: that a pin has got its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
