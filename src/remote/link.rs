//! One connection to a remote daemon that many requests share. Each has a tag of
//! ours; one that reads slowly is put off it, and never holds up the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_transport::Spoken;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message, Utf8Bytes};

use super::dial::Dialled;
use super::error::{RemoteError, shown};
use super::heartbeat::Heartbeat;

/// Messages that wait to leave.
const OUTGOING: usize = 64;
/// Messages that wait for whoever asked, and bytes, unless it is one message.
const AHEAD: (usize, usize) = (64, 2 << 20);

/// What is told of a link that an answer broke.
pub(super) const TOO_GREAT: &str = "an answer is greater than is taken";

/// Why an exchange ends before its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The link broke.
    Broken(String),
    /// It is read too slowly; the link goes on.
    TooSlow,
    /// The other end takes no message so great.
    TooBig,
    /// An answer came that is greater than is taken; whose it is, is not known where
    /// many share the connection.
    AnswerTooBig,
    /// There is no connection of its own.
    NoWay(RemoteError),
}

/// What becomes of a request that nobody waits for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnLoss {
    /// The other end is told to give it up.
    GiveUp,
    /// It goes on while it is sent again: giving it up would end its cell.
    LetGo,
}

enum Order {
    Ask {
        tag: u64,
        text: String,
        asked: Asked,
    },
    GiveUp {
        tag: u64,
    },
    Forget {
        tag: u64,
    },
}

/// The way to a link.
#[derive(Clone)]
pub(crate) struct Link {
    orders: mpsc::UnboundedSender<Order>,
    /// What the other end speaks: one of 0.4 is asked nothing here.
    pub(crate) spoken: Spoken,
    /// The other end is our own daemon.
    pub(crate) is_own: bool,
}

/// What is seen of a link from outside.
pub(crate) enum Seen {
    /// A round trip took so long.
    RoundTrip(Duration),
}

/// One request on a link; giving it up tells the other end.
pub(crate) struct Exchange {
    tag: u64,
    orders: mpsc::UnboundedSender<Order>,
    answers: mpsc::Receiver<Utf8Bytes>,
    /// Bytes in `answers`.
    waiting: Arc<AtomicUsize>,
    lost: oneshot::Receiver<Lost>,
    over: bool,
}

impl Link {
    /// A link that is served by the second part.
    pub(crate) fn new(spoken: Spoken, is_own: bool) -> (Self, Service) {
        let (orders, received) = mpsc::unbounded_channel();
        let link = Self {
            orders,
            spoken,
            is_own,
        };
        (link, Service { orders: received })
    }

    /// Waits until it is gone.
    pub(crate) async fn closed(&self) {
        self.orders.closed().await;
    }

    /// Sends a request; `text` makes it of its tag.
    pub(crate) fn ask(&self, tag: u64, text: String, on_loss: OnLoss) -> Exchange {
        let (answers_in, answers) = mpsc::channel(AHEAD.0);
        let (lost_in, lost) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let asked = Asked {
            size: text.len(),
            answers: answers_in,
            waiting: Arc::clone(&waiting),
            lost: lost_in,
            on_loss,
        };
        // A link that is gone shows at the other end of `lost`.
        let _ = self.orders.send(Order::Ask { tag, text, asked });
        Exchange {
            tag,
            orders: self.orders.clone(),
            answers,
            waiting,
            lost,
            over: false,
        }
    }
}

impl Exchange {
    /// The next text: an event, or the answer. Without our tag.
    ///
    /// # Errors
    /// [`Lost`].
    pub(crate) async fn next(&mut self) -> Result<Utf8Bytes, Lost> {
        if let Some(text) = self.answers.recv().await {
            self.waiting.fetch_sub(text.len(), Ordering::Relaxed);
            return Ok(text);
        }
        self.over = true;
        let why = (&mut self.lost).await;
        Err(why.unwrap_or_else(|_| Lost::Broken("the connection is gone".to_owned())))
    }

    /// Its answer has come: there is nothing to give up.
    pub(crate) fn is_over(&mut self) {
        self.over = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let tag = self.tag;
        let order = if self.over {
            Order::Forget { tag }
        } else {
            Order::GiveUp { tag }
        };
        // One that is gone has nothing of it.
        let _ = self.orders.send(order);
    }
}

struct Asked {
    /// Bytes of what was sent.
    size: usize,
    answers: mpsc::Sender<Utf8Bytes>,
    waiting: Arc<AtomicUsize>,
    /// Why no more answers come.
    lost: oneshot::Sender<Lost>,
    on_loss: OnLoss,
}

impl Asked {
    /// Hands an answer over, if there is room for it.
    fn hand_over(&self, text: Utf8Bytes) -> Result<(), ()> {
        let length = text.len();
        let before = self.waiting.load(Ordering::Relaxed);
        if before > 0 && before + length > AHEAD.1 {
            return Err(());
        }
        self.waiting.fetch_add(length, Ordering::Relaxed);
        self.answers.try_send(text).map_err(drop)
    }
}

