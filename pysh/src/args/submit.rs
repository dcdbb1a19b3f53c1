//! The command lines of `run`, `fire` and `fork`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pythond_protocol::SessionPath;
use pythond_protocol::verbs::submit::MAX_LABEL;

#[derive(Debug, Args)]
#[command(after_help = "\
The value of a last expression is printed, as at the Python prompt. What the
cell writes is shown while it runs. The first Ctrl-C interrupts the cell, a
second one leaves it running and says its id. A cell goes on when this command
goes away, be it that nobody reads its output any more; `pysh int` ends it.

A command line holds about 128 KiB in one word; give longer code as `-` or
`@FILE`. A word that begins with `@` and contains a newline is code, so that a
decorator needs no escape.

Options stand before the code or after it as last words, then as `--name=value`;
what else follows the code's first word belongs to it.")]
pub(crate) struct RunArgs {
    /// Interrupt the cell when it has run for this many seconds; exit code 124.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Wait for at most this many seconds; then the cell goes on, and the exit
    /// code is 124.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait: Option<Duration>,
    /// If the session runs another cell, wait for its end, or fail with exit
    /// code 4.
    #[arg(long, value_name = "HOW", default_value = "queue")]
    pub(crate) busy: Busy,
    /// Print the cell's id and leave it running.
    #[arg(long, conflicts_with_all = ["wait", "cancel_on_disconnect"])]
    pub(crate) detach: bool,
    /// Interrupt the cell if this command goes away before it ends.
    #[arg(long)]
    pub(crate) cancel_on_disconnect: bool,
    #[command(flatten)]
    pub(crate) label: LabelArgs,
    #[command(flatten)]
    pub(crate) echo: EchoArgs,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The cell runs in a thread of its own beside whatever else the session runs, and
shares its names. Follow it with `pysh out NAME ID --follow`, wait for it with
`pysh wait NAME ID`, see how it ended with `pysh poll NAME ID`, interrupt it with
`pysh int NAME ID`.

Code and options are given as with `pysh run`.")]
pub(crate) struct FireArgs {
    /// Start when the `fire` cells before it have ended.
    #[arg(long)]
    pub(crate) queue: bool,
    /// Interrupt the cell when it has run for this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) label: LabelArgs,
    #[command(flatten)]
    pub(crate) echo: EchoArgs,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The cell runs in a child process that begins as a copy of the session, beside
whatever else the session runs. Names that are new in it when it ends, or bound to
another object, are set in the session then; what was changed in place stays in
the child and is named. A cell that fails or is killed brings nothing back.
`pysh int NAME ID` kills the child and the processes that it started.

Follow it with `pysh out NAME ID --follow`, wait for it with `pysh wait NAME ID`,
see what came back with `pysh poll NAME ID`.

Code and options are given as with `pysh run`.")]
pub(crate) struct ForkArgs {
    /// Kill the cell when it has run for this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Most bytes that may come back [default: 2 GiB, or
    /// `limits.fork_result_bytes` of the daemon's configuration].
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_result: Option<u64>,
    #[command(flatten)]
    pub(crate) label: LabelArgs,
    #[command(flatten)]
    pub(crate) echo: EchoArgs,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// How a cell is named by its client.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// A key of yours: submitting the same code under the same key again gives
    /// the same cell and never runs it twice.
    #[arg(long, value_name = "KEY", value_parser = label)]
    pub(crate) id: Option<String>,
    /// Who submits the cell [default: the variable `PYTHOND_AUTHOR`].
    #[arg(long, value_name = "NAME", value_parser = label)]
    pub(crate) author: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// Echo code, output and errors to stderr [default: if stderr is a
    /// terminal and stdout is not].
    #[arg(long, overrides_with = "no_echo")]
    pub(crate) echo: bool,
    /// Do not echo.
    #[arg(long, overrides_with = "echo")]
    pub(crate) no_echo: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// Python source, several words joined by spaces; `@FILE` reads a file,
    /// `-` reads stdin. If NAME is a remote, two words are a session there and
    /// the source; options may stand between them.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) code: Vec<String>,
}

/// What to do if another cell runs: wait for its end, or be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Busy {
    Queue,
    Fail,
}

/// Options without a value that may stand after the code.
const TRAILING_FLAGS: [&str; 6] = [
    "--json",
    "--echo",
    "--no-echo",
    "--detach",
    "--cancel-on-disconnect",
    "--queue",
];

/// Beginnings of options with a value that may stand after the code.
const TRAILING_VALUES: [&str; 6] = [
    "--timeout=",
    "--wait=",
    "--busy=",
    "--id=",
    "--author=",
    "--max-result=",
];

/// How many words at the end of the code are options: people add them there,
/// and no Python ends in such a word. The first word is code, whatever it looks
/// like.
pub(super) fn trailing_options(code: &[String], verb: &str) -> usize {
    let is_option = |word: &&String| {
        let word = word.as_str();
        let of_other_verb = match verb {
            "run" => word == "--queue" || word.starts_with("--max-result="),
            verb => {
                matches!(word, "--detach" | "--cancel-on-disconnect")
                    || word.starts_with("--wait=")
                    || word.starts_with("--busy=")
                    || (verb == "fork" && word == "--queue")
                    || (verb == "fire" && word.starts_with("--max-result="))
            }
        };
        !of_other_verb
            && (TRAILING_FLAGS.contains(&word)
                || TRAILING_VALUES.iter().any(|start| word.starts_with(start)))
    };
    let after_first = code.get(1..).unwrap_or_default();
    after_first.iter().rev().take_while(is_option).count()
}

/// The command line with the last `count` words in front of the code, whose
/// words are the last `code` ones.
pub(super) fn options_first(mut words: Vec<OsString>, code: usize, count: usize) -> Vec<OsString> {
    let options = words.split_off(words.len().saturating_sub(count));
    let before_code = (words.len() + count).saturating_sub(code).min(words.len());
    // What follows `--` is no option.
    let dashes = words[..before_code].iter().position(|word| word == "--");
    let place = dashes.unwrap_or(before_code);
    words.splice(place..place, options);
    words
}

/// A time span, as the wire takes it.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds is expected, like 1.5".to_owned())
}

/// A key or an author: one word on the wire.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > MAX_LABEL || text.contains(bad) {
        return Err(format!(
            "1 to {MAX_LABEL} bytes without white space are expected"
        ));
    }
    Ok(text.to_owned())
}
