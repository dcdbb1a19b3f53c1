//! The task that owns a session: its lanes, who waits for which cell, how it
//! died. It never waits for the host: a stopped host cannot stop it.

mod link;
mod recovery;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{FinishedCell, HostCommand, HostEvent, HostedSession, Lane, Message};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::death;
use super::handle::{
    Accepted, Answer, EndReason, Last, LastOutput, Question, Resent, RunAnswer, SessionHandle,
    SessionMessage, SessionShared, Submit, View, Waiter,
};
use super::state::{CellBoard, Demand, MAX_QUEUED_BYTES, Phase, Refusal, permit};
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

    fn submit(&mut self, submit: Submit, waiter: Waiter) {
        let Submit {
            kind,
            source,
            how,
            busy_fails,
            resent: _,
        } = submit;
        if busy_fails && (!self.board.is_idle() || self.board.is_held()) {
            let name = &self.shared.hosted.spec.session;
            let view = self.shared.view.lock();
            let held_by = view.unwrap_or_else(PoisonError::into_inner).held_by.clone();
            let message = match held_by {
                Some(by) => format!("session `{name}` is held by {by}"),
                None => format!("session `{name}` is busy"),
            };
            let error = ErrorReply::new(ErrorCode::Busy, message)
                .with_hint("send it without `--busy=fail` to let it wait for its turn");
            answer(waiter, RunAnswer::Refused(error));
            return;
        }
        if kind == CellKind::Fork && !self.shared.hosted.forks {
            let name = &self.shared.hosted.spec.session;
            let message = format!("the process of session `{name}` is older and knows no `fork`");
            let error = ErrorReply::new(ErrorCode::NotAvailable, message)
                .with_hint("use `fire`, or create the session again");
            answer(waiter, RunAnswer::Refused(error));
            return;
        }
        match self.board.add(source, kind, how, waiter) {
            Ok((request, _)) => self.send_cell(request),
            Err(waiter) => {
                let error = ErrorReply::new(
                    ErrorCode::Limit,
                    format!(
                        "more than {} MiB of code wait in this session",
                        MAX_QUEUED_BYTES >> 20
                    ),
                )
                .with_hint("wait for cells to finish, then send it again");
                answer(waiter, RunAnswer::Refused(error));
            }
        }
    }

    /// Sends a cell of the board by its lane. While there is no link it waits
    /// on the board; `recovered` sends it.
    fn send_cell(&mut self, request: u64) {
        let Link::Up(lanes) = &mut self.link else {
            return;
        };
        let before = self.board.on_cell_lane();
        let Some(cell) = self.board.get(request) else {
            return;
        };
        let after = before.filter(|_| cell.lane == Lane::Control);
        let lane = match cell.lane {
            Lane::Cell => &mut lanes.cell,
            Lane::Control | Lane::Terminal => &mut lanes.control,
        };
        let mut how = cell.how.clone();
        let resent = cell.waiter.resent.map(Resent::age);
        how.resent_ms = resent.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        let command = match cell.kind {
            CellKind::Run => HostCommand::Run {
                request,
                how,
                after,
            },
            CellKind::Fork => HostCommand::Fork { request, how },
            _ => HostCommand::Fire { request, how },
        };
        let sent = lane.send(&command, cell.source.as_bytes());
        // On the cell lane it runs at once, under the id that is next.
        let runs = cell.id.filter(|_| cell.lane == Lane::Cell);
        self.board.mark_sent(request);
        if let Some(cell) = runs
            && sent.is_ok()
        {
            self.watch.started(cell, CellKind::Run);
            self.publish_running();
            let accepted = Accepted {
                cell,
                existing: false,
                status: CellStatus::Running,
            };
            self.tell_accepted(request, accepted);
        }
        if let Err(error) = sent {
            let error = ErrorReply::new(ErrorCode::Limit, error.to_string());
            if let Some(cell) = self.board.remove(request) {
                answer(cell.waiter, RunAnswer::Refused(error));
            }
        }
    }

    /// Tells the submitter the id of its cell.
    fn tell_accepted(&mut self, request: u64, accepted: Accepted) {
        let Some(cell) = self.board.accepted(request, accepted.cell) else {
            return;
        };
        let waiter = cell.waiter.accepted.take();
        let beside = cell.kind != CellKind::Run;
        if beside {
            // Its end is asked for by whoever wants to know it.
            self.board.remove(request);
        }
        if let Some(waiter) = waiter {
            let _ = waiter.send(accepted);
        }
    }

    fn accepted(&mut self, request: u64, accepted: Accepted) {
        let kind = self.board.get(request).map(|cell| cell.kind);
        if !accepted.existing
            && let Some(kind) = kind
        {
            self.watch.accepted(accepted.cell, kind, accepted.status);
        }
        if accepted.existing {
            self.board.is_not_new(request);
        }
        // It was told under another id, and sent again.
        if let Some(before) = self.awaited.remove(&request)
            && before != accepted.cell
        {
            self.watch.lost(before);
        }
        self.publish_running();
        self.tell_accepted(request, accepted);
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

    fn question(&mut self, question: Question, reply: AskReply) {
        let question = match question {
            // A cell that is on its way to the host is meant as well.
            Question::Interrupt { cells, soft, .. } if cells.is_empty() => {
                let coming = self.board.current().or_else(|| self.board.on_cell_lane());
                Question::Interrupt {
                    cells: self.watch.running(coming),
                    soft,
                    unnamed: true,
                }
            }
            question => question,
        };
        if self.asks.len() >= self.many_asks {
            self.forget_left();
        }
        if self.takes_no_more() {
            let name = &self.shared.hosted.spec.session;
            let message = format!("the process of session `{name}` takes no more questions");
            let error = ErrorReply::new(ErrorCode::SessionUnreachable, message)
                .with_hint("it has answered none for long; look at it with `pysh ls`");
            drop(reply.send(Err(error)));
            return;
        }
        let direct = self.board.on_cell_lane();
        if direct.is_some() && direct != self.expected {
            self.expected = direct;
            if let Some(cell) = direct {
                self.control(&HostCommand::Expect { cell }, b"");
            }
        }
        let request = self.board.next_request();
        self.asks.insert(request, (question.clone(), reply));
        // While the lanes are broken it waits for new ones.
        self.control(&question.into_command(request), b"");
    }

    /// So much is on its way to a host that takes nothing, most likely because it
    /// is stopped, that questions would only fill the memory.
    fn takes_no_more(&self) -> bool {
        match &self.link {
            Link::Up(lanes) => lanes.control.waiting() > MOST_WAITING + self.board.bytes(),
            Link::Recovering(_) => self.asks.len() >= MOST_ASKS,
        }
    }

    /// Forgets the questions of those who do not wait any more, here and in the
    /// host.
    fn forget_left(&mut self) {
        let left = self.asks.iter().filter(|(_, (_, reply))| reply.is_closed());
        let left: Vec<_> = left.map(|(request, _)| *request).collect();
        for request in left {
            self.asks.remove(&request);
            self.control(&HostCommand::Forget { request }, b"");
        }
        // Many who do wait are not looked through again for each new one.
        self.many_asks = MANY_QUESTIONS.max(2 * self.asks.len());
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

    fn finished(&mut self, finished: Box<FinishedCell>, log: Vec<u8>) {
        self.watch.finished(&finished);
        let was_awaited = finished
            .request
            .map(|request| self.awaited.remove(&request));
        if let Some(Some(before)) = was_awaited
            && before != finished.cell
        {
            self.watch.lost(before);
        }
        // A copy for somebody who asked; the cell's own message may come later.
        let asked = finished
            .request
            .and_then(|request| self.asks.remove(&request));
        if let Some((_, reply)) = asked {
            self.publish_running();
            let answer = match self.ended_with_session(&finished) {
                Some(error) => Err(error),
                None => Ok((HostEvent::Finished(finished), log)),
            };
            let _ = reply.send(answer);
            return;
        }
        let found = self.board.finished(&finished);
        self.publish_running();
        if let Some((request, cell)) = found {
            self.awaited.remove(&request);
            self.answer_finished(cell.waiter, finished, log);
        }
    }

    /// Nobody asked to interrupt the cell: the session was ended.
    fn ended_with_session(&self, finished: &FinishedCell) -> Option<ErrorReply> {
        if self.phase != Phase::Ending || finished.status != CellStatus::Interrupted {
            return None;
        }
        let tombstone = death::tombstone(None, self.told, Some(finished.cell));
        let name = &self.shared.hosted.spec.session;
        Some(death::died(name, &tombstone))
    }

    fn answer_finished(&self, waiter: Waiter, finished: Box<FinishedCell>, log: Vec<u8>) {
        if let Some(error) = self.ended_with_session(&finished) {
            let output = LastOutput {
                log,
                lost: finished.truncated,
            };
            answer(waiter, RunAnswer::Died(Some(finished.cell), error, output));
            return;
        }
        answer(waiter, RunAnswer::Finished(finished, log));
    }

    fn refused(&mut self, request: u64, error: ErrorReply) {
        if let Some((question, reply)) = self.asks.remove(&request) {
            let error = match question {
                // Who asks for any cell is told alike of all that are not kept.
                Question::Await(cell) if error.code == ErrorCode::Lost => {
                    ErrorReply::unknown_cell(&cell.to_string())
                }
                _ => error,
            };
            let _ = reply.send(Err(error));
        } else if let Some(before) = self.awaited.remove(&request) {
            self.not_found(request, before, error);
        } else {
            self.board.is_not_new(request);
            if let Some(cell) = self.board.remove(request) {
                answer(cell.waiter, RunAnswer::Refused(error));
            }
        }
        self.publish_running();
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
