//! `connect`.

use std::sync::Arc;

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::connect::{ConnectReply, ConnectRequest};
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};

use super::{Context, Reply};
use crate::remote::{Remote, RemoteSpec};

/// A remote that is not in the table yet. Whoever asked may go away meanwhile, and
/// then nobody is to try on.
struct Trial(Option<Arc<Remote>>);

impl Trial {
    fn get(&self) -> &Arc<Remote> {
        self.0.as_ref().expect("only `into_inner` takes it")
    }

    fn into_inner(mut self) -> Arc<Remote> {
        self.0.take().expect("only this takes it")
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(remote) = &self.0 {
            remote.disconnect();
        }
    }
}

/// Connects once, so that what is wrong is told to whoever can mend it.
pub(super) async fn handle(
    context: &Context,
    request: ConnectRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let name = request.name.clone();
    let replace = request.options.replace;
    let spec = RemoteSpec::of(request)?;
    let may_have = || {
        if context.remotes.get(&name).is_some() && !replace {
            return Err(connected_already(&name));
        }
        match context.registry.is_free(&name) {
            true => Ok(()),
            false => Err(named_already(&name)),
        }
    };
    may_have()?;
    let remote = Trial(Some(context.remotes.remote(spec)));
    let link = match remote.get().link().await {
        Ok(link) => link,
        Err(error) => return Err(error.refuses_connect(name.as_str())),
    };
    let session = &remote.get().spec.session;
    if link.is_own && (*session == name || context.remotes.get(session).is_some()) {
        return Err(comes_back(session));
    }
    // Somebody may have been quicker.
    may_have()?;
    let remote = remote.into_inner();
    let (summary, note) = (remote.summary(), remote.take_note());
    context.remotes.enter(remote);
    Ok(match format {
        ReplyFormat::Json => Reply::json(&ConnectReply {
            ok: true,
            remote: summary,
            note,
        }),
        ReplyFormat::Plain => {
            let endpoint = summary.endpoint.unwrap_or_default();
            let tls = if summary.tls { " tls" } else { "" };
            Reply::ok(format!("OK connected {name} -> {endpoint}{tls}"))
        }
    })
}

fn connected_already(name: &SessionName) -> ErrorReply {
    let message = format!("remote `{name}` is connected already");
    ErrorReply::new(ErrorCode::SessionExists, message).with_hint(format!(
        "`pyctl disconnect {name}` takes it away, `--replace` puts another in its place"
    ))
}

fn comes_back(session: &SessionName) -> ErrorReply {
    let message = format!(
        "that is this daemon itself, where `{session}` is no session: requests would come back"
    );
    ErrorReply::new(ErrorCode::RemoteRefused, message)
        .with_hint("name a session that this machine has with `--session`")
}

fn named_already(name: &SessionName) -> ErrorReply {
    let message = format!("a session of this machine is named `{name}`");
    ErrorReply::new(ErrorCode::SessionExists, message).with_hint("give the remote another name")
}
