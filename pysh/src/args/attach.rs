//! The command lines of a person at a session.

use clap::Args;
use pythond_protocol::SessionPath;

use super::submit::label;

#[derive(Debug, Args)]
#[command(after_help = "\
Ctrl-] detaches, and the session goes on; Ctrl-\\ holds agents, as `pysh hold`
does, and releases them again. Both are plain keys inside pasted text. Every
other key is for the session: Ctrl-C, Ctrl-Z and Ctrl-D too. The window's size
is the session's.

What a session writes is filtered: what draws passes; what asks the terminal for
an answer, sets its clipboard, its title or its colours, or tells it to encode
keys in another way does not. Links pass if they lead to the web.

If the daemon is replaced meanwhile, what is typed is kept and reaches the session
once, also what was typed just before Ctrl-].

Whatever ends it, the terminal is left as it was. The exit code is 0 after
Ctrl-] and when the session was ended at its own prompt, 3 if the daemon has
gone, 4 if this terminal was cut off because it did not take what the session
wrote, 5 if the session died or was killed; a signal ends it as usual.")]
pub(crate) struct AttachArgs {
    /// The session.
    #[arg(default_value = "default")]
    pub(crate) name: SessionPath,
    /// Watch only: nothing that is typed reaches the session, but for Ctrl-].
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Let everything that the session writes through to the terminal.
    #[arg(long)]
    pub(crate) unfiltered: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
While agents are held their new cells wait in the queue; what runs goes on. It
lasts until `pysh release`, also when no terminal is attached. In `pysh attach`
Ctrl-\\ does the same.")]
pub(crate) struct HoldArgs {
    /// The session.
    pub(crate) name: SessionPath,
    /// Who asks [default: the variable `PYTHOND_AUTHOR`].
    #[arg(long, value_name = "NAME", value_parser = label)]
    pub(crate) author: Option<String>,
}
