//! One task per connection: a message in, its handler, the answer out. Knows
//! neither processes nor Python.

mod remote_terminal;
mod terminal;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use pythond_protocol::verbs::attach::{self, AttachEvent, TerminalEnd};
use pythond_protocol::verbs::stop::NOTHING_BEGUN;
use pythond_protocol::verbs::{Parsed, Request};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use self::terminal::from_terminal;
use self::work::{Asked, Done, Running, carry_out, pass_on};
use crate::access_log::{AccessLog, Fields};
use crate::admission::Place;
use crate::handlers::{self, Caller, Context, Reply};
use crate::listener::Stream;
use crate::network::keys::Dismissed;
use crate::terminal::AttachedTerminal;

/// How long a client may take to answer our close.
const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// Most of a message that is too big that is read to its end, in bytes.
const MAX_DISCARD: usize = 1 << 30;
/// A pause of this length is taken for the end of such a message.
const DISCARD_QUIET: Duration = Duration::from_millis(200);
/// How much of it is read at once, in bytes.
const DISCARD_PIECE: usize = 64 << 10;

/// Requests without a tag that wait for the one before, and their bytes. Up to
/// here a client is read, so that it is noticed when it goes away.
const MAX_AHEAD: usize = 64;
const MAX_AHEAD_BYTES: usize = 1 << 20;
/// Events that wait for their connection.
const EVENTS_AHEAD: usize = 4;
/// How long an attached client may take nothing of what its terminal writes
/// before it is left behind.
const STALL: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<Stream>;
type Incoming = Option<Result<Message, WsError>>;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client went, or broke the protocol.
    Gone,
    /// We close it.
    Close(CloseCode, &'static str),
    /// We close it for want of descriptors, so at once.
    MakesRoom,
}

impl End {
    fn dismissal(why: Dismissed) -> Self {
        let code = match why {
            // It may come again at once, and meets another certificate.
            Dismissed::OldCertificate => CloseCode::Restart,
            Dismissed::NotTrusted | Dismissed::OldToken => CloseCode::Policy,
        };
        Self::Close(code, why.reason())
    }
}

