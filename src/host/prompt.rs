//! The person's prompt, on the main thread: keys to lines, lines to cells.
//! Agents' cells run between two keys; the line that is being typed stays.

mod keys;

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use rustix::termios::{LocalModes, OptionalActions, Termios};

use self::keys::{Key, Keys};
use crate::shared::Shared;
use crate::sys::readline::{Readline, Typed};
use crate::terminal::{self, Follower, Holder};
use crate::{helpers, interrupt};

/// Python's own prompts.
const FIRST: &str = ">>> ";
const FURTHER: &str = "... ";
/// Keys that are taken before others have their turn.
const KEYS_AT_ONCE: usize = 4096;

/// What edits the line.
#[derive(Debug)]
enum Editor {
    /// GNU readline.
    Readline(Box<Readline>),
    /// The terminal itself, for a Python without readline.
    Terminal(Vec<u8>),
}

/// Where prompt and line are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No line is read.
    Away,
    /// On the screen.
    Shown,
    /// A line is read, but it is off the screen for what others write.
    Aside,
}

/// The prompt.
#[derive(Debug)]
pub(crate) struct Prompt {
    shared: &'static Shared,
    follower: &'static Follower,
    editor: Editor,
    lines: Py<PyAny>,
    stage: Stage,
    /// How the terminal is for programs.
    modes: Termios,
    term: Option<String>,
    /// What came of keys and is not looked at yet.
    typed: VecDeque<Typed>,
    keys: Keys,
}

impl Prompt {
    /// Prepares the prompt. None without a terminal.
    pub(crate) fn begin(
        py: Python<'_>,
        shared: &'static Shared,
        globals: &Bound<'_, PyDict>,
    ) -> PyResult<Option<Self>> {
        let Some(follower) = shared.terminal.follower() else {
            return Ok(None);
        };
        let helper = helpers::get(py).prompt.bind(py);
        let person = shared.terminal.person();
        // Cells may have damaged what these need; there is a prompt all the same.
        let _ = helper.call_method1("set_terminal", (&person.term, &person.colorterm));
        let module = helper
            .call_method1("begin", (globals,))
            .and_then(|module| module.extract::<Option<String>>())
            .unwrap_or_default();
        let path = module.filter(|path| !path.is_empty());
        let path = path.and_then(|path| CString::new(path).ok());
        let found = Readline::find(path.as_deref(), &follower.terminal);
        let term = as_c(person.term.as_deref());
        let editor = match found {
            Some(readline) => {
                readline.set_up(term.as_deref());
                Editor::Readline(Box::new(readline))
            }
            None => Editor::Terminal(Vec::new()),
        };
        Ok(Some(Self {
            shared,
            follower,
            editor,
            lines: helper.getattr("Lines")?.call0()?.unbind(),
            stage: Stage::Away,
            modes: rustix::termios::tcgetattr(&follower.terminal).map_err(std::io::Error::from)?,
            term: person.term,
            typed: VecDeque::new(),
            keys: Keys::default(),
        }))
    }

