//! A client that wants to be trusted: the exchange on its connection, which is good for
//! nothing else. PROTOCOL.md, "Pairing", says what is sent.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_identity::{Certificate, CertificateError, UnixTime, ValidityState};
use pythond_pairing::{
    Bytes, Certificates, ClientMessage, Refusal, RefusalCode, SecretText, ServerKeys, ServerMessage,
};
use pythond_protocol::shown::escape_controls;
use pythond_protocol::verbs::pair::PairedClient;
use pythond_tls::server::ServerKeys as TlsKeys;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use zeroize::Zeroizing;

use super::Stream;
use crate::error::chain;
use crate::network::Network;
use crate::network::pairing::{Current, News, Opener, Verdict};
use crate::network::penalties::Source;

/// Whoever came to pair, with the key of the certificate that it showed.
pub(super) struct Applicant {
    pub(super) network: Arc<Network>,
    pub(super) peer: SocketAddr,
    /// What it showed.
    pub(super) certificate: Result<Certificate, CertificateError>,
    /// What we showed.
    pub(super) keys: Arc<TlsKeys>,
}

/// Why nothing came of it, for the log; what was to be said of it was said.
type Failed = &'static str;

/// How an exchange ended; none if it did not.
pub(super) type Ended = Option<Result<(), Failed>>;

/// The exchange on one connection.
struct Exchange {
    socket: WebSocketStream<Stream>,
}

impl Applicant {
    /// Goes through all of it. How it ended is there for the log before the goodbye, which
    /// may be cut off.
    pub(super) async fn serve(self, socket: WebSocketStream<Stream>, ended: &mut Ended) {
        let mut exchange = Exchange { socket };
        let served = self.pair(&mut exchange).await;
        let (code, reason) = match served {
            Ok(()) => (CloseCode::Normal, "paired"),
            Err(_) => (CloseCode::Policy, "not paired"),
        };
        *ended = Some(served);
        let reason = reason.into();
        // One that has gone needs no goodbye. Its own close ends the stream.
        if exchange
            .socket
            .close(Some(CloseFrame { code, reason }))
            .await
            .is_ok()
        {
            while let Some(Ok(_)) = exchange.socket.next().await {}
        }
    }

    async fn pair(&self, exchange: &mut Exchange) -> Result<(), Failed> {
        let certificate = match usable(&self.certificate) {
            Ok(certificate) => certificate,
            Err(why) => {
                let why = format!("the client's certificate cannot be used: {why}");
                return exchange
                    .refuse(RefusalCode::CertificateRefused, &why, "certificate-refused")
                    .await;
            }
        };
        let Some(current) = self.network.pairing.current() else {
            return exchange.no_code().await;
        };
        let Some(ClientMessage::Element(Bytes(element))) = exchange.hear().await? else {
            return self.malformed(exchange).await;
        };
        let seen = Certificates {
            client: *certificate.fingerprint().as_bytes(),
            server: *self.keys.certificate().as_bytes(),
        };
        let Ok(keys) = ServerKeys::answering(&current.code, seen, &element) else {
            return self.malformed(exchange).await;
        };
        let element = ServerMessage::Element(Bytes(keys.element().to_vec()));
        exchange.say(&element).await?;
        let Some(ClientMessage::Proof(Bytes(proof))) = exchange.hear().await? else {
            return self.malformed(exchange).await;
        };
        let mut opener = match self.judge(&current, || keys.believes(&proof)) {
            Verdict::Right(opener) => opener,
            Verdict::Wrong { tries_left } => {
                let left = match tries_left {
                    0 => "it is of no use any more".to_owned(),
                    1 => "1 try is left".to_owned(),
                    left => format!("{left} tries are left"),
                };
                let why = format!(
                    "the code is another, or somebody is in between and shows other \
                     certificates; {left}"
                );
                return exchange
                    .refuse(RefusalCode::WrongCode, &why, "wrong-code")
                    .await;
            }
            Verdict::NotHeard => {
                let why = "too many wrong codes or tokens came from there; try again later";
                return exchange
                    .refuse(RefusalCode::TooManyTries, why, "too-many-tries")
                    .await;
            }
            Verdict::Closed => return exchange.no_code().await,
        };
        let ended = self.settle(exchange, &keys, certificate, &mut opener).await;
        match ended {
            Ok(client) => {
                opener.tell(News::Paired(client));
                Ok(())
            }
            Err((log, why)) => {
                opener.tell(News::Failed(why));
                Err(log)
            }
        }
    }

    fn source(&self) -> Source {
        Source::of(self.peer.ip())
    }

    fn judge(&self, current: &Current, is_right: impl FnOnce() -> bool) -> Verdict {
        let (pairing, penalties) = (&self.network.pairing, &self.network.penalties);
        let address = self.peer.to_string();
        pairing.judge(current, penalties, self.source(), &address, is_right)
    }

