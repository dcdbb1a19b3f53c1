//! What a connection from a network has to pass before anything that it says
//! means something: TLS where there is TLS, and the token.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use pythond_identity::{Certificate, CertificateDer, CertificateError};
use pythond_tls::PAIRING;
use pythond_tls::server::{presented, why};
use rustix::net::sockopt;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use tokio_tungstenite::tungstenite::handshake::server::Request;

use super::pairing::Applicant;
use super::request::{self, Refusal};
use super::{LINGER, Stream};
use crate::network::Network;
use crate::network::keys::Standing;
use crate::network::penalties::Source;

/// TLS alerts (RFC 8446, section 6) as they are sent before any handshake.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
const INTERNAL_ERROR: &[u8] = &[21, 3, 3, 0, 2, 2, 80];

/// How a client begins that speaks TLS.
const TLS_HANDSHAKE: u8 = 22;
/// For one that does where there is none.
const NO_TLS_HERE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The way in from one address that is listened on, for one connection.
pub(super) struct Gate {
    pub(super) network: Arc<Network>,
    pub(super) peer: SocketAddr,
    pub(super) is_encrypted: bool,
    /// Only this machine can reach the address.
    pub(super) is_loopback: bool,
}

/// Whoever has passed.
pub(super) struct Guest {
    /// As long as this says so.
    pub(super) standing: Standing,
}

/// A client's certificate, if it was asked for one.
pub(super) type Client = Option<Certificate>;

/// Who comes by a connection that is encrypted where it has to be.
pub(super) enum Newcomer {
    /// Somebody who has to show the token.
    Client(Client),
    /// Somebody who wants to be trusted, and may do nothing but that.
    Applicant(Box<Applicant>),
}

impl Gate {
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Shakes hands, where there is TLS. `first` is what the client begins with.
    pub(super) async fn secure(
        &self,
        stream: Stream,
        first: Option<u8>,
    ) -> Result<(Stream, Newcomer), String> {
        let stream = match stream {
            Stream::Tcp(stream) if self.is_encrypted => stream,
            Stream::Tcp(stream) if first == Some(TLS_HANDSHAKE) => {
                // What is no record of TLS tells its client what is wrong.
                Stream::Tcp(stream).say(NO_TLS_HERE);
                return Err("TLS where there is none".to_owned());
            }
            other => return Ok((other, Newcomer::Client(None))),
        };
        let keys = match self.network.keys.current() {
            Ok(keys) => keys,
            Err(_) => {
                say_goodbye(Stream::Tcp(stream), INTERNAL_ERROR).await;
                return Err(Refusal::Closed.reason().to_owned());
            }
        };
        let is_heard = || self.network.penalties.hear(Source::of(self.peer.ip()));
        // Where clients need a certificate, that says who they are.
        if !keys.demand_certificates() && !is_heard() {
            say_goodbye(Stream::Tcp(stream), ACCESS_DENIED).await;
            return Err(Refusal::TooManyTokens.reason().to_owned());
        }
        let mut wants_to_pair = false;
        let accepted = if self.network.pairing.is_open() {
            let start = LazyConfigAcceptor::new(Acceptor::default(), stream);
            let start = start.await.map_err(|error| of_tls(&error))?;
            let offered = start.client_hello();
            let offered = offered.alpn().into_iter().flatten();
            wants_to_pair = offered.into_iter().any(|it| it == PAIRING.as_bytes());
            if wants_to_pair && !is_heard() {
                Stream::Tcp(start.io).say(ACCESS_DENIED);
                return Err(Refusal::TooManyTokens.reason().to_owned());
            }
            let config = match wants_to_pair {
                true => keys.pairing_config(),
                false => keys.config(),
            };
            start.into_stream(config).await
        } else {
            TlsAcceptor::from(keys.config()).accept(stream).await
        };
        let stream = accepted.map_err(|error| of_tls(&error))?;
        // The client's last words are answered by no word of ours: one that holds its
        // request back until they are acknowledged (Nagle) would wait 40 ms for that.
        let _ = sockopt::set_tcp_quickack(stream.get_ref().0, true);
        let chain = stream.get_ref().1.peer_certificates();
        let chain = chain.unwrap_or_default();
        let newcomer = match wants_to_pair {
            true => Newcomer::Applicant(Box::new(Applicant {
                network: Arc::clone(&self.network),
                peer: self.peer,
                certificate: shown(chain),
                keys,
            })),
            false => Newcomer::Client(presented(chain).map_err(|error| error.to_string())?),
        };
        Ok((Stream::Tls(Box::new(stream)), newcomer))
    }

    /// Looks at the request of somebody who wants to be trusted.
    /// Whatever else it shows is of no use here, and counts as a wrong token.
    pub(super) fn check_applicant(request: &Request, applicant: &Applicant) -> Result<(), Refusal> {
        let headers = request.headers();
        if request::is_of_web_page(headers) {
            Err(Refusal::WebPage)
        } else if !request::has_host(headers) {
            Err(Refusal::NoHost)
        } else if !request::offers(headers, PAIRING) {
            applicant.is_wrong();
            Err(Refusal::WrongToken)
        } else {
            Ok(())
        }
    }

    /// Looks at the request that is to become a WebSocket.
    pub(super) fn check(&self, request: &Request, client: Client) -> Result<Guest, Refusal> {
        let headers = request.headers();
        if request::is_of_web_page(headers) {
            return Err(Refusal::WebPage);
        }
        if !request::has_host(headers) {
            return Err(Refusal::NoHost);
        }
        if self.is_loopback && !request::is_for_loopback(headers) {
            return Err(Refusal::OtherHost);
        }
        // As the files are now: they may have changed since the handshake.
        let keys = self.network.keys.current().map_err(|_| Refusal::Closed)?;
        if keys
            .admit(client.as_ref(), pythond_identity::UnixTime::now())
            .is_err()
        {
            return Err(Refusal::NeedsTls);
        }
        let source = match &client {
            Some(client) => Source::Client(client.fingerprint()),
            None => Source::of(self.peer.ip()),
        };
        let shown = request::token(headers).unwrap_or_default();
        let knows_it = || keys.token().matches(shown);
        match self.network.penalties.judge(source, knows_it) {
            Some(true) => {}
            Some(false) => return Err(Refusal::WrongToken),
            None => return Err(Refusal::TooManyTokens),
        }
        let standing = self
            .network
            .keys
            .watch_over(&keys, client, self.is_encrypted);
        Ok(Guest { standing })
    }
}

/// The certificate that a client showed that must show one.
fn shown(chain: &[CertificateDer<'_>]) -> Result<Certificate, CertificateError> {
    let first = chain.first().ok_or(CertificateError::NotX509)?;
    Certificate::from_der(first.clone().into_owned())
}

/// Why a handshake of TLS failed, for the log.
fn of_tls(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "tls: the client went".to_owned(),
        _ => format!("tls: {}", why(error)),
    }
}

/// Waits a little for the client's first words, so that it finds our last ones.
async fn say_goodbye(stream: Stream, words: &[u8]) {
    let _ = tokio::time::timeout(LINGER, stream.something_came()).await;
    stream.say(words);
}
