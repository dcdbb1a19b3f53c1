//! One request passed on to a remote daemon, and sent again when the link breaks.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use pythond_protocol::verbs::events::{Event, EventMessage};
use pythond_protocol::verbs::out::StreamEvent;
use pythond_protocol::verbs::submit::SubmitRequest;
use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use pythond_transport::Spoken;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::Remote;
use super::dial::most_answer;
use super::earlier::{self, Unanswered};
use super::error::RemoteError;
use super::link::{Exchange, Lost, OnLoss, TOO_GREAT};
use super::names;
use super::own::OwnExchange;
use super::remote::{HASTE, PATIENCE};
use super::request::{Asked, Routed, lasts, may_repeat};
use super::status::with_way;
use crate::handlers::{Caller, Reply};

/// How long a daemon that stops may take to close its connections.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Pauses between two connections of a request's own, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// So often a daemon of 0.4 may break the connection of one question.
const MOST_BREAKS: u32 = 3;

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
    let is_status = matches!(parsed.request, Ok(Request::Status(_)));
    let reply = match carry_out(routed, caller, parsed, key).await {
        Err(mut error) if is_status => {
            error.remote = Some(Box::new(routed.remote.summary()));
            return Err(error);
        }
        told => told?,
    };
    let reply = match &routed.session {
        Some(session) => {
            let remote = routed.remote.spec.name.as_str();
            names::of_here(reply, remote, session.as_str())
        }
        None => reply,
    };
    Ok(match is_status {
        true => with_way(reply, &routed.remote),
        false => reply,
    })
}

