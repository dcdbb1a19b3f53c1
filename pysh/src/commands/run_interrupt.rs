//! What Ctrl-C does while a cell is waited for: the first one interrupts it,
//! and its reply is waited for; the second one leaves.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};

use pythond_protocol::verbs::interrupt::{InterruptOutcome, InterruptReply};
use pythond_protocol::{CellId, ExitCode, SessionPath};
use pythond_transport::{Address, Client, ClientError, Reply, Report};

use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::render::Render;
use crate::text;
use crate::watch::Watch;

/// Frames that are shown of a cell that does not end.
const SHOWN_FRAMES: usize = 3;

type Answer = Result<Reply<InterruptReply>, ClientError>;

/// Listens to Ctrl-C while a cell is waited for.
pub(super) struct RunWatch<'a> {
    interrupts: Interrupts,
    address: Address,
    session: SessionPath,
    cancel_on_disconnect: bool,
    render: &'a Render,
    /// Known once the daemon has accepted it.
    cell: Option<CellId>,
    state: State,
}

enum State {
    /// No Ctrl-C yet.
    Untouched,
    /// One; the daemon has not answered yet. The stream ends when the answer
    /// is there.
    Asked(UnixStream, Receiver<Answer>),
    /// One, and the answer was told.
    Told,
}

impl<'a> RunWatch<'a> {
    pub(super) fn new(
        interrupts: Interrupts,
        address: Address,
        session: SessionPath,
        cancel_on_disconnect: bool,
        render: &'a Render,
    ) -> Self {
        Self {
            interrupts,
            address,
            session,
            cancel_on_disconnect,
            render,
            cell: None,
            state: State::Untouched,
        }
    }

    /// The cell has an id.
    pub(super) fn accepted(&mut self, cell: CellId) {
        self.cell = Some(cell);
    }

    /// The cell, once it has an id.
    pub(super) fn cell(&self) -> Option<CellId> {
        self.cell
    }

    /// Asks for the interrupt: on a connection of its own, as the first one
    /// answers in order, after the cell; in a thread of its own, so that output
    /// goes on and a second Ctrl-C leaves at once, whatever the daemon does.
    /// The thread ends with its answer or with the process.
    fn ask(&self) -> std::io::Result<State> {
        let (answered, in_work) = UnixStream::pair()?;
        let (sender, receiver) = sync_channel(1);
        let (address, session, cell) = (self.address.clone(), self.session.clone(), self.cell);
        std::thread::Builder::new().spawn(move || {
            // Without an id, whatever runs is meant.
            let answer = Client::connect(&address)
                .and_then(|mut client| client.interrupt_run(&session, cell)?.wait());
            // Nobody waits for it if the cell has ended first.
            let _ = sender.send(answer);
            drop(in_work);
        })?;
        Ok(State::Asked(answered, receiver))
    }

    fn tell(&self, answer: Answer) {
        match answer {
            Ok(reply) => self.tell_reply(&reply.value),
            Err(error) => self.render.error(&not_interrupted(error.into())),
        }
    }

    fn tell_reply(&self, reply: &InterruptReply) {
        if reply.interrupted.is_empty() && self.cell.is_none() {
            self.render
                .note("no cell is running; Ctrl-C again leaves this one where it waits");
        }
        for cell in &reply.cells {
            if cell.outcome == InterruptOutcome::Pending {
                self.render.note(&text::pending(cell, SHOWN_FRAMES));
                self.render.note("Ctrl-C again leaves it running");
            }
        }
    }

    fn left(&self) -> Report {
        let session = &self.session;
        let cell = match self.cell {
            Some(id) => format!("cell `{id}`"),
            None => "the cell".to_owned(),
        };
        let fate = if self.cancel_on_disconnect {
            "is interrupted"
        } else {
            "goes on"
        };
        let hint = match self.cell {
            Some(id) => format!(
                "follow it with `pysh out {session} {id} --follow`, wait with `pysh wait {session} {id}`"
            ),
            None => format!("see `pysh cells {session}`"),
        };
        Report::new(
            "interrupted",
            format!("left `{session}` before the cell ended; {cell} {fate}"),
            ExitCode::Interrupted,
        )
        .with_hint(hint)
    }
}

impl Watch for RunWatch<'_> {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        let mut wakes = vec![self.interrupts.as_fd()];
        if let State::Asked(answered, _) = &self.state {
            wakes.push(answered.as_fd());
        }
        wakes
    }

    fn woken(&mut self) -> Result<(), Failure> {
        if self.interrupts.take() {
            if !matches!(self.state, State::Untouched) {
                return Err(self.left().into());
            }
            self.state = self.ask().unwrap_or_else(|error| {
                let report = Report::new("internal", error.to_string(), ExitCode::Refused);
                self.render.error(&not_interrupted(report));
                State::Told
            });
        }
        if let State::Asked(_, receiver) = &self.state
            && let Ok(answer) = receiver.try_recv()
        {
            self.state = State::Told;
            self.tell(answer);
        }
        Ok(())
    }
}

fn not_interrupted(mut report: Report) -> Report {
    report
        .message
        .insert_str(0, "the cell could not be interrupted: ");
    report.hint = Some("Ctrl-C again leaves it running".to_owned());
    report
}