/// Serves a connection until it ends, or until it may not stay.
pub(crate) async fn serve(
    mut socket: Socket,
    context: Arc<Context>,
    access: &mut AccessLog,
    author: String,
    place: &Place,
    dismissed: impl Future<Output = Dismissed>,
) {
    let (events_in, events) = mpsc::channel(EVENTS_AHEAD);
    let mut connection = Connection {
        socket: &mut socket,
        context,
        access,
        author,
        ahead: VecDeque::new(),
        early: VecDeque::new(),
        running: FuturesUnordered::new(),
        in_order: false,
        events_in,
        events,
        terminal: None,
        place,
        silent: true,
    };
    let end = tokio::select! {
        biased;
        // What is half sent is sent whole before our goodbye, or not at all.
        why = dismissed => End::dismissal(why),
        end = connection.serve() => end,
    };
    drop(connection);
    let (code, reason, waits) = match end {
        End::Gone => return,
        End::Close(code, reason) => (code, reason, true),
        End::MakesRoom => (CloseCode::Again, "busy", false),
    };
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let goodbye = async {
        if socket.close(Some(frame)).await.is_ok() && waits {
            // The client's own close ends the stream.
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    // One that does not answer is left to the kernel.
    let _ = tokio::time::timeout(CLOSE_DEADLINE, goodbye).await;
}

struct Connection<'a> {
    socket: &'a mut Socket,
    context: Arc<Context>,
    access: &'a mut AccessLog,
    author: String,
    /// Requests without a tag that came while another was being carried out.
    ahead: VecDeque<Utf8Bytes>,
    /// Messages that came while the way to a remote was opened.
    early: VecDeque<Message>,
    /// Requests that are being carried out.
    running: FuturesUnordered<Running>,
    /// One of them has no tag: the next one without waits for it.
    in_order: bool,
    events_in: mpsc::Sender<String>,
    /// Events of all requests, each request's in order.
    events: mpsc::Receiver<String>,
    /// The client's terminal, while it is attached to a session.
    terminal: Option<AttachedTerminal>,
    place: &'a Place,
    /// It has not sent a command yet, and makes room if there is none.
    silent: bool,
}

/// What came early, else what comes.
///
/// # Cancel safety
/// Nothing is lost.
async fn next_of(early: &mut VecDeque<Message>, socket: &mut Socket) -> Incoming {
    match early.pop_front() {
        Some(message) => Some(Ok(message)),
        None => socket.next().await,
    }
}

impl Connection<'_> {
    async fn serve(&mut self) -> End {
        let stop = self.context.stop.clone();
        loop {
            if !self.in_order
                && let Some(text) = self.ahead.pop_front()
            {
                if let Some(end) = self.message(text).await {
                    return end;
                }
                continue;
            }
            let waiting: usize = self.ahead.iter().map(|text| text.len()).sum();
            let full = self.ahead.len() >= MAX_AHEAD
                || waiting > MAX_AHEAD_BYTES
                || self.running.len() >= self.context.limits.in_flight;
            let full = full
                || self
                    .terminal
                    .as_ref()
                    .is_some_and(AttachedTerminal::is_full);
            let idle = self.running.is_empty();
            let end = tokio::select! {
                biased;
                from = from_terminal(self.terminal.as_mut()) => self.terminal_says(from).await,
                Some(event) = self.events.recv() => self.send(event).await,
                Some(done) = self.running.next(), if !idle => self.done(done).await,
                incoming = next_of(&mut self.early, self.socket), if !full => {
                    self.incoming(incoming).await
                }
                () = stop.cancelled(), if idle => Some(self.stopped().await),
                () = self.place.makes_room(), if self.silent => {
                    Some(End::MakesRoom)
                }
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn send(&mut self, text: String) -> Option<End> {
        match self.deliver(Message::text(text)).await {
            Ok(()) => None,
            Err(_) => Some(End::Gone),
        }
    }

    /// Sends a message; to an attached client not for ever.
    async fn deliver(&mut self, message: Message) -> Result<(), WsError> {
        let sent = self.socket.send(message);
        if self.terminal.is_none() {
            return sent.await;
        }
        let stalled = |_| WsError::Io(std::io::ErrorKind::TimedOut.into());
        tokio::time::timeout(STALL, sent).await.map_err(stalled)?
    }

    fn caller(&self, tag: Option<String>) -> Caller {
        let terminal = self.terminal.as_ref();
        Caller {
            author: self.author.clone(),
            is_local: self.access.is_local(),
            tag,
            terminal: terminal.map(|terminal| (terminal.session().clone(), terminal.id())),
            outgoing: self.events_in.clone(),
        }
    }

    /// One message that is made while it is sent (RFC 6455, 5.4).
    async fn send_in_pieces(
        &mut self,
        text: String,
        mut pieces: mpsc::Receiver<String>,
    ) -> Result<(), WsError> {
        let frame = |text: String, kind, last| {
            Message::Frame(Frame::message(text, OpCode::Data(kind), last))
        };
        self.socket.send(frame(text, Data::Text, false)).await?;
        while let Some(piece) = pieces.recv().await {
            self.socket
                .send(frame(piece, Data::Continue, false))
                .await?;
        }
        self.socket
            .send(frame(String::new(), Data::Continue, true))
            .await
    }

    async fn incoming(&mut self, incoming: Incoming) -> Option<End> {
        match incoming {
            Some(Ok(Message::Text(text))) => self.message(text).await,
            Some(Ok(Message::Binary(bytes))) => self.binary(&bytes).await,
            Some(Ok(Message::Ping(_))) => {
                // Reading queued the pong; only this sends it.
                let _ = self.socket.flush().await;
                None
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => None,
            // The close is answered by the library while the stream ends. What
            // is being carried out has nobody to answer any more.
            Some(Ok(Message::Close(_))) if self.running.is_empty() => None,
            Some(Ok(Message::Close(_))) => Some(End::Gone),
            Some(Err(WsError::Capacity(error))) => self.too_big(&error.to_string()).await,
            Some(Err(WsError::Protocol(_))) => {
                Some(End::Close(CloseCode::Protocol, "protocol error"))
            }
            Some(Err(WsError::Utf8(_))) => {
                Some(End::Close(CloseCode::Invalid, "text that is not UTF-8"))
            }
            Some(Err(_)) | None => Some(End::Gone),
        }
    }

    async fn binary(&mut self, bytes: &[u8]) -> Option<End> {
        if let Some(terminal) = &mut self.terminal {
            terminal.type_in(bytes);
            return None;
        }
        let fields = Fields {
            status: Some("rejected"),
            detail: Some("binary-frame"),
            ..Fields::default()
        };
        self.access.event("command", &fields);
        self.refuse("ERR binary frame not allowed in command mode")
            .await;
        Some(End::Close(CloseCode::Policy, "binary frame not allowed"))
    }

    async fn too_big(&mut self, why: &str) -> Option<End> {
        let fields = Fields {
            status: Some("rejected"),
            detail: Some("too-big"),
            ..Fields::default()
        };
        self.access.event("command", &fields);
        self.refuse(&format!("ERR message too big: {why}")).await;
        self.discard().await;
        Some(End::Close(CloseCode::Size, "message too big"))
    }

    /// Takes the rest of a message that is too big off the socket: a client
    /// that is still writing would not see our answer, only a broken pipe.
    async fn discard(&mut self) {
        let mut scratch = vec![0; DISCARD_PIECE];
        let mut discarded = 0;
        while discarded < MAX_DISCARD {
            let read = self.socket.get_mut().read(&mut scratch);
            match tokio::time::timeout(DISCARD_QUIET, read).await {
                Ok(Ok(count)) if count > 0 => discarded += count,
                _ => return,
            }
        }
    }

    async fn refuse(&mut self, text: &str) {
        // The close that follows says the same to a client that is not reading.
        let _ = self.socket.send(Message::text(text)).await;
    }

    async fn message(&mut self, text: Utf8Bytes) -> Option<End> {
        let frame = pythond_protocol::Frame::parse(&text)?;
        if std::mem::take(&mut self.silent) {
            self.place.established();
        }
        if self.terminal.is_some() && frame.verb == attach::DETACH {
            return self.detach().await;
        }
        let routed = self.context.remotes.route(&frame);
        let parsed = match &routed {
            Ok(None) => Parsed::of(&frame),
            Ok(Some(routed)) => routed.parsed(),
            Err(error) => Parsed {
                request: Err(error.clone()),
                ..Parsed::of(&frame)
            },
        };
        if parsed.tag.is_none() && self.in_order {
            self.ahead.push_back(text);
            return None;
        }
        // Options are no names.
        let mut words = frame.header.split_whitespace();
        let session = words.find(|word| !word.starts_with("--")).unwrap_or("");
        let asked = Asked {
            verb: frame.verb.to_owned(),
            session: session.to_owned(),
            tag: parsed.tag.clone(),
            stops: matches!(parsed.request, Ok(Request::Stop(_))),
        };
        let body_bytes = Some(frame.body_bytes());
        self.access.event(
            "command",
            &Fields {
                body_bytes,
                ..asked.fields()
            },
        );
        let Parsed {
            format,
            tag,
            request,
        } = parsed;
        self.in_order |= tag.is_none();
        let caller = self.caller(tag);
        let routed = routed.ok().flatten();
        if let (Some(routed), Ok(_)) = (routed, &request) {
            if matches!(request, Ok(Request::Attach(_))) {
                return self.attach_remote(routed, asked).await;
            }
            let parsed = Parsed {
                format,
                tag: None,
                request,
            };
            let context = Arc::clone(&self.context);
            self.running
                .push(pass_on(context, caller, routed, parsed, asked));
            return None;
        }
        match request {
            Ok(Request::Cancel(tag)) => {
                let cancelled = self.cancel(&tag);
                let text = format!("{{\"ok\":true,\"cancelled\":{cancelled}}}");
                let reply = Reply::of_text(true, text);
                self.done(Done::new(&caller, Some(reply), format, asked))
                    .await
            }
            Ok(Request::Attach(request)) => {
                let attached = self.attach(request, format, &asked).await;
                if attached.is_ok() && asked.tag.is_none() {
                    self.in_order = false;
                }
                let reply = Reply::refused(format, &attached.err()?);
                self.done(Done::new(&caller, Some(reply), format, asked))
                    .await
            }
            Ok(Request::Resize(request)) if self.is_attached_to(&request.session) => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.resize(request.size);
                }
                let reply = handlers::resized(&request, format);
                self.done(Done::new(&caller, Some(reply), format, asked))
                    .await
            }
            Ok(request) => {
                let context = Arc::clone(&self.context);
                self.running
                    .push(carry_out(context, caller, request, format, asked));
                None
            }
            Err(error) => {
                let reply = Reply::refused(format, &error);
                self.done(Done::new(&caller, Some(reply), format, asked))
                    .await
            }
        }
    }

    /// Gives up what the request of a tag waits for; its cell goes on. Returns
    /// whether there was one.
    fn cancel(&mut self, tag: &str) -> bool {
        let mut found = false;
        for running in self.running.iter() {
            if let Some((its, cancel)) = &running.tag
                && its == tag
            {
                cancel.cancel();
                found = true;
            }
        }
        found
    }

    /// The daemon ends.
    async fn stopped(&mut self) -> End {
        if self.context.leaves_sessions() {
            let reason = if self.silent {
                NOTHING_BEGUN
            } else {
                "daemon restarting"
            };
            return End::Close(CloseCode::Restart, reason);
        }
        let message = "the daemon stops, and the session with it".to_owned();
        let reason = TerminalEnd::Stopped;
        let event = AttachEvent::TerminalClosed { reason, message };
        let gone = self.terminal_event(&event).await;
        gone.unwrap_or(End::Close(CloseCode::Away, "daemon stopping"))
    }

    /// Answers a request that was carried out.
    async fn done(&mut self, done: Done) -> Option<End> {
        // Its last events may still wait here.
        while let Ok(event) = self.events.try_recv() {
            if let Some(end) = self.send(event).await {
                return Some(end);
            }
        }
        let Done { reply, text, asked } = done;
        if asked.tag.is_none() {
            self.in_order = false;
        }
        let Some(reply) = reply else {
            let fields = Fields {
                status: Some("internal-error"),
                ..asked.fields()
            };
            self.access.event("result", &fields);
            self.refuse("ERR internal error").await;
            return Some(End::Close(CloseCode::Error, "internal error"));
        };
        let status = if reply.ok { "ok" } else { "error" };
        let fields = Fields {
            status: Some(status),
            ..asked.fields()
        };
        self.access.event("result", &fields);
        let sent = match reply.pieces {
            None => self.socket.send(Message::text(text)).await,
            Some(pieces) => self.send_in_pieces(text, pieces).await,
        };
        let stops = asked.stops && reply.ok;
        if stops {
            self.context.stop.cancel();
        }
        if let Err(error) = sent {
            let detail = error.to_string();
            let fields = Fields {
                status: Some("send-failed"),
                detail: Some(&detail),
                ..asked.fields()
            };
            self.access.event("result", &fields);
            return Some(End::Gone);
        }
        let (code, why) = if self.context.leaves_sessions() {
            (CloseCode::Restart, "daemon restarting")
        } else {
            (CloseCode::Away, "daemon stopping")
        };
        stops.then_some(End::Close(code, why))
    }
}
