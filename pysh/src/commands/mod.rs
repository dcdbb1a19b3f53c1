//! One file per command.

mod attach;
mod attached;
mod cells;
mod complete;
mod completions;
mod dispatch;
mod events;
mod fire;
mod fork;
mod hold;
mod interrupt;
mod kill;
mod late;
mod list;
mod man;
mod new;
mod out;
mod poll;
mod run;
mod run_interrupt;
mod stack;
mod status;
mod submission;
mod typing;
mod vars;
mod version;
mod wait;

pub(crate) use dispatch::{dispatch, is_remote};
