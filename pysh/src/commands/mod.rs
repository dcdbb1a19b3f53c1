//! One file per command.

mod complete;
mod completions;
mod dispatch;
mod interrupt;
mod kill;
mod list;
mod man;
mod new;
mod run;
mod status;
mod vars;
mod version;

pub(crate) use dispatch::dispatch;
