//! The way to reach a session: clones cheaply, holds no state of its own but
//! what the session publishes for those who only look.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{
    Attach, CellFate, CellSpec, FinishedCell, HostEnd, HostEvent, HostedSession, Message,
    TerminalEvent,
};
use pythond_protocol::outcome::{CellKind, CellStatus, ProcessEnd};
use pythond_protocol::verbs::attach::TerminalEnd;
use pythond_protocol::verbs::list::{SessionState, SessionSummary};
use pythond_protocol::verbs::status::Tombstone;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, SessionName};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::death;
use super::fate::{self, Sent};
use super::question::{Answer, Question};
use crate::host_process::{self, HostProcess};
use crate::lane_io::LaneIo;
use crate::tombstones;

/// After how long it is looked whether a host that does not answer is stopped.
const STOPPED_PATIENCE: Duration = Duration::from_millis(250);
/// How long a host may take to answer on its control lane.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the task may take to notice that its host is gone.
const NOTICE_DEADLINE: Duration = Duration::from_secs(3);

/// How a cell ended, for whoever submitted it.
#[derive(Debug)]
pub(crate) enum RunAnswer {
    /// The cell ended; the log is the beginning of its output.
    Finished(Box<FinishedCell>, Vec<u8>),
    /// The session died first; what it had written until then.
    Died(Option<CellId>, ErrorReply, LastOutput),
    /// The lane broke before the host's word that it has the cell.
    Lost(ErrorReply),
    /// It was not taken.
    Refused(ErrorReply),
}

/// The end of the output of a cell that did not end itself.
#[derive(Debug, Default)]
pub(crate) struct LastOutput {
    /// Output log.
    pub(crate) log: Vec<u8>,
    /// Bytes of output that are missing before it.
    pub(crate) lost: u64,
}

/// A cell that the host has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) cell: CellId,
    /// It was submitted earlier under the same key.
    pub(crate) existing: bool,
    pub(crate) status: CellStatus,
}

/// A cell to submit.
#[derive(Debug)]
pub(crate) struct Submit {
    pub(crate) kind: CellKind,
    pub(crate) source: String,
    pub(crate) how: CellSpec,
    /// Refuse it rather than let it wait.
    pub(crate) busy_fails: bool,
    /// It was sent before.
    pub(crate) resent: Option<Resent>,
}

/// A request says that the same was sent before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resent {
    /// How long ago that was when the request came.
    pub(crate) ago: Duration,
    /// When it came.
    pub(crate) at: Instant,
}

impl Resent {
    /// How long ago the first one was sent.
    pub(crate) fn age(self) -> Duration {
        self.ago.saturating_add(self.at.elapsed())
    }
}

impl Submit {
    /// For a session that is dead.
    pub(super) fn as_sent(&self) -> Sent<'_> {
        Sent {
            kind: self.kind,
            source: &self.source,
            how: &self.how,
            resent: self.resent.map(Resent::age),
        }
    }
}

/// A cell that was submitted. Dropping it changes nothing about the cell.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Its id; closed if there will be none, and then the end says why.
    pub(crate) accepted: oneshot::Receiver<Accepted>,
    /// Its end.
    pub(crate) end: oneshot::Receiver<RunAnswer>,
}

/// Who waits for a cell.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) accepted: Option<oneshot::Sender<Accepted>>,
    pub(super) end: oneshot::Sender<RunAnswer>,
    /// It was sent before.
    pub(super) resent: Option<Resent>,
}

/// Why a session is ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// `kill`.
    Killed,
    /// `int --kill`.
    Interrupted,
    /// `new --replace`.
    Replaced,
    /// The daemon stops.
    Stopped,
    /// The person at its terminal said so.
    Exited,
}

impl EndReason {
    /// In words.
    pub(crate) fn cause(self) -> &'static str {
        match self {
            Self::Killed => "ended by `kill`",
            Self::Interrupted => "ended by `int --kill`",
            Self::Replaced => "replaced by `new --replace`",
            Self::Stopped => "the daemon stopped",
            Self::Exited => "ended by `exit()` at its terminal",
        }
    }

    /// In the word of an event.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Killed | Self::Interrupted => "killed",
            Self::Replaced => "replaced",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
        }
    }

    /// In the word for those who are attached.
    fn terminal_end(self) -> TerminalEnd {
        match self {
            Self::Killed | Self::Interrupted => TerminalEnd::Killed,
            Self::Replaced => TerminalEnd::Replaced,
            Self::Stopped => TerminalEnd::Stopped,
            Self::Exited => TerminalEnd::Exited,
        }
    }
}

