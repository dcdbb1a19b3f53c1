//! The task that owns a session: its lanes, who waits for which cell, how it
//! died. It never waits for the host: a stopped host cannot stop it.

mod cells;
mod link;
mod questions;
mod recovery;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{HostCommand, HostEvent, HostedSession, Lane, Message};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::death;
use super::handle::{
    Accepted, EndReason, Last, RunAnswer, SessionHandle, SessionMessage, SessionShared, View,
    Waiter,
};
use super::question::{Answer, Question};
use super::state::{CellBoard, Demand, Phase, Refusal, permit};
use super::watch::Watch;
use crate::events::EventLog;
use crate::exits::HostExit;
use crate::host_process::{HostProcess, Lanes};
use crate::log::Log;
use crate::tombstones;
use link::{Link, LinkEvent};

/// Messages that wait for the task.
const INBOX: usize = 256;
/// How long the zygote may take to say how a host ended whose lanes broke.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between attempts to open new lanes, at first and at most.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Questions without an answer that are remembered before they are looked over.
const MANY_QUESTIONS: usize = 64;
/// How often a host in which cells run is asked to look around.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Most questions that wait for new lanes.
const MOST_ASKS: usize = 4096;
/// Most bytes of questions that wait for a host to take them.
const MOST_WAITING: usize = 1 << 20;

type AskReply = oneshot::Sender<Result<Answer, ErrorReply>>;
type Recovery = Pin<Box<dyn Future<Output = Option<(Lanes, HostedSession)>> + Send>>;

/// A host with both lanes open.
pub(crate) struct Connected {
    /// The lanes.
    pub(crate) lanes: Lanes,
    /// What the host said of itself.
    pub(crate) hosted: HostedSession,
    /// Its socket's name in the runtime directory.
    pub(crate) socket: String,
    /// How it ends, once it does.
    pub(crate) exit: oneshot::Receiver<HostExit>,
    /// Its process id.
    pub(crate) pid: i32,
}

struct Session {
    shared: Arc<SessionShared>,
    dir: Arc<PrivateDir>,
    socket: String,
    log: Log,
    phase: Phase,
    told: Option<EndReason>,
    /// What is said once it is clear that the host lives on.
    why_broken: String,
    link: Link,
    board: CellBoard<Waiter>,
    /// The first cell that is younger than our lanes.
    first_new: CellId,
    /// What is told to those who follow events.
    watch: Watch,
    asks: HashMap<u64, (Question, AskReply)>,
    /// How many questions there are when they are looked over.
    many_asks: usize,
    /// The last cell of the cell lane that the host was told to expect.
    expected: Option<CellId>,
    /// Cells whose ends were asked for when the lanes were new, by request: one that
    /// is refused as unknown has never arrived.
    awaited: HashMap<u64, CellId>,
}

/// Starts the task of a session whose lanes are open.
pub(crate) fn start(
    connected: Connected,
    dir: Arc<PrivateDir>,
    log: Log,
    events: Arc<EventLog>,
    tracker: &TaskTracker,
) -> SessionHandle {
    let Connected {
        lanes,
        hosted,
        socket,
        exit,
        pid,
    } = connected;
    let (sender, inbox) = mpsc::channel(INBOX);
    let first_new = hosted.next_cell;
    let mut board = CellBoard::new(first_new, first_request(), hosted.keys_by_cell_lane);
    let inherited: Vec<_> = hosted
        .unfinished
        .iter()
        .map(|cell| (board.inherit(*cell), *cell))
        .collect();
    let watch = Watch::new(events, &hosted);
    let held_by = hosted.held_by.clone();
    let shared = Arc::new(SessionShared {
        hosted,
        process: HostProcess::of(pid),
        view: Mutex::new(View {
            running: watch.something_runs(),
            death: None,
            last: Last::default(),
            told: None,
            held_by,
        }),
        dead: CancellationToken::new(),
        socket: (Arc::clone(&dir), socket.clone()),
    });
    let handle = SessionHandle {
        shared: Arc::clone(&shared),
        inbox: sender,
    };
    let mut session = Session {
        shared,
        dir,
        socket,
        log,
        phase: Phase::Live,
        told: None,
        why_broken: String::new(),
        link: Link::Up(Box::new(lanes)),
        board,
        first_new,
        watch,
        asks: HashMap::new(),
        many_asks: MANY_QUESTIONS,
        expected: None,
        awaited: HashMap::new(),
    };
    session
        .board
        .set_held(session.shared.hosted.held_by.is_some());
    for (request, cell) in inherited {
        session.await_cell(request, cell);
    }
    tracker.spawn(session.run(inbox, exit));
    handle
}

