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
use crate::failure::Failure;
use crate::render::Render;

fn main() -> ExitCode {
    let cli = match Cli::parse_words(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return render::usage(&error),
    };
    let render = Render::new(cli.json);
    let outcome = commands::dispatch(cli.command, &render);
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
