//! The main thread of a session host: becomes a session, then runs cells, one
//! at a time, in the order they came.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use pythond_protocol::lane::{
    CellSpec, Decoder, FinishedCell, HostCommand, HostEvent, HostedSession, LaneError,
};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorReply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::assignment::Assignment;
use crate::cell;
use crate::cells::{Acceptance, Found, QueuedCell};
use crate::files::session_directory;
use crate::handoff::{self, Handed};
use crate::lane_socket::receive_into;
use crate::namespace::Namespace;
use crate::parked::{self, Ready};
use crate::prompt::Prompt;
use crate::shared::Shared;
use crate::terminal::Holder;
use crate::{control, ends, fork, helpers, sys};

/// How long the main thread waits for another cell before it writes records:
/// those of cells that follow one another closely are written together.
const IDLE_BEFORE_WRITING: Duration = Duration::from_millis(5);
/// How long the main thread waits for another cell before the prompt comes back.
const IDLE_BEFORE_PROMPT: Duration = Duration::from_micros(300);
/// How often the event loop looks for cells when it cannot watch the lane.
const LOOK_FOR_CELLS: f64 = 0.02;
/// How often it is looked whether somebody attached when nothing tells of it.
const LOOK_FOR_PEOPLE: Duration = Duration::from_millis(100);
/// How often it is looked for keys when nothing tells of them.
const LOOK_FOR_KEYS: Duration = Duration::from_millis(20);

static GLOBALS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();

