//! The one thread of a host that serves daemons: control lane, captured output,
//! interrupts. Plain poll, never attached to Python, with a descriptor table of
//! its own that no cell can reach.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pythond_protocol::lane::{
    Hello, HostCommand, HostEvent, INLINE_OUTPUT, Lane, Message, OUTPUT_CHUNK,
};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::files::session_directory;
use crate::handoff;
use crate::lane_socket::{LaneLost, LaneSocket};
use crate::shared::{Found, Shared};
use crate::{interrupt, output, service, sys};

/// How often an interrupt is repeated until the main thread has seen it.
const REPEAT_INTERRUPT: Duration = Duration::from_millis(20);
/// How often waiting records are written while cells keep coming.
const WRITE_RECORDS: Duration = Duration::from_millis(20);
/// Connections that have not said what they are.
const MOST_STRANGERS: usize = 8;
/// Service threads that may wait for the interpreter at once.
const MOST_SERVICES: usize = 8;

/// Everything the thread owns.
#[derive(Debug)]
struct IoThread {
    shared: &'static Shared,
    listener: OwnedFd,
    handoff: OwnedFd,
    control: Option<LaneSocket>,
    /// The main thread reads this one as a rule; it is kept for the time when
    /// the main thread has lost its own.
    cells: Option<LaneSocket>,
    /// Connections before their first message.
    strangers: Vec<Option<LaneSocket>>,
    repeating: bool,
    /// The lock of the session's directory, taken before the first welcome.
    /// Held until the process ends: such a lock belongs to the descriptor
    /// table that took it, so no cell and no process that a cell forks can let
    /// it go or keep it (fcntl(2)).
    lock: Option<File>,
}

/// Starts the thread; returns when it serves.
///
/// # Errors
/// If the thread or its descriptor table cannot be made.
pub(crate) fn start(
    shared: &'static Shared,
    listener: OwnedFd,
    handoff: OwnedFd,
) -> std::io::Result<()> {
    let theirs = [listener.as_raw_fd(), handoff.as_raw_fd()];
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    sys::handle_by_nothing(sys::wake_signal())?;
    std::thread::Builder::new()
        .name("pythond-io".to_owned())
        .stack_size(512 << 10)
        .spawn(move || {
            sys::block_all_signals();
            let prepared = sys::unshare_descriptors();
            shared.set_io_thread();
            let failed = prepared.is_err();
            // The starter waits for exactly this message.
            let _ = ready.send(prepared);
            if !failed {
                let mut thread = IoThread {
                    shared,
                    listener,
                    handoff,
                    control: None,
                    cells: None,
                    strangers: Vec::new(),
                    repeating: false,
                    lock: None,
                };
                loop {
                    thread.turn();
                }
            }
        })?;
    is_ready
        .recv()
        .unwrap_or_else(|_| Err(std::io::Error::other("the I/O thread ended")))?;
    // From here on the thread has its own table: in ours these would only be
    // kept open by processes that cells fork.
    for descriptor in theirs {
        sys::close_in_this_table(descriptor);
    }
    Ok(())
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Output,
    Listener,
    Control,
    Cells,
    Stranger(usize),
}

impl IoThread {
    fn turn(&mut self) {
        let (mut set, names) = self.poll_set();
        let timeout = if self.repeating {
            Some(REPEAT_INTERRUPT)
        } else if self.shared.recorder.watched() {
            Some(WRITE_RECORDS)
        } else {
            None
        };
        // Interrupted, timed out or ready: what there is to do shows below.
        let _ = sys::wait_with_signal(&mut set, timeout, sys::wake_signal());
        if self.repeating {
            self.repeating = interrupt::repeat();
        }
        if self.shared.recorder.watched() {
            self.shared.recorder.tick();
        }
        self.send_outbox();
        for (entry, name) in set.iter().zip(&names) {
            if entry.revents != 0 {
                self.serve(*name, entry.revents);
            }
        }
        self.strangers.retain(Option::is_some);
        if self.shared.shutting_down() {
            self.repeating |= self.interrupt_running();
            handoff::nudge(&self.handoff);
        }
    }

