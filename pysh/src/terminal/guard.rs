//! Raw mode, and the way back from it by every way out.

use std::io;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, QueueSelector, tcflush, tcgetattr, tcsetattr};

use super::Output;
use super::escapes::Modes;

/// How long a terminal may take to take the way back. One that does not read
/// must not keep its program.
const RESTORE_LIMIT: Duration = Duration::from_millis(300);

/// What is to be undone; none while the terminal is as it was. Not in the
/// guard, because a panic restores the terminal before it prints.
static UNDO: Mutex<Option<Undo>> = Mutex::new(None);

#[derive(Debug, Default)]
struct Undo {
    modes: Modes,
    /// What was written last may have ended inside of a sequence.
    torn: bool,
}

/// The terminal in raw mode. Dropping it makes the terminal what it was, and so
/// does a panic.
#[derive(Debug)]
pub(crate) struct TerminalGuard {
    /// What [`UNDO`] has.
    modes: Modes,
}

impl TerminalGuard {
    /// Enters raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        let guard = Self {
            modes: Modes::default(),
        };
        guard.again()?;
        Ok(guard)
    }

    /// Enters raw mode once more: a shell had the terminal in between.
    pub(crate) fn again(&self) -> io::Result<()> {
        // Else the one would be taken for the other.
        disable_raw_mode()?;
        enable_raw_mode()?;
        let modes = self.modes.clone();
        *undo() = Some(Undo { modes, torn: false });
        Ok(())
    }

    /// Remembers what is switched on in the terminal.
    pub(crate) fn remember(&mut self, modes: &Modes) {
        if self.modes != *modes {
            self.modes = modes.clone();
            if let Some(undo) = undo().as_mut() {
                undo.modes = modes.clone();
            }
        }
    }

    /// What was written last may have ended inside of a sequence.
    pub(crate) fn torn(&self) {
        if let Some(undo) = undo().as_mut() {
            undo.torn = true;
        }
    }

    /// Takes what the session drew off the terminal, for words of ours. Keys are
    /// read as before, and pastes are still marked.
    pub(crate) fn pause(&mut self) {
        let pastes = self.modes.pastes();
        let Some(Undo { modes, torn }) = undo().take() else {
            return;
        };
        let mut bytes = leaving(&modes, torn);
        self.modes = Modes::default();
        if pastes {
            self.modes = Modes::only_pastes();
            bytes.extend_from_slice(b"\x1b[?2004h");
        }
        *undo() = Some(Undo {
            modes: self.modes.clone(),
            torn: false,
        });
        write(&bytes);
        process_output(true);
    }

    /// The session draws again.
    pub(crate) fn go_on(&mut self) {
        if self.modes.pastes() {
            write(b"\x1b[?2004l");
        }
        process_output(false);
        self.modes = Modes::default();
        *undo() = Some(Undo::default());
    }

    /// Makes the terminal what it was. Once more does nothing.
    pub(crate) fn leave(&mut self) {
        self.modes = Modes::default();
        restore();
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        restore();
    }
}

fn undo() -> std::sync::MutexGuard<'static, Option<Undo>> {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal that is gone cannot be restored, and need not be: nothing here
/// can fail in a way that matters.
fn restore() {
    let Some(Undo { modes, torn }) = undo().take() else {
        return;
    };
    write(&leaving(&modes, torn));
    if modes.reports() {
        // Reports of the mouse are no commands for the shell.
        let _ = tcflush(stdin(), QueueSelector::IFlush);
    }
    let _ = disable_raw_mode();
}

/// What makes the screen what it was.
fn leaving(modes: &Modes, torn: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    if torn {
        // Ends a string, and aborts any other sequence.
        bytes.extend_from_slice(b"\x1b\\");
    }
    bytes.extend(modes.leave());
    // What is said next has a line of its own, and nothing below it.
    bytes.extend_from_slice(b"\r\n\x1b[J");
    bytes
}

fn write(bytes: &[u8]) {
    let mut output = Output::open();
    let _ = output
        .write(bytes)
        .and_then(|()| output.drain(RESTORE_LIMIT));
}

/// Whether a newline of ours begins a line, as it does outside of raw mode.
fn process_output(on: bool) {
    let Ok(mut modes) = tcgetattr(stdin()) else {
        return;
    };
    modes.output_modes.set(OutputModes::OPOST, on);
    let _ = tcsetattr(stdin(), OptionalActions::Now, &modes);
}
