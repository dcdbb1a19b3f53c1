//! `pyctl`: control of the pythond daemon.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod render;
mod text;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::failure::Failure;
use crate::render::Render;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return render::usage(&error),
    };
    let render = Render::new(cli.json);
    match commands::dispatch(cli.command, &render) {
        Ok(code) => code.into(),
        Err(Failure::Reported(report)) => render.failure(&report),
        // Nobody reads on, as with `pyctl … | head`: what was wanted was had.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
    }
}
