//! The command lines of what is about cells that were submitted.

use std::time::Duration;

use clap::Args;
use pythond_protocol::{CellId, SessionPath};

use super::submit::seconds;

#[derive(Debug, Args)]
pub(crate) struct PollArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// The cell [default: the newest `fire` or `fork` cell, else the newest].
    pub(crate) id: Option<CellId>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints a line for each cell: id, kind, state, author, time, output, code. The
exit code is 0 if all of them ended well, 1 if one failed or was interrupted, 5
if one ended with its session, 124 if time was up. The first Ctrl-C leaves; the
cells go on.")]
pub(crate) struct WaitArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// The cells [default: all that have not ended].
    pub(crate) ids: Vec<CellId>,
    /// Wait for at most this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What the cell wrote to stdout comes out on stdout, stderr on stderr; with
`--stdout` or `--stderr` only that stream, on stdout. What is not kept any more
is said on stderr with its number of bytes. Ctrl-C leaves; the cell goes on.

With `--json` one object has up to 4 MiB of output, and `next` is the `--since`
to go on with; with `--json --follow` each event is one line, the reply the
last.")]
pub(crate) struct OutArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// The cell.
    pub(crate) id: CellId,
    /// Begin at this offset, in bytes of both streams in the order of arrival,
    /// or of the one stream.
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    pub(crate) since: u64,
    /// Go on until the cell has ended.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only what was written to stdout.
    #[arg(long, conflicts_with = "stderr")]
    pub(crate) stdout: bool,
    /// Only what was written to stderr.
    #[arg(long)]
    pub(crate) stderr: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An interrupt raises `KeyboardInterrupt`. A cell inside C code hears it when that
returns; until then it is named on stderr, with where it is. A cell that waits
for its turn is taken back.")]
pub(crate) struct IntArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// The cells [default: all that run].
    pub(crate) ids: Vec<CellId>,
    /// Do what it takes to end them, up to ending the session; says what was
    /// done.
    #[arg(long)]
    pub(crate) kill: bool,
    /// Let `fork` cells catch the interrupt; without this their processes are
    /// killed.
    #[arg(long)]
    pub(crate) soft: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints a line for each event as it happens; Ctrl-C ends that, with exit code 0.
With `--json` each line has a `cursor`: `--since` replays what came after it. An
event `reset` says that the log does not reach back that far.")]
pub(crate) struct EventsArgs {
    /// Only this session's.
    pub(crate) name: Option<SessionPath>,
    /// Begin after this cursor [default: now].
    #[arg(long, value_name = "CURSOR")]
    pub(crate) since: Option<String>,
}
