//! `resize NAME ROWS COLS`: another size for the session's terminal.

use pythond_protocol::ErrorReply;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::attach::no_session;
use pythond_protocol::verbs::resize::{ResizeReply, ResizeRequest};

use super::{Context, Reply};
use crate::session::Question;

pub(super) async fn handle(
    context: &Context,
    request: ResizeRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let name = &request.session;
    let session = context
        .registry
        .get(name)
        .map_err(|_| no_session(name.as_str()))?;
    let HostEvent::Resized { .. } = session.ask(Question::Resize(request.size)).await? else {
        return Err(super::unexpected());
    };
    Ok(answer(&request, format))
}

/// The answer to a resize that is under way.
pub(crate) fn answer(request: &ResizeRequest, format: ReplyFormat) -> Reply {
    match format {
        ReplyFormat::Plain => Reply::ok("OK"),
        ReplyFormat::Json => Reply::json(&ResizeReply {
            ok: true,
            session: request.session.clone(),
            rows: request.size.rows,
            cols: request.size.cols,
        }),
    }
}
