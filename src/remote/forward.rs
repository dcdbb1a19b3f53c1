//! One request passed on to a remote daemon, and sent again when the link breaks.

use std::sync::Arc;
use std::time::Duration;

use pythond_protocol::verbs::events::{Event, EventMessage};
use pythond_protocol::verbs::out::StreamEvent;
use pythond_protocol::verbs::submit::SubmitRequest;
use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};
use pythond_protocol::{ErrorCode, ErrorReply};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::Remote;
use super::error::RemoteError;
use super::link::{Exchange, Link, Lost};
use super::request::{Asked, Routed, may_repeat};
use crate::handlers::{Caller, Reply};

/// Passes a request on; events go to the caller, the answer is given back.
///
/// # Errors
/// If the remote cannot be used, or nobody knows what became of the request.
pub(crate) async fn forward(
    routed: &Routed,
    caller: &Caller,
    parsed: Parsed,
    key: impl FnOnce() -> String,
) -> Result<Reply, ErrorReply> {
    let remote = Arc::clone(&routed.remote);
    let name = remote.spec.name.as_str();
    let format = parsed.format;
    let repeats = may_repeat(&parsed);
    let request = parsed.request?;
    let (mut submit, mut body) = (None, None);
    match request {
        Request::Submit(request) => submit = Some(with_key(request, caller, key)),
        Request::New(request) if !request.options.implied.is_empty() => {
            let options = request.options.for_elsewhere();
            body = serde_json::to_string(&options).ok();
        }
        _ => {}
    }
    let _room = remote.room().await;
    let mut told = Told::default();
    let mut first: Option<Duration> = None;
    let mut link = remote.link().await.map_err(|error| error.reply(name))?;
    loop {
        let now = since_boot();
        let began = *first.get_or_insert(now);
        let again = (now > began || told.attempts > 0).then(|| now.saturating_sub(began));
        let this_time = submit.as_mut().map(|submit| resend(submit, again));
        let asked = Asked {
            format,
            submit: this_time.as_ref(),
            body: body.as_deref(),
            since: told.cursor(),
        };
        told.attempts += 1;
        let exchange = remote.ask(&link, |tag| routed.on_link(tag, &asked));
        let lost = match follow(exchange, caller, &mut told).await {
            Ok(text) => return answer(text, format),
            Err(lost) => lost,
        };
        let why = match lost {
            Lost::Broken(why) => why,
            Lost::TooSlow => "it was read too slowly".to_owned(),
        };
        if !repeats {
            let message = format!(
                "the way to remote `{name}` broke ({why}), and nobody knows whether this was \
                 carried out"
            );
            return Err(ErrorReply::new(ErrorCode::SessionUnreachable, message)
                .with_hint("look before you send it again"));
        }
        link = next_link(&remote).await.map_err(|error| {
            let reply = error.reply(name);
            match submit
                .as_ref()
                .and_then(|submit| submit.options.key.as_ref())
            {
                Some(key) => reply.with_hint(format!(
                    "the cell may have run: the same code with `--id={key}` finds it"
                )),
                None => reply,
            }
        })?;
    }
}

async fn next_link(remote: &Remote) -> Result<Link, RemoteError> {
    remote.link_again().await
}

/// A cell that can be sent twice.
fn with_key(
    mut submit: SubmitRequest,
    caller: &Caller,
    key: impl FnOnce() -> String,
) -> SubmitRequest {
    let options = &mut submit.options;
    options.key.get_or_insert_with(key);
    options.author.get_or_insert_with(|| caller.author.clone());
    submit
}

/// The same cell as it is sent this time, so long after the first.
fn resend(submit: &mut SubmitRequest, again: Option<Duration>) -> SubmitRequest {
    let mut this_time = submit.clone();
    if let Some(ago) = again {
        let options = &mut this_time.options;
        options.resent = Some(ago + options.resent.unwrap_or_default());
        // Its own cell would be what the session is busy with.
        options.busy_fails = false;
        options.wait = options.wait.map(|most| most.saturating_sub(ago));
    }
    this_time
}

