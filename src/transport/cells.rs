//! Typed calls about cells: submit, ask, wait, read, interrupt.

use std::time::Duration;

use pythond_protocol::limits::parse_size;
use pythond_protocol::outcome::CellKind;
use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::cell::CellReply;
use pythond_protocol::verbs::cells::CellsReply;
use pythond_protocol::verbs::interrupt::InterruptReply;
use pythond_protocol::verbs::out::{MAX_BYTES, OutReply, OutRequest, StreamEvent};
use pythond_protocol::verbs::stack::StackReply;
use pythond_protocol::verbs::submit::{FireReply, SubmitOptions};
use pythond_protocol::verbs::wait::WaitReply;
use pythond_protocol::verbs::word;
use pythond_protocol::{CellId, SessionPath};
use serde::Deserialize;

use crate::dialect::lacks;
use crate::header::Header;
use crate::{Client, ClientError, Pending, Reply, Streaming};

/// Most bytes of code in one cell, unless `PYTHOND_MAX_WS_PAYLOAD` says
/// otherwise (PROTOCOL.md, "Connection").
pub const MAX_CODE_BYTES: usize = 16 << 20;

/// The structured answer to `poll`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PollReply {
    /// A cell as it is now.
    Cell(Box<CellReply>),
    /// The session has no cell.
    Idle {
        /// Always `idle`.
        status: Idle,
    },
}

/// The word `idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// No cell yet.
    Idle,
}

impl Client {
    /// Submits a `run` cell. Greatest size of `code`: [`MAX_CODE_BYTES`]. With
    /// [`SubmitOptions::stream`] its output comes as events before the reply.
    ///
    /// # Errors
    /// [`ClientError::CodeTooBig`]; [`ClientError`], as for all calls.
    pub fn run(
        &mut self,
        session: &SessionPath,
        code: &str,
        options: &SubmitOptions,
    ) -> Result<Streaming<'_, StreamEvent, CellReply>, ClientError> {
        self.send_streaming(submission(session, CellKind::Run, code, options)?)
    }

    /// Submits a `fire` cell. Greatest size of `code`: [`MAX_CODE_BYTES`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn fire(
        &mut self,
        session: &SessionPath,
        code: &str,
        options: &SubmitOptions,
    ) -> Result<Reply<FireReply>, ClientError> {
        self.send(submission(session, CellKind::Fire, code, options)?)?
            .wait()
    }

    /// Submits a `fork` cell. Greatest size of `code`: [`MAX_CODE_BYTES`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn fork(
        &mut self,
        session: &SessionPath,
        code: &str,
        options: &SubmitOptions,
    ) -> Result<Reply<FireReply>, ClientError> {
        self.send(submission(session, CellKind::Fork, code, options)?)?
            .wait()
    }

    /// A cell as it is now; none means the newest, `fire` cells preferred.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn poll(
        &mut self,
        session: &SessionPath,
        cell: Option<CellId>,
    ) -> Result<Reply<PollReply>, ClientError> {
        let header = Header::of("poll", session)?.arguments(cell);
        self.send(header.finish())?.wait()
    }

    /// Asks for an answer when cells have ended; none means all that are not
    /// finished now.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn wait(
        &mut self,
        session: &SessionPath,
        cells: &[CellId],
        timeout: Option<Duration>,
    ) -> Result<Pending<'_, WaitReply>, ClientError> {
        let header = Header::of("wait", session)?
            .value("timeout", timeout.map(seconds))?
            .arguments(cells);
        self.send(header.finish())
    }

    /// A cell's output: in the reply, or as events before it
    /// ([`OutRequest::events`], [`OutRequest::follow`]).
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn out(
        &mut self,
        request: &OutRequest<SessionPath>,
    ) -> Result<Streaming<'_, StreamEvent, OutReply>, ClientError> {
        self.send_streaming(output(request)?)
    }

    /// The cells that a session remembers.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn cells(&mut self, session: &SessionPath) -> Result<Pending<'_, CellsReply>, ClientError> {
        self.send(Header::of("cells", session)?.finish())
    }

    /// Asks for cells to be interrupted; none means every running one. `kill`
    /// does what it takes, up to ending the session; `soft` lets `fork` cells
    /// catch the interrupt.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn interrupt(
        &mut self,
        session: &SessionPath,
        cells: &[CellId],
        kill: bool,
        soft: bool,
    ) -> Result<Pending<'_, InterruptReply>, ClientError> {
        let header = Header::of("int", session)?
            .flag("kill", kill)
            .flag("soft", soft)
            .arguments(cells);
        self.send(header.finish())
    }

    /// Asks for a `run` cell to be interrupted that is waited for on another
    /// connection; without an id, whatever runs is.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls; refused by a daemon of 0.4, which does that
    /// after the cell's end, to others.
    pub fn interrupt_run(
        &mut self,
        session: &SessionPath,
        cell: Option<CellId>,
    ) -> Result<Pending<'_, InterruptReply>, ClientError> {
        if cell.is_none() && self.is_earlier() {
            return Err(ClientError::Refused(lacks("interrupt of `run` cells")));
        }
        let cells: Vec<_> = cell.into_iter().collect();
        self.interrupt(session, &cells, false, false)
    }

    /// Where every thread of a session is.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn stack(&mut self, session: &SessionPath) -> Result<Reply<StackReply>, ClientError> {
        self.send(Header::of("stack", session)?.finish())?.wait()
    }
}

