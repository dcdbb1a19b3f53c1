//! `disconnect`.

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::disconnect::{DisconnectReply, DisconnectRequest};
use pythond_protocol::{ErrorCode, ErrorReply};

use super::{Context, Reply};

pub(super) fn handle(
    context: &Context,
    request: DisconnectRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let name = request.name;
    if context.remotes.remove(&name).is_none() {
        if context.registry.get(&name).is_ok() {
            let message = format!("`{name}` is a session of this daemon");
            return Err(ErrorReply::new(ErrorCode::Usage, message)
                .with_hint(format!("end it with `pysh kill {name}`"))
                .with_plain(format!("'{name}' is local, use kill")));
        }
        return Err(
            ErrorReply::new(ErrorCode::NoSession, format!("no remote named `{name}`"))
                .with_hint("list remotes with `pysh ls`")
                .with_plain(format!("no session '{name}'")),
        );
    }
    Ok(match format {
        ReplyFormat::Json => Reply::json(&DisconnectReply {
            ok: true,
            disconnected: name,
        }),
        ReplyFormat::Plain => Reply::ok(format!("OK disconnected {name}")),
    })
}
