//! One task per connection: a message in, its handler, the answer out. Knows
//! neither processes nor Python.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use pythond_protocol::Frame;
use pythond_protocol::verbs::TypedRequest;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::access_log::{AccessLog, Fields};
use crate::handlers::{self, Context, Reply};

/// How long a client may take to answer our close.
const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// Most of a message that is too big that is read to its end, in bytes.
const MAX_DISCARD: usize = 1 << 30;
/// A pause of this length is taken for the end of such a message.
const DISCARD_QUIET: Duration = Duration::from_millis(200);
/// How much of it is read at once, in bytes.
const DISCARD_PIECE: usize = 64 << 10;

type Socket = WebSocketStream<UnixStream>;
type Incoming = Option<Result<Message, WsError>>;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client went, or broke the protocol.
    Gone,
    /// We close it.
    Close(CloseCode, &'static str),
}

/// Serves a connection until it ends.
pub(crate) async fn serve(mut socket: Socket, context: Arc<Context>, access: &mut AccessLog) {
    let mut connection = Connection {
        socket: &mut socket,
        context,
        access,
        ahead: None,
    };
    let end = connection.serve().await;
    if let End::Close(code, reason) = end {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        let goodbye = async {
            if socket.close(Some(frame)).await.is_ok() {
                // The client's own close ends the stream.
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        // One that does not answer is left to the kernel.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, goodbye).await;
    }
}

struct Connection<'a> {
    socket: &'a mut Socket,
    context: Arc<Context>,
    access: &'a mut AccessLog,
    /// What came while a request was being carried out.
    ahead: Option<Incoming>,
}

impl Connection<'_> {
    async fn serve(&mut self) -> End {
        let stop = self.context.stop.clone();
        loop {
            let incoming = match self.ahead.take() {
                Some(incoming) => incoming,
                None => tokio::select! {
                    biased;
                    incoming = self.socket.next() => incoming,
                    () = stop.cancelled() => return End::Close(CloseCode::Away, "daemon stopping"),
                },
            };
            let end = match incoming {
                Some(Ok(Message::Text(text))) => self.message(&text).await,
                Some(Ok(Message::Binary(_))) => self.binary().await,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
                // The close is answered by the library while the stream ends.
                Some(Ok(Message::Close(_))) => None,
                Some(Err(WsError::Capacity(error))) => self.too_big(&error.to_string()).await,
                Some(Err(WsError::Protocol(_))) => {
                    Some(End::Close(CloseCode::Protocol, "protocol error"))
                }
                Some(Err(WsError::Utf8(_))) => {
                    Some(End::Close(CloseCode::Invalid, "text that is not UTF-8"))
                }
                Some(Err(_)) | None => Some(End::Gone),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn binary(&mut self) -> Option<End> {
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

    async fn message(&mut self, text: &str) -> Option<End> {
        let frame = Frame::parse(text)?;
        let verb = frame.verb;
        // Options are no names.
        let mut words = frame.header.split_whitespace();
        let session = words.find(|word| !word.starts_with("--")).unwrap_or("");
        let fields = Fields {
            command: Some(verb),
            session: Some(session),
            ..Fields::default()
        };
        self.access.event(
            "command",
            &Fields {
                body_bytes: Some(frame.body_bytes()),
                ..fields
            },
        );
        let (format, request) = TypedRequest::parse(&frame);
        let stops = matches!(request, Ok(pythond_protocol::verbs::Request::Stop));
        let reply = match request {
            Ok(request) => self.carry_out(request, format).await,
            Err(error) => Some(Reply::refused(format, &error)),
        };
        let Some(reply) = reply else {
            let fields = Fields {
                status: Some("internal-error"),
                ..fields
            };
            self.access.event("result", &fields);
            self.refuse("ERR internal error").await;
            return Some(End::Close(CloseCode::Error, "internal error"));
        };
        let status = if reply.ok { "ok" } else { "error" };
        self.access.event(
            "result",
            &Fields {
                status: Some(status),
                ..fields
            },
        );
        if let Err(error) = self.socket.send(Message::text(reply.text)).await {
            let detail = error.to_string();
            let fields = Fields {
                status: Some("send-failed"),
                detail: Some(&detail),
                ..fields
            };
            self.access.event("result", &fields);
            if stops {
                self.context.stop.cancel();
            }
            return Some(End::Gone);
        }
        if stops {
            self.context.stop.cancel();
            return Some(End::Close(CloseCode::Away, "daemon stopping"));
        }
        None
    }

    /// Carries a request out while the socket is read on: pings are answered,
    /// and a client that goes away frees its connection, not its cell. None
    /// for a fault of ours.
    async fn carry_out(
        &mut self,
        request: pythond_protocol::verbs::Request,
        format: pythond_protocol::verbs::ReplyFormat,
    ) -> Option<Reply> {
        let handled = AssertUnwindSafe(handlers::handle(&self.context, request, format));
        let mut handled = std::pin::pin!(handled.catch_unwind());
        loop {
            if self.ahead.is_some() {
                return handled.await.ok();
            }
            tokio::select! {
                biased;
                reply = &mut handled => return reply.ok(),
                incoming = self.socket.next() => match incoming {
                    Some(Ok(Message::Ping(_))) => {
                        // Reading queued the pong; only this sends it.
                        let _ = self.socket.flush().await;
                    }
                    Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_))) | Some(Err(_)) | None => {
                        self.ahead = Some(None);
                        return Some(Reply::nobody_waits());
                    }
                    other => self.ahead = Some(other),
                },
            }
        }
    }
}