    /// The client knows the code and sees us, not somebody in between.
    async fn settle(
        &self,
        exchange: &mut Exchange,
        keys: &ServerKeys,
        certificate: &Certificate,
        opener: &mut Opener,
    ) -> Result<PairedClient, (Failed, String)> {
        let gone = |log: Failed| (log, "the client went before it was done".to_owned());
        // What the client is about to pin.
        self.token_behind(exchange).await?;
        let proof = ServerMessage::Proof(Bytes(keys.proof().to_vec()));
        exchange.say(&proof).await.map_err(gone)?;
        let Some(ClientMessage::Pinned(true)) = exchange.hear().await.map_err(gone)? else {
            let _ = self.malformed(exchange).await;
            return Err(("malformed", "the client broke the protocol".to_owned()));
        };
        if !opener.waits() {
            let _ = exchange.no_code().await;
            return Err(("no-code", String::new()));
        }
        self.token_behind(exchange).await?;
        opener.begins_to_trust();
        let trusted = match self.trust(certificate).await {
            Ok(trusted) => trusted,
            Err(why) => {
                let said = "the server cannot trust the client now; its owner is told why";
                let _ = exchange
                    .refuse(RefusalCode::Internal, said, "cannot-trust")
                    .await;
                return Err(("cannot-trust", why));
            }
        };
        let token = self.token_behind(exchange).await;
        let token = token
            .map_err(|(log, why)| (log, format!("{why}; the client is trusted all the same")))?;
        // The client is trusted whether it hears this or not.
        let _ = exchange.say(&ServerMessage::Token(SecretText(token))).await;
        Ok(PairedClient {
            fingerprint: certificate.fingerprint().to_string(),
            public_key: certificate.key().to_string(),
            subject: escape_controls(certificate.subject()).into_owned(),
            address: self.peer.to_string(),
            trusted,
        })
    }

    /// The token as it is now, of a server that still is who the client sees. Says it to
    /// the client if it is not.
    async fn token_behind(
        &self,
        exchange: &mut Exchange,
    ) -> Result<Zeroizing<String>, (Failed, String)> {
        let (said, log, why) = match self.network.keys.current() {
            Ok(keys) if keys.certificate() == self.keys.certificate() => {
                return Ok(Zeroizing::new(keys.token().reveal().to_owned()));
            }
            Ok(_) => {
                let said = "the server's certificate was replaced meanwhile";
                (said, "certificate-replaced", said.to_owned())
            }
            Err(why) => {
                let why = format!("nobody is let in from a network: {why}");
                ("nobody is let in now", "no-keys", why)
            }
        };
        let _ = exchange.refuse(RefusalCode::Internal, said, log).await;
        Err((log, why))
    }

    /// Trusts it, at once for all connections. Waits for the disk on a thread of its
    /// own, as others wait for us here.
    async fn trust(&self, certificate: &Certificate) -> Result<bool, String> {
        let (network, certificate) = (Arc::clone(&self.network), certificate.clone());
        let work = tokio::task::spawn_blocking(move || network.keys.trust(&certificate));
        match work.await {
            Ok(Ok(trusted)) => Ok(trusted),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What breaks the protocol counts as a wrong token does.
    pub(super) fn is_wrong(&self) {
        self.network.penalties.judge(self.source(), || false);
    }

    async fn malformed(&self, exchange: &mut Exchange) -> Result<(), Failed> {
        self.is_wrong();
        let why = "no message that belongs here";
        exchange.refuse(RefusalCode::Usage, why, "malformed").await
    }
}

impl Exchange {
    async fn say(&mut self, message: &ServerMessage) -> Result<(), Failed> {
        let text = message.to_json().to_string();
        let sent = self.socket.send(Message::text(text)).await;
        sent.map_err(|_| "gone")
    }

    /// The next message; none if it is no message of ours.
    async fn hear(&mut self) -> Result<Option<ClientMessage>, Failed> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).ok()),
                Some(Ok(Message::Ping(_))) => {
                    // Reading queued the pong; only this sends it.
                    let _ = self.socket.flush().await;
                }
                Some(Ok(Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Err("gone"),
                Some(Ok(Message::Binary(_) | Message::Frame(_))) => return Ok(None),
                Some(Err(_)) => return Err("broken"),
            }
        }
    }

    async fn refuse(
        &mut self,
        code: RefusalCode,
        message: &str,
        log: Failed,
    ) -> Result<(), Failed> {
        let message = message.to_owned();
        let refusal = ServerMessage::Error(Refusal { code, message });
        // One that has gone needs no answer.
        let _ = self.say(&refusal).await;
        Err(log)
    }

    async fn no_code(&mut self) -> Result<(), Failed> {
        let why = "no code is valid any more: it was used, withdrawn, tried too often, or lapsed";
        self.refuse(RefusalCode::NoCode, why, "no-code").await
    }
}

/// A certificate that may be trusted now.
fn usable(shown: &Result<Certificate, CertificateError>) -> Result<&Certificate, String> {
    let certificate = shown.as_ref().map_err(ToString::to_string)?;
    match certificate.validity().at(UnixTime::now()) {
        ValidityState::Valid => Ok(certificate),
        ValidityState::Expired => Err("it has expired".to_owned()),
        ValidityState::NotYetValid => Err("it is not valid yet".to_owned()),
    }
}
