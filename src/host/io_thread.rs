//! The one thread of a host that serves daemons: control lane, captured output,
//! interrupts. Plain poll, never attached to Python, with a descriptor table of
//! its own that no cell can reach.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use pythond_private_fs::PrivateDir;
use pythond_protocol::CellId;
use pythond_protocol::lane::{Hello, HostCommand, HostEvent, Lane, Message};
use pythond_protocol::outcome::CellKind;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, Rlimit};

use crate::control::{Control, Submitted};
use crate::handoff;
use crate::lane_socket::{LaneLost, LaneSocket};
use crate::shared::Shared;
use crate::terminal::{Arrived, Leader, Terminals};
use crate::zygote::birth::BACKLOG;
use crate::{fire, fork, interrupt, records, sys};

/// How often an interrupt is repeated until the main thread has seen it.
const REPEAT_INTERRUPT: Duration = Duration::from_millis(20);
/// Connections that have not said what they are. The oldest makes room.
const MOST_STRANGERS: usize = 8;
/// Pause after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// A session without a daemon that no daemon can reach for so long ends: its
/// cells could not be seen, interrupted or followed ever again.
const OUT_OF_REACH: Duration = Duration::from_secs(5);
/// Its exit status then, EX_OSERR of sysexits(3).
const OUT_OF_REACH_STATUS: i32 = 71;
/// How often a host without a daemon looks whether its socket is still there.
const LOOK_FOR_SOCKET: Duration = Duration::from_secs(5);
/// How long is waited at most where no signal ends the wait.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often it is looked whether terminals that are far behind read on.
const LOOK_WHO_IS_BEHIND: Duration = Duration::from_millis(100);
/// How often it is looked whether what agents' cells write has waited for long
/// to be shown above the prompt.
const SHOW_WHAT_WAITS: Duration = Duration::from_millis(40);
/// How often it is looked whether readers came near enough.
const HOLD_BACK: Duration = Duration::from_millis(5);
/// How long until the main thread is offered a lane again that it had no room for.
const GIVE_AGAIN: Duration = Duration::from_millis(20);

/// Everything the thread owns.
#[derive(Debug)]
struct IoThread {
    shared: &'static Shared,
    listener: OwnedFd,
    /// While this is in the future nothing is accepted.
    accept_at: Option<Instant>,
    /// Since when a connection could not be accepted, and when it was last so.
    failing: Option<(Instant, Instant)>,
    control_since: Instant,
    /// What is waited with where a session's limit of open files is less than
    /// what there is to wait for; made before there could be such a limit.
    epoll: Option<OwnedFd>,
    handoff: OwnedFd,
    control: Option<LaneSocket>,
    /// The main thread reads this one as a rule; it is kept for the time when
    /// the main thread has lost its own.
    cells: Option<LaneSocket>,
    /// The tag of that one while the main thread still has to get it.
    lane_to_give: Option<u64>,
    /// Connections before their first message.
    strangers: Vec<Option<LaneSocket>>,
    requests: Control,
    terminals: Terminals,
    /// Since when what child processes write waits in its pipe for readers to
    /// come near.
    held_back: Option<Instant>,
    /// When it is looked next what waits to be shown above the prompt.
    show_at: Option<Instant>,
    /// The lock of the session's directory was asked for.
    locked: bool,
}

