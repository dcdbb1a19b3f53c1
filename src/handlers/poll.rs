//! `poll NAME [ID]`: a cell as it is now.

use std::sync::Arc;

use pythond_protocol::lane::{CellRecord, FinishedCell, HostEvent};
use pythond_protocol::outcome::CellStatus;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::poll::{PollRequest, PolledCell};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use serde::Serialize;
use serde_json::json;

use super::{Context, Reply, cell_reply};
use crate::session::{Question, SessionHandle};

pub(super) async fn handle(
    context: &Arc<Context>,
    request: PollRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let cell = match request.cell {
        None => None,
        Some(PolledCell::Id(cell)) => Some(cell),
        Some(PolledCell::Unknown(text)) => return unknown(&text, format),
    };
    let (record, end, log) = match look(&session, cell).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(idle(format)),
        Err(error) if error.code == ErrorCode::UnknownCell => {
            let id = cell.map(|cell| cell.to_string()).unwrap_or_default();
            return unknown(&id, format);
        }
        Err(error) => return Err(error),
    };
    match (format, end) {
        (ReplyFormat::Json, Some(end)) => {
            let cell = cell_reply::Finished::new(end, log);
            // The question was answered, however the cell ended.
            let reply = cell.structured(context, &session).await?;
            Ok(Reply { ok: true, ..reply })
        }
        (ReplyFormat::Json, None) => {
            let reply = cell_reply::unfinished_with_output(context, &session, record).await?;
            Ok(Reply::json(&reply))
        }
        (ReplyFormat::Plain, end) => plain(&session, &record, end, log).await,
    }
}

type Found = (CellRecord, Option<FinishedCell>, Vec<u8>);

async fn look(session: &SessionHandle, cell: Option<CellId>) -> Result<Option<Found>, ErrorReply> {
    let (answer, log) = session.ask_with_body(Question::Look(cell)).await?;
    let HostEvent::Cell { record, end, .. } = answer else {
        return Err(super::ask::unexpected());
    };
    Ok(record.map(|record| (*record, end.map(|end| *end), log)))
}

/// The form of 0.4: a cell is running until it is done.
async fn plain(
    session: &SessionHandle,
    record: &CellRecord,
    end: Option<FinishedCell>,
    log: Vec<u8>,
) -> Result<Reply, ErrorReply> {
    let cell_id = record.cell.to_string();
    let Some(end) = end else {
        return Ok(Reply::spaced_json(&Plain {
            cell_id: &cell_id,
            status: "running",
            output: "",
            error: false,
            merged: None,
            skipped: None,
        }));
    };
    let ok = end.status == CellStatus::Done;
    let merge = end.merge.clone();
    let cell = cell_reply::Finished::new(end, log);
    let output = cell.plain_text(session).await?;
    Ok(Reply::spaced_json(&Plain {
        cell_id: &cell_id,
        status: "done",
        output: &output,
        error: !ok,
        merged: merge.as_ref().map(|it| it.merged.clone()),
        skipped: merge.map(|it| it.skipped.into_keys().collect()),
    }))
}

/// The object of 0.4, its members in their order.
#[derive(Serialize)]
struct Plain<'a> {
    cell_id: &'a str,
    status: &'a str,
    output: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    error: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Vec<String>>,
}

fn idle(format: ReplyFormat) -> Reply {
    match format {
        ReplyFormat::Plain => Reply::spaced_json(&json!({ "status": "idle" })),
        ReplyFormat::Json => Reply::json(&json!({ "ok": true, "status": "idle" })),
    }
}

fn unknown(id: &str, format: ReplyFormat) -> Result<Reply, ErrorReply> {
    match format {
        ReplyFormat::Json => Err(ErrorReply::unknown_cell(id)),
        ReplyFormat::Plain => Ok(Reply {
            ok: false,
            ..Reply::spaced_json(&Plain {
                cell_id: id,
                status: "error",
                output: "unknown cell",
                error: false,
                merged: None,
                skipped: None,
            })
        }),
    }
}
