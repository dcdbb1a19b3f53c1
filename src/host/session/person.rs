//! The person's part of the main thread: their prompt, and the cells they type.

use pyo3::prelude::*;
use pythond_protocol::lane::{CellSpec, FinishedCell, HostEvent};
use pythond_protocol::outcome::CellKind;

use super::descriptors::open_null;
use super::{IDLE_BEFORE_PROMPT, LOOK_FOR_KEYS, LOOK_FOR_PEOPLE, Session};
use crate::cells::{Acceptance, QueuedCell};
use crate::prompt::Prompt;
use crate::terminal::Holder;
use crate::{cell, helpers};

impl Session {
    /// Makes the prompt once somebody attached, and takes what was typed; the
    /// source of a cell once one is whole.
    pub(super) fn look_at_prompt(&mut self, py: Python<'_>) -> Option<String> {
        let terminal = &self.shared.terminal;
        match &mut self.prompt {
            Some(prompt) if terminal.take_typed() => {
                self.namespace.repair_for_others(py);
                prompt.take_keys(py)
            }
            Some(prompt) => {
                if terminal.take_overdue() {
                    prompt.show(py);
                }
                None
            }
            None if terminal.is_wanted() => {
                self.restore_terminal();
                let globals = self.namespace.globals().bind(py);
                match Prompt::begin(py, self.shared, globals) {
                    Ok(prompt) => self.prompt = prompt,
                    Err(error) => cell::explain(py, helpers::get(py), error),
                }
                None
            }
            None => None,
        }
    }

    /// Waits for a cell or a key. What cells wrote is shown when none follows at
    /// once.
    pub(super) fn wait_at_prompt(&mut self, py: Python<'_>) {
        let at_once = self.prompt.as_ref().is_some_and(|it| !it.is_shown());
        let nothing = |waited| matches!(waited, Ok(0));
        if at_once || nothing(py.detach(|| self.wait_for(Some(IDLE_BEFORE_PROMPT)))) {
            if let Some(prompt) = &mut self.prompt {
                prompt.show(py);
            }
            py.detach(|| self.wait());
        }
    }

    /// Waits while the I/O thread reads cells. What is typed may take a moment
    /// until it can be read, and nothing tells.
    pub(super) fn wait_without_descriptors(&mut self, py: Python<'_>) {
        self.restore_terminal();
        if let Some(prompt) = &mut self.prompt {
            prompt.show(py);
            self.shared.terminal.note_typed();
        }
        let longest = if self.prompt.is_some() {
            LOOK_FOR_KEYS
        } else {
            LOOK_FOR_PEOPLE
        };
        let shared = self.shared;
        py.detach(|| {
            if shared.recorder.has_waiting() {
                shared.disk.write_records_now();
            }
            shared.wait_for_queue(Some(longest));
        });
    }

    /// Runs what the person typed, with the terminal as its standard streams.
    pub(super) fn run_persons_cell(&mut self, py: Python<'_>, source: String) {
        let how = CellSpec {
            author: self.shared.terminal.person().author,
            ..CellSpec::default()
        };
        let accepted = self.shared.accept(0, CellKind::Human, None, &how, &source);
        let Acceptance::New(id) = accepted else {
            return;
        };
        let event = HostEvent::Started {
            cell: id,
            kind: CellKind::Human,
        };
        self.shared.send(event, Vec::new());
        let waiting = self.shared.terminal.take_aside();
        self.shared.terminal.hand_to(Holder::Person);
        py.detach(|| self.shared.terminal.write_through(&waiting));
        self.restore_descriptors();
        self.terminal_on_standard_streams();
        if let Some(prompt) = &self.prompt {
            prompt.be_controlling();
        }
        self.shared.terminal.set_persons_cell(Some(id.as_u64()));
        let cell = QueuedCell {
            id,
            direct: false,
            changed: false,
            source,
            most_back: None,
        };
        self.run_cell(py, CellKind::Human, cell);
        if self.namespace.exits() {
            let name = self.shared.session_name();
            let words = format!("[pythond] session {name} has ended: exit() was typed here\n");
            self.shared.terminal.write_through(words.as_bytes());
            self.shared.send(HostEvent::Leaving, Vec::new());
            self.shared.shut_down();
            self.shared.wake_io();
            py.detach(|| self.shared.terminal.farewell(false));
        }
    }

    pub(super) fn terminal_on_standard_streams(&self) {
        if let Some(prompt) = &self.prompt {
            let terminal = prompt.as_fd();
            // Each was open a moment ago.
            let _ = rustix::stdio::dup2_stdin(terminal);
            let _ = rustix::stdio::dup2_stdout(terminal);
            let _ = rustix::stdio::dup2_stderr(terminal);
        }
    }

    /// A cell of the person's is over: the standard streams are those of agents'
    /// cells again.
    pub(super) fn standard_streams_as_before(&self) {
        let capture = &self.shared.capture;
        let _ = rustix::stdio::dup2_stdout(&capture.stdout_write);
        let _ = rustix::stdio::dup2_stderr(&capture.stderr_write);
        if let Ok(null) = open_null() {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
    }

    pub(super) fn end_persons_cell(&mut self, py: Python<'_>, finished: &FinishedCell) {
        let terminal = &self.shared.terminal;
        if let Some(prompt) = &self.prompt {
            prompt.let_output_go_on();
        }
        if let Some(exception) = &finished.exception
            && !self.namespace.exits()
        {
            py.detach(|| terminal.write_through(exception.traceback.as_bytes()));
        }
        terminal.set_persons_cell(None);
        self.standard_streams_as_before();
        if let Some(prompt) = &mut self.prompt {
            prompt.take_back();
        }
    }
}
