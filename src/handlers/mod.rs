//! One file per verb: a request in, a reply out. No sockets, no process ids of
//! their own.

mod ask;
mod caller;
mod cell_reply;
mod cells;
mod connect;
mod disconnect;
mod follow_events;
mod hold;
mod info;
mod interrupt;
mod kill;
mod large_reply;
mod limits;
mod list;
mod new;
mod out;
mod output;
mod pair;
mod poll;
mod resize;
mod stack;
mod status;
mod stop;
mod submit;
mod wait;

pub(crate) use ask::unexpected;
pub(crate) use caller::Caller;
pub(crate) use resize::answer as resized;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pythond_private_fs::cgroup::Delegated;
use pythond_protocol::limits::SessionLimits;
use pythond_protocol::verbs::info::Endpoint;
use pythond_protocol::verbs::stop::StopRequest;
use pythond_protocol::verbs::{ReplyFormat, Request};
use pythond_protocol::{ErrorReply, SessionName};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::adoption::Adoption;
use crate::daemon_limits::DaemonLimits;
use crate::environment::{Environment, EnvironmentError};
use crate::hosts::Hosts;
use crate::network::Network;
use crate::registry::Registry;
use crate::remote::Remotes;

/// How long a host may take to end by itself, and again after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// What the handlers work with.
pub(crate) struct Context {
    /// Sessions by name.
    pub(crate) registry: Arc<Registry>,
    /// Their processes.
    pub(crate) hosts: Hosts,
    /// Variables of every session, before its own.
    pub(crate) variables: BTreeMap<String, String>,
    /// `PATH`, for the default interpreter.
    pub(crate) search_path: std::ffi::OsString,
    /// Where sessions begin unless told otherwise.
    pub(crate) cwd: PathBuf,
    /// `new` on a live name replaces it, as 0.4 did.
    pub(crate) new_replaces: bool,
    /// The control group that sessions' groups are made in, or why there is none.
    pub(crate) groups: Result<Delegated, String>,
    /// Limits of the daemon.
    pub(crate) limits: DaemonLimits,
    /// What a session may use that does not say so itself.
    pub(crate) session_limits: SessionLimits,
    /// Where sessions keep their files.
    pub(crate) sessions_dir: PathBuf,
    /// The socket's path.
    pub(crate) socket: PathBuf,
    /// Where other machines can reach us.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Daemons of other machines that are connected.
    pub(crate) remotes: Remotes,
    /// What decides about those that do, if any can.
    pub(crate) network: Option<Arc<Network>>,
    /// Name of the machine.
    pub(crate) host: String,
    /// When the daemon started.
    pub(crate) started: Instant,
    /// Sessions that are being taken over.
    pub(crate) adoption: Adoption,
    /// Our own executable.
    pub(crate) executable: PathBuf,
    /// How the daemon was told to end.
    pub(crate) leaving: OnceLock<StopRequest>,
    /// The daemon is to stop.
    pub(crate) stop: CancellationToken,
    /// No more graces.
    pub(crate) hurry: CancellationToken,
}

impl Context {
    /// Waits for a session that may be among those that are being taken over.
    pub(crate) async fn adopted(&self, name: &SessionName) {
        let lives = || matches!(self.registry.get(name), Ok(session) if !session.is_dead());
        self.adoption.over_for(name, lives).await;
    }

    /// The daemon ends and its sessions go on.
    pub(crate) fn leaves_sessions(&self) -> bool {
        let leaving = self.leaving.get();
        leaving.is_some_and(|how| *how != StopRequest::EndSessions)
    }
}

/// What is sent back.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The text.
    pub(crate) text: String,
    /// It went well, for the access log.
    pub(crate) ok: bool,
    /// What follows the text in the same message, if it is made while it is
    /// sent.
    pub(crate) pieces: Option<mpsc::Receiver<String>>,
}

impl Reply {
    /// A text as it came from elsewhere.
    pub(crate) fn of_text(ok: bool, text: String) -> Self {
        Self {
            text,
            ok,
            pieces: None,
        }
    }

    fn ok(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ok: true,
            pieces: None,
        }
    }

    fn json(value: &impl Serialize) -> Self {
        Self::ok(serde_json::to_string(value).expect("replies have text keys only"))
    }

    /// JSON with the blanks that 0.4 put in, for the plain wire.
    fn spaced_json(value: &impl Serialize) -> Self {
        let mut text = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, Spaced);
        value
            .serialize(&mut serializer)
            .expect("replies have text keys only");
        Self::ok(String::from_utf8(text).expect("JSON is UTF-8"))
    }

    /// A refusal in the form that was asked for.
    pub(crate) fn refused(format: ReplyFormat, error: &ErrorReply) -> Self {
        let text = match format {
            ReplyFormat::Plain => error.to_plain(),
            ReplyFormat::Json => error.to_json().to_string(),
        };
        Self {
            ok: false,
            ..Self::ok(text)
        }
    }
}

