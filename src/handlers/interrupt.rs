//! `int NAME [ID…]`: interrupts, and with `--kill` does what it takes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::interrupt::{
    InterruptOutcome, InterruptReply, InterruptRequest, InterruptedCell,
};
use pythond_protocol::{CellId, ErrorCode, ErrorReply, SessionName};

use super::{Context, GRACE, Reply};
use crate::session::{EndReason, Question, SessionHandle};

/// How long each step of `--kill` may take to help.
const STEP: Duration = Duration::from_secs(1);

pub(super) async fn handle(
    context: &Arc<Context>,
    request: InterruptRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let name = &request.session;
    let session = context
        .registry
        .get(name)
        .map_err(|error| error.with_plain(format!("no session '{name}'")))?;
    let mut outcome = Outcome::default();
    match session
        .ask(Question::interrupt(request.cells, request.soft))
        .await
    {
        Ok(HostEvent::Interrupted { cells, .. }) => outcome.cells = cells,
        Ok(_) => return Err(super::ask::unexpected()),
        Err(error) if request.kill && error.code == ErrorCode::SessionUnreachable => {
            outcome.actions.push(error.message);
            outcome.kill_session(context, session.clone()).await;
        }
        Err(error) => return Err(error),
    }
    if request.kill && !outcome.killed {
        outcome.escalate(context, &session).await;
    }
    Ok(outcome.reply(name, format))
}

#[derive(Debug, Default)]
struct Outcome {
    cells: Vec<InterruptedCell>,
    actions: Vec<String>,
    killed: bool,
}

impl Outcome {
    fn pending(&self) -> Vec<CellId> {
        let pending = self.cells.iter();
        let pending = pending.filter(|cell| cell.outcome == InterruptOutcome::Pending);
        pending.map(|cell| cell.cell_id).collect()
    }

    /// Waits a while for pending cells; true if none is left.
    async fn wait(&mut self, session: &SessionHandle) -> bool {
        let ends = self.pending().into_iter().map(|cell| async move {
            let end = session.ask_and_wait(Question::Await(cell));
            let ended = tokio::time::timeout(STEP, end).await;
            matches!(ended, Ok(Ok(_))).then_some(cell)
        });
        let ended: Vec<_> = join_all(ends).await.into_iter().flatten().collect();
        for cell in &mut self.cells {
            if ended.contains(&cell.cell_id) {
                cell.outcome = InterruptOutcome::Ended;
            }
        }
        self.pending().is_empty()
    }

    async fn escalate(&mut self, context: &Arc<Context>, session: &SessionHandle) {
        if self.wait(session).await {
            return;
        }
        for cell in self.pending() {
            let killed = session.ask(Question::KillChildren(cell)).await;
            if let Ok(HostEvent::ChildrenKilled { pids, .. }) = killed
                && !pids.is_empty()
            {
                let pids: Vec<_> = pids.iter().map(i32::to_string).collect();
                let pids = pids.join(", ");
                self.actions
                    .push(format!("killed the child processes of cell {cell}: {pids}"));
            }
        }
        if !self.actions.is_empty() && self.wait(session).await {
            return;
        }
        self.look(session).await;
        self.kill_session(context, session.clone()).await;
    }

    /// Says where the cells are that do not end.
    async fn look(&mut self, session: &SessionHandle) {
        let Ok(HostEvent::Stack { threads, .. }) = session.ask(Question::Stack).await else {
            return;
        };
        for cell in &mut self.cells {
            if cell.outcome == InterruptOutcome::Pending {
                let its = threads.iter().find(|it| it.cell_id == Some(cell.cell_id));
                cell.stack = its.cloned().or(cell.stack.take());
            }
        }
    }

    async fn kill_session(&mut self, context: &Arc<Context>, session: SessionHandle) {
        let name = session.name().clone();
        let work = Arc::clone(context);
        let task = context.hosts.tracker.spawn(async move {
            session
                .end(EndReason::Interrupted, GRACE, &work.hurry)
                .await
        });
        self.killed = task.await.unwrap_or(false);
        self.actions.push(if self.killed {
            format!("killed the session `{name}`")
        } else {
            format!("the process of the session `{name}` does not end")
        });
    }

    fn reply(self, name: &SessionName, format: ReplyFormat) -> Reply {
        let mut text = match self.cells.len() {
            0 => format!("OK no running cells in {name}"),
            1 => format!("OK int {name}: 1 cell"),
            count => format!("OK int {name}: {count} cells"),
        };
        for action in &self.actions {
            text.push_str(&format!("\n{action}"));
        }
        match format {
            ReplyFormat::Plain => Reply::ok(text),
            ReplyFormat::Json => Reply::json(&InterruptReply {
                interrupted_count: None,
                ok: true,
                session: name.clone(),
                interrupted: self.cells.iter().map(|cell| cell.cell_id).collect(),
                cells: self.cells,
                actions: self.actions,
                killed: self.killed,
            }),
        }
    }
}
