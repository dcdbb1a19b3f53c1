//! The main thread of a session host: becomes a session, then runs cells, one
//! at a time, in the order they came.

mod cell_lane;
mod descriptors;
mod person;

use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythond_protocol::CellId;
use pythond_protocol::lane::{CellSpec, Decoder, HostCommand, HostEvent, HostedSession, LaneError};
use pythond_protocol::outcome::CellKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::cell_lane::{CellLane, is_lost};
use crate::assignment::Assignment;
use crate::cell;
use crate::cells::{Acceptance, Found, QueuedCell};
use crate::handoff::{self, Handed};
use crate::namespace::Namespace;
use crate::parked::{self, Ready};
use crate::prompt::Prompt;
use crate::shared::Shared;
use crate::{control, ends, fork, helpers, limits, sys};

/// How long the main thread waits for another cell before it writes records:
/// those of cells that follow one another closely are written together.
const IDLE_BEFORE_WRITING: Duration = Duration::from_millis(5);
/// How long the main thread waits for another cell before it shows what those
/// before have written.
const IDLE_BEFORE_PROMPT: Duration = Duration::from_millis(10);
/// So many bytes of code take longer to be hashed than other threads are to wait.
const LONG: usize = 256 << 10;
/// How often the event loop looks for cells when it cannot watch the lane.
const LOOK_FOR_CELLS: f64 = 0.02;
/// How often it is looked whether somebody attached when nothing tells of it.
const LOOK_FOR_PEOPLE: Duration = Duration::from_millis(100);
/// How often it is looked for keys when nothing tells of them.
const LOOK_FOR_KEYS: Duration = Duration::from_millis(20);

static GLOBALS: OnceLock<Py<PyDict>> = OnceLock::new();

