//! The way to reach a session: clones cheaply, holds no state of its own but
//! what the session publishes for those who only look.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_protocol::lane::{FinishedCell, HostCommand, HostEvent, HostedSession};
use pythond_protocol::verbs::list::{SessionState, SessionSummary};
use pythond_protocol::verbs::status::Tombstone;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, SessionName};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::death;
use crate::host_process::HostProcess;

/// How long a host may take to answer on its control lane.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the task may take to notice that its host is gone.
const NOTICE_DEADLINE: Duration = Duration::from_secs(3);

/// How a run ended, for whoever waits for it.
#[derive(Debug)]
pub(crate) enum RunAnswer {
    /// The cell ended; the log is its output.
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

/// What the session's task is told.
pub(super) enum SessionMessage {
    Run {
        source: String,
        changed: bool,
        reply: oneshot::Sender<RunAnswer>,
    },
    Ask {
        question: Question,
        reply: oneshot::Sender<Result<HostEvent, ErrorReply>>,
    },
    /// Ask the host to end; the text is the cause that is told.
    End { cause: &'static str },
}

/// A question that the host answers on its control lane.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Status,
    Vars,
    Complete(String),
    Interrupt(Option<CellId>),
}

impl Question {
    pub(super) fn into_command(self, request: u64) -> HostCommand {
        match self {
            Self::Status => HostCommand::Status { request },
            Self::Vars => HostCommand::Vars { request },
            Self::Complete(text) => HostCommand::Complete { request, text },
            Self::Interrupt(cell) => HostCommand::Interrupt { request, cell },
        }
    }
}

/// What the task publishes.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) running: bool,
    pub(super) death: Option<Tombstone>,
}

/// What a session's task and its handles share.
#[derive(Debug)]
pub(super) struct SessionShared {
    pub(super) hosted: HostedSession,
    pub(super) process: HostProcess,
    pub(super) view: Mutex<View>,
    pub(super) dead: CancellationToken,
}

/// The way to a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionHandle {
    pub(super) shared: Arc<SessionShared>,
    pub(super) inbox: mpsc::Sender<SessionMessage>,
}

impl SessionHandle {
    /// A session that died before this daemon saw it.
    pub(crate) fn of_dead(hosted: HostedSession, process: HostProcess, death: Tombstone) -> Self {
        let dead = CancellationToken::new();
        dead.cancel();
        let view = Mutex::new(View {
            running: false,
            death: Some(death),
        });
        let shared = Arc::new(SessionShared {
            hosted,
            process,
            view,
            dead,
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

    /// Its process.
    pub(crate) fn process(&self) -> HostProcess {
        self.shared.process
    }

    fn view(&self) -> View {
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

    /// Its process is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.is_cancelled()
    }

    /// Where it is in its life, as far as is known here.
    pub(crate) fn state(&self) -> SessionState {
        match self.view() {
            View { death: Some(_), .. } => SessionState::Dead,
            View { running: true, .. } => SessionState::Running,
            View { running: false, .. } => SessionState::Idle,
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

    /// Why nothing can be asked of it.
    fn gone(&self) -> ErrorReply {
        match self.death() {
            Some(tombstone) => death::died(self.name(), &tombstone),
            None => ErrorReply::new(
                ErrorCode::SessionUnreachable,
                format!("session `{}` cannot be reached just now", self.name()),
            )
            .with_hint("try again"),
        }
    }

    /// Runs a cell and waits for its end. Going away changes nothing.
    pub(crate) async fn run(&self, source: String, changed: bool) -> RunAnswer {
        let (reply, answer) = oneshot::channel();
        let message = SessionMessage::Run {
            source,
            changed,
            reply,
        };
        if self.inbox.send(message).await.is_err() {
            return RunAnswer::Refused(self.gone());
        }
        answer
            .await
            .unwrap_or_else(|_| RunAnswer::Died(None, self.gone(), LastOutput::default()))
    }

    /// Asks the host something on its control lane.
    ///
    /// # Errors
    /// [`ErrorCode::SessionDied`], [`ErrorCode::SessionUnreachable`], or what
    /// the host says.
    pub(crate) async fn ask(&self, question: Question) -> Result<HostEvent, ErrorReply> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.inbox
                .send(SessionMessage::Ask { question, reply })
                .await
                .map_err(|_| self.gone())?;
            answer.await.unwrap_or_else(|_| Err(self.gone()))
        };
        tokio::time::timeout(ASK_DEADLINE, asked)
            .await
            .unwrap_or_else(|_| Err(self.unreachable()))
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
            reply.with_hint(format!("continue it with `kill -CONT {pid}`"))
        } else {
            reply.with_hint(format!("end it with `pysh kill {name}` if it stays so"))
        }
    }

    /// Ends the session: asks, waits, forces. True if it is gone.
    pub(crate) async fn end(
        &self,
        cause: &'static str,
        grace: Duration,
        hurry: &CancellationToken,
    ) -> bool {
        if self.is_dead() {
            return true;
        }
        // A task that is gone has a host that is gone, or one that only the
        // signals below can reach.
        let _ = self.inbox.try_send(SessionMessage::End { cause });
        let gone = self.process().end(grace, hurry).await;
        if gone {
            let _ = tokio::time::timeout(NOTICE_DEADLINE, self.shared.dead.cancelled()).await;
        }
        gone
    }
}
