//! A WebSocket over a stream that waits with poll, so that a wait can be
//! cut by another descriptor, or does not wait at all. Moves messages; knows no
//! verb.

use std::io::{ErrorKind, Read as _, Result as IoResult};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pythond_protocol::verbs::stop::NOTHING_BEGUN;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::Request;
use tungstenite::http::HeaderValue;
use tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Error as WsError, Message, Utf8Bytes, WebSocket};

use crate::TransportError;
use crate::dialect::{OFFERED, Spoken};
use crate::heartbeat::Heartbeat;
use crate::stream::Stream;
use crate::translated::Translation;

/// Greatest message that is taken from another machine, in bytes: an answer with all its
/// output.
const MAX_MESSAGE: usize = 1 << 30;

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: WebSocket<Stream>,
    /// Bytes that were queued since all was sent last.
    unsent: usize,
    /// Of a daemon of 0.4.
    translation: Option<Translation>,
    /// Where the daemon may be gone without a word. One of 0.4 answers nothing while
    /// it works.
    heartbeat: Option<Heartbeat>,
}

/// What came without being waited for.
pub(crate) enum Arrived {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
    /// The daemon closes.
    Close,
    /// A ping or its answer: nothing for anybody, and a chance to look at others.
    Nothing,
}

/// Why there is no WebSocket.
pub(crate) enum HandshakeFailure {
    /// It was refused, or it broke.
    Ws(WsError),
    /// The system reported an error.
    Io(std::io::Error),
    /// It took too long.
    TimeIsUp,
}

/// What ended a wait that may have had a limit.
pub(crate) enum Incoming {
    /// A text message.
    Text(Utf8Bytes),
    /// One of the other descriptors became readable first.
    Woken,
    /// Nothing came in time.
    TimeIsUp,
}

/// What ended a wait.
pub(crate) enum Received {
    /// A text message.
    Text(Utf8Bytes),
    /// One of the other descriptors became readable first.
    Woken,
}

impl Connection {
    /// Makes a WebSocket of a connected unix stream, within this time.
    pub(crate) fn over_unix(stream: UnixStream, limit: Duration) -> Result<Self, TransportError> {
        stream.set_nonblocking(true).map_err(TransportError::Io)?;
        let listener = stream.try_clone().map_err(TransportError::Io)?;
        let deadline = Instant::now() + limit;
        let left = || Some(deadline.saturating_duration_since(Instant::now()));
        let request = "ws://localhost/".into_client_request()?;
        Self::handshake(Stream::unix(stream), request, left).map_err(|failure| match failure {
            HandshakeFailure::Ws(error) => match refused(error, &listener) {
                TransportError::Closed => TransportError::NotBegun,
                other => other,
            },
            HandshakeFailure::Io(error) => TransportError::Io(error),
            HandshakeFailure::TimeIsUp => TransportError::NoAnswer,
        })
    }

    /// Makes a WebSocket of a connected stream. `left` says how much time there
    /// is; none if it is over.
    pub(crate) fn handshake(
        stream: Stream,
        mut request: Request,
        left: impl Fn() -> Option<Duration>,
    ) -> Result<Self, HandshakeFailure> {
        // Structured replies have no greatest size. From other machines one is taken all
        // the same, as tungstenite makes room for a whole frame by its first bytes.
        let most = stream.is_over_network().then_some(MAX_MESSAGE);
        let config = WebSocketConfig::default()
            .read_buffer_size(64 << 10)
            .write_buffer_size(0)
            .max_message_size(most)
            .max_frame_size(most);
        let offered = HeaderValue::from_static(OFFERED);
        // A request that is to pair offers that alone.
        let offers = request.headers_mut().entry(SEC_WEBSOCKET_PROTOCOL);
        offers.or_insert(offered);
        let mut attempt = tungstenite::client::client_with_config(request, stream, Some(config));
        loop {
            match attempt {
                Ok((socket, response)) => {
                    let agreed = response.headers().get(SEC_WEBSOCKET_PROTOCOL);
                    let spoken = Spoken::agreed(agreed.map(HeaderValue::as_bytes));
                    let is_earlier = spoken == Some(Spoken::Earlier);
                    let stream = socket.get_ref();
                    let heartbeat = (stream.is_over_network() && !is_earlier)
                        .then(|| Heartbeat::new(Instant::now(), stream.traffic()));
                    return Ok(Self {
                        socket,
                        unsent: 0,
                        translation: is_earlier.then(Translation::default),
                        heartbeat,
                    });
                }
                Err(HandshakeError::Failure(error)) => return Err(HandshakeFailure::Ws(error)),
                Err(HandshakeError::Interrupted(unfinished)) => {
                    let left = left().ok_or(HandshakeFailure::TimeIsUp)?;
                    let stream = unfinished.get_ref().get_ref();
                    // The request is far smaller than a socket's buffer, so
                    // only TLS ever has something to write that waits.
                    let ready = wait(stream, to_read(stream), &[], Some(left))
                        .map_err(HandshakeFailure::Io)?;
                    if ready == Ready::TimeIsUp {
                        return Err(HandshakeFailure::TimeIsUp);
                    }
                    attempt = unfinished.handshake();
                }
            }
        }
    }

