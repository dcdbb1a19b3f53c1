//! `wait NAME [ID…]`: an answer when cells have ended. The host tells; nobody
//! polls.

use futures_util::future::try_join_all;
use pythond_protocol::lane::{CellRecord, FinishedCell, HostEvent};
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::wait::{WaitReply, WaitRequest};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::{Context, Reply, cell_reply};
use crate::session::{Question, SessionHandle};

pub(super) async fn handle(
    context: &Context,
    request: WaitRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let cells = if request.cells.is_empty() {
        unfinished(&session).await?
    } else {
        request.cells
    };
    let mut ends: Vec<Option<Box<FinishedCell>>> = vec![None; cells.len()];
    let waits = cells.iter().zip(&mut ends).map(|(cell, end)| async {
        *end = Some(one(&session, *cell).await?);
        Ok::<_, ErrorReply>(())
    });
    let all = try_join_all(waits);
    let timed_out = match request.timeout {
        None => {
            all.await?;
            false
        }
        Some(span) => match tokio::time::timeout(span, all).await {
            Ok(all) => {
                all?;
                false
            }
            Err(_) => true,
        },
    };
    let summaries = cells.iter().zip(ends);
    let summaries = summaries.map(|(cell, end)| summary(&session, *cell, end));
    let cells = try_join_all(summaries).await?;
    let ok = cells.iter().all(|cell| cell.status == CellStatus::Done);
    let reply = WaitReply {
        ok,
        session: request.session,
        cells,
        timed_out,
    };
    Ok(match format {
        ReplyFormat::Plain => Reply::spaced_json(&reply),
        ReplyFormat::Json => Reply::json(&reply),
    })
}

async fn unfinished(session: &SessionHandle) -> Result<Vec<CellId>, ErrorReply> {
    let (records, _) = super::cells::all(session).await?;
    let waits =
        |record: &CellRecord| matches!(record.status, CellStatus::Queued | CellStatus::Running);
    let waiting = records.into_iter().filter(waits);
    Ok(waiting.map(|record| record.cell).collect())
}

async fn one(session: &SessionHandle, cell: CellId) -> Result<Box<FinishedCell>, ErrorReply> {
    match session.ask_and_wait(Question::Await(cell)).await? {
        (HostEvent::Finished(end), _) => Ok(end),
        _ => Err(super::ask::unexpected()),
    }
}

/// What is known of a cell; one that was forgotten since it ended is known by
/// its end.
async fn summary(
    session: &SessionHandle,
    cell: CellId,
    end: Option<Box<FinishedCell>>,
) -> Result<CellSummary, ErrorReply> {
    match (session.ask(Question::Look(Some(cell))).await, end) {
        (
            Ok(HostEvent::Cell {
                record: Some(record),
                ..
            }),
            end,
        ) => Ok(CellSummary {
            merge: end.and_then(|end| end.merge).map(|merge| *merge),
            ..cell_reply::summary(*record)
        }),
        (Err(error), Some(end)) if error.code == ErrorCode::UnknownCell => {
            Ok(cell_reply::summary_of_end(&end))
        }
        (Err(error), _) => Err(error),
        (Ok(_), _) => Err(super::ask::unexpected()),
    }
}
