//! The command line as it is typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pythond_protocol::verbs::pair::MAX_SPAN;
use pythond_protocol::{SessionName, remote_name};
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
    /// Give another machine's daemon a name here: its sessions can be used as if they were here.
    Connect(ConnectArgs),
    /// Forget another machine's daemon; its sessions go on.
    Disconnect(DisconnectArgs),
    /// Show this machine's certificate, made when there is none, or rotate it.
    Cert(CertArgs),
    /// Get to know another machine by a short code, and let it know this one.
    ///
    /// On the server, without an address: shows the code and waits until somebody has typed it. On
    /// the client, with the server's address: asks for the code. Then the client has pinned the
    /// server, and the server trusts the client.
    Pair(PairArgs),
    /// Pin a server's certificate to its address; without arguments, list the pins.
    Pin(PinArgs),
    /// Forget what is pinned to an address, or a key wherever it is pinned.
    Unpin(UnpinArgs),
    /// Let a client with this certificate connect; without arguments, list those that may.
    Trust(TrustArgs),
    /// Let a client connect no more.
    Untrust(UntrustArgs),
    /// Show or rotate the token that remote clients must know.
    Token(TokenArgs),
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
    /// Listen for other machines too; may be given several times. The port is 7399 if it is not
    /// said. What is not loopback is always encrypted (TLS).
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Vec<String>,
    /// Encrypt connections on loopback as well.
    #[arg(long, requires = "listen")]
    pub(crate) tls: bool,
    /// Print the token and the certificate's fingerprint.
    #[arg(long, requires = "listen")]
    pub(crate) show_token: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Let the sessions go on; the next daemon takes them over.
    #[arg(long)]
    pub(crate) keep_sessions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Its name here.
    #[arg(value_parser = remote_name)]
    pub(crate) name: SessionName,
    /// Where it is: HOST:PORT (7399 if no port is said), or ssh://USER@HOST, which needs neither
    /// token nor `--tls`.
    #[arg(value_name = "HOST:PORT|ssh://…")]
    pub(crate) endpoint: String,
    /// Its token; others can see it here, so rather use one of the options.
    #[arg(hide = true, conflicts_with_all = ["token_file", "token_stdin"])]
    pub(crate) token: Option<String>,
    /// Another way to it, for when those before do not answer; may be given several times.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    pub(crate) endpoints: Vec<String>,
    /// By TLS, to the server that is pinned; needed for all but loopback.
    #[arg(long)]
    pub(crate) tls: bool,
    /// The session there that the name means [default: the one of the same name].
    #[arg(long, value_name = "REMOTE")]
    pub(crate) session: Option<SessionName>,
    /// Read its token from this file, whenever it is needed.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Read its token from standard input [default: the variable PYTHOND_TOKEN].
    #[arg(long, conflicts_with = "token_file")]
    pub(crate) token_stdin: bool,
    /// Take the place of a remote that has the name.
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// Its name here.
    #[arg(value_parser = remote_name)]
    pub(crate) name: SessionName,
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
pub(crate) struct PairArgs {
    /// The server, where `pyctl pair` shows a code; the port is 7399 if it is not said.
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// How long the code is valid: seconds, or minutes as in 5m, at most 1h [default: 5m].
    #[arg(long = "for", value_name = "TIME", value_parser = span, conflicts_with = "address")]
    pub(crate) span: Option<Duration>,
    /// Connect to the server at once, under this name here.
    #[arg(long, value_name = "NAME", requires = "address", value_parser = remote_name)]
    pub(crate) connect: Option<SessionName>,
    /// Write the server's token to this file, which must not be there yet.
    #[arg(long, value_name = "FILE", requires = "address")]
    pub(crate) token_file: Option<PathBuf>,
}

/// `90`, `90s`, `5m`, `1h`.
fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    let span = number.parse::<f64>().ok();
    let span = span.and_then(|number| Duration::try_from_secs_f64(number * unit).ok());
    span.filter(|span| !span.is_zero() && *span <= MAX_SPAN)
        .ok_or_else(|| "a time of at most 1h is expected, like 90 or 5m".to_owned())
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
            &["start", "--show-token"],
            &["cert", "rotate", "--now", "--overlap", "3"],
            &["cert", "rotate", "--overlap", "0"],
            &["pin", "a", "b", "c"],
            &["unpin"],
            &["untrust"],
            &["pair", "a", "--for", "5m"],
            &["pair", "--for", "0"],
            &["pair", "--for", "2h"],
            &["pair", "--connect", "x"],
            &["pair", "--token-file", "x"],
            &["token"],
        ] {
            let error = Cli::try_parse_from(["pyctl"].iter().chain(words)).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
