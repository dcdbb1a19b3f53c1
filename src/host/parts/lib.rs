//! The parts of a session host that need no Python, built apart from it, so that
//! tests, models and fuzzing reach them: the host itself is a library for an
//! interpreter to load, and cannot be linked into a test.
//!
//! The files are the host's own, and for the models the daemon's other half of the
//! cells. Only the map of the journal is wrapped, so that a model can stop a
//! writer before any access to memory.
#![deny(unsafe_code)]
#![expect(dead_code, reason = "the host and the daemon use what is unused here")]

#[path = "../append.rs"]
mod append;
#[path = "../cell_log.rs"]
mod cell_log;
#[path = "../cells/mod.rs"]
mod cells;
#[path = "../disk.rs"]
mod disk;
#[path = "../files.rs"]
mod files;
pub mod fuzz;
#[path = "../journal.rs"]
mod journal;
mod kept_log;
#[path = "../prompt/keys.rs"]
mod keys;
#[cfg(test)]
mod models;
#[path = "../terminal/paste.rs"]
mod paste;
#[path = "../../session/state.rs"]
mod state;
mod sys;
#[cfg(test)]
mod tests;

/// Stands for the host's module, which needs Python.
mod fork {
    pub(crate) use crate::journal::FORKS as MOST;
}

/// As above.
mod terminal {
    pub(crate) use crate::paste::{PASTE_BEGIN, PASTE_END};
}
