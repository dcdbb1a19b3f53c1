//! A request that is being carried out, here or by a remote daemon, and its answer.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};
use pythond_protocol::{ErrorCode, ErrorReply};
use tokio_util::sync::CancellationToken;

use crate::access_log::Fields;
use crate::handlers::{self, Caller, Context, Reply};
use crate::remote::{self, Routed};

/// A request that is being carried out.
pub(super) struct Done {
    /// What came of it; none for a fault of ours.
    pub(super) reply: Option<Reply>,
    /// The answer with the tag of the request.
    pub(super) text: String,
    pub(super) asked: Asked,
}

/// What the log and the connection remember of a request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) verb: String,
    pub(super) session: String,
    pub(super) tag: Option<String>,
    pub(super) stops: bool,
}

impl Asked {
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields {
            command: Some(&self.verb),
            session: Some(&self.session),
            ..Fields::default()
        }
    }
}

impl Done {
    pub(super) fn new(
        caller: &Caller,
        mut reply: Option<Reply>,
        format: ReplyFormat,
        asked: Asked,
    ) -> Self {
        let text = reply.as_mut().map(|reply| {
            let text = std::mem::take(&mut reply.text);
            match format {
                ReplyFormat::Plain if caller.tag.is_some() => {
                    caller.tagged(serde_json::json!({ "plain": text }).to_string())
                }
                _ => caller.tagged(text),
            }
        });
        Self {
            text: text.unwrap_or_default(),
            reply,
            asked,
        }
    }
}

/// A request in the works; one with a tag can be given up.
pub(super) struct Running {
    pub(super) tag: Option<(String, CancellationToken)>,
    pub(super) work: BoxFuture<'static, Done>,
}

impl Future for Running {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Done> {
        self.work.as_mut().poll(context)
    }
}

/// Carries a request out while its connection is read on.
pub(super) fn carry_out(
    context: Arc<Context>,
    caller: Caller,
    request: Request,
    format: ReplyFormat,
    asked: Asked,
) -> Running {
    let tag = asked.tag.clone().map(|tag| (tag, CancellationToken::new()));
    let cancel = tag.as_ref().map(|(_, cancel)| cancel.clone());
    let work = async move {
        let reply = {
            let handled = handlers::handle(&context, &caller, request, format);
            let mut handled = std::pin::pin!(AssertUnwindSafe(handled).catch_unwind());
            match cancel {
                None => handled.await.ok(),
                Some(cancel) => tokio::select! {
                    biased;
                    reply = &mut handled => reply.ok(),
                    () = cancel.cancelled() => Some(cancelled(format)),
                },
            }
        };
        Done::new(&caller, reply, format, asked)
    };
    Running {
        tag,
        work: work.boxed(),
    }
}

/// Has a remote daemon carry a request out.
pub(super) fn pass_on(
    context: Arc<Context>,
    caller: Caller,
    routed: Routed,
    parsed: Parsed,
    asked: Asked,
) -> Running {
    let tag = asked.tag.clone().map(|tag| (tag, CancellationToken::new()));
    let cancel = tag.as_ref().map(|(_, cancel)| cancel.clone());
    let format = parsed.format;
    let work = async move {
        let key = || context.remotes.new_key();
        let reply = {
            let answered = remote::forward(&routed, &caller, parsed, key);
            let mut answered = std::pin::pin!(AssertUnwindSafe(answered).catch_unwind());
            let refused = |error| Reply::refused(format, &error);
            match cancel {
                None => answered.await.ok().map(|it| it.unwrap_or_else(refused)),
                Some(cancel) => tokio::select! {
                    biased;
                    reply = &mut answered => reply.ok().map(|it| it.unwrap_or_else(refused)),
                    () = cancel.cancelled() => Some(cancelled(format)),
                },
            }
        };
        Done::new(&caller, reply, format, asked)
    };
    Running {
        tag,
        work: work.boxed(),
    }
}

pub(super) fn cancelled(format: ReplyFormat) -> Reply {
    let error = ErrorReply::new(
        ErrorCode::Cancelled,
        "cancelled; what was submitted goes on",
    );
    Reply::refused(format, &error)
}
