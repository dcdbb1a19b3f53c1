//! Typed calls, one for each verb, always in the structured form.

use std::time::Duration;

use pythond_protocol::verbs::complete::CompleteReply;
use pythond_protocol::verbs::connect::{ConnectOptions, ConnectReply};
use pythond_protocol::verbs::disconnect::DisconnectReply;
use pythond_protocol::verbs::events::EventMessage;
use pythond_protocol::verbs::info::InfoReply;
use pythond_protocol::verbs::kill::KillReply;
use pythond_protocol::verbs::list::ListReply;
use pythond_protocol::verbs::new::{NewOptions, NewReply};
use pythond_protocol::verbs::pair::{PairEvent, PairReply};
use pythond_protocol::verbs::status::StatusReply;
use pythond_protocol::verbs::stop::StopReply;
use pythond_protocol::verbs::vars::VarsReply;
use pythond_protocol::{SessionName, SessionPath};
use serde::de::DeserializeOwned;

use crate::connect::{LIMIT, connect};
use crate::connection::Connection;
use crate::header::Header;
use crate::{Address, ClientError, DaemonGoes, Pending, Reply, Streaming};

/// A connection to a daemon, and what can be asked of it. Each call sends one
/// frame and waits for its answer.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    notice: Option<String>,
}

impl Client {
    /// Connects to a daemon.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] if nobody listens, [`ClientError::Socket`] if
    /// the socket or its server is not ours, [`ClientError::Transport`] if the
    /// handshake fails; [`ClientError::NotConnected`] for all of these by TCP.
    pub fn connect(address: &Address) -> Result<Self, ClientError> {
        Self::connect_within(address, LIMIT)
    }