    fn poll_set(&self) -> (Vec<libc::pollfd>, Vec<Watched>) {
        let mut set = Vec::with_capacity(8);
        let mut names = Vec::with_capacity(8);
        let mut add = |descriptor: i32, events: i16, name: Watched| {
            set.push(libc::pollfd {
                fd: descriptor,
                events,
                revents: 0,
            });
            names.push(name);
        };
        let capture = &self.shared.capture;
        add(
            capture.stdout_read.as_raw_fd(),
            libc::POLLIN,
            Watched::Output,
        );
        add(
            capture.stderr_read.as_raw_fd(),
            libc::POLLIN,
            Watched::Output,
        );
        // Whoever connects earlier waits until it is known which session this is.
        if self.shared.directory().is_some() {
            add(self.listener.as_raw_fd(), libc::POLLIN, Watched::Listener);
        }
        if let Some(control) = &self.control {
            let read = if control.may_read() { libc::POLLIN } else { 0 };
            let write = if control.wants_to_write() {
                libc::POLLOUT
            } else {
                0
            };
            add(control.as_fd().as_raw_fd(), read | write, Watched::Control);
        }
        if let Some(cells) = &self.cells
            && self.shared.io_reads_cells()
        {
            add(cells.as_fd().as_raw_fd(), libc::POLLIN, Watched::Cells);
        }
        for (index, stranger) in self.strangers.iter().flatten().enumerate() {
            add(
                stranger.as_fd().as_raw_fd(),
                libc::POLLIN,
                Watched::Stranger(index),
            );
        }
        (set, names)
    }

    fn serve(&mut self, what: Watched, events: i16) {
        match what {
            Watched::Output => self.shared.drain(),
            Watched::Listener => self.accept(),
            Watched::Control => {
                if let Err(_lost) = self.serve_control(events) {
                    // The daemon connects again if it wants to; cells go on.
                    self.control = None;
                }
            }
            Watched::Cells => {
                if let Err(_lost) = self.serve_cells() {
                    self.cells = None;
                }
            }
            Watched::Stranger(index) => {
                // One that breaks the framing is dropped with the error.
                let _ = self.greet(index);
            }
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            return;
        };
        let mine = rustix::process::geteuid().as_raw();
        let known =
            pythond_private_fs::peer_credentials(&socket).is_ok_and(|peer| peer.uid == mine);
        if known && self.strangers.len() < MOST_STRANGERS {
            self.strangers.push(Some(LaneSocket::new(socket)));
        }
    }

    /// Learns which lane a new connection is and answers.
    fn greet(&mut self, index: usize) -> Result<(), LaneLost> {
        let Some(mut lane) = self.strangers.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        lane.receive()?;
        let Some(Message { header: hello, .. }) = lane.next::<Hello>()? else {
            self.strangers[index] = Some(lane);
            return Ok(());
        };
        lane.set_tag(hello.tag);
        match hello.lane {
            Lane::Control => {
                if self.lock.is_none() {
                    self.lock = lock_directory(self.shared);
                }
                lane.send(&HostEvent::Welcome(Box::new(self.shared.welcome())), b"")?;
                self.control = Some(lane);
            }
            Lane::Cell => {
                lane.send(&HostEvent::CellLaneReady, b"")?;
                if !self.shared.io_reads_cells()
                    && handoff::give_lane(&self.handoff, lane.as_fd(), hello.tag).is_err()
                {
                    self.shared.let_io_read_cells();
                }
                self.cells = Some(lane);
            }
        }
        Ok(())
    }

