//! The command line as it is typed.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pythond_protocol::SessionName;
use pythond_transport::EXIT_CODES;

/// Client for pythond sessions: live Pythons that remember.
#[derive(Debug, Parser)]
#[command(
    name = "pysh",
    display_name = "pythond",
    version,
    after_help = after_help()
)]
pub(crate) struct Cli {
    /// Print one JSON object on one line, the daemon's own answer.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

fn after_help() -> String {
    format!(
        "Session names are 1 to 80 characters of a-z, 0-9, _ and -.\n\
         The daemon is managed with `pyctl`.\n\n{EXIT_CODES}"
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a session.
    New(NewArgs),
    /// Run code in a session and wait for it.
    Run(RunArgs),
    /// List the sessions.
    Ls,
    /// End a session, or all of them.
    Kill(KillArgs),
    /// Show the health of a session, as JSON.
    Status(SessionArgs),
    /// Show the names that a session has, as JSON; `--json` adds types and
    /// sizes.
    Vars(SessionArgs),
    /// Show completions of a text, as JSON.
    Complete(CompleteArgs),
    /// Interrupt the running cell of a session.
    Int(SessionArgs),
    /// Print the version.
    Version,
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Print a man page.
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    /// The session.
    pub(crate) name: SessionName,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without `--python` and `--venv` a session has the Python of the active
VIRTUAL_ENV, else of the nearest `.venv` here or above that belongs to you or
to root, else the `python3` on the daemon's PATH. The answer says which, and
why.")]
pub(crate) struct NewArgs {
    /// The session: 1 to 80 characters of a-z, 0-9, _ and -.
    pub(crate) name: SessionName,
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
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a variable is given as KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
The value of a last expression is printed, as at the Python prompt. The first
Ctrl-C interrupts the cell, a second one leaves it running.

A command line holds about 128 KiB in one word; give longer code as `-` or
`@FILE`. A word that begins with `@` and contains a newline is code, so that a
decorator needs no escape.

Options stand before the code or after it as last words; what else follows the
code's first word belongs to it.")]
pub(crate) struct RunArgs {
    /// Echo code, output and errors to stderr [default: if stderr is a
    /// terminal and stdout is not].
    #[arg(long, overrides_with = "no_echo")]
    pub(crate) echo: bool,
    /// Do not echo.
    #[arg(long, overrides_with = "echo")]
    pub(crate) no_echo: bool,
    /// The session.
    pub(crate) name: SessionName,
    /// Python source, several words joined by spaces; `@FILE` reads a file,
    /// `-` reads stdin.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) code: Vec<String>,
}

impl RunArgs {
    /// Takes options off the end of the code: people add them there, and no
    /// Python ends in such a word. Returns true if `--json` was one of them.
    pub(crate) fn take_trailing_options(&mut self) -> bool {
        let mut json = false;
        while self.code.len() > 1 {
            match self.code.last().map(String::as_str) {
                Some("--json") => json = true,
                Some("--echo") => (self.echo, self.no_echo) = (true, false),
                Some("--no-echo") => (self.echo, self.no_echo) = (false, true),
                _ => break,
            }
            self.code.pop();
        }
        json
    }
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The session.
    #[arg(required_unless_present = "all")]
    pub(crate) name: Option<SessionName>,
    /// End every session and print a receipt as JSON.
    #[arg(long, conflicts_with = "name")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    /// The session.
    pub(crate) name: SessionName,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn run(words: &[&str]) -> (bool, RunArgs) {
        let words = ["pysh", "run"].iter().chain(words);
        let cli = Cli::try_parse_from(words).expect("a command line");
        match cli.command {
            Some(Command::Run(args)) => (cli.json, args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_the_code_and_the_rest_is_code() {
        for (words, json, code) in [
            (&["work", "1", "+", "1"][..], false, &["1", "+", "1"][..]),
            (&["work", "-1"], false, &["-1"]),
            (&["work", "-"], false, &["-"]),
            (&["work", "--json", "1"], true, &["1"]),
            (&["--json", "work", "1"], true, &["1"]),
            (&["work", "1", "--json"], false, &["1", "--json"]),
            (&["work", "--", "--json"], false, &["--json"]),
            (&["work", ""], false, &[""]),
        ] {
            let (found_json, args) = run(words);
            assert_eq!(
                (found_json, args.code.as_slice()),
                (
                    json,
                    &code.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()[..]
                ),
                "{words:?}"
            );
        }
    }

    #[test]
    fn options_after_the_code_are_options() {
        let (_, mut args) = run(&["work", "1", "--echo", "--json"]);
        assert!(args.take_trailing_options() && args.echo);
        assert_eq!(args.code, ["1"]);
        // The only word is code, whatever it looks like.
        let (_, mut args) = run(&["work", "--", "--json"]);
        assert!(!args.take_trailing_options());
        assert_eq!(args.code, ["--json"]);
    }

    #[test]
    fn the_last_of_echo_and_no_echo_counts() {
        let (_, args) = run(&["--echo", "--no-echo", "work", "1"]);
        assert!(args.no_echo && !args.echo);
        let (_, args) = run(&["--no-echo", "--echo", "work", "1"]);
        assert!(args.echo && !args.no_echo);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for words in [
            &["run", "work"][..],
            &["run", "Work", "1"],
            &["new"],
            &["new", "con"],
            &["new", "a", "--python", "p", "--venv", "v"],
            &["new", "a", "--env", "=x"],
            &["new", "a", "--env", "x"],
            &["new", "a", "b"],
            &["kill"],
            &["kill", "a", "--all"],
            &["ls", "a"],
            &["fire", "a", "1"],
            &["attach", "a"],
        ] {
            let error = Cli::try_parse_from(["pysh"].iter().chain(words)).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn lists_and_variables_are_taken_apart() {
        let cli = Cli::try_parse_from([
            "pysh",
            "new",
            "a",
            "--preload",
            "numpy,pandas",
            "--env",
            "A=b=c",
            "--env",
            "B=",
        ])
        .expect("a command line");
        let Some(Command::New(args)) = cli.command else {
            panic!()
        };
        assert_eq!(args.preload, ["numpy", "pandas"]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(args.env, [pair("A", "b=c"), pair("B", "")]);
    }
}