/// Starts the thread; returns when it serves.
///
/// # Errors
/// If the thread or its descriptor table cannot be made.
pub(crate) fn start(
    shared: &'static Shared,
    listener: OwnedFd,
    handoff: OwnedFd,
    leader: Option<Leader>,
) -> std::io::Result<()> {
    let mut theirs = vec![listener.as_raw_fd(), handoff.as_raw_fd()];
    theirs.extend(leader.iter().flat_map(Leader::descriptors));
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    sys::handle_by_nothing(sys::wake_signal())?;
    std::thread::Builder::new()
        .name("pythond-io".to_owned())
        .stack_size(512 << 10)
        .spawn(move || {
            sys::block_all_signals();
            let prepared = sys::unshare_descriptors().and_then(|()| records::start(shared));
            shared.set_io_thread();
            let failed = prepared.is_err();
            // The starter waits for exactly this message.
            let _ = ready.send(prepared);
            if !failed {
                let mut thread = IoThread {
                    shared,
                    listener,
                    accept_at: None,
                    failing: None,
                    control_since: Instant::now(),
                    epoll: epoll::create(epoll::CreateFlags::CLOEXEC).ok(),
                    handoff,
                    control: None,
                    cells: None,
                    lane_to_give: None,
                    strangers: Vec::new(),
                    requests: Control::new(shared),
                    terminals: Terminals::new(shared, leader),
                    held_back: None,
                    show_at: None,
                    locked: false,
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
    Terminal,
    Attached(u64),
}

impl IoThread {
    fn turn(&mut self) {
        let (mut set, names) = self.poll_set();
        let timeout = self.timeout();
        // Interrupted, timed out or ready: what there is to do shows below.
        if sys::wait_with_signal(&mut set, timeout, sys::wake_signal()).is_err() {
            self.wait_otherwise(&mut set, timeout);
        }
        self.shared.io_is_awake();
        if let Some(since) = self.held_back.take() {
            let behind = self.shared.outputs.is_main_too_fast(since.elapsed());
            self.held_back = behind.then(Instant::now);
        }
        if self.requests.repeating {
            self.requests.repeating = interrupt::repeat();
        }
        self.give_lane();
        self.send_outbox();
        if self.terminals.holds_back() {
            self.terminals.look_who_is_behind();
        }
        self.terminals.write_next();
        self.show_what_waits();
        if self.is_alone() {
            self.listen_again();
        }
        for (entry, name) in set.iter().zip(&names) {
            if entry.revents != 0 {
                self.serve(*name, entry.revents);
            }
        }
        self.strangers.retain(Option::is_some);
        let gone = self.terminals.take_cut_off();
        self.act(gone);
        if self.shared.shutting_down() {
            self.terminals.serve_leader();
            // What the main thread said before is not held up by what it said
            // in this turn.
            self.send_outbox();
            self.shared.terminal.farewell(true);
            self.requests.interrupt_main();
            handoff::nudge(&self.handoff);
        }
    }

    /// Waits where `poll` refuses to.
    fn wait_otherwise(&self, set: &mut [libc::pollfd], timeout: Option<Duration>) {
        let limit = timeout.map_or(LOOK_AGAIN, |timeout| timeout.min(LOOK_AGAIN));
        let waited = self
            .epoll
            .as_ref()
            .map(|epoll| sys::poll_by_epoll(epoll, set, limit));
        if !matches!(waited, Some(Ok(()))) {
            // Nothing can be seen just now; to ask again at once would only
            // take time from the cells.
            std::thread::sleep(limit);
        }
    }

    fn show_what_waits(&mut self) {
        if !self.shared.terminal.is_watched() {
            self.show_at = None;
            return;
        }
        let now = Instant::now();
        let at = *self.show_at.get_or_insert(now + SHOW_WHAT_WAITS);
        if at <= now {
            self.show_at = Some(now + SHOW_WHAT_WAITS);
            if self.shared.terminal.show_what_waits() {
                handoff::nudge(&self.handoff);
            }
        }
    }

    /// How long there is nothing to do unless something comes.
    fn timeout(&self) -> Option<Duration> {
        let regular = [
            (self.requests.repeating, REPEAT_INTERRUPT),
            (self.held_back.is_some(), HOLD_BACK),
            (self.lane_to_give.is_some(), GIVE_AGAIN),
            (self.terminals.holds_back(), LOOK_WHO_IS_BEHIND),
            (self.is_alone(), LOOK_FOR_SOCKET),
        ];
        let due = [self.requests.next_deadline(), self.show_at, self.accept_at];
        let due = due.into_iter().flatten();
        let until = due.map(|due| due.saturating_duration_since(Instant::now()));
        let regular = regular
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, span)| span);
        regular.chain(until).min()
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
        if self.held_back.is_none() {
            for pipe in [&capture.stdout_read, &capture.stderr_read] {
                add(pipe.as_raw_fd(), libc::POLLIN, Watched::Output);
            }
        }
        // Whoever connects earlier waits until it is known which session this is.
        let accepts = self.accept_at.is_none_or(|at| at <= Instant::now());
        if self.shared.directory().is_some() && accepts {
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
        self.terminals.watched(|descriptor, events, id| {
            let name = id.map_or(Watched::Terminal, Watched::Attached);
            add(descriptor, events, name);
        });
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
            Watched::Output => self.held_back = self.shared.take_in().then(Instant::now),
            Watched::Listener => self.accept(),
            Watched::Control => {
                if let Err(_lost) = self.serve_control(events) {
                    self.lose_control();
                }
            }
            Watched::Cells => {
                if let Err(_lost) = self.serve_cells() {
                    self.cells = None;
                }
            }
            Watched::Terminal => self.terminals.serve_leader(),
            Watched::Attached(id) => {
                let arrived = self.terminals.serve(id, events);
                self.act(arrived);
            }
            Watched::Stranger(index) => {
                // One that breaks the framing is dropped with the error.
                let _ = self.greet(index);
            }
        }
    }

    fn accept(&mut self) {
        let socket = match accept_in_spite_of_limits(&self.listener) {
            Ok(socket) => socket,
            Err(errno) => {
                // It stays in the queue, and would wake us again at once.
                let now = Instant::now();
                self.accept_at = Some(now + ACCEPT_AGAIN);
                let (since, _) = self
                    .failing
                    .filter(|(_, last)| now.duration_since(*last) < OUT_OF_REACH * 4)
                    .unwrap_or((now, now));
                self.failing = Some((since, now));
                // A daemon that gets one lane and not the other is none.
                let served = self.control.is_some() && self.control_since < since;
                if !served && now.duration_since(since) >= OUT_OF_REACH {
                    end_out_of_reach(errno);
                }
                return;
            }
        };
        self.accept_at = None;
        let mine = rustix::process::geteuid().as_raw();
        let known =
            pythond_private_fs::peer_credentials(&socket).is_ok_and(|peer| peer.uid == mine);
        if known {
            if self.strangers.len() >= MOST_STRANGERS {
                self.strangers.remove(0);
            }
            self.strangers.push(Some(LaneSocket::new(socket)));
        }
    }

    /// No daemon would tell that the socket is gone.
    fn is_alone(&self) -> bool {
        self.control.is_none() && self.shared.place().is_some()
    }

    /// The next daemon is to find the socket, also if somebody has removed it, or
    /// the whole directory.
    fn listen_again(&mut self) {
        let Some((directory, name)) = self.shared.place() else {
            return;
        };
        let again = PrivateDir::open_or_create(directory)
            .and_then(|it| it.bind_socket_again(name, BACKLOG));
        // Where that cannot be, nobody could have reached it before.
        if let Ok(Some(listener)) = again {
            self.listener = listener;
        }
    }

    /// What those who are attached have made necessary.
    fn act(&mut self, arrived: Vec<Arrived>) {
        for arrived in arrived {
            match arrived {
                Arrived::Nudge => handoff::nudge(&self.handoff),
                Arrived::Interrupt(cell) => {
                    if let Some(cell) = CellId::from_u64(cell) {
                        self.requests.interrupt_one(cell);
                    }
                }
                Arrived::Left(terminal) => {
                    self.hold(None, None, Some(terminal));
                    handoff::nudge(&self.handoff);
                }
            }
        }
    }

    /// Agents' new cells are to wait, or not any more.
    fn hold(&mut self, request: Option<u64>, by: Option<String>, terminal: Option<u64>) {
        let changed = self.shared.hold(by, terminal);
        let waiting = match changed {
            Some((waiting, fires, forks)) => {
                fire::start(self.shared, fires);
                for cell in forks {
                    fork::start(self.shared, cell);
                }
                waiting
            }
            None if request.is_none() => return,
            None => self.shared.status().queued.len() as u64,
        };
        let held_by = self.shared.held_by();
        self.terminals.tell_held(held_by.clone(), waiting);
        let words = match &held_by {
            Some(by) => format!("[pythond] agents' new cells wait for {by}"),
            None => "[pythond] agents' cells run again".to_owned(),
        };
        self.shared.terminal.say(&words);
        let event = HostEvent::Hold {
            request,
            held_by,
            waiting,
        };
        self.shared.send(event, Vec::new());
        handoff::nudge(&self.handoff);
    }

    /// Gives the main thread the cell lane. It may not look for long: then what it
    /// has not read fills the way, and this thread must not wait for it.
    fn give_lane(&mut self) {
        let (Some(tag), Some(lane)) = (self.lane_to_give.take(), &self.cells) else {
            return;
        };
        if self.shared.io_reads_cells() {
            return;
        }
        match handoff::give_lane(&self.handoff, lane.as_fd(), tag) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::INTR) => self.lane_to_give = Some(tag),
            Err(_) => self.shared.let_io_read_cells(),
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
                if !std::mem::replace(&mut self.locked, true) {
                    self.shared.disk.lock_directory();
                }
                self.requests.forget();
                lane.send(&HostEvent::Welcome(Box::new(self.shared.welcome())), b"")?;
                self.terminals.another_daemon();
                self.control = Some(lane);
                self.control_since = Instant::now();
            }
            Lane::Cell => {
                self.failing = None;
                // In this order: the daemon sends cells once it has the answer.
                self.shared.use_lane(hello.tag);
                lane.send(&HostEvent::CellLaneReady, b"")?;
                self.cells = Some(lane);
                self.lane_to_give = Some(hello.tag);
                self.give_lane();
            }
            Lane::Terminal => {
                let id = self.terminals.adopt(lane);
                // Its first words may have come with the hello.
                let arrived = self.terminals.serve(id, 0);
                self.act(arrived);
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
            match message.header {
                HostCommand::Hold {
                    request,
                    by,
                    terminal,
                } => {
                    // What was asked for at a terminal, others may let go.
                    let terminal = terminal.filter(|_| by.is_some());
                    self.hold(Some(request), by, terminal);
                    continue;
                }
                HostCommand::Resize { request, size } => {
                    self.terminals.resize_unsized(size);
                    handoff::nudge(&self.handoff);
                    self.answer(&HostEvent::Resized { request }, b"")?;
                    continue;
                }
                HostCommand::LookAround => {
                    self.listen_again();
                    if main_is_gone() {
                        end_without_main();
                    }
                    continue;
                }
                _ => {}
            }
            let handoff = &self.handoff;
            let answer = self.requests.obey(message, || handoff::nudge(handoff));
            if let Some((event, body)) = answer {
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
        let mut outgoing = self.requests.turn();
        outgoing.extend(self.shared.take_outbox());
        for (event, body) in outgoing {
            if self.answer(&event, &body).is_err() {
                self.lose_control();
            }
        }
    }

    /// The daemon connects again if it wants to, with both lanes; cells go on.
    fn lose_control(&mut self) {
        // A low limit of open files may leave no more than these two numbers.
        self.control = None;
        if self.shared.io_reads_cells() {
            let _ = self.serve_cells();
        }
        self.cells = None;
        self.listen_again();
    }

    /// Cells from the cell lane, while the main thread cannot read it.
    fn serve_cells(&mut self) -> Result<(), LaneLost> {
        let Some(cells) = &mut self.cells else {
            return Ok(());
        };
        let lane = Some(cells.tag());
        cells.receive()?;
        let mut messages = Vec::new();
        while let Some(message) = cells.next::<HostCommand>()? {
            messages.push(message);
        }
        for Message { header, body } in messages {
            if let HostCommand::Run { request, how, .. } = header {
                let handoff = &self.handoff;
                let nudge = || handoff::nudge(handoff);
                let keyed = how.key.is_some();
                let cell = Submitted {
                    request,
                    kind: CellKind::Run,
                    lane,
                    how,
                };
                let answer = self.requests.submit(cell, body, nudge);
                // Without a key the daemon knows what becomes of it.
                if let Some((event, body)) = answer
                    && (keyed || !matches!(event, HostEvent::Accepted { .. }))
                {
                    self.shared.send(event, body);
                }
            }
        }
        Ok(())
    }
}

/// Accepts a connection, also where a cell has lowered the limit of open files:
/// the limit that it could set itself again holds for this one call.
fn accept_in_spite_of_limits(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let accept = || rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
    let refused = match accept() {
        Err(Errno::MFILE) => Errno::MFILE,
        other => return other,
    };
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|_| refused)?;
    let accepted = accept();
    // It was the limit before, so it can be again.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    accepted
}

/// The main thread has ended while the process goes on: by a system call of its
/// own, for Python's own end is that of the process.
fn main_is_gone() -> bool {
    let pid = rustix::process::getpid().as_raw_nonzero();
    let stat = std::fs::read_to_string(format!("/proc/self/task/{pid}/stat"));
    // The name in parentheses may hold anything.
    stat.is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, state)| state);
        state.is_some_and(|state| state.starts_with(['Z', 'X']))
    })
}

/// Ends the session, whose cells nothing could run any more.
fn end_without_main() -> ! {
    end_with("pythond: the session's main thread has ended by a system call of its own\n")
}

/// Ends the session, and says why in its last words.
fn end_out_of_reach(errno: Errno) -> ! {
    let words = format!(
        "pythond: no daemon can connect to this session any more ({errno}): \
         its limit of open files is too low\n"
    );
    end_with(&words)
}

/// Ends the session. Its exit status tells where its last words find no room.
fn end_with(words: &str) -> ! {
    let stderr = rustix::stdio::stderr();
    // This thread is the one that would make room in the pipe. With a limit of no
    // open files it cannot even be asked.
    let mut set = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    if !matches!(poll(&mut set, Some(&Timespec::default())), Ok(0)) {
        let _ = rustix::io::write(stderr, words.as_bytes());
    }
    sys::exit_now(OUT_OF_REACH_STATUS)
}
