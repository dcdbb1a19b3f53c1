//! The command line as it is typed.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pythond_transport::EXIT_CODES;

/// Control of the pythond daemon.
#[derive(Debug, Parser)]
#[command(
    name = "pyctl",
    display_name = "pythond",
    version,
    after_help = after_help()
)]
pub(crate) struct Cli {
    /// Print one JSON object on one line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

fn after_help() -> String {
    format!("Sessions are used with `pysh`.\n\n{EXIT_CODES}")
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon, in the foreground.
    Start(StartArgs),
    /// Stop the daemon and all its sessions, and wait until it is gone.
    Stop(StopArgs),
    /// Replace the daemon, for example by a new version; sessions go on.
    Restart,
    /// Show whether a daemon answers, and what it is.
    Status,
    /// Print the version.
    Version,
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Print a man page.
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Go to the background and return when the daemon answers.
    #[arg(short, long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Let the sessions go on; the next daemon takes them over.
    #[arg(long)]
    pub(crate) keep_sessions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The page of a command [default: the page of pyctl].
    pub(crate) command: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_lines_are_refused() {
        for words in [
            &["restart", "now"][..],
            &["stop", "now"],
            &["status", "work"],
            &["start", "--tls"],
        ] {
            let error = Cli::try_parse_from(["pyctl"].iter().chain(words)).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
