//! A person's terminal: its modes, its size, what is typed on it and what may
//! be written to it.

pub(crate) mod escapes;
mod guard;
mod kept;
mod keys;
mod output;
mod signals;
mod size;

pub(crate) use guard::TerminalGuard;
pub(crate) use kept::{Kept, Room};
pub(crate) use keys::{Keys, Typed};
pub(crate) use output::Output;
pub(crate) use signals::Signals;
pub(crate) use size::terminal_size;