async fn carry_out(
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
    let lasts = lasts(&request);
    let is_events = matches!(request, Request::Events(_));
    // Their offsets count like those of a cell that is sent again.
    let followed = match &request {
        Request::Out(out) if out.events && format == ReplyFormat::Json => Some(out.since),
        _ => None,
    };
    let timeout = match &request {
        Request::Wait(wait) => wait.timeout,
        _ => None,
    };
    let (mut submit, mut body) = (None, None);
    match request {
        Request::Submit(request) => submit = Some(with_key(request, caller, key)),
        Request::New(request) if !request.options.implied.is_empty() => {
            let options = request.options.for_elsewhere();
            body = serde_json::to_string(&options).ok();
        }
        _ => {}
    }
    let cancels = |submit: &SubmitRequest| submit.options.cancel_on_disconnect;
    let on_loss = match submit.as_ref().is_some_and(cancels) {
        true => OnLoss::LetGo,
        false => OnLoss::GiveUp,
    };
    let _room = remote.room(lasts).await;
    let mut told = Told::default();
    let mut first: Option<Duration> = None;
    // It is asked on a connection of its own.
    let mut own = false;
    let mut pauses = own_pauses();
    let mut hasty = HASTE.0;
    let mut breaks = 0;
    let mut link = remote.link().await.map_err(|error| error.reply(name))?;
    loop {
        if link.is_own && routed.comes_back {
            return Err(loops(routed));
        }
        let now = since_boot();
        let began = *first.get_or_insert(now);
        let again = (told.attempts > 0).then(|| now.saturating_sub(began));
        let mut this_time = submit.as_mut().map(|submit| resend(submit, again));
        if let Some(submit) = this_time.as_mut().filter(|it| it.options.stream) {
            // From the beginning, a way that breaks often never gets further.
            submit.options.since = told.output().or(submit.options.since);
        }
        let asked = Asked {
            format,
            submit: this_time.as_ref(),
            body: body.as_deref(),
            instead: instead(&told, timeout, again, followed.is_some()),
        };
        if link.spoken == Spoken::Earlier && !own {
            let frame = routed.on_link(0, &asked);
            let answered = tokio::select! {
                answered = earlier::ask(&remote, &frame, caller) => answered,
                gone = remote.disconnected() => Err(Unanswered::NoWay(gone)),
            };
            match answered {
                Ok(text) if format == ReplyFormat::Plain => return Ok(plain(text)),
                Ok(text) => return answer(text.into(), format),
                Err(Unanswered::NoWay(error)) => return Err(error.reply(name)),
                Err(Unanswered::SpeaksOurs) => own = true,
                Err(Unanswered::Broke(why)) => {
                    breaks += 1;
                    if breaks == MOST_BREAKS {
                        return Err(RemoteError::new(why).reply(name));
                    }
                    let _ = tokio::time::timeout(LAST_WORDS, link.closed()).await;
                    let again = remote.link_again().await;
                    link = again.map_err(|error| error.reply(name))?;
                }
            }
            continue;
        }
        told.attempts += 1;
        let before = (told.events, told.texts);
        let on_link = |tag| routed.on_link(tag, &asked);
        let answered = if own {
            let asking = async {
                let own = OwnExchange::ask(&remote, on_link).await?;
                follow(Way::Own(Box::new(own)), caller, &mut told).await
            };
            // The link ends by itself; this connection is none of its.
            tokio::select! {
                answered = asking => answered,
                gone = remote.disconnected() => Err(Lost::Broken(gone.message)),
            }
        } else {
            let exchange = remote.ask(&link, on_loss, on_link);
            follow(Way::Shared(exchange), caller, &mut told).await
        };
        let why = match answered {
            Ok(text) => {
                let mut reply = answer(text, format)?;
                if let Some(since) = followed.filter(|_| told.attempts > 1) {
                    reply = told.in_all(reply, since);
                }
                if !is_events || !reply.ok {
                    return Ok(reply);
                }
                // That daemon stops, and this one does not.
                let _ = tokio::time::timeout(LAST_WORDS, link.closed()).await;
                "it stopped".to_owned()
            }
            Err(Lost::Broken(why)) => {
                if own {
                    // The link may live, and would not make it wait. A way that
                    // carries something is taken again at once.
                    let pause = if told.events > before.0 {
                        hasty = HASTE.0;
                        hasty
                    } else if told.texts > before.1 {
                        hasty = (hasty * 2).min(HASTE.1);
                        hasty
                    } else {
                        pauses.next().unwrap_or(PAUSES.1)
                    };
                    if told.texts > before.1 {
                        pauses = own_pauses();
                    }
                    remote.pause(pause).await;
                }
                why
            }
            Err(Lost::NoWay(error)) => match pauses.next() {
                Some(pause) if !error.needs_somebody => {
                    remote.pause(pause).await;
                    error.message
                }
                _ => return Err(found_by(&submit, error.reply(name))),
            },
            // From now on it is read no faster than the caller takes it.
            Err(Lost::TooSlow) => {
                own = true;
                "it was read too slowly".to_owned()
            }
            // Alone, it is known whose answer it is.
            Err(Lost::AnswerTooBig) if own => {
                let cell = match &submit {
                    Some(submit) => cell_of(&remote, routed, submit).await,
                    None => None,
                };
                return Err(answer_too_big(routed, cell));
            }
            Err(Lost::AnswerTooBig) => {
                own = true;
                TOO_GREAT.to_owned()
            }
            Err(Lost::TooBig) => {
                let message = format!("remote `{name}` takes no message so great");
                return Err(ErrorReply::new(ErrorCode::RemoteRefused, message)
                    .with_hint("put what is great into a file that the session reads"));
            }
        };
        if !repeats {
            let message = format!(
                "the way to remote `{name}` broke ({why}), and nobody knows whether this was \
                 carried out"
            );
            return Err(ErrorReply::new(ErrorCode::SessionUnreachable, message)
                .with_hint("look before you send it again"));
        }
        let again = remote.link_again().await;
        link = again.map_err(|error| found_by(&submit, error.reply(name)))?;
    }
}

/// The id of a cell that was sent before: it is sent once more with its key, as
/// the first event of a stream has it.
async fn cell_of(remote: &Remote, routed: &Routed, submit: &SubmitRequest) -> Option<CellId> {
    #[derive(Deserialize)]
    struct Named {
        cell_id: CellId,
    }
    // So long ago that a session which does not know the key never runs it.
    let mut streamed = resend(&mut submit.clone(), Some(PATIENCE));
    streamed.options.stream = true;
    streamed.options.cancel_on_disconnect = false;
    let asked = Asked {
        format: ReplyFormat::Json,
        submit: Some(&streamed),
        body: None,
        instead: Vec::new(),
    };
    let asking = async {
        let mut own = OwnExchange::ask(remote, |tag| routed.on_link(tag, &asked)).await?;
        own.next().await
    };
    let answer = tokio::time::timeout(LAST_WORDS, asking).await;
    let text = answer.ok()?.ok()?;
    let named: Named = serde_json::from_str(&text).ok()?;
    Some(named.cell_id)
}

