//! `connect`.

use pythond_protocol::ErrorReply;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::connect::{ConnectReply, ConnectRequest};

use super::{Context, Reply};
use crate::registry;
use crate::remote::RemoteSpec;

/// Connects once, so that what is wrong is told to whoever can mend it.
pub(super) async fn handle(
    context: &Context,
    request: ConnectRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let name = request.name.clone();
    let replace = request.options.replace;
    let spec = RemoteSpec::of(request)?;
    let is_free = || {
        let taken = context.remotes.get(&name).is_some() && !replace;
        context.registry.is_free(&name) && !taken
    };
    if !is_free() {
        return Err(registry::exists(&name));
    }
    let remote = context.remotes.remote(spec);
    let connected = remote.link().await;
    if let Err(error) = connected {
        remote.disconnect();
        return Err(error.reply(name.as_str()));
    }
    // Somebody may have been quicker.
    if !is_free() {
        remote.disconnect();
        return Err(registry::exists(&name));
    }
    let summary = remote.summary();
    context.remotes.enter(remote);
    Ok(match format {
        ReplyFormat::Json => Reply::json(&ConnectReply {
            ok: true,
            remote: summary,
        }),
        ReplyFormat::Plain => {
            let endpoint = summary.endpoint.unwrap_or_default();
            let tls = if summary.tls { " tls" } else { "" };
            Reply::ok(format!("OK connected {name} -> {endpoint}{tls}"))
        }
    })
}
