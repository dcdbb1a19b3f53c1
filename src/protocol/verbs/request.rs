//! Every request a client can make, decoded once.

use super::options::{Header, existing_session};
use super::{
    attach, cells, complete, connect, disconnect, events, hold, interrupt, kill, new, out, pair,
    poll, resize, stack, status, stop, submit, vars, wait,
};
use crate::names::SessionName;
use crate::outcome::CellKind;
use crate::{ErrorCode, ErrorReply, Frame};

/// How the client wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// Text as clients of 0.3 and 0.4 know it.
    Plain,
    /// One structured object.
    Json,
}

/// A frame, decoded once.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// How to answer; known even when the request is refused.
    pub format: ReplyFormat,
    /// `--tag=T`: the answers carry it and come when they are ready.
    pub tag: Option<String>,
    /// What is asked.
    pub request: Result<Request, ErrorReply>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The text of the verbs.
    Help,
    /// All sessions.
    List,
    /// What the daemon is.
    Info,
    /// End the daemon.
    Stop(stop::StopRequest),
    /// Create a session.
    New(new::NewRequest),
    /// Submit a cell.
    Submit(submit::SubmitRequest),
    /// A cell as it is now.
    Poll(poll::PollRequest),
    /// Answer when cells have ended.
    Wait(wait::WaitRequest),
    /// A cell's output.
    Out(out::OutRequest),
    /// The cells of a session.
    Cells(cells::CellsRequest),
    /// Where the threads of a session are.
    Stack(stack::StackRequest),
    /// Follow what happens.
    Events(events::EventsRequest),
    /// Stop waiting for the request of this tag.
    Cancel(String),
    /// End one session, or all.
    Kill(kill::KillRequest),
    /// Health of one session.
    Status(status::StatusRequest),
    /// Names of one session's namespace.
    Vars(vars::VarsRequest),
    /// Completions of a text.
    Complete(complete::CompleteRequest),
    /// Interrupt running cells.
    Interrupt(interrupt::InterruptRequest),
    /// A terminal on a session.
    Attach(attach::AttachRequest),
    /// Another size for a session's terminal.
    Resize(resize::ResizeRequest),
    /// Agents' cells wait, or do not any more.
    Hold(hold::HoldRequest),
    /// Reach another machine's daemon under a name.
    Connect(connect::ConnectRequest),
    /// Forget another machine's daemon.
    Disconnect(disconnect::DisconnectRequest),
    /// Let a client in by a short code.
    Pair(pair::PairRequest),
}

/// A tag, and the form of the answer that carries it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag<'a> {
    pub(super) word: &'a str,
    pub(super) format: ReplyFormat,
}

/// Takes `--tag=T` or `--plain-tag=T` out, and what daemons tell each other.
pub(super) fn take_tag<'a>(header: &mut Header<'a>) -> Result<Option<Tag<'a>>, ErrorReply> {
    header
        .take_value("hops")?
        .map(super::options::checked_hops)
        .transpose()?;
    let tag = header.take_value("tag")?.map(checked_tag).transpose()?;
    let plain = header
        .take_value("plain-tag")?
        .map(checked_tag)
        .transpose()?;
    let tag = tag.map(|word| (word, ReplyFormat::Json));
    let plain = plain.map(|word| (word, ReplyFormat::Plain));
    Ok(tag.or(plain).map(|(word, format)| Tag { word, format }))
}

/// A tag that may be used.
pub(super) fn checked_tag(tag: &str) -> Result<&str, ErrorReply> {
    if tag.is_empty() || tag.len() > submit::MAX_LABEL {
        let message = format!("`--tag` takes 1 to {} bytes", submit::MAX_LABEL);
        return Err(ErrorReply::new(ErrorCode::Usage, message));
    }
    Ok(tag)
}

impl Parsed {
    /// Decodes a frame.
    #[must_use]
    pub fn of(frame: &Frame<'_>) -> Self {
        let kind = match frame.verb {
            "run" => Some(CellKind::Run),
            "fire" => Some(CellKind::Fire),
            "fork" => Some(CellKind::Fork),
            _ => None,
        };
        let (format, tag, request) = match (kind, frame.verb) {
            (Some(kind), _) => submit::parse(frame, kind),
            // The text to complete is not ours to interpret: options count
            // there only before it.
            (None, "complete") => complete::parse(frame),
            (None, _) => Self::with_options(frame),
        };
        Self {
            format,
            tag: tag.map(str::to_owned),
            request,
        }
    }