/// By a clock that goes on while the machine sleeps.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// What the caller has been told so far.
#[derive(Default)]
struct Told {
    attempts: u32,
    accepted: bool,
    /// The last event that was passed on.
    last: Option<Utf8Bytes>,
}

impl Told {
    /// Up to where the caller has the output.
    fn output(&self) -> Option<u64> {
        let last: StreamEvent = serde_json::from_str(self.last.as_deref()?).ok()?;
        last.end()
    }

    /// Up to where the caller has events of sessions.
    fn cursor(&self) -> Option<String> {
        let last: EventMessage = serde_json::from_str(self.last.as_deref()?).ok()?;
        Some(last.cursor)
    }
}

/// Passes events on until the answer comes.
async fn follow(
    mut exchange: Exchange,
    caller: &Caller,
    told: &mut Told,
) -> Result<Utf8Bytes, Lost> {
    let again = told.attempts > 1;
    // Where it is sent again all is told from the beginning.
    let seen = if again { told.output() } else { None };
    loop {
        let text = exchange.next().await?;
        if !is_event(&text) {
            exchange.is_over();
            return Ok(text);
        }
        let Some(text) = (if again {
            unseen(text, seen, told)
        } else {
            Some(text)
        }) else {
            continue;
        };
        told.accepted |= text.starts_with(ACCEPTED);
        if !text.starts_with(ACCEPTED) {
            told.last = Some(text.clone());
        }
        caller.pass_on(text.as_str()).await;
    }
}

const ACCEPTED: &str = "{\"event\":\"accepted\"";

/// What of an event the caller does not have yet.
fn unseen(text: Utf8Bytes, seen: Option<u64>, told: &Told) -> Option<Utf8Bytes> {
    match serde_json::from_str::<StreamEvent>(&text) {
        Ok(StreamEvent::Accepted { .. }) => (!told.accepted).then_some(text),
        Ok(event) => {
            let rest = event.from(seen.unwrap_or_default())?;
            let rest = serde_json::to_string(rest.as_ref()).ok()?;
            Some(rest.into())
        }
        Err(_) => {
            let message = serde_json::from_str::<EventMessage>(&text);
            let ready = matches!(
                message,
                Ok(EventMessage {
                    event: Event::Ready,
                    ..
                })
            );
            (!ready).then_some(text)
        }
    }
}

fn is_event(text: &str) -> bool {
    #[derive(Deserialize)]
    struct AnyEvent {
        #[serde(rename = "event")]
        _event: IgnoredAny,
    }
    // Ours begin with it, or with their cursor; nothing else does.
    (text.starts_with("{\"event\"") || text.starts_with("{\"cursor\""))
        && serde_json::from_str::<AnyEvent>(text).is_ok()
}

fn answer(text: Utf8Bytes, format: ReplyFormat) -> Result<Reply, ErrorReply> {
    #[derive(Deserialize)]
    struct Plain {
        plain: String,
    }
    #[derive(Deserialize)]
    struct Structured {
        #[serde(default)]
        ok: Option<bool>,
    }
    match format {
        ReplyFormat::Plain => match serde_json::from_str::<Plain>(&text) {
            Ok(Plain { plain }) => Ok(Reply::of_text(!plain.starts_with("ERR "), plain)),
            Err(_) => Err(unexpected()),
        },
        ReplyFormat::Json => match serde_json::from_str::<Structured>(&text) {
            Ok(Structured { ok }) => Ok(Reply::of_text(ok != Some(false), text.to_string())),
            Err(_) => Err(unexpected()),
        },
    }
}

fn unexpected() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::RemoteRefused,
        "the remote daemon's answer cannot be understood",
    )
    .with_hint("compare `pyctl status` here and there")
}
