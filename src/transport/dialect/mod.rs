//! What is said to a daemon of 0.4 in place of our own words, and what its answers
//! mean in them (PROTOCOL.md, "Daemons of 0.4"). Text in, text out: no sockets.

mod answer;
mod ask;
mod ending;
mod listing;
mod refusal;
mod reply;
#[cfg(test)]
mod tests;

pub(crate) use ask::lacks;

use std::time::{Duration, Instant};

use pythond_protocol::verbs::cell::CellSummary;
use pythond_protocol::verbs::new::NewOptions;
use pythond_protocol::verbs::out::OutRequest;
use pythond_protocol::verbs::{Parsed, ReplyFormat};
use pythond_protocol::{CellId, ErrorCode, ErrorReply, Frame, SessionName};
use serde::Serialize;

/// The subprotocols that are offered, in the order of preference. A daemon of 0.4
/// refuses a handshake without its own.
pub const OFFERED: &str = "pythond.1, pythond.0.4";
/// Ours.
const OURS: &str = "pythond.1";
/// That of 0.4.
const EARLIER: &str = "pythond.0.4";

/// Pauses between two questions whether a cell has ended, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the other end has agreed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// What PROTOCOL.md says.
    Ours,
    /// What 0.4 understands.
    Earlier,
}

impl Spoken {
    /// Its name in a handshake.
    #[must_use]
    pub fn subprotocol(self) -> &'static str {
        match self {
            Self::Ours => OURS,
            Self::Earlier => EARLIER,
        }
    }

    /// By the subprotocol that was chosen; none if it is none of those offered.
    #[must_use]
    pub fn agreed(subprotocol: Option<&[u8]>) -> Option<Self> {
        let known = [Self::Ours, Self::Earlier];
        let chosen = subprotocol?;
        known
            .into_iter()
            .find(|it| it.subprotocol().as_bytes() == chosen)
    }
}

/// A daemon of 0.4 looks at the token after the handshake: this is what it says then.
#[must_use]
pub fn is_wrong_token(text: &str) -> bool {
    text == "ERR auth failed"
}

/// What is to be done for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This is to be sent; its answer goes to [`Exchange::answered`].
    Ask(String),
    /// The same, after a pause.
    AskLater(Duration, String),
    /// Events, if any, and the answer last: the request is over.
    Answer(Vec<String>),
}

/// One request of ours to a daemon of 0.4, which may take several of its own.
#[derive(Debug)]
pub struct Exchange {
    format: ReplyFormat,
    tag: Option<String>,
    session: Option<SessionName>,
    stage: Stage,
}

/// What the answer that comes next is to.
#[derive(Debug)]
enum Stage {
    Run,
    /// `fire` or `fork`.
    Submit(pythond_protocol::outcome::CellKind),
    Poll,
    Wait(Waiting),
    Out(Box<OutRequest>, Duration),
    Kill,
    Interrupt,
    Stop,
    Help,
    List,
    /// The version; the sessions are counted then.
    Info,
    InfoList(String),
    /// Which sessions there are: 0.4 ends a live one for a new one of its name.
    LookBeforeNew(NewOptions),
    New {
        replaced: bool,
    },
    /// Whether a cell runs: what needs the namespace waits for it, and after 30 s
    /// the session is of no use any more.
    LookBefore(Quiet),
    StatusList,
    Status {
        pid: i32,
    },
    Vars,
    Complete,
    Attach {
        rows: u16,
        cols: u16,
    },
    Resize {
        rows: u16,
        cols: u16,
    },
}

/// What is asked only while no cell runs.
#[derive(Debug)]
enum Quiet {
    Status { pid: i32 },
    Vars,
    Complete(String),
}

#[derive(Debug)]
struct Waiting {
    /// To be asked for, the next one last.
    left: Vec<CellId>,
    seen: Vec<CellSummary>,
    until: Option<Instant>,
    pause: Duration,
}

impl Exchange {
    /// Begins with a request, as it would be sent to a daemon of ours.
    #[must_use]
    pub fn begin(text: &str) -> (Self, Step) {
        let parsed = match Frame::parse(text) {
            Some(frame) => Parsed::of(&frame),
            None => Parsed {
                format: ReplyFormat::Plain,
                tag: None,
                request: Err(ErrorReply::usage("a verb is expected")),
            },
        };
        let mut exchange = Self {
            format: parsed.format,
            tag: parsed.tag,
            session: None,
            stage: Stage::Help,
        };
        let asked = parsed.request.and_then(|request| exchange.ask(request));
        let step = match asked {
            Ok(text) => Step::Ask(text),
            Err(error) => exchange.refuse(&error),
        };
        (exchange, step)
    }

    /// If it is accepted, the connection is a terminal.
    #[must_use]
    pub fn is_attach(&self) -> bool {
        matches!(self.stage, Stage::Attach { .. })
    }

    /// An answer with the tag of the request, for whoever has several under way.
    #[must_use]
    pub fn tagged(&self, answer: String) -> String {
        match (&self.tag, answer.strip_prefix('{')) {
            (Some(tag), Some(fields)) => {
                let tag = serde_json::Value::from(tag.as_str());
                format!("{{\"tag\":{tag},{fields}")
            }
            _ => answer,
        }
    }

    /// The connection broke before the answer came. None if the request may be sent
    /// again; else what is answered, as it is not known what became of it.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let error = match self.stage {
            Stage::Run | Stage::Submit(_) => may_have_run(),
            Stage::New { .. } | Stage::Kill | Stage::Interrupt | Stage::Stop => ErrorReply::new(
                ErrorCode::SessionUnreachable,
                "the connection broke, and nobody knows whether this was carried out",
            )
            .with_hint("look before you send it again"),
            _ => return None,
        };
        Some(self.refusal(&error))
    }

    fn refusal(&self, error: &ErrorReply) -> String {
        match self.format {
            ReplyFormat::Plain => error.to_plain(),
            ReplyFormat::Json => marked(&error.to_json()),
        }
    }

    fn refuse(&self, error: &ErrorReply) -> Step {
        Step::Answer(vec![self.refusal(error)])
    }
}

/// A cell was sent once, and nobody can know what became of it.
fn may_have_run() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Lost,
        "the connection broke after the cell was sent: it may have run; the daemon there is \
         pythond 0.4 and cannot say",
    )
    .with_hint("it is not sent again; look at what it would have done")
}

/// An answer of ours, which says that it is made of what 0.4 knows.
fn marked(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("replies have text keys only");
    match text.strip_suffix('}') {
        // Whether it is an event shows at the beginning.
        Some(fields) => format!("{fields},\"protocol\":\"{EARLIER}\"}}"),
        None => text,
    }
}
