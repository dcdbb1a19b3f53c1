//! `vars`, `complete`: one question to the host, one answer.

use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::complete::{CompleteReply, CompleteRequest};
use pythond_protocol::verbs::vars::{VarsReply, VarsRequest};
use pythond_protocol::{ErrorCode, ErrorReply};
use serde_json::json;

use super::{Context, Reply};
use crate::session::Question;

/// The host answered something else: a fault of its words, not of the client.
pub(crate) fn unexpected() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Internal,
        "the session host gave an answer to another question",
    )
}

pub(super) async fn vars(
    context: &Context,
    request: &VarsRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let HostEvent::Vars { vars, .. } = session.ask(Question::Vars).await? else {
        return Err(unexpected());
    };
    Ok(match format {
        ReplyFormat::Plain => {
            let names: Vec<_> = vars.iter().map(|variable| &variable.name).collect();
            Reply::spaced_json(&json!({ "vars": names }))
        }
        ReplyFormat::Json => Reply::json(&VarsReply {
            ok: true,
            session: request.session.clone(),
            vars,
        }),
    })
}

pub(super) async fn complete(
    context: &Context,
    request: CompleteRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let answer = session.ask(Question::Complete(request.text)).await?;
    let HostEvent::Completions { matches, .. } = answer else {
        return Err(unexpected());
    };
    Ok(match format {
        ReplyFormat::Plain => Reply::spaced_json(&json!({ "matches": matches })),
        ReplyFormat::Json => Reply::json(&CompleteReply {
            ok: true,
            session: request.session,
            matches,
        }),
    })
}