/// The refusal of what would come back to us without end.
pub(super) fn loops(routed: &Routed) -> ErrorReply {
    let remote = &routed.remote.spec.name;
    let message = format!(
        "remote `{remote}` is this daemon itself, and has no session `{}` but a remote",
        routed.session.as_ref().map_or("", |it| it.as_str())
    );
    ErrorReply::new(ErrorCode::RemoteRefused, message).with_hint(format!(
        "name a session that this machine has: `{remote}/SESSION`, or `pyctl connect` with \
         `--session SESSION --replace`"
    ))
}

/// The refusal of what has too great an answer. Nothing is taken back.
fn answer_too_big(routed: &Routed, cell: Option<CellId>) -> ErrorReply {
    let remote = &routed.remote.spec.name;
    let message = format!(
        "the answer of remote `{remote}` is greater than {} bytes, the most that is taken \
         (`limits.remote_answer`)",
        most_answer()
    );
    let name = match &routed.session {
        Some(session) => format!("{remote}/{session}"),
        None => remote.to_string(),
    };
    let id = cell.map_or_else(|| "ID".to_owned(), |cell| cell.to_string());
    let mut reply = ErrorReply::new(ErrorCode::Limit, message).with_hint(format!(
        "it was carried out; `pysh out {name} {id} --follow` reads a cell's output in pieces"
    ));
    reply.cell_id = cell;
    reply
}

/// Of the connections that one request has for itself.
fn own_pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .without_max_times()
        .with_total_delay(Some(PATIENCE))
        .with_jitter()
        .build()
}

/// A refusal that says how the cell is found, if it is about one.
fn found_by(submit: &Option<SubmitRequest>, reply: ErrorReply) -> ErrorReply {
    let key = submit.as_ref().and_then(|it| it.options.key.as_ref());
    match key {
        Some(key) => with_finder(reply, key),
        None => reply,
    }
}

/// A refusal whose hint says how its cell is found, after what is to be done first.
fn with_finder(reply: ErrorReply, key: &str) -> ErrorReply {
    let finder = format!("the same code with `--id={key}` finds it");
    let hint = match &reply.hint {
        Some(hint) => format!("{hint}. The cell may have run: {finder}"),
        None => format!("the cell may have run: {finder}"),
    };
    reply.with_hint(hint)
}

/// The connection that a request is on.
enum Way {
    Shared(Exchange),
    Own(Box<OwnExchange>),
}

impl Way {
    async fn next(&mut self) -> Result<Utf8Bytes, Lost> {
        match self {
            Self::Shared(exchange) => exchange.next().await,
            Self::Own(exchange) => exchange.next().await,
        }
    }

    fn is_over(&mut self) {
        if let Self::Shared(exchange) = self {
            exchange.is_over();
        }
    }
}

/// What is asked otherwise than the caller asked it, as some of it was answered.
fn instead(
    told: &Told,
    timeout: Option<Duration>,
    again: Option<Duration>,
    is_followed: bool,
) -> Vec<(&'static str, String)> {
    let since = match is_followed {
        true => told.output().map(|offset| offset.to_string()),
        false => told.cursor(),
    };
    let since = since.map(|since| ("since", since));
    let left = again.and_then(|ago| Some(timeout?.saturating_sub(ago)));
    let left = left.map(|left| ("timeout", left.as_secs_f64().to_string()));
    since.into_iter().chain(left).collect()
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
    /// How many events were passed on, and how many texts came.
    events: u64,
    texts: u64,
    /// Bytes of output of which it was told that they are not kept.
    missing: u64,
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

    /// The answer about output, as if all of it had come at once: the other end knows
    /// of the last part only.
    fn in_all(&self, reply: Reply, since: u64) -> Reply {
        let Ok(mut value) = serde_json::from_str::<Value>(&reply.text) else {
            return reply;
        };
        if value.get("offset").is_none() {
            return reply;
        }
        value["offset"] = since.into();
        value["missing"] = self.missing.into();
        Reply::of_text(reply.ok, value.to_string())
    }

    /// Up to where the caller has events of sessions.
    fn cursor(&self) -> Option<String> {
        let last: EventMessage = serde_json::from_str(self.last.as_deref()?).ok()?;
        Some(last.cursor)
    }
}

