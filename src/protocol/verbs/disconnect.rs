//! `disconnect NAME`: forget a remote daemon. Its sessions go on.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use crate::ErrorReply;
use crate::names::SessionName;

/// Which remote to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisconnectRequest {
    /// Its name here.
    pub name: SessionName,
}

pub(super) fn parse(header: &Header<'_>) -> Result<DisconnectRequest, ErrorReply> {
    let usage = "disconnect <name>";
    header.finish(1, usage)?;
    match header.arguments.first() {
        Some(name) => existing_session(name).map(|name| DisconnectRequest { name }),
        None => Err(ErrorReply::usage(usage)),
    }
}

/// The structured answer to `disconnect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DisconnectReply {
    /// Always true.
    pub ok: bool,
    /// The name that is free now.
    pub disconnected: SessionName,
}