/// What the session's task is told.
pub(super) enum SessionMessage {
    Submit {
        submit: Submit,
        waiter: Waiter,
    },
    Ask {
        question: Question,
        reply: oneshot::Sender<Result<Answer, ErrorReply>>,
    },
    /// Let the host listen again if somebody removed its socket.
    LookAround,
    /// Ask the host to end.
    End {
        reason: EndReason,
    },
}

/// What its zygote told of its death that no client is shown as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Last {
    /// What its journal says of its last cells.
    pub(super) fates: Arc<[CellFate]>,
    /// These are all that it ever accepted.
    pub(super) fates_are_all: bool,
    /// When it became this session, by the clock of `died_ns`; 0 if unknown.
    pub(super) born_ns: u64,
    /// When it was, in ns by a clock that nobody can set.
    pub(super) died_ns: u64,
}

impl Last {
    /// From what its zygote tells.
    pub(super) fn of(end: &HostEnd) -> Self {
        Self {
            fates: end.fates.clone().into(),
            fates_are_all: end.fates_are_all,
            born_ns: end.born_ns,
            died_ns: end.died_ns,
        }
    }
}

/// What the task publishes.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) running: bool,
    pub(super) death: Option<Tombstone>,
    pub(super) last: Last,
    /// Why it was ended, if by somebody.
    pub(super) told: Option<EndReason>,
    /// Who lets agents' new cells wait.
    pub(super) held_by: Option<String>,
}

/// What a session's task and its handles share.
#[derive(Debug)]
pub(super) struct SessionShared {
    pub(super) hosted: HostedSession,
    pub(super) process: HostProcess,
    pub(super) view: Mutex<View>,
    pub(super) dead: CancellationToken,
    /// Where the host listens, or listened.
    pub(super) socket: (Arc<PrivateDir>, String),
}

/// The way to a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionHandle {
    pub(super) shared: Arc<SessionShared>,
    pub(super) inbox: mpsc::Sender<SessionMessage>,
}

impl SessionHandle {
    /// A session that died before this daemon saw it.
    pub(super) fn of_dead(
        hosted: HostedSession,
        process: HostProcess,
        death: Tombstone,
        last: Last,
        socket: (Arc<PrivateDir>, String),
    ) -> Self {
        let dead = CancellationToken::new();
        dead.cancel();
        let view = Mutex::new(View {
            running: false,
            death: Some(death),
            last,
            told: None,
            held_by: None,
        });
        let shared = Arc::new(SessionShared {
            hosted,
            process,
            view,
            dead,
            socket,
        });
        Self {
            shared,
            inbox: mpsc::channel(1).0,
        }
    }

    /// What it was created with.
    pub(crate) fn hosted(&self) -> &HostedSession {
        &self.shared.hosted
    }

    /// Its name.
    pub(crate) fn name(&self) -> &SessionName {
        &self.shared.hosted.spec.session
    }

