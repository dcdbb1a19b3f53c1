//! `out NAME ID`: a cell's output, from any offset, now or as it comes.

use pythond_protocol::lane::HostEvent;
use pythond_protocol::output_log::{self, Demuxed};
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::cell::Text;
use pythond_protocol::verbs::out::{OutReply, OutRequest};
use pythond_protocol::{ErrorCode, ErrorReply};

use super::output::OutputReader;
use super::{Caller, Context, Reply, cell_reply};
use crate::session::{Question, SessionHandle};

pub(super) async fn handle(
    context: &Context,
    caller: &Caller,
    request: OutRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    if request.events {
        return as_events(caller, &session, request).await;
    }
    let OutRequest {
        cell,
        since,
        stream,
        most,
        ..
    } = request;
    let mut reader = OutputReader::new(&session, cell, stream, since);
    let mut log = Vec::new();
    let (mut missing, mut begin, mut ended) = (0, None, false);
    loop {
        let have = reader.position().saturating_sub(begin.unwrap_or(since));
        let room = usize::try_from(most.saturating_sub(have)).unwrap_or(usize::MAX);
        if room == 0 {
            break;
        }
        let chunk = reader.read_at_most(room).await?;
        ended = chunk.ended;
        if chunk.next <= reader.before() {
            break;
        }
        if begin.is_some() && chunk.missing > 0 {
            // A hole ends the answer; the next one begins with it.
            break;
        }
        begin.get_or_insert(chunk.offset);
        missing += chunk.missing;
        log.extend_from_slice(&chunk.records);
        if ended {
            break;
        }
    }
    let offset = begin.unwrap_or(since);
    let length = output_log::merged(&log).map_or(0, |bytes| bytes.len() as u64);
    let Demuxed { stdout, stderr } = Demuxed::from_log(&log)
        .map_err(|_| ErrorReply::new(ErrorCode::Internal, "the session host sent a damaged log"))?;
    let reply = OutReply {
        next: offset + length,
        missing,
        ended,
        order: cell_reply::order(&log)?,
        stdout: Text(stdout),
        stderr: Text(stderr),
        ..reply(&session, &request, offset).await?
    };
    Ok(match format {
        ReplyFormat::Json => Reply::json(&reply),
        ReplyFormat::Plain => {
            let bytes = output_log::merged(&log).unwrap_or_default();
            Reply::ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    })
}

/// A reply without output, with the cell's state.
async fn reply(
    session: &SessionHandle,
    request: &OutRequest,
    offset: u64,
) -> Result<OutReply, ErrorReply> {
    let answer = session.ask(Question::Look(Some(request.cell))).await?;
    let HostEvent::Cell {
        record: Some(record),
        ..
    } = answer
    else {
        return Err(super::ask::unexpected());
    };
    Ok(OutReply {
        ok: true,
        session: request.session.clone(),
        cell_id: request.cell,
        status: record.status,
        offset,
        next: offset,
        missing: 0,
        ended: false,
        stdout: Text(Vec::new()),
        stderr: Text(Vec::new()),
        order: Vec::new(),
    })
}

async fn as_events(
    caller: &Caller,
    session: &SessionHandle,
    request: OutRequest,
) -> Result<Reply, ErrorReply> {
    let OutRequest {
        cell,
        since,
        stream,
        follow,
        ..
    } = request;
    let mut reader = OutputReader::new(session, cell, stream, since);
    let (mut missing, mut ended) = (0, false);
    while !ended {
        let chunk = if follow {
            reader.follow().await?
        } else {
            reader.read().await?
        };
        ended = chunk.ended;
        missing += chunk.missing;
        let moved = chunk.next > reader.before();
        caller.output(cell, stream, &chunk).await;
        if !moved && !follow {
            break;
        }
    }
    let next = reader.position();
    Ok(Reply::json(&OutReply {
        next,
        missing,
        ended,
        ..reply(session, &request, since).await?
    }))
}
