//! `pysh`: the client of pythond sessions.
#![forbid(unsafe_code)]

mod args;
mod cell_output;
mod commands;
mod echo;
mod environment;
mod failure;
mod interrupts;
mod render;
mod source;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::render::Render;

fn main() -> ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return render::usage(&error),
    };
    if let Some(Command::Run(run)) = &mut cli.command {
        cli.json |= run.take_trailing_options();
    }
    let render = Render::new(cli.json);
    match commands::dispatch(cli.command, &render) {
        Ok(code) => code.into(),
        Err(Failure::Reported(report)) => render.failure(&report),
        // Nobody reads on, as with `pysh … | head`: what was wanted was had.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
    }
}
