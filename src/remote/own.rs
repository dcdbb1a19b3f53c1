//! One request on a connection of its own: it is read no faster than whoever asked
//! takes it, so that the other end waits.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::{Instant, interval, timeout};
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use super::Remote;
use super::dial::{Dialled, Socket};
use super::link::{Lost, closed, told, untagged};
use super::stream::Activity;

/// How often the other end is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// No byte for so long while we wait, and the other end is not there.
const SILENCE: Duration = Duration::from_secs(20);

/// One request on a connection of its own; its end gives the request up.
pub(super) struct OwnExchange {
    socket: Socket,
    activity: Activity,
}

impl OwnExchange {
    /// Connects and asks.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) async fn ask(
        remote: &Remote,
        text: impl FnOnce(u64) -> String,
    ) -> Result<Self, Lost> {
        let dialled = remote.dial().await;
        let Dialled {
            socket, activity, ..
        } = dialled.map_err(|error| Lost::Broken(error.message))?;
        let mut exchange = Self { socket, activity };
        exchange.send(Message::text(text(remote.new_tag()))).await?;
        Ok(exchange)
    }

    async fn send(&mut self, message: Message) -> Result<(), Lost> {
        let mut sending = std::pin::pin!(self.socket.send(message));
        loop {
            let before = self.activity.went();
            match timeout(SILENCE, &mut sending).await {
                Ok(sent) => return sent.map_err(|error| Lost::Broken(told(&error))),
                Err(_) if self.activity.went() != before => {}
                Err(_) => return Err(silent()),
            }
        }
    }

    /// The next text: an event, or the answer. Without our tag.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) async fn next(&mut self) -> Result<Utf8Bytes, Lost> {
        let mut heartbeat = interval(HEARTBEAT);
        // While nobody took anything, nobody listened.
        let mut last = (self.activity.bytes(), Instant::now());
        heartbeat.reset();
        loop {
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if let Some((_, rest)) = untagged(&text) {
                            return Ok(rest.into());
                        }
                    }
                    Some(Ok(Message::Close(close))) => return Err(Lost::Broken(closed(close))),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Lost::Broken(told(&error))),
                    None => return Err(Lost::Broken("it closed the connection".to_owned())),
                },
                now = heartbeat.tick() => {
                    let bytes = self.activity.bytes();
                    if bytes != last.0 {
                        last = (bytes, now);
                    } else if now.duration_since(last.1) >= SILENCE {
                        return Err(silent());
                    }
                    self.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }
}

fn silent() -> Lost {
    Lost::Broken(format!("it has said nothing for {} s", SILENCE.as_secs()))
}
