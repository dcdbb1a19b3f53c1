//! `pysh events [NAME]`.

use std::convert::Infallible;

use pythond_protocol::verbs::events::{CellEvent, Event, EventMessage};
use pythond_protocol::verbs::word;
use pythond_transport::{ClientError, TransportError};

use super::dispatch::lasting;
use crate::args::EventsArgs;
use crate::failure::Outcome;
use crate::interrupts::Leaving;
use crate::render::Render;
use crate::text;
use crate::watch::{follow, print_line};

/// Follows until Ctrl-C, which is how one ends it, or until the daemon ends and
/// does not come back.
pub(super) fn events(args: &EventsArgs, render: &Render) -> Outcome {
    let mut leaving = Leaving::quietly()?;
    let mut since = args.since.clone();
    let never: Infallible = lasting(render)?.attempt(&mut leaving, |client, leaving| {
        let from = since.clone();
        let events = client.events(args.name.as_ref(), from.as_deref())?;
        follow(events, leaving, |event, leaving| {
            if let Some(message) = &event.value {
                since = Some(message.cursor.clone());
            }
            match (&event.value, render.json) {
                (_, true) => print_line(event.json(), render, leaving),
                (Some(message), false) => print_line(&plain(message), render, leaving),
                (None, false) => Ok(()),
            }
        })?;
        // It said that it goes; another may take its place.
        Err(ClientError::from(TransportError::Closed).into())
    })?;
    match never {}
}

/// Time, event and what it is about.
fn plain(message: &EventMessage) -> String {
    let what = match &message.event {
        Event::Ready => "ready".to_owned(),
        Event::Reset => "reset".to_owned(),
        Event::SessionCreated { session, pid, .. } => {
            format!("session_created {session} pid={pid}")
        }
        Event::SessionClosed {
            session,
            reason,
            cause,
            ..
        } => format!(
            "session_closed {session} {}: {}",
            text::one_line(reason),
            text::one_line(cause)
        ),
        Event::CellQueued(cell) => format!("cell_queued {}", plain_cell(cell)),
        Event::CellStarted(cell) => format!("cell_started {}", plain_cell(cell)),
        Event::CellDone(cell) => format!("cell_done {}", plain_cell(cell)),
    };
    format!("{} {what}", text::one_line(&message.time))
}

fn plain_cell(cell: &CellEvent) -> String {
    let mut text = format!(
        "{} {} {} {}",
        cell.session,
        cell.cell_id,
        word(&cell.kind),
        word(&cell.status)
    );
    if let Some(milliseconds) = cell.duration_ms {
        text.push_str(&format!(", {}", text::duration(milliseconds)));
    }
    if let Some(bytes) = cell.output_bytes {
        text.push_str(&format!(", {}", text::size(bytes)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &str, line: &str) {
        let json = format!(
            r#"{{"cursor":"ab.7","time":"2026-01-02T03:04:05.000006Z","session":"work",
            "session_id":"00","gen":1,{fields}}}"#
        );
        let message = serde_json::from_str(&json).expect(&json);
        assert_eq!(
            plain(&message),
            format!("2026-01-02T03:04:05.000006Z {line}")
        );
    }

    #[test]
    fn an_event_is_one_line() {
        check(r#""event":"ready""#, "ready");
        check(
            r#""event":"session_created","pid":7"#,
            "session_created work pid=7",
        );
        check(
            r#""event":"session_closed","reason":"died","cause":"killed\n\u001b[2J""#,
            r"session_closed work died: killed\n\x1b[2J",
        );
        let cell = r#""cell_id":"00ab00000007","kind":"fire""#;
        check(
            &format!(r#""event":"cell_started",{cell},"status":"running""#),
            "cell_started work 00ab00000007 fire running",
        );
        check(
            &format!(
                r#""event":"cell_done",{cell},"status":"done","duration_ms":1500,"output_bytes":12"#
            ),
            "cell_done work 00ab00000007 fire done, 1.50 s, 12 B",
        );
    }
}