/// A number that the requests of no other daemon come near, nor those of another
/// task of this one.
fn first_request() -> u64 {
    RandomState::new().hash_one(()) >> 32 << 32
}

impl Session {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<SessionMessage>,
        exit: oneshot::Receiver<HostExit>,
    ) {
        let mut exit = Some(exit);
        // Handles may all go; the session stays until its host does.
        let mut inbox_open = true;
        let mut look = tokio::time::interval(LOOK_AROUND);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let exit = loop {
            tokio::select! {
                biased;
                event = self.link.next() => match event {
                    LinkEvent::Message(lane, message) => self.arrived(lane, message),
                    LinkEvent::Broken(why) => self.broken(&why),
                    LinkEvent::Recovered(lanes, hosted) => self.recovered(lanes, &hosted),
                    LinkEvent::Gone => {
                        let process = self.shared.process;
                        break wait_for_report(exit.take(), process, self.told.is_some()).await;
                    }
                },
                message = inbox.recv(), if inbox_open => match message {
                    Some(message) => self.message(message),
                    None => inbox_open = false,
                },
                end = wait(&mut exit) => match end {
                    Ok(end) => break Some(end),
                    // The zygote is gone; the lanes alone will tell.
                    Err(_) => exit = None,
                },
                _ = look.tick(), if self.watch.something_runs() => self.look_around(),
            }
        };
        self.take_last_words();
        // Those who are in the inbox by now get the cause too.
        inbox.close();
        self.die(exit);
        while let Ok(message) = inbox.try_recv() {
            self.message(message);
        }
    }

    fn message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Submit { submit, waiter } => match permit(self.phase, Demand::Run) {
                Ok(_) => self.submit(submit, waiter),
                Err(Refusal::Ending) => {
                    answer(waiter, RunAnswer::Refused(self.refusal(Refusal::Ending)));
                }
                Err(Refusal::Dead) => self.answer_of_dead(submit.as_sent(), waiter),
            },
            SessionMessage::Ask { question, reply } => match permit(self.phase, Demand::Ask) {
                Ok(_) => self.question(question, reply),
                Err(refusal) => drop(reply.send(Err(self.refusal(refusal)))),
            },
            SessionMessage::LookAround => self.look_around(),
            SessionMessage::End { reason } => {
                if let Ok(phase) = permit(self.phase, Demand::End) {
                    self.phase = phase;
                    self.told.get_or_insert(reason);
                    tombstones::told_to_end(&self.dir, &self.socket);
                    self.control(&HostCommand::Shutdown, b"");
                }
            }
        }
    }

    fn refusal(&self, refusal: Refusal) -> ErrorReply {
        let name = &self.shared.hosted.spec.session;
        let death = self
            .shared
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .death
            .clone();
        match (refusal, death) {
            (Refusal::Dead, Some(tombstone)) => death::died(name, &tombstone),
            (Refusal::Dead | Refusal::Ending, _) => ErrorReply::new(
                ErrorCode::Stopping,
                format!("session `{name}` is being ended"),
            )
            .with_hint(format!("create it again with `pysh new {name}`")),
        }
    }

    /// Asks for the end of a cell over new lanes.
    fn await_cell(&mut self, request: u64, cell: CellId) {
        self.awaited.insert(request, cell);
        self.control(&HostCommand::Await { request, cell }, b"");
    }

    fn control(&mut self, command: &HostCommand, body: &[u8]) {
        if let Link::Up(lanes) = &mut self.link {
            // Our own small words always fit; a broken lane shows when read.
            let _ = lanes.control.send(command, body);
        }
    }

    /// Lets the host see to what only it can see.
    fn look_around(&mut self) {
        if matches!(&self.link, Link::Up(lanes) if lanes.control.waiting() == 0) {
            self.control(&HostCommand::LookAround, b"");
        }
    }

    /// What a cell's end on the cell lane was written before is told after it.
    fn arrived(&mut self, lane: Lane, message: Message<HostEvent>) {
        let about_cells = matches!(
            message.header,
            HostEvent::Started { .. } | HostEvent::Finished(_)
        );
        if lane == Lane::Control && about_cells {
            while let Link::Up(lanes) = &mut self.link
                && let Some(earlier) = lanes.cell.take_delivered()
            {
                self.host_event(earlier);
            }
        }
        self.host_event(message);
    }

    fn host_event(&mut self, message: Message<HostEvent>) {
        let Message { header, body } = message;
        let request = match &header {
            HostEvent::Welcome(_) | HostEvent::CellLaneReady => return,
            HostEvent::Finished(_) => {
                let HostEvent::Finished(finished) = header else {
                    return;
                };
                return self.finished(finished, body);
            }
            HostEvent::Accepted {
                request,
                cell,
                existing,
                status,
            } => {
                let accepted = Accepted {
                    cell: *cell,
                    existing: *existing,
                    status: *status,
                };
                return self.accepted(*request, accepted);
            }
            HostEvent::Started { cell, kind } => {
                if *kind == CellKind::Human {
                    // The main thread is the person's: cells queue in the host.
                    self.board.inherit(*cell);
                }
                self.watch.started(*cell, *kind);
                return self.publish_running();
            }
            HostEvent::Leaving => {
                self.told.get_or_insert(EndReason::Exited);
                return;
            }
            HostEvent::Hold {
                request, held_by, ..
            } => {
                self.set_held(held_by.clone());
                match request {
                    Some(request) => *request,
                    None => return,
                }
            }
            HostEvent::Refused { request, error } => {
                return self.refused(*request, error.clone());
            }
            HostEvent::Status { request, .. }
            | HostEvent::Vars { request, .. }
            | HostEvent::Completions { request, .. }
            | HostEvent::Cells { request, .. }
            | HostEvent::Cell { request, .. }
            | HostEvent::OutputChunk { request, .. }
            | HostEvent::Interrupted { request, .. }
            | HostEvent::Stack { request, .. }
            | HostEvent::Resized { request }
            | HostEvent::ChildrenKilled { request, .. } => *request,
        };
        if let Some((_, reply)) = self.asks.remove(&request) {
            // Whoever stopped waiting does not need it.
            let _ = reply.send(Ok((header, body)));
        }
    }

    /// Agents' new cells wait in the host from now on, or do not any more.
    fn set_held(&mut self, held_by: Option<String>) {
        self.board.set_held(held_by.is_some());
        let view = self.shared.view.lock();
        view.unwrap_or_else(PoisonError::into_inner).held_by = held_by;
    }

    fn publish_running(&self) {
        let running = self.watch.something_runs();
        let mut view = self
            .shared
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        view.running = running;
    }
}

