//! The command line as it is typed.

mod attach;
mod cells;
mod cli;
mod explicit;
mod submit;
#[cfg(test)]
mod tests;

pub(crate) use attach::{AttachArgs, HoldArgs};
pub(crate) use cells::{EventsArgs, IntArgs, OutArgs, PollArgs, WaitArgs};
pub(crate) use cli::{
    Cli, Command, CompleteArgs, CompletionsArgs, KillArgs, ListArgs, ManArgs, NewArgs, SessionArgs,
};
pub(crate) use submit::{
    Busy, EchoArgs, FireArgs, ForkArgs, LabelArgs, RunArgs, SourceArgs, label,
};
