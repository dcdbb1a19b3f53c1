//! What somebody said of a remote daemon, checked once; and how it is kept for the
//! next daemon here.

use std::path::PathBuf;

use pythond_protocol::verbs::connect::{ConnectOptions, ConnectRequest};
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};
use zeroize::Zeroizing;

use super::endpoint::Endpoint;

/// Most endpoints of one remote.
const MOST_ENDPOINTS: usize = 16;
/// Longest token.
const MOST_TOKEN: usize = 512;

/// Where the token comes from.
#[derive(Clone)]
pub(crate) enum TokenSource {
    /// It is this.
    Given(Zeroizing<String>),
    /// It is in this file, whenever it is needed.
    File(PathBuf),
    /// None is needed.
    None,
}

/// A remote daemon, and the name that it has here.
#[derive(Clone)]
pub(crate) struct RemoteSpec {
    pub(crate) name: SessionName,
    /// The session there that the name means.
    pub(crate) session: SessionName,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) tls: bool,
    pub(crate) token: TokenSource,
}

/// Visible ASCII, as it can stand in a header.
pub(crate) fn is_token(text: &str) -> bool {
    (1..=MOST_TOKEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl RemoteSpec {
    /// Checks what was said.
    ///
    /// # Errors
    /// A usage error, or that something would go over a network as it is.
    pub(crate) fn of(request: ConnectRequest) -> Result<Self, ErrorReply> {
        let usage = |message: String| ErrorReply::new(ErrorCode::Usage, message);
        let ConnectRequest { name, options } = request;
        let ConnectOptions {
            endpoints,
            tls,
            session,
            token,
            token_file,
            replace: _,
        } = options;
        if endpoints.is_empty() || endpoints.len() > MOST_ENDPOINTS {
            return Err(usage(format!(
                "1 to {MOST_ENDPOINTS} endpoints are expected"
            )));
        }
        let endpoints: Result<Vec<Endpoint>, String> =
            endpoints.iter().map(|text| text.parse()).collect();
        let endpoints = endpoints.map_err(|error| {
            usage(error.clone())
                .with_plain(format!("invalid address: {error}"))
                .with_hint(
                    "an endpoint is HOST:PORT, with `--tls` for what listens at `wss://`, or \
                     ssh://USER@HOST",
                )
        })?;
        let far = endpoints.iter().find(|it| !it.is_safe_without_tls());
        if let (false, Some(far)) = (tls, far) {
            let message = format!("`{far}` is not this machine, and may be reached by TLS only");
            return Err(usage(message).with_hint("add `--tls`, and pin its certificate"));
        }
        let token = match (token, token_file) {
            (Some(token), None) => {
                let token = Zeroizing::new(token);
                if !is_token(&token) {
                    return Err(usage("the token is none".to_owned()));
                }
                TokenSource::Given(token)
            }
            (None, Some(path)) if path.starts_with('/') => TokenSource::File(path.into()),
            (None, Some(_)) => {
                return Err(usage("the token file's path should be absolute".to_owned()));
            }
            (Some(_), Some(_)) => {
                return Err(usage(
                    "a token and a token file are one too many".to_owned(),
                ));
            }
            (None, None) if !endpoints.iter().any(Endpoint::needs_token) => TokenSource::None,
            (None, None) => {
                return Err(usage("a token is needed".to_owned())
                    .with_hint("`pyctl token show` on the other machine shows it"));
            }
        };
        Ok(Self {
            session: session.unwrap_or_else(|| name.clone()),
            name,
            endpoints,
            tls,
            token,
        })
    }

    /// The same as somebody would say it: what is kept.
    pub(crate) fn to_options(&self) -> ConnectOptions {
        let (token, token_file) = match &self.token {
            TokenSource::Given(token) => (Some(token.to_string()), None),
            TokenSource::File(path) => (None, Some(path.to_string_lossy().into_owned())),
            TokenSource::None => (None, None),
        };
        ConnectOptions {
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
            tls: self.tls,
            session: Some(self.session.clone()),
            token,
            token_file,
            replace: false,
        }
    }
}