    fn with_options<'a>(
        frame: &Frame<'a>,
    ) -> (ReplyFormat, Option<&'a str>, Result<Request, ErrorReply>) {
        let mut header = Header::of(frame);
        let json = header.take_flag("json");
        let tag = match take_tag(&mut header) {
            Ok(tag) => tag,
            Err(error) => return (ReplyFormat::Json, None, Err(error)),
        };
        let json = json || tag.is_some_and(|tag| tag.format == ReplyFormat::Json);
        let tag = tag.map(|tag| tag.word);
        // Events are JSON, and so is what ends them.
        let follows = |(key, _): &(&str, Option<&str>)| matches!(*key, "follow" | "stream");
        let events = match frame.verb {
            "events" | "pair" => true,
            "out" => header.options.iter().any(follows),
            "attach" => header.options.iter().any(|(key, _)| *key == "input-key"),
            _ => false,
        };
        let format = if json || events {
            ReplyFormat::Json
        } else {
            ReplyFormat::Plain
        };
        (format, tag, Self::parse_verb(frame, header))
    }

    fn parse_verb(frame: &Frame<'_>, mut header: Header<'_>) -> Result<Request, ErrorReply> {
        let bare = |header: &Header<'_>, request: Request, usage: &str| {
            header.finish(0, usage).map(|()| request)
        };
        match frame.verb {
            "help" => bare(&header, Request::Help, "help"),
            "ls" => bare(&header, Request::List, "ls"),
            "info" => bare(&header, Request::Info, "info"),
            "stop" => stop::parse(&mut header),
            "restart" => bare(
                &header,
                Request::Stop(stop::StopRequest::Restart),
                "restart",
            ),
            "new" => new::parse(frame, header).map(Request::New),
            "kill" => kill::parse(&mut header).map(Request::Kill),
            "int" => interrupt::parse(&mut header).map(Request::Interrupt),
            "poll" => poll::parse(&header).map(Request::Poll),
            "wait" => wait::parse(&mut header).map(Request::Wait),
            "out" => out::parse(&mut header).map(Request::Out),
            "events" => events::parse(&mut header).map(Request::Events),
            "attach" => attach::parse(&mut header).map(Request::Attach),
            "resize" => resize::parse(&header).map(Request::Resize),
            "hold" => hold::parse(&mut header, true).map(Request::Hold),
            "release" => hold::parse(&mut header, false).map(Request::Hold),
            "cells" => {
                let session = one_session(&header, "cells <name>")?;
                Ok(Request::Cells(cells::CellsRequest { session }))
            }
            "stack" => {
                let session = one_session(&header, "stack <name>")?;
                Ok(Request::Stack(stack::StackRequest { session }))
            }
            "cancel" => {
                header.finish(1, "cancel <tag>")?;
                let tag = header.arguments.first();
                tag.map(|tag| Request::Cancel((*tag).to_owned()))
                    .ok_or_else(|| ErrorReply::usage("cancel <tag>"))
            }
            "status" => {
                let session = one_session(&header, "status <name>")?;
                Ok(Request::Status(status::StatusRequest { session }))
            }
            "vars" => {
                let session = one_session(&header, "vars <name>")?;
                Ok(Request::Vars(vars::VarsRequest { session }))
            }
            "connect" => connect::parse(frame, header).map(Request::Connect),
            "pair" => pair::parse(&mut header).map(Request::Pair),
            "disconnect" => disconnect::parse(&header).map(Request::Disconnect),
            verb => {
                let shown: String = verb.chars().take(80).filter(|c| !c.is_control()).collect();
                Err(
                    ErrorReply::new(ErrorCode::UnknownVerb, format!("unknown: {shown}"))
                        .with_plain(format!("unknown: {shown}")),
                )
            }
        }
    }
}

/// The one session a verb asks about.
fn one_session(header: &Header<'_>, usage: &str) -> Result<SessionName, ErrorReply> {
    let Some(name) = header.arguments.first() else {
        return Err(ErrorReply::new(ErrorCode::Usage, "need session name"));
    };
    header.finish(1, usage)?;
    existing_session(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (ReplyFormat, Result<Request, ErrorReply>) {
        let parsed = Parsed::of(&Frame::parse(text).expect("a verb"));
        (parsed.format, parsed.request)
    }

    fn source(text: &str) -> String {
        match parse(text).1 {
            Ok(Request::Submit(submitted)) => submitted.source,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        parse(text).1.expect_err(text).to_plain()
    }

    #[test]
    fn run_takes_code_inline_or_as_body() {
        assert_eq!(source("run work 1 + 1"), "1 + 1");
        assert_eq!(source("run work 'a  b'"), "'a  b'");
        assert_eq!(source("run work --json"), "--json");
        assert_eq!(source("run work\nprint(1)\n"), "print(1)\n");
        assert_eq!(source("run work x =\n42"), "x = 42");
        assert_eq!(source("run work --json\n"), "");
        assert_eq!(source("run work --json\n1\n"), "1\n");
        assert_eq!(parse("run work --json\n1").0, ReplyFormat::Json);
        assert_eq!(parse("run work 1").0, ReplyFormat::Plain);
        assert_eq!(refused("run work"), "ERR run requires code");
        assert_eq!(refused("run"), "ERR need session name");
        assert!(refused("run work --nope\n1").starts_with("ERR unknown option `--nope`"));
    }

    #[test]
    fn refusals_keep_the_texts_of_0_4() {
        assert_eq!(refused("new"), "ERR usage: new <name>");
        assert_eq!(refused("new UP"), "ERR invalid session name");
        assert_eq!(refused("ls x"), "ERR usage: ls");
        assert_eq!(refused("kill"), "ERR usage: kill <name>");
        assert_eq!(refused("bogus"), "ERR unknown: bogus");
        assert_eq!(refused("status"), "ERR need session name");
        assert_eq!(
            refused("status NoSuch"),
            "ERR no session 'NoSuch' -- create it first with: new NoSuch"
        );
        assert!(refused("new a python").starts_with("ERR new takes a name only"));
    }

    #[test]
    fn refusals_have_the_format_that_was_asked_for() {
        assert_eq!(parse("ls --json extra").0, ReplyFormat::Json);
        assert_eq!(parse("run work --json --nope\n1").0, ReplyFormat::Json);
        assert_eq!(parse("nonsense --json").0, ReplyFormat::Json);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s).*") {
            if let Some(frame) = Frame::parse(&text) {
                let _ = Parsed::of(&frame);
            }
        }

        #[test]
        fn no_header_panics(verb in "run|fire|fork|new|kill|ls|vars|complete|int|status|info|help|poll|wait|out|cells|stack|events|cancel|attach|resize|hold|release|pair", rest in "(?s)[ -~\n]*") {
            let text = format!("{verb} {rest}");
            if let Some(frame) = Frame::parse(&text) {
                let _ = Parsed::of(&frame);
            }
        }
    }
}
