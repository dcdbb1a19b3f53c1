//! One connection from its first byte to its last.

use std::sync::Arc;
use std::time::Duration;

use pythond_pairing::MAX_MESSAGE_BYTES;
use pythond_tls::PAIRING;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::gate::{Gate, Guest, Newcomer};
use super::pairing::Applicant;
use super::{BUSY, Entrance, Stream, rejected, request};
use crate::access_log::{AccessLog, Fields};
use crate::admission::Place;
use crate::handlers::Context;
use crate::router;

/// How long a client may take for its handshake, whatever it consists of.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The same for pairing, which comes after it. Nobody types meanwhile.
const PAIRING_DEADLINE: Duration = Duration::from_secs(10);
const PAIRED: Fields<'static> = Fields {
    command: None,
    session: None,
    status: Some("ok"),
    body_bytes: None,
    detail: None,
};
/// Read and write buffers of a connection begin with this many bytes.
const BUFFER: usize = 16 << 10;

/// What becomes a connection.
pub(super) struct Connection {
    pub(super) context: Arc<Context>,
    pub(super) entrance: Arc<Entrance>,
    pub(super) access: AccessLog,
    /// Who submits its cells, unless it says another name.
    pub(super) author: String,
    /// What a connection from a network has to pass.
    pub(super) gate: Option<Gate>,
}

/// A handshake that is done.
enum Shaken {
    /// A client, with what lets it stay if it comes from a network.
    Client(Box<WebSocketStream<Stream>>, Option<Guest>),
    /// Somebody who wants to be trusted.
    Applicant(Box<WebSocketStream<Stream>>, Box<Applicant>),
}

impl Connection {
    pub(super) async fn serve(mut self, stream: Stream, place: &Place) {
        let shake = async {
            // One that said nothing can still be told why it has to go.
            let first = tokio::select! {
                first = stream.something_came() => first,
                () = place.makes_room() => {
                    if !self.is_encrypted() {
                        stream.say(BUSY);
                    }
                    return Err("busy".to_owned());
                }
            };
            tokio::select! {
                shaken = self.shake(stream, first) => shaken,
                () = place.makes_room() => Err("busy".to_owned()),
            }
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, shake) => shaken,
            () = self.context.stop.cancelled() => return,
        };
        let detail = match shaken {
            Ok(Ok(Shaken::Applicant(socket, applicant))) => {
                return self.pair(*socket, *applicant, place).await;
            }
            Ok(Ok(Shaken::Client(socket, guest))) => {
                place.introduced();
                self.access.event("connect", &Fields::default());
                self.attend(*socket, guest, place).await;
                self.access.event("disconnect", &Fields::default());
                return;
            }
            Ok(Err(detail)) => detail,
            Err(_) => "deadline".to_owned(),
        };
        if self.entrance.complaints.tells("handshake") {
            self.access.event("handshake", &rejected(&detail));
        }
    }

    fn is_encrypted(&self) -> bool {
        self.gate.as_ref().is_some_and(Gate::is_encrypted)
    }

    async fn shake(&self, stream: Stream, first: Option<u8>) -> Result<Shaken, String> {
        let max_message = Some(self.entrance.max_message);
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(max_message)
            .max_frame_size(max_message);
        let boot = self.context.hosts.events.boot();
        let Some(gate) = &self.gate else {
            #[expect(clippy::result_large_err, reason = "the library's signature")]
            let accepting = tokio_tungstenite::accept_hdr_async_with_config(
                stream,
                |request: &Request, response| request::agree(request, response, boot),
                Some(config),
            );
            let socket = accepting.await.map_err(|error| error.to_string())?;
            return Ok(Shaken::Client(Box::new(socket), None));
        };
        let (stream, client) = match gate.secure(stream, first).await? {
            (stream, Newcomer::Client(client)) => (stream, client),
            (stream, Newcomer::Applicant(applicant)) => {
                let socket = accept_applicant(stream, &applicant).await?;
                return Ok(Shaken::Applicant(Box::new(socket), applicant));
            }
        };
        let mut outcome = Err("no whole request");
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            match gate.check(request, client) {
                Ok(guest) => {
                    let agreed = request::agree(request, response, boot);
                    outcome = agreed.as_ref().map(|_| guest).map_err(|_| "no agreement");
                    agreed
                }
                Err(refusal) => {
                    outcome = Err(refusal.reason());
                    Err(refusal.into())
                }
            }
        };
        let accepted =
            tokio_tungstenite::accept_hdr_async_with_config(stream, check, Some(config)).await;
        match (accepted, outcome) {
            (Ok(socket), Ok(guest)) => Ok(Shaken::Client(Box::new(socket), Some(guest))),
            (Err(error), Ok(_)) => Err(error.to_string()),
            (_, Err(why)) => Err(why.to_owned()),
        }
    }

    /// Lets somebody pair who is a stranger as long as it takes: it makes room as those
    /// do who have not finished their handshake.
    async fn pair(&mut self, socket: WebSocketStream<Stream>, applicant: Applicant, place: &Place) {
        let mut ended = None;
        let serve = applicant.serve(socket, &mut ended);
        let cut = tokio::select! {
            _ = tokio::time::timeout(PAIRING_DEADLINE, serve) => "deadline",
            () = place.makes_room() => "busy",
            () = self.context.stop.cancelled() => return,
        };
        match ended.unwrap_or(Err(cut)) {
            Ok(()) => self.access.event("pairing", &PAIRED),
            Err(why) if self.entrance.complaints.tells("pairing") => {
                self.access.event("pairing", &rejected(why));
            }
            Err(_) => {}
        }
    }

    async fn attend(
        &mut self,
        socket: WebSocketStream<Stream>,
        guest: Option<Guest>,
        place: &Place,
    ) {
        let context = Arc::clone(&self.context);
        let author = self.author.clone();
        let dismissed = async {
            match guest {
                Some(mut guest) => guest.standing.lost().await,
                None => std::future::pending().await,
            }
        };
        let access = &mut self.access;
        router::serve(socket, context, access, author, place, dismissed).await;
    }
}

/// Makes a WebSocket of the connection of somebody who wants to be trusted.
async fn accept_applicant(
    stream: Stream,
    applicant: &Applicant,
) -> Result<WebSocketStream<Stream>, String> {
    let config = WebSocketConfig::default()
        .read_buffer_size(MAX_MESSAGE_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let mut refused = None;
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        match Gate::check_applicant(request, applicant) {
            Ok(()) => {
                request::speak(&mut response, PAIRING);
                Ok(response)
            }
            Err(refusal) => {
                refused = Some(refusal.reason());
                Err(refusal.into())
            }
        }
    };
    let accepted =
        tokio_tungstenite::accept_hdr_async_with_config(stream, check, Some(config)).await;
    accepted.map_err(|error| refused.map_or_else(|| error.to_string(), str::to_owned))
}