/// The separators of Python's `json.dumps`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn help(format: ReplyFormat) -> Reply {
    match format {
        ReplyFormat::Plain => Reply::ok(HELP),
        ReplyFormat::Json => Reply::json(&serde_json::json!({ "ok": true, "help": HELP })),
    }
}

/// Carries a request out.
pub(crate) async fn handle(
    context: &Arc<Context>,
    caller: &Caller,
    request: Request,
    format: ReplyFormat,
) -> Reply {
    let received = Instant::now();
    match (&request, about(&request)) {
        (Request::Info | Request::Help | Request::Pair(_), _) => {}
        (_, Some(name)) => context.adopted(name).await,
        (_, None) => context.adoption.over().await,
    }
    let answered = match request {
        Request::Help => Ok(help(format)),
        Request::List => Ok(list::handle(context, format)),
        Request::Info => Ok(info::handle(context)),
        Request::Stop(request) => stop::handle(context, request, format).await,
        Request::New(request) => new::handle(context, request, format).await,
        Request::Submit(request) => {
            submit::handle(context, caller, request, received, format).await
        }
        Request::Poll(request) => poll::handle(context, request, format).await,
        Request::Wait(request) => wait::handle(context, request, format).await,
        Request::Out(request) => out::handle(context, caller, request, format).await,
        Request::Cells(request) => cells::handle(context, request, format).await,
        Request::Stack(request) => stack::handle(context, request, format).await,
        Request::Events(request) => follow_events::handle(context, caller, request).await,
        // The connection does it.
        Request::Cancel(_) => Err(ErrorReply::usage("cancel <tag>")),
        Request::Kill(request) => kill::handle(context, request, format).await,
        Request::Status(request) => status::handle(context, &request, format).await,
        Request::Vars(request) => ask::vars(context, &request, format).await,
        Request::Complete(request) => ask::complete(context, request, format).await,
        Request::Interrupt(request) => interrupt::handle(context, request, format).await,
        Request::Resize(request) => resize::handle(context, request, format).await,
        Request::Hold(request) => hold::handle(context, caller, request, format).await,
        Request::Connect(request) => connect::handle(context, request, format).await,
        Request::Disconnect(request) => disconnect::handle(context, request, format),
        Request::Pair(request) => pair::handle(context, caller, request).await,
        // The connection does it.
        Request::Attach(_) => Err(ErrorReply::usage("attach <name> [<rows> <cols>]")),
    };
    answered.unwrap_or_else(|error| Reply::refused(format, &error))
}

/// The session that a request is about, if it is one that is there.
fn about(request: &Request) -> Option<&SessionName> {
    match request {
        Request::Submit(request) => Some(&request.session),
        Request::Poll(request) => Some(&request.session),
        Request::Wait(request) => Some(&request.session),
        Request::Out(request) => Some(&request.session),
        Request::Cells(request) => Some(&request.session),
        Request::Status(request) => Some(&request.session),
        _ => None,
    }
}

/// The environment of a session that asks for nothing.
pub(crate) fn default_environment(context: &Context) -> Result<Environment, EnvironmentError> {
    new::environment(
        context,
        &pythond_protocol::verbs::new::NewOptions::default(),
    )
}

const HELP: &str = concat!(
    "pythond ",
    env!("CARGO_PKG_VERSION"),
    " raw WebSocket protocol

Commands:
  help
  ls
  info
  new <name> [--replace]
  run <name> <code>
  run <name>
<multi-line code body>
  fire <name> <code>
  fork <name> <code>
  poll <name> [<cell_id>]
  wait <name> [<cell_id> ...]
  out <name> <cell_id> [--since=<offset>] [--follow] [--stderr]
  cells <name>
  stack <name>
  events [<name>] [--since=<cursor>]
  status <name>
  vars <name>
  complete <name> <text>
  int <name> [<cell_id> ...] [--kill] [--soft]
  cancel <tag>
  attach <name> [<rows> <cols>] [--read-only]
  resize <name> <rows> <cols>
  hold <name>
  release <name>
  pair [--for=<seconds>]
  kill <name>
  kill --all
  stop [--keep-sessions]
  restart

Notes:
  pysh/pyctl prefixes are accepted but not required.
  --json asks for one JSON object as the answer; on run, fire and fork options
  need a body. --tag=T lets answers come out of order; they carry the tag.
  WebSocket is message-framed, not a terminal stream. After `OK attached`
  binary messages carry the terminal both ways; `detach` ends that.
  Empty frames are ignored; no prompt is emitted.
"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_json_has_the_blanks_of_0_4() {
        let value = serde_json::json!({ "vars": ["a", "b"] });
        assert_eq!(Reply::spaced_json(&value).text, r#"{"vars": ["a", "b"]}"#);
    }
}
