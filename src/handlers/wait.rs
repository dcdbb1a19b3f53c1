//! `wait NAME [ID…]`: an answer when cells have ended. The host tells; nobody
//! polls.

use futures_util::future::join_all;
use pythond_protocol::lane::{CellRecord, HostEvent};
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::wait::{WaitReply, WaitRequest};
use pythond_protocol::{CellId, ErrorReply};

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
    let all = join_all(cells.iter().map(|cell| one(&session, *cell)));
    let timed_out = match request.timeout {
        None => {
            for ended in all.await {
                ended?;
            }
            false
        }
        Some(span) => match tokio::time::timeout(span, all).await {
            Ok(all) => {
                for ended in all {
                    ended?;
                }
                false
            }
            Err(_) => true,
        },
    };
    let (records, _) = super::cells::all(&session).await?;
    let summary = |id: &CellId| -> Result<CellSummary, ErrorReply> {
        let found = records.iter().find(|record| record.cell == *id);
        let record: &CellRecord = found.ok_or_else(|| ErrorReply::unknown_cell(&id.to_string()))?;
        Ok(cell_reply::summary(record.clone()))
    };
    let cells: Vec<_> = cells.iter().map(summary).collect::<Result<_, _>>()?;
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

async fn one(session: &SessionHandle, cell: CellId) -> Result<(), ErrorReply> {
    match session.ask_and_wait(Question::Await(cell)).await? {
        (HostEvent::Finished(_), _) => Ok(()),
        _ => Err(super::ask::unexpected()),
    }
}
