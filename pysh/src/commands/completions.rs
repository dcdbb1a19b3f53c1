//! `pysh completions SHELL`.

use clap::CommandFactory as _;
use pythond_protocol::ExitCode;

use crate::args::{Cli, CompletionsArgs};
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn completions(args: &CompletionsArgs, render: &Render) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pysh", &mut script);
    render.raw(&script)?;
    Ok(ExitCode::Success)
}
