//! `new NAME [--replace] [--json]`, newline, one JSON object: create a session.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::options::Header;
use crate::limits::{FIELDS, SessionLimits};
use crate::names::{SessionId, SessionName};
use crate::{ErrorReply, Frame};

/// A session to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRequest {
    /// Its name.
    pub session: SessionName,
    /// Everything else.
    pub options: NewOptions,
}

/// The JSON body of `new`; every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NewOptions {
    /// Absolute path of the interpreter. Default: `python3` on the daemon's
    /// `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Why this interpreter, in words, for the reply and `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python_reason: Option<String>,
    /// Absolute path of the working directory. Default: the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables on top of the daemon's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Modules that are imported before the session starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preload: Vec<String>,
    /// What the session may use.
    #[serde(
        skip_serializing_if = "SessionLimits::is_none",
        deserialize_with = "known_limits"
    )]
    pub limits: SessionLimits,
    /// Fields that nobody typed: they follow from where the client is, and are left
    /// out for a session of another machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<Implied>,
    /// End a live session of this name first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// A field that nobody typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Implied {
    /// `python` and `python_reason`.
    Python,
    /// `cwd`.
    Cwd,
}

impl NewOptions {
    /// The same for another machine.
    #[must_use]
    pub fn for_elsewhere(mut self) -> Self {
        for field in std::mem::take(&mut self.implied) {
            match field {
                Implied::Python => (self.python, self.python_reason) = (None, None),
                Implied::Cwd => self.cwd = None,
            }
        }
        self
    }
}

/// A misspelt limit must not be silently without effect.
fn known_limits<'de, D: serde::Deserializer<'de>>(source: D) -> Result<SessionLimits, D::Error> {
    let limits: BTreeMap<String, Option<u64>> = BTreeMap::deserialize(source)?;
    let mut known = SessionLimits::default();
    for (name, value) in limits {
        *match name.as_str() {
            "memory_bytes" => &mut known.memory_bytes,
            "procs" => &mut known.procs,
            "nofile" => &mut known.nofile,
            "cpu_s" => &mut known.cpu_s,
            "cpu_weight" => &mut known.cpu_weight,
            _ => return Err(serde::de::Error::unknown_field(&name, &FIELDS)),
        } = value;
    }
    Ok(known)
}

pub(super) fn parse(frame: &Frame<'_>, mut header: Header<'_>) -> Result<NewRequest, ErrorReply> {
    let replace = header.take_flag("replace");
    let name = *header
        .arguments
        .first()
        .ok_or_else(|| ErrorReply::usage("new <name>"))?;
    let session: SessionName = name
        .parse()
        .map_err(|_| ErrorReply::bad_name().with_plain("invalid session name"))?;
    if header.arguments.len() > 1 {
        let extra: String = header.arguments[1..]
            .join(" ")
            .chars()
            .take(100)
            .filter(|c| !c.is_control())
            .collect();
        return Err(ErrorReply::usage("new <name>").with_plain(format!(
            "new takes a name only (got extra: {extra}). sessions are always Python"
        )));
    }
    header.finish(1, "new <name>")?;
    let mut options = match frame.body {
        None => NewOptions::default(),
        // serde would take an array for an object without names.
        Some(body) if !body.trim_start().starts_with('{') => {
            return Err(ErrorReply::new(
                crate::ErrorCode::Usage,
                "the body of `new` is no JSON object",
            ));
        }
        Some(body) => serde_json::from_str(body).map_err(|error| {
            ErrorReply::new(
                crate::ErrorCode::Usage,
                format!("the body of `new` is no valid JSON object: {error}"),
            )
            .with_hint(
                "fields are python, python_reason, cwd, env, preload, limits, implied, replace",
            )
        })?,
    };
    options.replace |= replace;
    check(&options)?;
    Ok(NewRequest { session, options })
}

/// Refuses values that no process can be started with.
fn check(options: &NewOptions) -> Result<(), ErrorReply> {
    let refuse = |message: String| Err(ErrorReply::new(crate::ErrorCode::Usage, message));
    for (field, path) in [("python", &options.python), ("cwd", &options.cwd)] {
        let Some(path) = path else { continue };
        if !path.starts_with('/') || path.contains('\0') {
            return refuse(format!("`{field}` is not an absolute path"));
        }
    }
    for (key, value) in &options.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return refuse("`env` has a name or a value that no environment can hold".to_owned());
        }
        if key.starts_with("PYTHOND_") {
            return refuse(format!(
                "`{key}` belongs to the daemon and is not given to sessions"
            ));
        }
    }
    if let Err(message) = options.limits.check() {
        return refuse(message);
    }
    for module in &options.preload {
        let valid = !module.is_empty()
            && module.split('.').all(|part| {
                !part.is_empty()
                    && !part.starts_with(|c: char| c.is_numeric())
                    && part.chars().all(|c| c.is_alphanumeric() || c == '_')
            });
        if !valid {
            let shown: String = module
                .chars()
                .take(80)
                .filter(|c| !c.is_control())
                .collect();
            return refuse(format!("`{shown}` is no module name"));
        }
    }
    Ok(())
}

/// The structured answer to `new`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NewReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Tells sessions of one name apart.
    pub session_id: SessionId,
    /// 1 for a new name; one more for each replacement.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Process id of the session host.
    pub pid: i32,
    /// Which Python, and why.
    pub python: PythonInfo,
    /// How the process came to be.
    pub start: StartKind,
    /// Why it started cold, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_reason: Option<String>,
    /// A live session of this name was ended for it.
    pub replaced: bool,
}

/// Which Python a session has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PythonInfo {
    /// `sys.executable` of the session.
    pub executable: String,
    /// For example `3.11.7`.
    pub version: String,
    /// Why this one, in words.
    pub reason: String,
}

/// How a session's process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// A parked process was handed out.
    Spare,
    /// Forked from its environment's zygote.
    Fork,
    /// Started from nothing.
    Cold,
}
