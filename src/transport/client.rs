//! Typed calls, one for each verb, always in the structured form.

use pythond_protocol::verbs::complete::CompleteReply;
use pythond_protocol::verbs::info::InfoReply;
use pythond_protocol::verbs::interrupt::InterruptReply;
use pythond_protocol::verbs::kill::KillReply;
use pythond_protocol::verbs::list::ListReply;
use pythond_protocol::verbs::new::{NewOptions, NewReply};
use pythond_protocol::verbs::run::CellReply;
use pythond_protocol::verbs::status::StatusReply;
use pythond_protocol::verbs::vars::VarsReply;
use pythond_protocol::{ErrorReply, SessionName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::connect;
use crate::connection::Connection;
use crate::{Address, ClientError, Pending, Reply};

/// Most bytes of code in one cell, unless `PYTHOND_MAX_WS_PAYLOAD` says
/// otherwise (PROTOCOL.md, "Connection").
pub const MAX_CODE_BYTES: usize = 16 << 20;

/// A connection to a daemon, and what can be asked of it. Each call sends one
/// frame and waits for its answer.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

/// The structured answer to `stop`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct StopReply {
    /// The daemon stops.
    pub ok: bool,
}

impl Client {
    /// Connects to a daemon.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] if nobody listens, [`ClientError::Socket`] if
    /// the socket or its server is not ours, [`ClientError::Transport`] if the
    /// handshake fails.
    pub fn connect(address: &Address) -> Result<Self, ClientError> {
        Ok(Self {
            connection: connect(address)?,
        })
    }

    /// Creates a session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn create(
        &mut self,
        session: &SessionName,
        options: &NewOptions,
    ) -> Result<Reply<NewReply>, ClientError> {
        let mut frame = header("new", session)?;
        frame.push_str(&serde_json::to_string(options).expect("strings and flags become JSON"));
        self.send(frame)?.wait()
    }

    /// Submits a cell. Greatest size of `code`: [`MAX_CODE_BYTES`].
    ///
    /// # Errors
    /// [`ClientError::CodeTooBig`]; [`ClientError`], as for all calls.
    pub fn run(
        &mut self,
        session: &SessionName,
        code: &str,
    ) -> Result<Pending<'_, CellReply>, ClientError> {
        let limit_bytes = code_limit();
        if code.len() > limit_bytes {
            return Err(ClientError::CodeTooBig {
                bytes: code.len(),
                limit_bytes,
            });
        }
        let mut frame = header("run", session)?;
        frame.push_str(code);
        self.send(frame)
    }

    /// Asks for the running cell of a session to be interrupted.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn interrupt(
        &mut self,
        session: &SessionName,
    ) -> Result<Pending<'_, InterruptReply>, ClientError> {
        self.send(header("int", session)?)
    }

    /// All sessions.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn list(&mut self) -> Result<Reply<ListReply>, ClientError> {
        self.send("ls --json".to_owned())?.wait()
    }

    /// Health of one session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn status(&mut self, session: &SessionName) -> Result<Reply<StatusReply>, ClientError> {
        self.send(header("status", session)?)?.wait()
    }

    /// The names of a session's namespace.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn vars(&mut self, session: &SessionName) -> Result<Reply<VarsReply>, ClientError> {
        self.send(header("vars", session)?)?.wait()
    }

    /// Completions of a text.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn complete(
        &mut self,
        session: &SessionName,
        text: &str,
    ) -> Result<Reply<CompleteReply>, ClientError> {
        let mut frame = header("complete", session)?;
        frame.push_str(text);
        self.send(frame)?.wait()
    }

    /// Ends one session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn kill(&mut self, session: &SessionName) -> Result<Reply<KillReply>, ClientError> {
        self.send(header("kill", session)?)?.wait()
    }

    /// Ends every session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn kill_all(&mut self) -> Result<Reply<KillReply>, ClientError> {
        self.send("kill --all --json".to_owned())?.wait()
    }

    /// What the daemon is.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn info(&mut self) -> Result<Reply<InfoReply>, ClientError> {
        self.send("info --json".to_owned())?.wait()
    }

    /// Tells the daemon to stop. It answers first and stops then.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn stop(&mut self) -> Result<Reply<StopReply>, ClientError> {
        let reply: Reply<StopReply> = self.send("stop --json".to_owned())?.wait()?;
        if reply.value.ok {
            Ok(reply)
        } else {
            Err(crate::pending::refusal(reply.json()))
        }
    }

    fn send<T: DeserializeOwned>(&mut self, frame: String) -> Result<Pending<'_, T>, ClientError> {
        self.connection.send_text(frame)?;
        Ok(Pending::new(&mut self.connection))
    }
}

/// The first line of a frame, newline included: what follows is the body.
fn header(verb: &str, session: &SessionName) -> Result<String, ClientError> {
    // The wire reads words that begin with `--` as options, so that a session
    // called `--all` would end every other one.
    if session.as_str().starts_with("--") {
        let error = ErrorReply::bad_name().with_hint("session names do not begin with `--`");
        return Err(ClientError::Refused(error));
    }
    Ok(format!("{verb} {session} --json\n"))
}

fn code_limit() -> usize {
    std::env::var("PYTHOND_MAX_WS_PAYLOAD")
        .ok()
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(MAX_CODE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::Frame;
    use pythond_protocol::verbs::{ReplyFormat, Request, TypedRequest};

    fn parsed(frame: &str) -> Request {
        let (format, request) = TypedRequest::parse(&Frame::parse(frame).unwrap());
        assert_eq!(format, ReplyFormat::Json, "{frame:?}");
        request.unwrap_or_else(|error| panic!("{frame:?}: {error:?}"))
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
            let frame = header("run", &"work".parse().unwrap()).unwrap() + code;
            let Request::Run(request) = parsed(&frame) else {
                panic!("{frame:?}")
            };
            assert_eq!(request.source, code);
        }
    }

    #[test]
    fn every_header_is_a_request_of_its_verb() {
        let name = "work".parse().unwrap();
        for verb in ["status", "vars", "int", "kill"] {
            parsed(&header(verb, &name).unwrap());
        }
        let new = header("new", &name).unwrap() + r#"{"replace":true}"#;
        assert!(matches!(parsed(&new), Request::New(new) if new.options.replace));
        let complete = header("complete", &name).unwrap() + "os.pa";
        assert!(matches!(parsed(&complete), Request::Complete(it) if it.text == "os.pa"));
        for whole in [
            "ls --json",
            "kill --all --json",
            "info --json",
            "stop --json",
        ] {
            parsed(whole);
        }
    }

    #[test]
    fn a_name_that_reads_as_an_option_is_never_sent() {
        let error = header("kill", &"--all".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    }
}