    /// Takes no message that is greater, of a peer that is not known.
    pub(crate) fn limit_messages(&mut self, bytes: usize) {
        self.socket.set_config(|config| {
            config.max_message_size = Some(bytes);
            config.max_frame_size = Some(bytes);
        });
    }

    /// Sends one text message, however large. What the daemon does not take at once
    /// is sent while its answer is waited for, which is the next thing to do: that
    /// wait can be cut.
    pub(crate) fn send_text(&mut self, text: String) -> Result<(), TransportError> {
        let text = match &mut self.translation {
            None => Some(text),
            Some(translation) => translation.begin(&text),
        };
        text.map_or(Ok(()), |text| self.send_as_it_is(text))
    }

    pub(crate) fn send_as_it_is(&mut self, text: String) -> Result<(), TransportError> {
        self.unsent += text.len();
        let sent = self.socket.send(Message::text(text));
        self.sent_or_closed(sent)
    }

    /// A daemon that refuses a message before it has all of it closes for writing
    /// first; its answer can still be read.
    fn sent_or_closed(&mut self, sent: Result<(), WsError>) -> Result<(), TransportError> {
        if let Err(WsError::Io(error)) = &sent
            && error.kind() == ErrorKind::BrokenPipe
        {
            self.unsent = 0;
            return Ok(());
        }
        self.sent(sent)
    }

