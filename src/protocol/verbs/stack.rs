//! `stack NAME`: where every thread of a session is.

use serde::{Deserialize, Serialize};

use crate::names::{CellId, SessionName};

/// Whose threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackRequest {
    /// The session.
    pub session: SessionName,
}

/// How the frames were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StackMethod {
    /// By the interpreter itself.
    Interpreter,
    /// From a frozen copy of the process, as something held the interpreter's
    /// lock.
    Copy,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Frame {
    /// File, `<cell N>` for code of a cell.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Function.
    pub function: String,
    /// The line's text, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One thread that runs Python.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ThreadStack {
    /// Its name, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `threading.get_ident()` of it.
    pub ident: u64,
    /// The cell that runs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<CellId>,
    /// The system call it waits in or `running`, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Innermost frame last; at most 100.
    pub frames: Vec<Frame>,
}

impl ThreadStack {
    /// As a traceback shows it.
    #[must_use]
    pub fn to_plain(&self) -> String {
        let mut text = format!("Thread {:#x}", self.ident);
        if let Some(name) = &self.name {
            text.push_str(&format!(" {name}"));
        }
        if let Some(cell) = self.cell_id {
            text.push_str(&format!(", cell {cell}"));
        }
        if let Some(state) = &self.state {
            text.push_str(&format!(" [{state}]"));
        }
        text.push_str(" (most recent call last):\n");
        for frame in &self.frames {
            text.push_str(&format!(
                "  File \"{}\", line {}, in {}\n",
                frame.file, frame.line, frame.function
            ));
            if let Some(source) = &frame.source {
                text.push_str(&format!("    {source}\n"));
            }
        }
        text
    }
}

/// The structured answer to `stack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StackReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// How the frames were read.
    pub method: StackMethod,
    /// Threads that run Python, the main thread first; at most 100.
    pub threads: Vec<ThreadStack>,
}
