//! Questions that need Python and must not wait behind a cell: answered by a
//! short-lived thread as soon as the interpreter lock is free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use pyo3::prelude::*;
use pythond_protocol::lane::HostEvent;
use pythond_protocol::verbs::complete::MAX_MATCHES;
use pythond_protocol::verbs::vars::Variable;
use pythond_protocol::{ErrorCode, ErrorReply};

use crate::forking::attach;
use crate::shared::Shared;
use crate::spawner::Job;
use crate::{helpers, session};

/// What is asked.
#[derive(Debug)]
pub(crate) enum Question {
    /// The namespace's names.
    Vars,
    /// Completions of a text.
    Complete(String),
}

/// Questions that wait for the interpreter, whether anybody still wants to know
/// or not.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// How many there are.
pub(crate) fn waiting() -> usize {
    WAITING.load(SeqCst)
}

/// One question, to be answered on a thread of its own.
pub(crate) struct Ask {
    shared: &'static Shared,
    request: u64,
    question: Question,
    /// Whoever sets it answers.
    answered: Arc<AtomicBool>,
}

impl Ask {
    pub(crate) fn new(
        shared: &'static Shared,
        request: u64,
        question: Question,
        answered: Arc<AtomicBool>,
    ) -> Self {
        WAITING.fetch_add(1, SeqCst);
        Self {
            shared,
            request,
            question,
            answered,
        }
    }
}

impl Job for Ask {
    fn run(self: Box<Self>) {
        let event = answer(self.request, self.question);
        WAITING.fetch_sub(1, SeqCst);
        if !self.answered.swap(true, SeqCst) {
            self.shared.send(event, Vec::new());
        }
    }

    fn give_up(self: Box<Self>, why: &std::io::Error) {
        WAITING.fetch_sub(1, SeqCst);
        if !self.answered.swap(true, SeqCst) {
            let message = format!("no thread can be started in this session: {why}");
            let event = HostEvent::Refused {
                request: self.request,
                error: ErrorReply::new(ErrorCode::Busy, message),
            };
            self.shared.send(event, Vec::new());
        }
    }
}

/// Answers one question.
fn answer(request: u64, question: Question) -> HostEvent {
    attach(|py| {
        let answered = match question {
            Question::Vars => variables(py).map(|vars| HostEvent::Vars { request, vars }),
            Question::Complete(text) => {
                completions(py, &text).map(|matches| HostEvent::Completions { request, matches })
            }
        };
        answered.unwrap_or_else(|error| HostEvent::Refused {
            request,
            error: ErrorReply::new(
                ErrorCode::Internal,
                format!("cannot look into the namespace: {error}"),
            ),
        })
    })
}

fn variables(py: Python<'_>) -> PyResult<Vec<Variable>> {
    type Row = (String, String, Option<u64>, Option<u64>);
    let Some(globals) = session::globals(py) else {
        return Ok(Vec::new());
    };
    let rows: Vec<Row> = helpers::get(py)
        .variables
        .bind(py)
        .call1((globals,))?
        .extract()?;
    Ok(rows
        .into_iter()
        .map(|(name, kind, size_bytes, length)| Variable {
            name,
            kind,
            size_bytes,
            length,
        })
        .collect())
}

fn completions(py: Python<'_>, text: &str) -> PyResult<Vec<String>> {
    let Some(globals) = session::globals(py) else {
        return Ok(Vec::new());
    };
    helpers::get(py)
        .completions
        .bind(py)
        .call1((globals, text, MAX_MATCHES))?
        .extract()
}