/// The namespace of this process's session.
pub(crate) fn globals(py: Python<'_>) -> Option<&Bound<'_, PyDict>> {
    GLOBALS.get(py).map(|globals| globals.bind(py))
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
    py.detach(|| shared.recorder.flush());
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

/// The cell lane as the main thread sees it.
#[derive(Debug)]
struct CellLane {
    socket: OwnedFd,
    tag: u64,
    decoder: Decoder,
}

impl Session {
    fn begin(py: Python<'_>, ready: Ready, assignment: Assignment) -> PyResult<Self> {
        let Assignment {
            spec,
            python,
            start,
            cold_reason,
            zygote_pid,
            ..
        } = assignment;
        let Ready {
            shared,
            namespace,
            handoff,
        } = ready;
        let session = helpers::get(py).session.bind(py);
        session.call_method1("become", (&spec.cwd, &spec.env))?;
        let directory = PathBuf::from(&spec.directory);
        // A directory that cannot be made is told with the first record.
        let _ = session_directory(&directory);
        shared.outputs.keep_files_in(directory.clone());
        shared.recorder.write_to(directory);
        let mut hosted = HostedSession {
            spec,
            python,
            start,
            cold_reason,
            created_at: jiff::Timestamp::now().to_string(),
            unfinished: Vec::new(),
            unfinished_beside: Vec::new(),
            unfinished_forks: Vec::new(),
            forks: true,
            queued: Vec::new(),
            next_cell: CellId::from_parts(0, 0),
            not_recorded: None,
            held_by: None,
            zygote_pid,
        };
        hosted.spec.env.clear();
        sys::name_process(&format!("py:{}", hosted.spec.session));
        shared.assign(hosted);
        let _ = GLOBALS.set(py, namespace.globals().clone_ref(py));
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
            if let Some(cell) = self.decode() {
                return Some(Next::Cell(cell));
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

    /// Makes the prompt once somebody attached, and takes what was typed; the
    /// source of a cell once one is whole.
    fn look_at_prompt(&mut self, py: Python<'_>) -> Option<String> {
        let terminal = &self.shared.terminal;
        match &mut self.prompt {
            Some(prompt) if terminal.take_typed() => {
                self.namespace.repair_for_others(py);
                prompt.take_keys(py)
            }
            Some(_) => None,
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

    /// Waits for a cell or a key. The prompt comes back when no cell follows at
    /// once.
    fn wait_at_prompt(&mut self, py: Python<'_>) {
        let at_once = self.prompt.as_ref().is_some_and(Prompt::is_away);
        let nothing = |waited| matches!(waited, Ok(0));
        if at_once || nothing(py.detach(|| self.wait_for(Some(IDLE_BEFORE_PROMPT)))) {
            if let Some(prompt) = &mut self.prompt {
                prompt.show(py);
            }
            py.detach(|| self.wait());
        }
        if let Some(prompt) = &mut self.prompt
            && self.shared.terminal.has_news()
        {
            prompt.show(py);
        }
    }

    /// Waits while the I/O thread reads cells. What is typed may take a moment
    /// until it can be read, and nothing tells.
    fn wait_without_descriptors(&mut self, py: Python<'_>) {
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
            shared.recorder.flush();
            shared.wait_for_queue(Some(longest));
        });
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
                self.shared.recorder.flush();
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
            py.detach(|| self.shared.recorder.flush());
        }
        let indirect = self.shared.io_reads_cells();
        let mut descriptors = Vec::with_capacity(2);
        if !indirect {
            descriptors.push(self.handoff.as_raw_fd());
            descriptors.extend(self.lane.as_ref().map(|lane| lane.socket.as_raw_fd()));
        }
        if let Some(prompt) = &mut self.prompt {
            prompt.show(py);
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
                        continue;
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
            Ok(false) | Err(_) => self.lane = None,
        }
    }

    fn decode(&mut self) -> Option<QueuedCell> {
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
            // Nothing else belongs here; the control lane has the rest.
            if let HostCommand::Run { request, how, .. } = message.header
                && let Some(cell) = self.accept(request, &how, message.body)
            {
                return Some(cell);
            }
        }
    }

    /// Takes a cell from the lane; none if it is not to be run.
    fn accept(&self, request: u64, how: &CellSpec, body: Vec<u8>) -> Option<QueuedCell> {
        let shared = self.shared;
        let source = control::into_source(body);
        let accepted = |cell, existing, status| HostEvent::Accepted {
            request,
            cell,
            existing,
            status,
        };
        match shared.accept(request, CellKind::Run, true, how, &source) {
            Acceptance::New(id) => {
                if how.key.is_some() {
                    shared.send(accepted(id, false, CellStatus::Running), Vec::new());
                }
                Some(QueuedCell {
                    id,
                    direct: true,
                    changed: how.changed,
                    source,
                    most_back: None,
                })
            }
            Acceptance::Existing(id, status) => {
                shared.send(accepted(id, true, status), Vec::new());
                match shared.find(id, request) {
                    Found::Ended(end) => {
                        let (event, body) = shared.finished_message(end);
                        shared.send(event, body);
                    }
                    Found::Later => {}
                    // It was forgotten in this very moment.
                    Found::Unknown => {
                        let error = ErrorReply::unknown_cell(&id.to_string());
                        shared.send(HostEvent::Refused { request, error }, Vec::new());
                    }
                }
                None
            }
            Acceptance::Refused(error) => {
                shared.send(HostEvent::Refused { request, error }, Vec::new());
                None
            }
        }
    }

    fn run_agents_cell(&mut self, py: Python<'_>, cell: QueuedCell) {
        if let Some(prompt) = &mut self.prompt {
            prompt.put_aside();
            self.shared.terminal.hand_to(Holder::Agent);
            self.shared.introduce(cell.id, CellKind::Run, &cell.source);
        }
        self.run_cell(py, CellKind::Run, cell);
    }

    /// Runs what the person typed, with the terminal as its standard streams.
    fn run_persons_cell(&mut self, py: Python<'_>, source: String) {
        let how = CellSpec {
            author: self.shared.terminal.person().author,
            ..CellSpec::default()
        };
        let accepted = self.shared.accept(0, CellKind::Human, false, &how, &source);
        let Acceptance::New(id) = accepted else {
            return;
        };
        let event = HostEvent::Started {
            cell: id,
            kind: CellKind::Human,
        };
        self.shared.send(event, Vec::new());
        self.shared.terminal.hand_to(Holder::Person);
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

    fn terminal_on_standard_streams(&self) {
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
    fn standard_streams_as_before(&self) {
        let capture = &self.shared.capture;
        let _ = rustix::stdio::dup2_stdout(&capture.stdout_write);
        let _ = rustix::stdio::dup2_stderr(&capture.stderr_write);
        if let Ok(null) = open_null() {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
    }

    fn run_cell(&mut self, py: Python<'_>, kind: CellKind, cell: QueuedCell) {
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
        if self.shared.recorder.push(record) {
            py.detach(|| self.shared.recorder.flush());
        }
    }

    fn end_persons_cell(&mut self, py: Python<'_>, finished: &FinishedCell) {
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

    /// Records that wait are written by the I/O thread while cells keep the
    /// main thread busy.
    fn see_to_records(&self) {
        if self.shared.recorder.has_waiting() && self.shared.recorder.watch() {
            self.shared.wake_io();
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

    /// Gives descriptors 1 and 2 back if a cell closed them, so that child
    /// processes and C code have somewhere to write. Others that took their
    /// numbers are left alone.
    fn restore_descriptors(&mut self) {
        self.restore_terminal();
        let capture = &self.shared.capture;
        if rustix::io::fcntl_getfd(rustix::stdio::stdin()) == Err(Errno::BADF)
            && let Ok(null) = open_null()
        {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
        if rustix::io::fcntl_getfd(rustix::stdio::stdout()) == Err(Errno::BADF)
            && rustix::stdio::dup2_stdout(&capture.stdout_write).is_err()
            && let Some(pipe) = self.reopen(&capture.stdout_write)
        {
            let _ = rustix::stdio::dup2_stdout(&pipe);
        }
        if rustix::io::fcntl_getfd(rustix::stdio::stderr()) == Err(Errno::BADF)
            && rustix::stdio::dup2_stderr(&capture.stderr_write).is_err()
            && let Some(pipe) = self.reopen(&capture.stderr_write)
        {
            let _ = rustix::stdio::dup2_stderr(&pipe);
        }
    }

    /// Opens a pipe anew through the I/O thread's descriptor table (proc(5)).
    fn reopen(&self, pipe: &OwnedFd) -> Option<OwnedFd> {
        let path = format!(
            "/proc/self/task/{}/fd/{}",
            self.shared.io_thread_id(),
            pipe.as_raw_fd()
        );
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
    }

    /// Looks whether a cell closed the terminal's descriptors.
    fn restore_terminal(&mut self) {
        let follower = self.shared.terminal.follower();
        if self.shared.terminal.is_wanted()
            && let Some(follower) = follower
            && rustix::io::fcntl_getfd(&follower.terminal) == Err(Errno::BADF)
        {
            self.reopen_terminal();
        }
    }

    /// A cell closed the terminal's descriptors: puts them back under their
    /// numbers, from the I/O thread's table (proc(5)).
    fn reopen_terminal(&mut self) {
        let Some(follower) = self.shared.terminal.follower() else {
            return;
        };
        let thread = self.shared.io_thread_id();
        let mut whole = true;
        for (descriptor, extra) in [
            (&follower.terminal, rustix::fs::OFlags::empty()),
            (&follower.side, rustix::fs::OFlags::NONBLOCK),
        ] {
            let number = descriptor.as_raw_fd();
            let flags = rustix::fs::OFlags::RDWR
                | rustix::fs::OFlags::NOCTTY
                | rustix::fs::OFlags::CLOEXEC
                | extra;
            let path = format!("/proc/self/task/{thread}/fd/{number}");
            let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
            whole &= opened.is_ok_and(|opened| sys::put_at(opened, number));
        }
        if !whole {
            // Nothing can be typed any more; agents' cells go on.
            self.prompt = None;
        }
    }
}

fn open_null() -> Result<OwnedFd, Errno> {
    let flags = rustix::fs::OFlags::RDONLY;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
}

impl CellLane {
    /// Takes in what is there. False when the daemon has closed the lane.
    fn receive(&mut self) -> Result<bool, Errno> {
        loop {
            match receive_into(&self.socket, self.decoder.buffer()) {
                Ok(0) => return Ok(false),
                Ok(count) if count < 64 << 10 => return Ok(true),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Writes a whole message. Gives up when the I/O thread has news: a daemon
    /// that does not read must not hold the session.
    fn send(&self, event: &HostEvent, body: &[u8], handoff: impl AsFd) -> Result<(), Errno> {
        let message =
            pythond_protocol::lane::encode(self.tag, event, body).map_err(|_| Errno::MSGSIZE)?;
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match rustix::net::send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut set = [
                        PollFd::new(&self.socket, PollFlags::OUT),
                        PollFd::new(&handoff, PollFlags::IN),
                    ];
                    let _ = poll(&mut set, None);
                    if !set[1].revents().is_empty() && set[0].revents().is_empty() {
                        return Err(Errno::PIPE);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// True if a number does not name what it named any more.
fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::BADF | Errno::NOTSOCK)
}