    /// What to wait for.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.follower.terminal.as_fd()
    }

    /// Prompt and line are on the screen.
    pub(crate) fn is_shown(&self) -> bool {
        self.stage == Stage::Shown
    }

    /// Puts prompt and line on the screen if they are not, or if something has
    /// waited for long to be shown above them.
    pub(crate) fn show_if_due(&mut self, py: Python<'_>) {
        if self.stage != Stage::Shown || self.shared.terminal.take_overdue() {
            self.show(py);
        } else if self.shared.terminal.take_resized() {
            self.resize();
        }
    }

    /// An agent's cell begins.
    pub(crate) fn make_way(&mut self) {
        let clear = match &self.editor {
            _ if self.stage != Stage::Shown => None,
            Editor::Readline(readline) if self.knows_escapes() => readline.clearing(),
            Editor::Readline(_) => None,
            Editor::Terminal(_) => Some(b"\r\x1b[K".to_vec()),
        };
        match clear {
            Some(clear) => self.shared.terminal.lend(clear),
            None => {
                self.put_aside();
                self.shared.terminal.hand_to(Holder::Agent);
            }
        }
    }

    /// An agent's cell has ended.
    pub(crate) fn come_back(&mut self) {
        if self.stage == Stage::Shown && !self.shared.terminal.give_back() {
            self.stage = Stage::Aside;
        }
    }

    fn knows_escapes(&self) -> bool {
        self.term.as_deref().is_some_and(|term| term != "dumb")
    }

    /// Puts prompt and line on the screen, below what others wrote meanwhile.
    pub(crate) fn show(&mut self, py: Python<'_>) {
        let terminal = &self.shared.terminal;
        if self.stage == Stage::Shown {
            if terminal.take_resized() {
                self.resize();
            }
            if !terminal.has_news() {
                return;
            }
            self.put_aside();
        }
        let terminal = &self.shared.terminal;
        let above = terminal.take_aside();
        py.detach(|| {
            terminal.wait_until_written();
            terminal.write_through(&above);
        });
        if self.stage == Stage::Away {
            self.begin_line(py);
        } else if let Editor::Readline(readline) = &self.editor {
            if terminal.take_resized() {
                readline.measure();
            }
            readline.redraw();
        } else {
            self.show_plain_prompt(py);
        }
        self.stage = Stage::Shown;
        terminal.hand_to(Holder::Prompt);
    }

    /// Takes prompt and line off the screen, for what others write.
    fn put_aside(&mut self) {
        if self.stage == Stage::Shown {
            let cleared = match &self.editor {
                Editor::Readline(readline) => readline.clear(),
                Editor::Terminal(_) => false,
            };
            if !cleared {
                self.shared.terminal.write_through(b"\r\x1b[K");
            }
            self.stage = Stage::Aside;
        }
    }

    fn resize(&mut self) {
        if let Editor::Readline(readline) = &self.editor {
            readline.resize();
        }
    }

    fn text(&self, py: Python<'_>) -> String {
        let further = self.lines.call_method0(py, "pending");
        let further = further
            .and_then(|pending| pending.extract(py))
            .unwrap_or(false);
        let (name, default) = if further {
            ("ps2", FURTHER)
        } else {
            ("ps1", FIRST)
        };
        let text = helpers::get(py)
            .prompt
            .call_method1(py, "prompt", (name, default))
            .and_then(|text| text.extract(py));
        text.unwrap_or_else(|_| default.to_owned())
    }

    fn begin_line(&mut self, py: Python<'_>) {
        let prompt = self.text(py);
        let person = self.shared.terminal.person();
        match &self.editor {
            Editor::Readline(readline) => {
                if person.term != self.term {
                    self.term = person.term;
                    // Programs that are started from now on are told as well.
                    let told = helpers::get(py).prompt.call_method1(
                        py,
                        "set_terminal",
                        (&self.term, &person.colorterm),
                    );
                    drop(told);
                    readline.set_terminal(as_c(self.term.as_deref()).as_deref());
                }
                if self.shared.terminal.take_resized() {
                    readline.measure();
                }
                let prompt = CString::new(prompt).unwrap_or_else(|_| c">>> ".to_owned());
                readline.begin(&prompt);
                // Keys that mean signals are keys like others here: they come
                // in their place, and hit no cell. Readline switches them on.
                if let Ok(mut modes) = rustix::termios::tcgetattr(&self.follower.terminal) {
                    modes.local_modes.remove(LocalModes::ISIG);
                    self.set_modes(&modes);
                }
            }
            Editor::Terminal(_) => self.show_plain_prompt(py),
        }
    }

    fn show_plain_prompt(&self, py: Python<'_>) {
        let prompt = self.text(py);
        self.shared.terminal.write_through(prompt.as_bytes());
    }

    fn set_modes(&self, modes: &Termios) {
        // A terminal that refuses keeps the modes it has.
        let _ = rustix::termios::tcsetattr(&self.follower.terminal, OptionalActions::Drain, modes);
    }

    /// Takes the keys that are there; the source of a cell once one is whole.
    pub(crate) fn take_keys(&mut self, py: Python<'_>) -> Option<String> {
        if self.shared.terminal.take_cancelled() {
            self.show(py);
            self.typed.clear();
            self.keys.clear();
            self.typed.push_back(Typed::Interrupt);
        }
        for _ in 0..KEYS_AT_ONCE {
            // Before each key: those of who comes next are not torn by it.
            if self.shared.terminal.take_abandoned() {
                self.keys.clear_torn();
            }
            while let Some(typed) = self.typed.pop_front() {
                if let Some(source) = self.typed(py, typed) {
                    return Some(source);
                }
            }
            if !self.has_key() {
                return None;
            }
            // What came before the key is shown before it.
            self.show(py);
            match &mut self.editor {
                Editor::Readline(readline) => {
                    // Byte by byte: what follows a line belongs to its cell.
                    let mut byte = [0];
                    let read = rustix::io::read(&self.follower.terminal, &mut byte);
                    let key = match read {
                        Ok(1) => self.keys.take(byte[0]),
                        _ => return None,
                    };
                    match key {
                        None => {}
                        Some(Key::Character(key)) => {
                            let typed = interrupt::while_completing(|| readline.take_key(&key));
                            self.typed.extend(typed);
                        }
                        Some(Key::Paste(text)) => readline.insert(&text),
                        Some(Key::Interrupt) => self.typed.push_back(Typed::Interrupt),
                    }
                }
                Editor::Terminal(line) => {
                    let mut bytes = [0; 4096];
                    match rustix::io::read(&self.follower.terminal, &mut bytes) {
                        Ok(0) | Err(_) => self.typed.push_back(Typed::End),
                        Ok(count) => {
                            line.extend_from_slice(&bytes[..count]);
                            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                                let mut whole: Vec<u8> = line.drain(..=end).collect();
                                whole.pop();
                                self.typed.push_back(Typed::Line(whole));
                            }
                        }
                    }
                }
            }
        }
        // More is there: the rest of the keys come after a turn of the others.
        self.shared.terminal.note_typed();
        None
    }

    fn has_key(&self) -> bool {
        let mut set = [PollFd::new(&self.follower.terminal, PollFlags::IN)];
        matches!(poll(&mut set, Some(&Timespec::default())), Ok(1))
            && set[0].revents().contains(PollFlags::IN)
    }

    fn typed(&mut self, py: Python<'_>, typed: Typed) -> Option<String> {
        let source = match typed {
            Typed::Line(line) => {
                self.leave_line();
                let text = String::from_utf8_lossy(&line).into_owned();
                if let (false, Editor::Readline(readline)) = (text.trim().is_empty(), &self.editor)
                {
                    readline.remember(&line);
                }
                let added = self.lines.call_method1(py, "add", (&text,));
                match added.and_then(|source| source.extract::<Option<String>>(py)) {
                    Ok(source) => source,
                    // A cell has damaged what tells where a block ends.
                    Err(_) => Some(text),
                }
            }
            Typed::End => {
                self.leave_line();
                self.forget_lines(py);
                self.shared.terminal.write_through(
                    b"\n[pythond] exit() ends the session; Ctrl-] detaches and leaves it running\n",
                );
                None
            }
            Typed::Interrupt => {
                if let Editor::Readline(readline) = &self.editor {
                    readline.end();
                }
                self.leave_line();
                self.forget_lines(py);
                self.shared.terminal.write_through(b"\nKeyboardInterrupt\n");
                None
            }
        };
        match source {
            Some(source) if !source.is_empty() => Some(source),
            _ => {
                self.show(py);
                None
            }
        }
    }

    fn forget_lines(&self, py: Python<'_>) {
        // It cannot fail: the object is ours.
        let _ = self.lines.call_method0(py, "clear");
    }

    /// The line is over: the terminal is as programs expect it.
    fn leave_line(&mut self) {
        self.set_modes(&self.modes);
        self.stage = Stage::Away;
    }

    /// Makes the terminal the process's own (`/dev/tty`, job control) for a cell of
    /// the person's. Others have none, so that a program of an agent's that
    /// asks for a password there is told so at once.
    pub(crate) fn be_controlling(&self) {
        // The process leads its session; at worst it has it already.
        let _ = rustix::process::ioctl_tiocsctty(&self.follower.terminal);
    }

    /// Undoes [`Self::be_controlling`]. The kernel sends SIGHUP to the foreground
    /// group, so that is first made one of a program that does nothing.
    fn be_controlling_no_more(&self) {
        let mut nothing = std::process::Command::new("/bin/true");
        nothing.stdin(Stdio::null()).stdout(Stdio::null());
        nothing.stderr(Stdio::null()).process_group(0);
        // Without it the terminal stays ours.
        let Ok(mut child) = nothing.spawn() else {
            return;
        };
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let given = group.is_some_and(|group| self.set_foreground(group));
        if given {
            crate::sys::leave_terminal(&self.follower.terminal);
        }
        // A cell may have taken it from us, then there is nothing to wait for.
        let _ = child.wait();
    }

    fn set_foreground(&self, group: Pid) -> bool {
        crate::sys::with_signal_blocked(libc::SIGTTOU, || {
            rustix::termios::tcsetpgrp(&self.follower.terminal, group).is_ok()
        })
    }

    /// A key or a program may have stopped the output.
    pub(crate) fn let_output_go_on(&self) {
        terminal::let_output_go_on(&self.follower.terminal);
    }

    /// After a cell of the person's: whatever its programs did to the terminal,
    /// keys reach us again.
    pub(crate) fn take_back(&mut self) {
        // Programs that made themselves the foreground may be gone.
        self.set_foreground(rustix::process::getpgrp());
        self.set_modes(&self.modes);
        self.let_output_go_on();
        self.be_controlling_no_more();
        self.stage = Stage::Away;
    }
}

fn as_c(text: Option<&str>) -> Option<CString> {
    text.and_then(|text| CString::new(text).ok())
}