/// The frame of `run` or `fire`.
fn submission(
    session: &SessionPath,
    kind: CellKind,
    code: &str,
    options: &SubmitOptions,
) -> Result<String, ClientError> {
    let limit_bytes = code_limit();
    let bytes = code.len();
    if bytes > limit_bytes {
        return Err(ClientError::CodeTooBig { bytes, limit_bytes });
    }
    let header = Header::of(&word(&kind), session)?
        .flag("stream", options.stream)
        .value("since", options.since)?
        .flag("detach", options.detach)
        .value("wait", options.wait.map(seconds))?
        .value("timeout", options.timeout.map(seconds))?
        .value("busy", options.busy_fails.then_some("fail"))?
        .flag("cancel-on-disconnect", options.cancel_on_disconnect)
        .flag("queue", options.queue)
        .value("id", options.key.as_ref())?
        .value("resent", options.resent.map(seconds))?
        .value("author", options.author.as_ref())?
        .value("max-result", options.max_result)?;
    Ok(header.with_body(code))
}

/// The frame of `out`.
fn output(request: &OutRequest<SessionPath>) -> Result<String, ClientError> {
    let header = Header::of("out", &request.session)?
        .flag("follow", request.follow)
        .flag("stream", request.events && !request.follow)
        .flag("stdout", request.stream == Some(Stream::Stdout))
        .flag("stderr", request.stream == Some(Stream::Stderr))
        .value("since", (request.since > 0).then_some(request.since))?
        .value("max", (request.most != MAX_BYTES).then_some(request.most))?
        .arguments([request.cell]);
    Ok(header.finish())
}

/// A time span as the wire has it: decimal, never with an exponent.
fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

fn code_limit() -> usize {
    std::env::var("PYTHOND_MAX_WS_PAYLOAD")
        .ok()
        .and_then(|value| usize::try_from(parse_size(&value).ok()?).ok())
        .unwrap_or(MAX_CODE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::Frame;
    use pythond_protocol::verbs::submit::SubmitRequest;
    use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};

    fn parsed(frame: &str) -> Request {
        let parsed = Parsed::of(&Frame::parse(frame).unwrap());
        assert_eq!(parsed.format, ReplyFormat::Json, "{frame:?}");
        parsed
            .request
            .unwrap_or_else(|error| panic!("{frame:?}: {error:?}"))
    }

    fn work() -> SessionPath {
        "work".parse().unwrap()
    }

    fn check_submission(kind: CellKind, source: &str, options: SubmitOptions) {
        let frame = submission(&work(), kind, source, &options).unwrap();
        let expected = SubmitRequest {
            session: work().session,
            kind,
            source: source.to_owned(),
            options,
        };
        assert_eq!(parsed(&frame), Request::Submit(expected), "{frame:?}");
    }

    #[test]
    fn code_arrives_as_it_was_given() {
        for code in [
            "1",
            "",
            "\n",
            "x = 1\r\n",
            "--json",
            "'\u{fffd}\0'",
            "\n\n  ",
        ] {
            check_submission(CellKind::Run, code, SubmitOptions::default());
            check_submission(CellKind::Fire, code, SubmitOptions::default());
        }
    }

    #[test]
    fn options_of_a_submission_arrive_as_they_were_given() {
        let both = SubmitOptions {
            timeout: Some(Duration::from_millis(100)),
            key: Some("k=1".to_owned()),
            resent: Some(Duration::from_millis(1500)),
            author: Some("ann@host".to_owned()),
            ..SubmitOptions::default()
        };
        let run = SubmitOptions {
            stream: true,
            since: Some(7),
            detach: true,
            wait: Some(Duration::from_nanos(1)),
            busy_fails: true,
            cancel_on_disconnect: true,
            ..both.clone()
        };
        let fire = SubmitOptions {
            queue: true,
            timeout: Some(Duration::from_secs(3600 * 24 * 3652)),
            ..both
        };
        check_submission(CellKind::Run, "--json", run);
        check_submission(CellKind::Fire, "", fire);
    }

    #[test]
    fn out_arrives_as_it_was_asked_for() {
        let whole = OutRequest {
            session: work().session,
            cell: "00ab00000007".parse().unwrap(),
            since: 0,
            stream: None,
            events: false,
            follow: false,
            most: MAX_BYTES,
        };
        let events = OutRequest {
            since: u64::MAX,
            stream: Some(Stream::Stderr),
            events: true,
            ..whole.clone()
        };
        let followed = OutRequest {
            stream: Some(Stream::Stdout),
            follow: true,
            most: 1,
            ..events.clone()
        };
        for request in [whole, events, followed] {
            let target = SessionPath::from(request.session.clone());
            let asked = OutRequest {
                session: target,
                cell: request.cell,
                since: request.since,
                stream: request.stream,
                events: request.events,
                follow: request.follow,
                most: request.most,
            };
            let frame = output(&asked).unwrap();
            assert_eq!(parsed(&frame), Request::Out(request), "{frame:?}");
        }
    }

    #[test]
    fn an_answer_without_a_cell_is_told_from_a_cell() {
        let idle: PollReply = serde_json::from_str(r#"{"ok":true,"status":"idle"}"#).unwrap();
        assert!(matches!(idle, PollReply::Idle { .. }));
        let refused = r#"{"ok":false,"error":{"code":"unknown_cell","message":"m"}}"#;
        assert!(serde_json::from_str::<PollReply>(refused).is_err());
    }
}
