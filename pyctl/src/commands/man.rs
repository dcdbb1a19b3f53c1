//! `pyctl man [COMMAND]`: man pages, for packaging.

use clap::CommandFactory as _;
use pythond_protocol::ExitCode;
use pythond_transport::Report;

use crate::args::{Cli, ManArgs};
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn man(args: &ManArgs, render: &Render) -> Outcome {
    // The display name is what `--version` says; a page is named by the
    // executable, and its commands after it (`pyctl-start`).
    let mut whole = Cli::command().display_name("pyctl");
    whole.build();
    let page = match &args.command {
        None => &whole,
        Some(name) => whole.find_subcommand(name).ok_or_else(|| {
            Report::new(
                "usage",
                format!("no command named `{name}`"),
                ExitCode::Usage,
            )
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone())
        .source(concat!("pythond ", env!("CARGO_PKG_VERSION")))
        .render(&mut text)
        .map_err(|error| {
            Report::new(
                "internal",
                format!("cannot make the page: {error}"),
                ExitCode::Refused,
            )
        })?;
    render.raw(&text)?;
    Ok(ExitCode::Success)
}