/// Passes events on until the answer comes.
async fn follow(mut exchange: Way, caller: &Caller, told: &mut Told) -> Result<Utf8Bytes, Lost> {
    let again = told.attempts > 1;
    // Where it is sent again some may be told once more.
    let seen = if again { told.output() } else { None };
    loop {
        let text = exchange.next().await?;
        told.texts += 1;
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
            told.missing += missing(&text);
            told.last = Some(text.clone());
        }
        told.events += 1;
        caller.pass_on(text.as_str()).await;
    }
}

/// How many bytes of output an event says are not kept.
fn missing(text: &str) -> u64 {
    // Most events are pieces, which are great.
    if !text.starts_with("{\"event\":\"gap\"") {
        return 0;
    }
    match serde_json::from_str(text) {
        Ok(StreamEvent::Gap { missing, .. }) => missing,
        _ => 0,
    }
}

const ACCEPTED: &str = "{\"event\":\"accepted\"";

/// What of an event the caller does not have yet.
fn unseen(text: Utf8Bytes, seen: Option<u64>, told: &Told) -> Option<Utf8Bytes> {
    if text.starts_with(ACCEPTED) {
        return (!told.accepted).then_some(text);
    }
    match serde_json::from_str::<StreamEvent>(&text) {
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
            Ok(Plain { plain: text }) => Ok(plain(text)),
            Err(_) => Err(unexpected()),
        },
        ReplyFormat::Json => match serde_json::from_str::<Structured>(&text) {
            Ok(Structured { ok }) => Ok(Reply::of_text(ok != Some(false), text.to_string())),
            Err(_) => Err(unexpected()),
        },
    }
}

fn plain(text: String) -> Reply {
    Reply::of_text(!text.starts_with("ERR "), text)
}

fn unexpected() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::RemoteRefused,
        "the remote daemon's answer cannot be understood",
    )
    .with_hint("compare `pyctl status` here and there")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(offset: u64, data: &str) -> Utf8Bytes {
        let event = serde_json::json!({
            "event": "output", "cell_id": "5f2c00000003", "stream": 1, "offset": offset,
            "data": data,
        });
        event.to_string().into()
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let accepted = r#"{"event":"accepted","cell_id":"5f2c00000003"}"#;
        let mut told = Told::default();
        let first = unseen(accepted.into(), None, &told);
        assert!(first.is_some());
        told.accepted = true;
        assert_eq!(unseen(accepted.into(), None, &told), None);
        assert_eq!(unseen(output(0, "abc"), Some(3), &told), None);
        let rest = unseen(output(2, "cde"), Some(3), &told).expect("there is more");
        let rest: serde_json::Value = serde_json::from_str(&rest).expect("it is JSON");
        assert_eq!((&rest["offset"], &rest["data"]), (&3.into(), &"de".into()));
    }

    #[test]
    fn events_go_on_behind_the_last() {
        let event = r#"{"cursor":"1f0a-7","time":"2026-01-31T12:00:00Z","event":"reset"}"#;
        let ready = r#"{"cursor":"1f0a-9","time":"2026-01-31T12:00:00Z","event":"ready"}"#;
        let told = Told {
            last: Some(event.into()),
            ..Told::default()
        };
        assert_eq!(
            instead(&told, None, None, false),
            [("since", "1f0a-7".to_owned())]
        );
        let told_output = Told {
            last: Some(output(3, "ab")),
            ..Told::default()
        };
        let since = instead(&told_output, None, None, true);
        assert_eq!(since, [("since", "5".to_owned())]);
        assert_eq!(unseen(ready.into(), None, &told), None);
        assert_eq!(unseen(event.into(), None, &told), Some(event.into()));
    }

    #[test]
    fn a_time_out_goes_on_from_the_first_time() {
        let seconds = Duration::from_secs;
        let told = Told::default();
        assert_eq!(instead(&told, Some(seconds(5)), None, false), []);
        let left = |ago| instead(&told, Some(seconds(5)), Some(seconds(ago)), false);
        assert_eq!(left(2), [("timeout", "3".to_owned())]);
        assert_eq!(left(9), [("timeout", "0".to_owned())]);
    }

    #[test]
    fn answers_are_no_events() {
        for text in [r#"{"ok":true}"#, r#"{"plain":"{\"event\":1}"}"#, "{}", ""] {
            assert!(!is_event(text), "{text}");
        }
    }
}