    fn serve_control(&mut self, events: i16) -> Result<(), LaneLost> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        if events & libc::POLLOUT != 0 {
            control.flush()?;
        }
        if events & !libc::POLLOUT != 0 {
            control.receive()?;
        }
        loop {
            let Some(control) = &mut self.control else {
                return Ok(());
            };
            let Some(message) = control.next::<HostCommand>()? else {
                return Ok(());
            };
            if let Some((event, body)) = self.obey(message) {
                self.answer(&event, &body)?;
            }
        }
    }

    fn answer(&mut self, event: &HostEvent, body: &[u8]) -> Result<(), LaneLost> {
        match &mut self.control {
            Some(control) => control.send(event, body),
            None => Ok(()),
        }
    }

    fn send_outbox(&mut self) {
        for (event, body) in self.shared.take_outbox() {
            if self.answer(&event, &body).is_err() {
                self.control = None;
            }
        }
    }

    /// Cells from the cell lane, while the main thread cannot read it.
    fn serve_cells(&mut self) -> Result<(), LaneLost> {
        let Some(cells) = &mut self.cells else {
            return Ok(());
        };
        cells.receive()?;
        while let Some(message) = cells.next::<HostCommand>()? {
            if let HostCommand::Run { request, changed } = message.header {
                self.shared
                    .enqueue(request, changed, into_source(message.body));
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: Message<HostCommand>) -> Option<(HostEvent, Vec<u8>)> {
        let event = match message.header {
            HostCommand::Run { request, changed } => {
                let cell = self
                    .shared
                    .enqueue(request, changed, into_source(message.body));
                handoff::nudge(&self.handoff);
                HostEvent::Accepted { request, cell }
            }
            HostCommand::Status { request } => HostEvent::Status {
                request,
                status: self.shared.status(),
            },
            HostCommand::Vars { request } => {
                return self.start_service(request, service::Question::Vars);
            }
            HostCommand::Complete { request, text } => {
                return self.start_service(request, service::Question::Complete(text));
            }
            HostCommand::ReadOutput {
                request,
                cell,
                offset,
                most,
            } => {
                let most = (most as usize).min(OUTPUT_CHUNK);
                match self.shared.outputs.read(cell.as_u64(), offset, most) {
                    Some((body, next)) => {
                        return Some((
                            HostEvent::OutputChunk {
                                request,
                                offset,
                                next,
                            },
                            body,
                        ));
                    }
                    None => unknown_cell(request, cell),
                }
            }
            HostCommand::Await { request, cell } => match self.shared.find(cell, request) {
                Found::Ended(end) => {
                    let (body, _) = self
                        .shared
                        .outputs
                        .read(cell.as_u64(), 0, INLINE_OUTPUT)
                        .unwrap_or_default();
                    let body = if body.len() as u64 > end.log_end {
                        Vec::new()
                    } else {
                        body
                    };
                    return Some((HostEvent::Finished(end), body));
                }
                Found::Later => return None,
                Found::Unknown => unknown_cell(request, cell),
            },
            HostCommand::Interrupt { request, cell } => HostEvent::Interrupted {
                request,
                cells: self.interrupt(cell),
            },
            HostCommand::Shutdown => {
                self.shared.shut_down();
                return None;
            }
        };
        Some((event, Vec::new()))
    }

    fn interrupt(&mut self, cell: Option<CellId>) -> Vec<CellId> {
        let target = cell.or_else(|| self.shared.running());
        let Some(target) = target else {
            return Vec::new();
        };
        if interrupt::aim_at(target.as_u64()) {
            self.repeating = true;
            return vec![target];
        }
        if cell.is_some() && !self.shared.has_ended(target) {
            interrupt::aim_at_start(target.as_u64());
            self.repeating = true;
            return vec![target];
        }
        Vec::new()
    }

    fn interrupt_running(&self) -> bool {
        self.shared
            .running()
            .is_some_and(|cell| interrupt::aim_at(cell.as_u64()))
    }

    fn start_service(
        &self,
        request: u64,
        question: service::Question,
    ) -> Option<(HostEvent, Vec<u8>)> {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let shared = self.shared;
        let refused = |message: &str| {
            let error = ErrorReply::new(ErrorCode::Busy, message)
                .with_hint("ask again, or interrupt the cell with `pysh int`");
            Some((HostEvent::Refused { request, error }, Vec::new()))
        };
        if RUNNING.fetch_add(1, SeqCst) >= MOST_SERVICES {
            RUNNING.fetch_sub(1, SeqCst);
            return refused("the interpreter is busy and too many questions wait for it");
        }
        let started = std::thread::Builder::new()
            .name("pythond-service".to_owned())
            .spawn(move || {
                let event = service::answer(request, question);
                RUNNING.fetch_sub(1, SeqCst);
                shared.send(event, Vec::new());
            });
        if started.is_err() {
            RUNNING.fetch_sub(1, SeqCst);
            return refused("no thread can be started in this session");
        }
        None
    }
}

/// Locks the session's directory, so that two daemons with one home do not
/// write the same files.
fn lock_directory(shared: &Shared) -> Option<File> {
    // A directory that cannot be used is told with the first record.
    let directory = session_directory(Path::new(shared.directory()?)).ok()?;
    let file = directory.read_write_file("lock").ok()?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => output::remove_left_behind(&directory),
        Err(Errno::AGAIN | Errno::ACCESS) => shared.set_name_in_use(),
        // A file system without locks: nothing can be said.
        Err(_) => {}
    }
    Some(file)
}

fn unknown_cell(request: u64, cell: CellId) -> HostEvent {
    let error = ErrorReply::new(ErrorCode::NoSession, format!("unknown cell `{cell}`"));
    HostEvent::Refused { request, error }
}

/// Sources come from WebSocket text messages, so they are UTF-8; whatever else
/// a broken daemon sends is made so.
pub(crate) fn into_source(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
