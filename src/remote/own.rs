//! One request on a connection of its own: it is read no faster than whoever asked
//! takes it, so that the other end waits.

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_transport::{Silent, Spoken};
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message, Utf8Bytes};

use super::Remote;
use super::dial::{Dialled, Socket};
use super::heartbeat::Heartbeat;
use super::link::{Lost, closed, told, untagged};

/// One request on a connection of its own; its end gives the request up.
pub(super) struct OwnExchange {
    socket: Socket,
    heartbeat: Heartbeat,
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
        let dialled = remote.dial().await.map_err(Lost::NoWay)?;
        if dialled.spoken == Spoken::Earlier {
            return Err(Lost::Broken("it is a daemon of 0.4 now".to_owned()));
        }
        let mut exchange = Self::over(dialled);
        exchange.send(Message::text(text(remote.new_tag()))).await?;
        Ok(exchange)
    }

    /// Nothing is asked yet.
    pub(super) fn over(dialled: Dialled) -> Self {
        let Dialled {
            socket, activity, ..
        } = dialled;
        let heartbeat = Heartbeat::new(activity);
        Self { socket, heartbeat }
    }

    /// One text for another.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) async fn ask_as_it_is(&mut self, text: String) -> Result<Utf8Bytes, Lost> {
        self.send(Message::text(text)).await?;
        self.next_text().await
    }

    async fn send(&mut self, message: Message) -> Result<(), Lost> {
        let sent = self.heartbeat.sent(self.socket.send(message)).await;
        sent.map_err(lost)?
            .map_err(|error| Lost::Broken(told(&error)))
    }

    /// The next text: an event, or the answer. Without our tag.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) async fn next(&mut self) -> Result<Utf8Bytes, Lost> {
        loop {
            let text = self.next_text().await?;
            if let Some((_, rest)) = untagged(&text) {
                return Ok(rest.into());
            }
        }
    }

    async fn next_text(&mut self) -> Result<Utf8Bytes, Lost> {
        // While nobody took anything, nobody listened.
        self.heartbeat.listen_anew();
        loop {
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Close(close))) => return Err(Lost::Broken(closed(close))),
                    Some(Ok(_)) => {}
                    Some(Err(WsError::Capacity(_))) => return Err(Lost::AnswerTooBig),
                    Some(Err(error)) => return Err(Lost::Broken(told(&error))),
                    None => return Err(Lost::Broken("it closed the connection".to_owned())),
                },
                now = self.heartbeat.tick() => {
                    self.heartbeat.look(now, false).map_err(lost)?;
                    self.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }
}

fn lost(silent: Silent) -> Lost {
    Lost::Broken(silent.to_string())
}