    /// The same within this time, and never longer than [`Self::connect`] takes.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_within(address: &Address, limit: Duration) -> Result<Self, ClientError> {
        let (connection, notice) = connect(address, limit.min(LIMIT))?;
        Ok(Self { connection, notice })
    }

    /// What people should know of how the connection was made; told once.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    /// Creates a session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn create(
        &mut self,
        session: &SessionPath,
        options: &NewOptions,
    ) -> Result<Reply<NewReply>, ClientError> {
        let body = serde_json::to_string(options).expect("strings and flags become JSON");
        self.send(Header::of("new", session)?.with_body(&body))?
            .wait()
    }

    /// All sessions.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn list(&mut self) -> Result<Reply<ListReply>, ClientError> {
        self.send(Header::new("ls").finish())?.wait()
    }

    /// All sessions of a remote.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn list_of(&mut self, remote: &SessionName) -> Result<Reply<ListReply>, ClientError> {
        let remote = SessionPath::from(remote.clone());
        self.send(Header::of("ls", &remote)?.finish())?.wait()
    }

    /// Health of one session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn status(&mut self, session: &SessionPath) -> Result<Reply<StatusReply>, ClientError> {
        self.send(Header::of("status", session)?.finish())?.wait()
    }

    /// The names of a session's namespace.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn vars(&mut self, session: &SessionPath) -> Result<Reply<VarsReply>, ClientError> {
        self.send(Header::of("vars", session)?.finish())?.wait()
    }

    /// Completions of a text.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn complete(
        &mut self,
        session: &SessionPath,
        text: &str,
    ) -> Result<Reply<CompleteReply>, ClientError> {
        self.send(Header::of("complete", session)?.with_body(text))?
            .wait()
    }

    /// Ends one session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn kill(&mut self, session: &SessionPath) -> Result<Reply<KillReply>, ClientError> {
        self.send(Header::of("kill", session)?.finish())?.wait()
    }

    /// Ends every session.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn kill_all(&mut self) -> Result<Reply<KillReply>, ClientError> {
        self.send(Header::new("kill").flag("all", true).finish())?
            .wait()
    }

    /// Gives another machine's daemon a name at this daemon.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn connect_remote(
        &mut self,
        name: &SessionName,
        options: &ConnectOptions,
    ) -> Result<Reply<ConnectReply>, ClientError> {
        let body = serde_json::to_string(options).expect("texts and flags become JSON");
        self.send(Header::of("connect", &name.clone().into())?.with_body(&body))?
            .wait()
    }

    /// Forgets another machine's daemon.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn disconnect_remote(
        &mut self,
        name: &SessionName,
    ) -> Result<Reply<DisconnectReply>, ClientError> {
        self.send(Header::of("disconnect", &name.clone().into())?.finish())?
            .wait()
    }

    /// Lets one client in by a short code, which is the first event. It is valid until
    /// somebody used it, the time is up, or this connection ends.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn pair(
        &mut self,
        span: Duration,
    ) -> Result<Streaming<'_, PairEvent, PairReply>, ClientError> {
        let span = span.as_secs_f64().to_string();
        self.send_streaming(Header::new("pair").value("for", Some(&span))?.finish())
    }

    /// What the daemon is.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn info(&mut self) -> Result<Reply<InfoReply>, ClientError> {
        self.send(Header::new("info").finish())?.wait()
    }

    /// Tells the daemon to stop, with its sessions or without. It answers first
    /// and stops then.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn stop(&mut self, keep_sessions: bool) -> Result<Reply<StopReply>, ClientError> {
        let header = Header::new("stop").flag("keep-sessions", keep_sessions);
        self.stopped(header)
    }

    /// Tells the daemon to make place for the program that stands in its file
    /// now. It answers first.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn restart(&mut self) -> Result<Reply<StopReply>, ClientError> {
        self.stopped(Header::new("restart"))
    }

    fn stopped(&mut self, header: Header) -> Result<Reply<StopReply>, ClientError> {
        let reply: Reply<StopReply> = self.send(header.finish())?.wait()?;
        if reply.value.ok {
            Ok(reply)
        } else {
            // What an earlier daemon says is less than what a refusal has.
            Err(crate::pending::refusal(reply.json()))
        }
    }

    /// Follows what happens to sessions and their cells, from now on or from
    /// what came after the cursor `since`.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn events(
        &mut self,
        session: Option<&SessionPath>,
        since: Option<&str>,
    ) -> Result<Streaming<'_, EventMessage, DaemonGoes>, ClientError> {
        let header = match session {
            Some(session) => Header::of("events", session)?,
            None => Header::new("events"),
        };
        self.send_streaming(header.value("since", since)?.finish())
    }

    pub(crate) fn is_earlier(&self) -> bool {
        self.connection.is_earlier()
    }

    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }

    pub(crate) fn send<T: DeserializeOwned>(
        &mut self,
        frame: String,
    ) -> Result<Pending<'_, T>, ClientError> {
        self.connection.send_text(frame)?;
        Ok(Pending::new(&mut self.connection))
    }

    pub(crate) fn send_streaming<E: DeserializeOwned, T: DeserializeOwned>(
        &mut self,
        frame: String,
    ) -> Result<Streaming<'_, E, T>, ClientError> {
        self.connection.send_text(frame)?;
        Ok(Streaming::new(&mut self.connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_protocol::Frame;
    use pythond_protocol::verbs::{Parsed, ReplyFormat, Request};

    fn parsed(frame: &str) -> Request {
        let parsed = Parsed::of(&Frame::parse(frame).unwrap());
        assert_eq!(parsed.format, ReplyFormat::Json, "{frame:?}");
        parsed
            .request
            .unwrap_or_else(|error| panic!("{frame:?}: {error:?}"))
    }

    #[test]
    fn every_header_is_a_request_of_its_verb() {
        let of = |verb| Header::of(verb, &"work".parse().unwrap()).unwrap();
        for verb in [
            "status", "vars", "int", "kill", "poll", "wait", "cells", "stack", "events",
        ] {
            parsed(&of(verb).finish());
        }
        let new = of("new").with_body(r#"{"replace":true}"#);
        assert!(matches!(parsed(&new), Request::New(new) if new.options.replace));
        let complete = of("complete").with_body("os.pa");
        assert!(matches!(parsed(&complete), Request::Complete(it) if it.text == "os.pa"));
        for verb in ["ls", "info", "stop", "restart", "events"] {
            parsed(&Header::new(verb).finish());
        }
        parsed(&Header::new("kill").flag("all", true).finish());
    }
}
