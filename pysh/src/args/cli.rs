//! The whole command line, and the commands that are about sessions.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pythond_protocol::limits;
use pythond_protocol::{SessionName, SessionPath, remote_name};
use pythond_transport::{ANOTHER_MACHINE, EXIT_CODES};

use super::attach::{AttachArgs, HoldArgs};
use super::cells::{EventsArgs, IntArgs, OutArgs, PollArgs, WaitArgs};
use super::explicit::{join_names, session_there};
use super::submit::{self, FireArgs, ForkArgs, RunArgs, SourceArgs};

/// Client for pythond sessions: live Pythons that remember.
#[derive(Debug, Parser)]
#[command(
    name = "pysh",
    display_name = "pythond",
    version,
    args_override_self = true,
    after_help = after_help()
)]
pub(crate) struct Cli {
    /// Print one JSON object on one line, the daemon's own answer.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// What is meant instead if the session's name is a remote's.
    #[arg(skip)]
    pub(crate) if_remote: Option<IfRemote>,
}

/// `run REMOTE SESSION CODE`: only the daemon knows that it is not `run SESSION CODE`.
#[derive(Clone, Debug)]
pub(crate) struct IfRemote {
    /// The whole name.
    pub(crate) name: SessionPath,
    remote: SessionName,
    /// The line without the session there.
    words: Vec<OsString>,
}

impl IfRemote {
    /// What has to be a remote's name.
    pub(crate) fn remote(&self) -> &SessionName {
        &self.remote
    }

    /// The line as if both names had been given as one.
    pub(crate) fn parse(self) -> Result<Cli, clap::Error> {
        let mut cli = Cli::parse_words(self.words)?;
        if let Some((_, source)) = cli.code_mut() {
            source.name = self.name;
        }
        cli.if_remote = None;
        Ok(cli)
    }
}

impl Cli {
    /// Reads a command line. Options of `run`, `fire` and `fork` count also as last
    /// words after the code.
    pub(crate) fn parse_words(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut words = join_names(words);
        let mut cli = Self::try_parse_from(&words)?;
        let Some((verb, source)) = cli.code_mut() else {
            return Ok(cli);
        };
        let count = submit::trailing_options(&source.code, verb);
        if count > 0 {
            words = submit::options_first(words, source.code.len(), count);
            cli = Self::try_parse_from(&words)?;
        }
        cli.if_remote = cli
            .code_mut()
            .and_then(|(_, source)| if_remote(source, words));
        Ok(cli)
    }

    /// The verb and the code of `run`, `fire` and `fork`.
    fn code_mut(&mut self) -> Option<(&'static str, &mut SourceArgs)> {
        match &mut self.command {
            Some(Command::Run(args)) => Some(("run", &mut args.source)),
            Some(Command::Fire(args)) => Some(("fire", &mut args.source)),
            Some(Command::Fork(args)) => Some(("fork", &mut args.source)),
            _ => None,
        }
    }
}

fn if_remote(source: &SourceArgs, mut words: Vec<OsString>) -> Option<IfRemote> {
    let session = session_there(&source.code)?;
    if source.name.remote.is_some() {
        return None;
    }
    words.remove(words.len().checked_sub(source.code.len())?);
    let remote = source.name.session.clone();
    let name = SessionPath {
        remote: Some(remote.clone()),
        session,
    };
    Some(IfRemote {
        name,
        remote,
        words,
    })
}

fn after_help() -> String {
    format!(
        "Session names are 1 to 80 characters of a-z, 0-9, _ and -. A session of a remote \
         daemon\n(see `pyctl connect`) is REMOTE/SESSION, or both as two words.\n\
         The daemon is managed with `pyctl`.\n\n{ANOTHER_MACHINE}\n\n{EXIT_CODES}"
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a session.
    New(NewArgs),
    /// Run code in a session and wait for it.
    Run(RunArgs),
    /// Run code in a thread of its own and print the cell's id.
    Fire(FireArgs),
    /// Run code in a child process, take its new names back, and print the
    /// cell's id.
    Fork(ForkArgs),
    /// Show a cell as it is now, as JSON.
    Poll(PollArgs),
    /// Wait until cells have ended.
    Wait(WaitArgs),
    /// Show a cell's output, now or as it comes.
    Out(OutArgs),
    /// Put this terminal on a session: the person's prompt.
    Attach(AttachArgs),
    /// Make agents' new cells wait while a person works.
    Hold(HoldArgs),
    /// Let agents' cells run again.
    Release(HoldArgs),
    /// List the cells of a session.
    Cells(SessionArgs),
    /// Interrupt cells of a session.
    Int(IntArgs),
    /// Show where every thread of a session is.
    Stack(SessionArgs),
    /// Follow what happens to sessions and cells.
    Events(EventsArgs),
    /// List the sessions and remotes.
    Ls(ListArgs),
    /// End a session, or all of them.
    Kill(KillArgs),
    /// Show the health of a session, as JSON.
    Status(SessionArgs),
    /// Show the names that a session has, as JSON; `--json` adds types and
    /// sizes.
    Vars(SessionArgs),
    /// Show completions of a text, as JSON.
    Complete(CompleteArgs),
    /// Print the version.
    Version,
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Print a man page.
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// List the sessions of this remote.
    #[arg(value_parser = remote_name)]
    pub(crate) remote: Option<SessionName>,
}

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    /// The session.
    pub(crate) name: SessionPath,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Without `--python` and `--venv` a session has the Python of the active
VIRTUAL_ENV, else of the nearest `.venv` here or above that belongs to you or
to root, else the `python3` on the daemon's PATH. The answer says which, and
why.

With PYTHOND_HOST nothing of this machine counts: a session has the `python3` on
that daemon's PATH and the daemon's directory, or what `--python`, `--venv` and
`--cwd` say, as absolute paths there.")]
pub(crate) struct NewArgs {
    /// The session: 1 to 80 characters of a-z, 0-9, _ and -.
    pub(crate) name: SessionPath,
    /// End a live session of this name first.
    #[arg(long)]
    pub(crate) replace: bool,
    /// The interpreter: a path, or a name that is looked up on PATH.
    #[arg(long, value_name = "PATH", conflicts_with = "venv")]
    pub(crate) python: Option<String>,
    /// A virtual environment's directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) venv: Option<String>,
    /// The session's working directory [default: the current one].
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// A variable on top of the daemon's environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Modules to import before the session starts, separated by commas.
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    pub(crate) preload: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What the session may use.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits (0: none, whatever the daemon's configuration says)")]
pub(crate) struct LimitArgs {
    /// Memory of its own of each process of the session, such as 2G or 512M.
    #[arg(long, value_name = "SIZE", value_parser = limits::parse_size)]
    pub(crate) memory: Option<u64>,
    /// Processes and threads of the session. Without a control group the kernel
    /// counts all of the user's; for root it is refused then.
    #[arg(long, value_name = "N")]
    pub(crate) procs: Option<u64>,
    /// Open files of each process of the session, 64 or more.
    #[arg(long, value_name = "N")]
    pub(crate) nofile: Option<u64>,
    /// Processor time of each process of the session; one that exceeds it is
    /// killed.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) cpu: Option<u64>,
    /// Share of the processors against other sessions, 1 to 10000; 100 is that of
    /// one without. Needs a control group.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_weight: Option<u64>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a variable is given as KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The session.
    #[arg(required_unless_present = "all")]
    pub(crate) name: Option<SessionPath>,
    /// End every session and print a receipt as JSON.
    #[arg(long, conflicts_with = "name")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// The text so far.
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The page of a command [default: the page of pysh].
    pub(crate) command: Option<String>,
}