    /// Both are the same process of the same session.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.hosted().spec, &other.hosted().spec);
        ours.session_id == theirs.session_id && ours.generation == theirs.generation
    }

    /// Of two tombstones of the same session, this one names the cause.
    pub(crate) fn knows_more_than(&self, other: &Self) -> bool {
        let knows = |it: &Self| it.death().is_some_and(|it| it.end != ProcessEnd::Unknown);
        knows(self) && !knows(other)
    }

    /// Its process.
    pub(crate) fn process(&self) -> HostProcess {
        self.shared.process
    }

    pub(super) fn view(&self) -> View {
        self.shared
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What is left of it, if it died.
    pub(crate) fn death(&self) -> Option<Tombstone> {
        self.view().death
    }

    /// When it died, in ns by a clock that nobody can set; none while it lives.
    pub(crate) fn died_ns(&self) -> Option<u64> {
        let view = self.view();
        view.death.map(|_| view.last.died_ns)
    }

    /// Its process is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.is_cancelled()
    }

    /// Where it is in its life, as far as is known here.
    pub(crate) fn state(&self) -> SessionState {
        match self.view() {
            View { death: Some(_), .. } => SessionState::Dead,
            _ if self.process().is_stopped() => SessionState::Stopped,
            View { running: true, .. } => SessionState::Running,
            View { running: false, .. } => SessionState::Idle,
        }
    }

    /// Returns when its process is gone.
    pub(crate) async fn died(&self) {
        self.shared.dead.cancelled().await;
    }

    /// Why its terminals closed, after it died.
    pub(crate) fn terminal_end(&self) -> (TerminalEnd, String) {
        let view = self.view();
        let reason = view.told.map_or(TerminalEnd::Died, EndReason::terminal_end);
        let cause = view.death.map(|death| death.cause);
        (
            reason,
            cause.unwrap_or_else(|| "its process is gone".to_owned()),
        )
    }

    /// Who lets agents' new cells wait.
    pub(crate) fn held_by(&self) -> Option<String> {
        self.view().held_by
    }

    /// Opens a lane for a terminal; the host's first words.
    ///
    /// # Errors
    /// [`ErrorCode::SessionDied`], [`ErrorCode::SessionUnreachable`].
    pub(crate) async fn open_terminal(
        &self,
        how: Attach,
    ) -> Result<(LaneIo, Message<TerminalEvent>), ErrorReply> {
        if self.is_dead() {
            return Err(self.gone());
        }
        let (dir, socket) = &self.shared.socket;
        let opened = host_process::open_terminal(dir, socket, how);
        let mut opened = std::pin::pin!(opened);
        loop {
            match tokio::time::timeout(STOPPED_PATIENCE, &mut opened).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) if error.is_gone() => return Err(self.gone()),
                Ok(Err(_)) => return Err(self.unreachable()),
                Err(_) if self.process().is_stopped() => return Err(self.unreachable()),
                Err(_) => {}
            }
        }
    }

    /// Its line in a listing.
    pub(crate) fn summary(&self) -> SessionSummary {
        let hosted = self.hosted();
        SessionSummary {
            session: hosted.spec.session.clone(),
            session_id: hosted.spec.session_id.clone(),
            generation: hosted.spec.generation,
            state: self.state(),
            pid: self.process().pid(),
            python: hosted.python.executable.clone(),
            cause: self.death().map(|death| death.cause),
        }
    }

    /// Nobody needs to know of its death any more: no later daemon will.
    pub(crate) fn remove_tombstone(&self) {
        let (dir, socket) = &self.shared.socket;
        tombstones::forget(dir, socket);
    }

    /// Why nothing can be asked of it.
    fn gone(&self) -> ErrorReply {
        self.gone_with(None)
    }

    /// The same to whoever asks for one of its cells.
    fn gone_with(&self, cell: Option<CellId>) -> ErrorReply {
        let view = self.view();
        match view.death {
            Some(tombstone) => death::died_with(self.name(), &tombstone, &view.last, cell),
            None => ErrorReply::new(
                ErrorCode::SessionUnreachable,
                format!("session `{}` cannot be reached just now", self.name()),
            )
            .with_hint("try again"),
        }
    }

    /// Submits a cell.
    ///
    /// # Errors
    /// If the session's task is gone, or cannot take it because the host is
    /// stopped.
    pub(crate) async fn submit(&self, submit: Submit) -> Result<Submission, ErrorReply> {
        let (accepted_in, accepted) = oneshot::channel();
        let (end_in, end) = oneshot::channel();
        let waiter = Waiter {
            accepted: Some(accepted_in),
            end: end_in,
            resent: submit.resent,
        };
        let place = loop {
            match tokio::time::timeout(STOPPED_PATIENCE, self.inbox.reserve()).await {
                Ok(place) => break place,
                // What stands in for a stopped process keeps only so much.
                Err(_) if self.process().is_stopped() => return Err(self.unreachable()),
                Err(_) => {}
            }
        };
        match (place, self.view()) {
            (Ok(place), _) => place.send(SessionMessage::Submit { submit, waiter }),
            (Err(_), View { death: None, .. }) => return Err(self.gone()),
            (
                Err(_),
                View {
                    death: Some(tombstone),
                    last,
                    ..
                },
            ) => {
                let answer = fate::answer(self.name(), &tombstone, &last, submit.as_sent());
                drop(waiter.end.send(answer));
            }
        }
        Ok(Submission { accepted, end })
    }

    /// The id of a submitted cell. None if it has none: its end says why.
    ///
    /// # Errors
    /// [`ErrorCode::SessionUnreachable`] if the host is stopped; it has the cell
    /// on its way.
    pub(crate) async fn accepted(
        &self,
        accepted: &mut oneshot::Receiver<Accepted>,
    ) -> Result<Option<Accepted>, ErrorReply> {
        loop {
            match tokio::time::timeout(STOPPED_PATIENCE, &mut *accepted).await {
                Ok(accepted) => return Ok(accepted.ok()),
                Err(_) if self.process().is_stopped() => return Err(self.unreachable()),
                Err(_) => {}
            }
        }
    }

    /// What became of a submitted cell.
    pub(crate) async fn end_of(&self, end: &mut oneshot::Receiver<RunAnswer>) -> RunAnswer {
        end.await
            .unwrap_or_else(|_| RunAnswer::Died(None, self.gone(), LastOutput::default()))
    }

    /// Asks the host something that it answers at once.
    ///
    /// # Errors
    /// [`ErrorCode::SessionDied`], [`ErrorCode::SessionUnreachable`], or what
    /// the host says.
    pub(crate) async fn ask(&self, question: Question) -> Result<HostEvent, ErrorReply> {
        Ok(self.ask_with_body(question).await?.0)
    }

    /// The same with the bytes that come with the answer.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn ask_with_body(&self, question: Question) -> Result<Answer, ErrorReply> {
        let mut asked = std::pin::pin!(self.ask_and_wait(question));
        // A stopped process is named soon; a slow one may be only slow.
        for patience in [STOPPED_PATIENCE, ASK_DEADLINE] {
            if let Ok(answer) = tokio::time::timeout(patience, &mut asked).await {
                return answer;
            }
            if self.process().is_stopped() {
                break;
            }
        }
        Err(self.unreachable())
    }

    /// Asks the host something that it answers when it has happened.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn ask_and_wait(&self, question: Question) -> Result<Answer, ErrorReply> {
        let (reply, answer) = oneshot::channel();
        let cell = question.cell();
        self.inbox
            .send(SessionMessage::Ask { question, reply })
            .await
            .map_err(|_| self.gone_with(cell))?;
        answer.await.unwrap_or_else(|_| Err(self.gone_with(cell)))
    }

    fn unreachable(&self) -> ErrorReply {
        let (name, pid) = (self.name(), self.process().pid());
        let reply = ErrorReply::new(
            ErrorCode::SessionUnreachable,
            format!("the process of session `{name}` (pid {pid}) does not answer"),
        );
        if self.process().is_stopped() {
            let mut reply = reply;
            reply.message =
                format!("the process of session `{name}` (pid {pid}) is stopped (SIGSTOP)");
            reply.with_hint(format!(
                "continue it with `kill -CONT {pid}`; what was sent to it is carried out then"
            ))
        } else {
            reply.with_hint(format!("end it with `pysh kill {name}` if it stays so"))
        }
    }

    /// Lets the next daemon find it although somebody removed the runtime
    /// directory.
    pub(crate) async fn listen_again(&self) {
        if self.is_dead() {
            return;
        }
        let (dir, socket) = &self.shared.socket;
        tombstones::expect(dir, self.hosted(), self.process().pid(), socket);
        let _ = self.inbox.send(SessionMessage::LookAround).await;
    }

    /// Ends the session: asks, waits, forces. True if it is gone.
    pub(crate) async fn end(
        &self,
        reason: EndReason,
        grace: Duration,
        hurry: &CancellationToken,
    ) -> bool {
        if self.is_dead() {
            return true;
        }
        // A task that is gone has a host that is gone, or one that only the
        // signals below can reach.
        let _ = self.inbox.try_send(SessionMessage::End { reason });
        let gone = self.process().end(grace, hurry).await;
        if gone {
            let _ = tokio::time::timeout(NOTICE_DEADLINE, self.shared.dead.cancelled()).await;
        }
        gone
    }
}
