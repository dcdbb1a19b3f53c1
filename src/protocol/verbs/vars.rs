//! `vars NAME`: the names of a namespace.

use serde::{Deserialize, Serialize};

use crate::names::SessionName;

/// Whose names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarsRequest {
    /// The session.
    pub session: SessionName,
}

/// One name under `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Variable {
    /// The name; public ones only.
    pub name: String,
    /// Qualified name of its value's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `sys.getsizeof` of the value alone, in bytes; none if it raised.
    pub size_bytes: Option<u64>,
    /// `len()`, where the value is a built-in container or has a `shape`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// The structured answer to `vars`. The plain wire has `{"vars": [names]}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VarsReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// In the order of the namespace.
    pub vars: Vec<Variable>,
}
