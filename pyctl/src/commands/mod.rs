//! One file per command.

mod completions;
mod dispatch;
mod man;
mod restart;
mod start;
mod status;
mod stop;
mod version;

pub(crate) use dispatch::dispatch;