    /// Takes the next message that is there; none if none is.
    pub(crate) fn take(&mut self) -> Result<Option<Arrived>, TransportError> {
        if let Some(text) = self.translation().and_then(Translation::answer) {
            return Ok(Some(Arrived::Text(text)));
        }
        match self.socket.read() {
            Ok(Message::Text(text)) => Ok(Some(Arrived::Text(text))),
            Ok(Message::Binary(bytes)) => Ok(Some(Arrived::Binary(bytes))),
            Ok(Message::Close(_)) => Ok(Some(Arrived::Close)),
            Ok(_) => Ok(Some(Arrived::Nothing)),
            Err(error) if would_block(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Queues a text message and sends what can be sent at once.
    pub(crate) fn queue_text(&mut self, mut text: String) -> Result<(), TransportError> {
        if let Some(translation) = &mut self.translation {
            match translation.begin(&text) {
                Some(said) => text = said,
                None => return Ok(()),
            }
        }
        self.unsent += text.len();
        let sent = self.socket.send(Message::text(text));
        self.sent(sent)
    }

    /// Queues a binary message and sends what can be sent at once.
    pub(crate) fn queue_binary(&mut self, bytes: Vec<u8>) -> Result<(), TransportError> {
        self.unsent += bytes.len();
        let sent = self.socket.send(Message::binary(bytes));
        self.sent(sent)
    }

    /// Sends more of what is queued.
    pub(crate) fn flush(&mut self) -> Result<(), TransportError> {
        let sent = self.socket.flush();
        self.sent(sent)
    }

    /// Bytes of messages that are not all sent; one, if only TLS has something to
    /// say.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent
            .max(usize::from(self.socket.get_ref().wants_write()))
    }

    fn sent(&mut self, sent: Result<(), WsError>) -> Result<(), TransportError> {
        match sent {
            Ok(()) => {
                self.unsent = 0;
                Ok(())
            }
            // The message is in tungstenite's buffer already.
            Err(error) if would_block(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks whether the daemon is still there, and asks it, where that is due; when to
    /// look again. To be called before each wait, when all that came has been read.
    pub(crate) fn beat(&mut self) -> Result<Option<Instant>, TransportError> {
        let is_sending = self.unsent() > 0;
        let Some(heartbeat) = &mut self.heartbeat else {
            return Ok(None);
        };
        let traffic = self.socket.get_ref().traffic();
        let look = heartbeat.look(Instant::now(), traffic, is_sending);
        let look = look.map_err(TransportError::Silent)?;
        if look.asks {
            self.unsent += 1;
            let sent = self.socket.send(Message::Ping(Bytes::new()));
            self.sent_or_closed(sent)?;
        }
        Ok(Some(look.next))
    }

    /// The other end is a daemon of 0.4.
    pub(crate) fn is_earlier(&self) -> bool {
        self.translation.is_some()
    }

    pub(crate) fn translation(&mut self) -> Option<&mut Translation> {
        self.translation.as_mut()
    }

    /// Waits for the next text message, or until one of `wake` can be read.
    pub(crate) fn receive_text(
        &mut self,
        wake: &[BorrowedFd<'_>],
    ) -> Result<Received, TransportError> {
        if self.is_earlier() {
            return self.receive_translated(wake);
        }
        match self.receive(wake, None)? {
            Incoming::Text(text) => Ok(Received::Text(text)),
            Incoming::Woken | Incoming::TimeIsUp => Ok(Received::Woken),
        }
    }

    /// The same as it comes, and not after `until`.
    pub(crate) fn receive(
        &mut self,
        wake: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> Result<Incoming, TransportError> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Incoming::Text(text)),
                // It was told before it carried anything out.
                Ok(Message::Close(Some(close))) if close.code == CloseCode::Again => {
                    return Err(TransportError::Busy);
                }
                Ok(Message::Close(Some(close))) if close.reason == NOTHING_BEGUN => {
                    return Err(TransportError::NotBegun);
                }
                Ok(Message::Close(_)) => return Err(TransportError::Closed),
                // Whoever never stops to send these holds up nobody for ever.
                Ok(_) if is_over(until) => return Ok(Incoming::TimeIsUp),
                Ok(_) if is_woken(wake)? => return Ok(Incoming::Woken),
                Ok(_) => {}
                Err(error) if would_block(&error) => {
                    if self.unsent > 0 {
                        let sent = self.socket.flush();
                        self.sent_or_closed(sent)?;
                    }
                    // Part of a message is none.
                    if is_over(until) {
                        return Ok(Incoming::TimeIsUp);
                    }
                    let beat = self.beat()?;
                    let stream = self.socket.get_ref();
                    let mut flags = to_read(stream);
                    flags.set(PollFlags::OUT, self.unsent() > 0);
                    let next = until.into_iter().chain(beat).min();
                    let left = next.map(|it| it.saturating_duration_since(Instant::now()));
                    match wait(stream, flags, wake, left).map_err(TransportError::Io)? {
                        Ready::Stream => {}
                        Ready::Wake => return Ok(Incoming::Woken),
                        Ready::TimeIsUp if until.is_some() && next == until => {
                            return Ok(Incoming::TimeIsUp);
                        }
                        Ready::TimeIsUp => {}
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// What a failed handshake means. A daemon that is busy may have closed before
/// it had our request; what it said is still there to be read.
fn refused(error: WsError, mut stream: &UnixStream) -> TransportError {
    let mut answer = [0; 64];
    match TransportError::from(error) {
        TransportError::Closed => match stream.read(&mut answer) {
            Ok(count) if answer[..count].starts_with(b"HTTP/1.1 503 ") => TransportError::Busy,
            _ => TransportError::Closed,
        },
        other => other,
    }
}

fn would_block(error: &WsError) -> bool {
    matches!(error, WsError::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|it| Instant::now() >= it)
}

/// Whether one of these can be read now.
fn is_woken(wake: &[BorrowedFd<'_>]) -> Result<bool, TransportError> {
    let readable = |&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut descriptors: Vec<_> = wake.iter().map(readable).collect();
    let ready = rustix::io::retry_on_intr(|| poll(&mut descriptors, Some(&Timespec::default())));
    Ok(ready.map_err(|error| TransportError::Io(error.into()))? > 0)
}

/// What is waited for before the next read.
fn to_read(stream: &Stream) -> PollFlags {
    let mut flags = PollFlags::IN;
    flags.set(PollFlags::OUT, stream.wants_write());
    flags
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Stream,
    Wake,
    TimeIsUp,
}

/// Waits for the stream or one of the other descriptors; the stream is
/// preferred, so that an answer that is there is not overtaken by a late
/// interrupt.
pub(crate) fn wait(
    stream: &impl AsFd,
    flags: PollFlags,
    wake: &[BorrowedFd<'_>],
    limit: Option<Duration>,
) -> IoResult<Ready> {
    let limit: Option<Timespec> = limit.and_then(|limit| limit.try_into().ok());
    let mut descriptors = vec![PollFd::new(stream, flags)];
    descriptors.extend(
        wake.iter()
            .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
    );
    let ready = rustix::io::retry_on_intr(|| poll(&mut descriptors, limit.as_ref()))?;
    if ready == 0 {
        return Ok(Ready::TimeIsUp);
    }
    if descriptors[0].revents().is_empty() {
        Ok(Ready::Wake)
    } else {
        Ok(Ready::Stream)
    }
}
