//! `pysh`: the client of pythond sessions.
#![forbid(unsafe_code)]

mod args;
mod cell_output;
mod commands;
mod descriptors;
mod echo;
mod environment;
mod failure;
mod interrupts;
mod lasting;
mod render;
mod source;
mod terminal;
mod text;
mod watch;

use std::process::ExitCode;

use crate::args::Cli;
use crate::failure::{Failure, Outcome};
use crate::render::Render;

fn main() -> ExitCode {
    let mut cli = match Cli::parse_words(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return render::usage(&error),
    };
    let mut render = Render::new(cli.json);
    if let Some(other) = cli.if_remote.take() {
        match commands::is_remote(other.remote(), &render) {
            Ok(true) => match other.parse() {
                Ok(meant) => {
                    cli = meant;
                    render = Render::new(cli.json);
                }
                Err(error) => return render::usage(&error),
            },
            Ok(false) => {}
            Err(failure) => return ended(Err(failure), &render),
        }
    }
    let outcome = commands::dispatch(cli.command, &render);
    ended(outcome, &render)
}

fn ended(outcome: Outcome, render: &Render) -> ExitCode {
    // Colours end with the output, whatever ended it.
    let finished = render.finish();
    match outcome.and_then(|code| finished.map(|()| code)) {
        Ok(code) => code.into(),
        Err(
            Failure::Reported(report)
            | Failure::Broken(report)
            | Failure::NotBegun(report)
            | Failure::NoRoom(report),
        ) => render.failure(&report),
        // Nobody reads on, as with `pysh … | head`: what was wanted was had.
        Err(Failure::BrokenPipe | Failure::Ended) => ExitCode::SUCCESS,
    }
}
