//! The command line as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pythond_transport::{ANOTHER_MACHINE, EXIT_CODES};

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
    format!("Sessions are used with `pysh`.\n\n{ANOTHER_MACHINE}\n\n{EXIT_CODES}")
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
    /// Show this machine's certificate, made when there is none, or rotate it.
    #[command(after_help = NOT_YET)]
    Cert(CertArgs),
    /// Pin a server's certificate to its address; without arguments, list the pins.
    #[command(after_help = NOT_YET)]
    Pin(PinArgs),
    /// Forget what is pinned to an address, or a key wherever it is pinned.
    Unpin(UnpinArgs),
    /// Let a client with this certificate connect; without arguments, list those that may.
    #[command(after_help = NOT_YET)]
    Trust(TrustArgs),
    /// Let a client connect no more.
    Untrust(UntrustArgs),
    /// Show or rotate the token that remote clients must know.
    #[command(after_help = NOT_YET)]
    Token(TokenArgs),
    /// Print the version.
    Version,
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Print a man page.
    #[command(hide = true)]
    Man(ManArgs),
}

/// Ends with the listener.
const NOT_YET: &str = "This version does not listen for other machines, nor connect to them: \
                       what this keeps is for those that will.";

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
pub(crate) struct CertArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CertCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Show it; this is what `cert` alone does.
    Show,
    /// Make a new key and certificate, to be used when the overlap is over.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// For how many days the old one stays in use, so that others can pin or trust the new one.
    #[arg(long, value_name = "DAYS", default_value_t = 7,
          value_parser = clap::value_parser!(u16).range(1..=365))]
    pub(crate) overlap: u16,
    /// Use the new one at once: the one that was announced, if there is one.
    #[arg(long, conflicts_with = "overlap")]
    pub(crate) now: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The server's certificate, copied from there (PEM).
    pub(crate) cert: Option<PathBuf>,
    /// The server's address; the port is 7399 if it is not said [default: the first where the
    /// server is met].
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// The address, or a fingerprint of the certificate or of its key.
    #[arg(value_name = "HOST:PORT|FINGERPRINT")]
    pub(crate) which: String,
}

#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// The client's certificate, copied from there (PEM).
    pub(crate) cert: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UntrustArgs {
    /// The certificate, or a fingerprint of it or of its key.
    #[arg(value_name = "CERT|FINGERPRINT")]
    pub(crate) which: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print the token, made when there is none.
    Show,
    /// Make a new token; the old one is of no use any more.
    Rotate,
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
            &["cert", "rotate", "--now", "--overlap", "3"],
            &["cert", "rotate", "--overlap", "0"],
            &["pin", "a", "b", "c"],
            &["unpin"],
            &["untrust"],
            &["token"],
        ] {
            let error = Cli::try_parse_from(["pyctl"].iter().chain(words)).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