/// The other part of a link.
pub(crate) struct Service {
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Service {
    /// Serves a connection until it breaks; says why it did.
    pub(crate) async fn serve(mut self, dialled: Dialled, seen: impl Fn(Seen)) -> String {
        let Dialled {
            socket, activity, ..
        } = dialled;
        let (mut sink, mut stream) = socket.split();
        let (outgoing, mut to_send) = mpsc::channel::<Message>(OUTGOING);
        let is_sending = AtomicBool::new(false);
        let sending = async {
            while let Some(message) = to_send.recv().await {
                is_sending.store(true, Ordering::Relaxed);
                if let Err(error) = sink.send(message).await {
                    return told(&error);
                }
                is_sending.store(false, Ordering::Relaxed);
            }
            "it is not needed any more".to_owned()
        };
        let mut sending = std::pin::pin!(sending);
        let mut asked: HashMap<u64, Asked> = HashMap::new();
        let mut heartbeat = Heartbeat::new(activity);
        let mut pinged: Option<Instant> = None;
        // Of orders that came while there was no room to send.
        let mut waiting: std::collections::VecDeque<Message> = std::collections::VecDeque::new();
        let (mut too_big, mut answer_too_big) = (false, false);
        let why = loop {
            while let Some(message) = waiting.pop_front() {
                if let Err(refused) = outgoing.try_send(message) {
                    waiting.push_front(refused.into_inner());
                    break;
                }
            }
            let room = waiting.is_empty();
            tokio::select! {
                why = &mut sending => break why,
                permit = outgoing.reserve(), if !room => if let (Ok(permit), Some(message)) = (permit, waiting.pop_front()) {
                    permit.send(message);
                },
                order = self.orders.recv(), if room => match order {
                    None => break "it is not needed any more".to_owned(),
                    Some(Order::Ask { tag, text, asked: new }) => {
                        asked.insert(tag, new);
                        waiting.push_back(Message::text(text));
                    }
                    Some(Order::GiveUp { tag }) => {
                        if asked.remove(&tag).is_some() {
                            waiting.push_back(give_up(tag));
                        }
                    }
                    Some(Order::Forget { tag }) => drop(asked.remove(&tag)),
                },
                message = stream.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if let Some(tag) = answered(&mut asked, text) {
                            waiting.push_back(give_up(tag));
                        }
                    }
                    Some(Ok(Message::Pong(_))) => {
                        if let Some(at) = pinged.take() {
                            seen(Seen::RoundTrip(at.elapsed()));
                        }
                    }
                    Some(Ok(Message::Close(close))) => {
                        too_big = close.as_ref().is_some_and(|it| it.code == CloseCode::Size);
                        break closed(close);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        answer_too_big = matches!(error, WsError::Capacity(_));
                        break told(&error);
                    }
                    None => break "it closed the connection".to_owned(),
                },
                now = heartbeat.tick() => {
                    if let Err(silent) = heartbeat.look(now, is_sending.load(Ordering::Relaxed)) {
                        break silent.to_string();
                    }
                    if pinged.is_none() && outgoing.try_send(Message::Ping(Bytes::new())).is_ok() {
                        pinged = Some(Instant::now());
                    }
                }
            }
        };
        // Whose message it was is not said; it would break the next link as well.
        let greatest = asked.iter().max_by_key(|(_, asked)| asked.size);
        let greatest = greatest.map(|(tag, _)| *tag).filter(|_| too_big);
        for (tag, Asked { lost, .. }) in asked.drain() {
            // Whoever asked may be gone.
            let _ = lost.send(match Some(tag) == greatest {
                true => Lost::TooBig,
                false if answer_too_big => Lost::AnswerTooBig,
                false => Lost::Broken(why.clone()),
            });
        }
        why
    }
}

/// Passes an answer on; the tag of whoever has no room for it.
fn answered(asked: &mut HashMap<u64, Asked>, text: Utf8Bytes) -> Option<u64> {
    let (tag, rest) = untagged(&text)?;
    let found = asked.get(&tag)?;
    if found.hand_over(rest.into()).is_ok() {
        return None;
    }
    let slow = asked.remove(&tag)?;
    let _ = slow.lost.send(Lost::TooSlow);
    (slow.on_loss == OnLoss::GiveUp).then_some(tag)
}

/// Our tag, and the text without it.
pub(super) fn untagged(text: &str) -> Option<(u64, String)> {
    let (tag, rest) = text.strip_prefix("{\"tag\":\"")?.split_once('"')?;
    let rest = rest.strip_prefix(',').unwrap_or(rest);
    Some((tag.parse().ok()?, format!("{{{rest}")))
}

fn give_up(tag: u64) -> Message {
    // Its own answer has a tag that nobody waits for.
    Message::text(format!("cancel --tag=0 {tag}"))
}

pub(super) fn told(error: &WsError) -> String {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => "it closed the connection".to_owned(),
        WsError::Capacity(_) => TOO_GREAT.to_owned(),
        WsError::Protocol(_) => "it broke the connection".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn closed(close: Option<CloseFrame>) -> String {
    match close {
        Some(close) if !close.reason.is_empty() => {
            let reason = shown(&close.reason, 120);
            format!("it closed the connection: {reason}")
        }
        _ => "it closed the connection".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_ours_is_taken_off() {
        let of = |text: &str| untagged(text);
        assert_eq!(
            of(r#"{"tag":"7","ok":true}"#),
            Some((7, r#"{"ok":true}"#.to_owned()))
        );
        assert_eq!(of(r#"{"tag":"7"}"#), Some((7, "{}".to_owned())));
        for other in ["", "{}", r#"{"tag":"x","ok":true}"#, "OK", r#"{"tag":7}"#] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
