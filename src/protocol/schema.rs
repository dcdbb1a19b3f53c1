//! The JSON of the wire as one JSON Schema (2020-12), made from its types.
//!
//! `schema.json` beside this file is what [`document`] gives; a test compares
//! them. PROTOCOL.md, "Schema", says how it is laid out.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ErrorReply;
use crate::names::{CellId, SessionId, SessionName};
use crate::verbs::attach::{AttachEvent, AttachReply};
use crate::verbs::cell::{CellReply, Text};
use crate::verbs::cells::CellsReply;
use crate::verbs::complete::CompleteReply;
use crate::verbs::connect::{ConnectOptions, ConnectReply, RemoteSummary};
use crate::verbs::disconnect::DisconnectReply;
use crate::verbs::events::EventMessage;
use crate::verbs::hold::HoldReply;
use crate::verbs::info::InfoReply;
use crate::verbs::interrupt::InterruptReply;
use crate::verbs::kill::KillReply;
use crate::verbs::list::ListReply;
use crate::verbs::new::{NewOptions, NewReply};
use crate::verbs::out::{OutReply, StreamEvent};
use crate::verbs::pair::{PairEvent, PairReply};
use crate::verbs::resize::ResizeReply;
use crate::verbs::stack::StackReply;
use crate::verbs::status::StatusReply;
use crate::verbs::stop::StopReply;
use crate::verbs::submit::FireReply;
use crate::verbs::vars::VarsReply;
use crate::verbs::wait::WaitReply;

const TITLE: &str = "The JSON of pythond";
const DESCRIPTION: &str = "Messages of pythond under `--json`. `answers` has the answer to each \
    verb, `events` what comes before it, `bodies` what a request has after its first line. A \
    request that is refused is answered with `Refusal` instead. Under `--tag` answers and events \
    have the member `tag` too. Unknown members are to be ignored.";

/// The whole schema.
#[must_use]
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let it = &mut generator;
    let cell = it.subschema_for::<CellReply>();
    let cell_or_idle = json!({ "anyOf": [cell, it.subschema_for::<IdleReply>()] });
    let answers = [
        ("attach", it.subschema_for::<AttachReply>()),
        ("cancel", it.subschema_for::<CancelReply>()),
        ("cells", it.subschema_for::<CellsReply>()),
        ("complete", it.subschema_for::<CompleteReply>()),
        ("connect", it.subschema_for::<ConnectReply>()),
        ("disconnect", it.subschema_for::<DisconnectReply>()),
        ("events", it.subschema_for::<DoneReply>()),
        ("fire", it.subschema_for::<FireReply>()),
        ("fork", it.subschema_for::<FireReply>()),
        ("help", it.subschema_for::<HelpReply>()),
        ("hold", it.subschema_for::<HoldReply>()),
        ("info", it.subschema_for::<InfoReply>()),
        ("int", it.subschema_for::<InterruptReply>()),
        ("kill", it.subschema_for::<KillReply>()),
        ("ls", it.subschema_for::<ListReply>()),
        ("new", it.subschema_for::<NewReply>()),
        ("out", it.subschema_for::<OutReply>()),
        ("pair", it.subschema_for::<PairReply>()),
        ("poll", Schema::try_from(cell_or_idle).expect("an object")),
        ("release", it.subschema_for::<HoldReply>()),
        ("restart", it.subschema_for::<StopReply>()),
        ("resize", it.subschema_for::<ResizeReply>()),
        ("run", cell),
        ("stack", it.subschema_for::<StackReply>()),
        ("status", it.subschema_for::<StatusReply>()),
        ("stop", it.subschema_for::<StopReply>()),
        ("vars", it.subschema_for::<VarsReply>()),
        ("wait", it.subschema_for::<WaitReply>()),
    ];
    let events = [
        ("attach", it.subschema_for::<AttachEvent>()),
        ("events", it.subschema_for::<EventMessage>()),
        ("out", it.subschema_for::<StreamEvent>()),
        ("pair", it.subschema_for::<PairEvent>()),
        ("run", it.subschema_for::<StreamEvent>()),
    ];
    let bodies = [
        ("connect", it.subschema_for::<ConnectOptions>()),
        ("new", it.subschema_for::<NewOptions>()),
    ];
    it.subschema_for::<Refusal>();
    let mut definitions = it.take_definitions(true);
    definitions.insert("answers".to_owned(), by_verb("Answers, by verb.", answers));
    definitions.insert(
        "events".to_owned(),
        by_verb(
            "Events before the answer, by verb, with `attach` after it; with `run` and `out` only where they were asked for.",
            events,
        ),
    );
    definitions.insert(
        "bodies".to_owned(),
        by_verb("Bodies of requests, by verb.", bodies),
    );
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        "description": DESCRIPTION,
        "$defs": definitions,
    });
    tidy(&mut document);
    document
}

fn by_verb<const N: usize>(what: &str, verbs: [(&str, Schema); N]) -> Value {
    let properties: serde_json::Map<_, _> = verbs
        .into_iter()
        .map(|(verb, schema)| (verb.to_owned(), schema.to_value()))
        .collect();
    json!({ "description": what, "type": "object", "properties": properties })
}

/// Makes one line of what comments break into several.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            members.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A request that was not carried out.
#[derive(Serialize, JsonSchema)]
struct Refusal {
    /// Always false.
    #[schemars(extend("const" = false))]
    ok: bool,
    /// The cell that was asked for, if its session died and had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cell_id: Option<CellId>,
    /// To `status` of a session on another machine: how the way to it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<RemoteSummary>,
    /// Why.
    error: ErrorReply,
}

/// The answer to `stop`, and to `events` when the daemon stops.
#[derive(Serialize, JsonSchema)]
struct DoneReply {
    /// Always true.
    ok: bool,
}

/// The answer to `help`.
#[derive(Serialize, JsonSchema)]
struct HelpReply {
    /// Always true.
    ok: bool,
    /// The verbs, as text.
    help: String,
}

/// The answer to `cancel`.
#[derive(Serialize, JsonSchema)]
struct CancelReply {
    /// Always true.
    ok: bool,
    /// A request of that tag was being carried out.
    cancelled: bool,
}

/// The answer to `poll` without an id where no cell can be meant.
#[derive(Serialize, JsonSchema)]
struct IdleReply {
    /// Always true.
    ok: bool,
    /// Always `idle`.
    #[schemars(extend("const" = "idle"))]
    status: String,
}

/// Types that are a text on the wire, or nearly.
macro_rules! by_hand {
    ($($type:ident: $schema:tt)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

by_hand! {
    SessionName: {
        "description": "The name of a session; no Windows device name.",
        "type": "string",
        "pattern": "^[a-z0-9_-]{1,80}$",
    }
    SessionId: {
        "description": "Tells sessions of one name apart over time.",
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
    }
    CellId: {
        "description": "Names one cell, that is one execution.",
        "type": "string",
        "pattern": "^[0-9a-f]{12}$",
    }
    Text: {
        "description": "Bytes of a stream: text where they are UTF-8, else an object.",
        "anyOf": [
            { "type": "string" },
            {
                "type": "object",
                "properties": {
                    "text": {
                        "description": "With U+FFFD for what is no UTF-8.",
                        "type": "string",
                    },
                    "data_b64": {
                        "description": "The bytes.",
                        "type": "string",
                        "contentEncoding": "base64",
                    },
                },
                "required": ["text", "data_b64"],
            },
        ],
    }
}
