//! `cells NAME`: the cells that a session remembers.

use pythond_protocol::ErrorReply;
use pythond_protocol::lane::{CellRecord, HostEvent};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::cells::{CellsReply, CellsRequest};

use super::{Context, Reply, cell_reply};
use crate::session::{Question, SessionHandle};

pub(super) async fn handle(
    context: &Context,
    request: CellsRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let (records, forgotten) = all(&session).await?;
    let spec = &session.hosted().spec;
    let reply = CellsReply {
        ok: true,
        session: spec.session.clone(),
        session_id: spec.session_id.clone(),
        generation: spec.generation,
        cells: records.into_iter().map(cell_reply::summary).collect(),
        forgotten,
    };
    Ok(match format {
        ReplyFormat::Json => Reply::json(&reply),
        ReplyFormat::Plain if reply.cells.is_empty() => Reply::ok("(no cells)"),
        ReplyFormat::Plain => {
            let mut lines: Vec<_> = reply.cells.iter().map(CellSummary::to_plain).collect();
            if forgotten > 0 {
                lines.insert(0, format!("  ({forgotten} older cells are not remembered)"));
            }
            Reply::ok(lines.join("\n"))
        }
    })
}

/// All cells by age, and how many are not remembered.
pub(super) async fn all(session: &SessionHandle) -> Result<(Vec<CellRecord>, u64), ErrorReply> {
    match session.ask(Question::Cells).await? {
        HostEvent::Cells {
            cells, forgotten, ..
        } => Ok((cells, forgotten)),
        _ => Err(super::ask::unexpected()),
    }
}