/// The namespace of this process's session.
pub(crate) fn globals(py: Python<'_>) -> Option<&Bound<'_, PyDict>> {
    GLOBALS.get().map(|globals| globals.bind(py))
}

/// Becomes the session and serves it until it ends. Never returns.
pub(crate) fn serve(py: Python<'_>, ready: Ready, assignment: Assignment) -> ! {
    let shared = ready.shared;
    let status = match Session::begin(py, ready, assignment) {
        Ok(mut session) => {
            session.run(py);
            0
        }
        Err(error) => {
            error.print(py);
            1
        }
    };
    fork::end_all();
    // What the handlers raise they have told themselves.
    let _ = helpers::get(py)
        .session
        .bind(py)
        .call_method0("run_exit_handlers");
    py.detach(|| shared.disk.finish());
    sys::exit_now(status)
}

#[derive(Debug)]
struct Session {
    shared: &'static Shared,
    namespace: Namespace,
    handoff: OwnedFd,
    /// There may be something in it.
    handed: bool,
    lane: Option<CellLane>,
    /// The person's prompt, once somebody attached.
    prompt: Option<Prompt>,
}

/// What is to be run next.
enum Next {
    /// A cell that an agent submitted.
    Cell(QueuedCell),
    /// What the person typed.
    Typed(String),
}

impl Session {
    fn begin(py: Python<'_>, ready: Ready, assignment: Assignment) -> PyResult<Self> {
        let Assignment {
            spec,
            python,
            start,
            cold_reason,
            zygote_pid,
            runtime_dir,
            name,
        } = assignment;
        let Ready {
            shared,
            namespace,
            handoff,
        } = ready;
        let session = helpers::get(py).session.bind(py);
        session.call_method1("become", (&spec.cwd, &spec.env))?;
        let directory = PathBuf::from(&spec.directory);
        shared.outputs.keep_within(spec.kept);
        shared.keep_cells_within(spec.cells);
        shared.disk.work_in(directory);
        let mut hosted = HostedSession {
            spec,
            python,
            start,
            cold_reason,
            created_at: jiff::Timestamp::now().to_string(),
            unfinished: Vec::new(),
            unfinished_humans: Vec::new(),
            unfinished_beside: Vec::new(),
            unfinished_forks: Vec::new(),
            forks: true,
            keys_by_cell_lane: true,
            queued: Vec::new(),
            next_cell: CellId::from_parts(0, 0),
            not_recorded: None,
            held_by: None,
            limited_by: None,
            zygote_pid,
        };
        hosted.spec.env.clear();
        match limits::apply(hosted.spec.limits) {
            Ok(limited_by) => hosted.limited_by = limited_by,
            Err(why) => shared.refuse(why),
        }
        sys::name_process(&format!("py:{}", hosted.spec.session));
        shared.set_place(runtime_dir, format!("{name}.sock"));
        shared.assign(hosted);
        let _ = GLOBALS.set(namespace.globals().clone_ref(py));
        Ok(Self {
            shared,
            namespace,
            handoff,
            handed: true,
            lane: None,
            prompt: None,
        })
    }

    fn run(&mut self, py: Python<'_>) {
        while let Some(next) = self.next(py) {
            match next {
                Next::Cell(cell) => self.run_agents_cell(py, cell),
                Next::Typed(source) => self.run_persons_cell(py, source),
            }
        }
    }

    /// Waits for what is to be run next. None when the session is to end.
    fn next(&mut self, py: Python<'_>) -> Option<Next> {
        loop {
            if self.shared.shutting_down() {
                return None;
            }
            if let Some(source) = self.look_at_prompt(py) {
                return Some(Next::Typed(source));
            }
            if let Some(cell) = self.shared.next_queued() {
                if cell.direct {
                    return Some(Next::Cell(cell));
                }
                let event = HostEvent::Started {
                    cell: cell.id,
                    kind: CellKind::Run,
                };
                self.shared.send(event, Vec::new());
                return Some(Next::Cell(cell));
            }
            if let Some(cell) = self.decode(py) {
                return Some(Next::Cell(cell));
            }
            if self.shared.has_queued() {
                // They waited for one that was not new.
                continue;
            }
            if helpers::get(py).loop_has_work(py) {
                self.serve_tasks(py);
            } else if self.shared.io_reads_cells() {
                self.wait_without_descriptors(py);
            } else if self.prompt.is_some() {
                self.wait_at_prompt(py);
            } else {
                py.detach(|| self.wait());
            }
            if let Err(error) = py.check_signals() {
                // A handler of the user's, between cells.
                cell::explain(py, helpers::get(py), error);
            }
            self.take_what_came();
        }
    }

    /// Waits until the lane or the I/O thread has something; writes records
    /// when nothing comes at once.
    fn wait(&mut self) {
        let first = if self.shared.recorder.has_waiting() {
            Some(IDLE_BEFORE_WRITING)
        } else {
            None
        };
        match self.wait_for(first) {
            Ok(0) if first.is_some() => {
                self.shared.disk.write_records_now();
                let _ = self.wait_for(None);
            }
            _ => {}
        }
    }

    /// A cell closed descriptors of the main thread: the I/O thread, which has
    /// a table of its own, reads cells from now on. The lost number may belong
    /// to a file of the cell's by now, so it is not closed.
    fn lose_descriptors(&self, lane: Option<CellLane>) {
        if let Some(lane) = lane {
            let _ = lane.socket.into_raw_fd();
        }
        self.shared.let_io_read_cells();
    }

    fn wait_for(&mut self, longest: Option<Duration>) -> Result<usize, Errno> {
        let lost = PollFlags::NVAL;
        let mut set = Vec::with_capacity(3);
        set.push(PollFd::new(&self.handoff, PollFlags::IN));
        if let Some(lane) = &self.lane {
            set.push(PollFd::new(&lane.socket, PollFlags::IN));
        }
        let terminal = self.prompt.as_ref().map(Prompt::as_fd);
        if let Some(terminal) = &terminal {
            set.push(PollFd::new(terminal, PollFlags::IN));
        }
        let limit = longest.map(|longest| Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        });
        let ready = poll(&mut set, limit.as_ref())?;
        self.handed = !set[0].revents().is_empty();
        let mut terminal_lost = false;
        if terminal.is_some()
            && let Some(entry) = set.pop()
        {
            if entry.revents().contains(PollFlags::IN) {
                self.shared.terminal.note_typed();
            }
            terminal_lost = entry.revents().contains(lost);
        }
        if set.iter().any(|entry| entry.revents().contains(lost)) {
            let lane = self.lane.take();
            self.lose_descriptors(lane);
        }
        if terminal_lost {
            self.reopen_terminal();
        }
        Ok(ready)
    }

    fn serve_tasks(&mut self, py: Python<'_>) {
        if self.shared.recorder.has_waiting() {
            self.shared.disk.write_records_now();
        }
        let indirect = self.shared.io_reads_cells();
        let mut descriptors = Vec::with_capacity(2);
        if !indirect {
            descriptors.push(self.handoff.as_raw_fd());
            descriptors.extend(self.lane.as_ref().map(|lane| lane.socket.as_raw_fd()));
        }
        if let Some(prompt) = &mut self.prompt {
            prompt.show_if_due(py);
            descriptors.push(prompt.as_fd().as_raw_fd());
        }
        let longest = indirect.then_some(LOOK_FOR_CELLS);
        if let Err(error) = helpers::get(py)
            .loop_serve
            .call1(py, (descriptors, longest))
        {
            let lost = !indirect && error.is_instance_of::<pyo3::exceptions::PyOSError>(py);
            if lost {
                let lane = self.lane.take();
                self.lose_descriptors(lane);
            } else {
                cell::explain(py, helpers::get(py), error);
            }
        }
        if self.prompt.is_some() {
            // A key may be what ended this.
            self.shared.terminal.note_typed();
        }
    }

    /// Takes in what the handoff and the lane have, without waiting.
    fn take_what_came(&mut self) {
        if self.shared.io_reads_cells() {
            return;
        }
        while self.handed {
            match handoff::take(&self.handoff) {
                Ok(Handed::CellLane(socket, tag)) => {
                    let Ok(socket) = parked::out_of_the_way(socket) else {
                        // No number is free for it. The I/O thread has its own.
                        let lane = self.lane.take();
                        self.lose_descriptors(lane);
                        return;
                    };
                    self.lane = Some(CellLane {
                        socket,
                        tag,
                        decoder: Decoder::new(tag),
                    });
                }
                Ok(Handed::Nudge) => {}
                Ok(Handed::Nothing) => self.handed = false,
                Err(_) => {
                    let lane = self.lane.take();
                    self.lose_descriptors(lane);
                    return;
                }
            }
        }
        // Whoever waits for it without `wait_for` has to look.
        self.handed = true;
        let Some(lane) = &mut self.lane else { return };
        match lane.receive() {
            Ok(true) => {}
            Err(errno) if is_lost(errno) => {
                let lane = self.lane.take();
                self.lose_descriptors(lane);
            }
            Ok(false) => self.lane = None,
            Err(_) => {
                // The I/O thread has the socket too: only this makes the daemon
                // open another, and send again what is lost with this one.
                let _ = rustix::net::shutdown(&lane.socket, rustix::net::Shutdown::Both);
                self.lane = None;
            }
        }
    }

    fn decode(&mut self, py: Python<'_>) -> Option<QueuedCell> {
        loop {
            let lane = self.lane.as_mut()?;
            let message = match lane.decoder.next_message::<HostCommand>() {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(LaneError::WrongTag | LaneError::BadLength | LaneError::BadHeader(_)) => {
                    // Closing it makes the daemon open a clean one.
                    let _ = rustix::net::shutdown(&lane.socket, rustix::net::Shutdown::Both);
                    self.lane = None;
                    return None;
                }
            };
            let tag = lane.tag;
            // Nothing else belongs here; the control lane has the rest.
            let HostCommand::Run { request, how, .. } = message.header else {
                continue;
            };
            if let Some(cell) = self.accept(py, request, tag, &how, message.body) {
                return Some(cell);
            }
        }
    }

    /// Takes a cell from the lane with this tag; none if it is not to be run.
    fn accept(
        &mut self,
        py: Python<'_>,
        request: u64,
        tag: u64,
        how: &CellSpec,
        body: Vec<u8>,
    ) -> Option<QueuedCell> {
        let shared = self.shared;
        let source = control::into_source(body);
        let accept = || shared.accept(request, CellKind::Run, Some(tag), how, &source);
        // What has a key is hashed, which takes as long as it is.
        let is_long = how.key.is_some() && source.len() > LONG;
        let acceptance = match is_long {
            true => py.detach(accept),
            false => accept(),
        };
        match acceptance {
            // The daemon knows that, and may not know yet that cells are to wait.
            Acceptance::New(id) => shared.enqueue_if_held(QueuedCell {
                id,
                direct: true,
                changed: how.changed,
                source,
                most_back: None,
            }),
            Acceptance::Existing(id, status) => {
                let event = HostEvent::Accepted {
                    request,
                    cell: id,
                    existing: true,
                    status,
                };
                shared.send(event, Vec::new());
                match shared.find(id, request) {
                    Found::Ended(end) => {
                        let (event, body) = shared.finished_message(end);
                        shared.send(event, body);
                    }
                    Found::Later => {}
                    // It was forgotten in this very moment.
                    Found::Unknown(error) => {
                        shared.send(HostEvent::Refused { request, error }, Vec::new());
                    }
                }
                None
            }
            Acceptance::Refused(error) => {
                shared.send(HostEvent::Refused { request, error }, Vec::new());
                None
            }
            Acceptance::Stale => {
                // With all that was read from it. The next one is in the handoff,
                // or will be.
                self.lane = None;
                None
            }
        }
    }

    fn run_agents_cell(&mut self, py: Python<'_>, cell: QueuedCell) {
        if let Some(prompt) = &mut self.prompt {
            prompt.make_way();
            self.shared.introduce(cell.id, CellKind::Run, &cell.source);
        }
        self.run_cell(py, CellKind::Run, cell);
        if let Some(prompt) = &mut self.prompt {
            prompt.come_back();
        }
    }

    fn run_cell(&mut self, py: Python<'_>, kind: CellKind, cell: QueuedCell) {
        // What an earlier cell has blocked must not keep this one from being
        // interrupted.
        sys::unblock_signal(rustix::process::Signal::INT.as_raw());
        self.restore_descriptors();
        self.see_to_records();
        let mut finished = self.namespace.run(py, self.shared, kind, &cell);
        if kind == CellKind::Human {
            self.end_persons_cell(py, &finished);
        }
        let waiting = self.shared.ended(&mut finished);
        let (event, body) = self.shared.finished_message(Box::new(finished));
        if cell.direct {
            self.deliver(py, &event, &body);
        } else {
            self.shared.send(event.clone(), body.clone());
        }
        let HostEvent::Finished(finished) = event else {
            return;
        };
        if kind == CellKind::Run {
            self.shared.conclude(&finished);
        }
        ends::tell_others(self.shared, &finished, waiting, &body);
        let record = cell::record_of(py, self.shared, cell.source, &finished);
        self.shared.outputs.end_main(finished.cell.as_u64());
        ends::settle(self.shared, &finished);
        py.detach(|| self.shared.recorder.push(record, &self.shared.disk));
    }

    /// Records that wait are written while cells keep the main thread busy.
    fn see_to_records(&self) {
        if self.shared.recorder.has_waiting() {
            self.shared.disk.write_records_soon();
        }
    }

    /// Sends a cell's end on the cell lane; through the I/O thread if that is
    /// not possible.
    fn deliver(&mut self, py: Python<'_>, event: &HostEvent, body: &[u8]) {
        let direct = match &self.lane {
            Some(lane) if !self.shared.io_reads_cells() => {
                py.detach(|| lane.send(event, body, &self.handoff))
            }
            _ => Err(Errno::NOTCONN),
        };
        if let Err(errno) = direct {
            match self.lane.take() {
                // The number is not ours any more and must not be closed.
                Some(lane) if is_lost(errno) => self.lose_descriptors(Some(lane)),
                // Half a message may have gone out: the daemon needs a clean lane.
                Some(lane) => {
                    let _ = rustix::net::shutdown(&lane.socket, rustix::net::Shutdown::Both);
                }
                None => {}
            }
            self.shared.send(event.clone(), body.to_vec());
        }
    }
}