/// A waiting client that went away changes nothing.
fn answer(waiter: Waiter, answer: RunAnswer) {
    drop(waiter.end.send(answer));
}

async fn wait(
    exit: &mut Option<oneshot::Receiver<HostExit>>,
) -> Result<HostExit, oneshot::error::RecvError> {
    match exit {
        Some(exit) => exit.await,
        None => std::future::pending().await,
    }
}

/// How a host ended that does not listen any more. A process that goes on as
/// another program is ended: it holds nothing of the session.
async fn wait_for_report(
    exit: Option<oneshot::Receiver<HostExit>>,
    process: HostProcess,
    told: bool,
) -> Option<HostExit> {
    let Some(mut exit) = exit else {
        if process.other_program().is_some() {
            process.end(Duration::ZERO, &CancellationToken::new()).await;
        }
        return None;
    };
    if let Ok(end) = tokio::time::timeout(EXIT_PATIENCE, &mut exit).await {
        return end.ok();
    }
    let became = process.other_program();
    if !told && became.is_some() {
        process.end(Duration::ZERO, &CancellationToken::new()).await;
    }
    let mut end = tokio::time::timeout(EXIT_PATIENCE, exit).await.ok()?.ok()?;
    if let Some(program) = became {
        end.end.cause = Some(format!(
            "its process became another program (`{program}`), and was ended"
        ));
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    #[test]
    fn requests_of_different_daemons_have_numbers_far_apart() {
        let numbers: Vec<u64> = (0..8).map(|_| super::first_request()).collect();
        for (index, number) in numbers.iter().enumerate() {
            let near = |other: &&u64| number.abs_diff(**other) < 1 << 32;
            assert_eq!(
                numbers.iter().filter(near).count(),
                1,
                "{index}: {numbers:?}"
            );
        }
    }
}
