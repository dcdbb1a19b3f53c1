//! TCP, TLS and the daemon's answer to a token. The token leaves this process
//! only when the server is known to be the one that is pinned.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use pythond_identity::{
    Certificate, CertificateFingerprint, OwnIdentity, PeerAddress, Store, Token, UnixTime,
};
use pythond_tls::{ClientTls, PAIRING};
use rustix::event::PollFlags;
use tungstenite::Error as WsError;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::client::{Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{AUTHORIZATION, HOST, SEC_WEBSOCKET_PROTOCOL};
use zeroize::Zeroizing;

use crate::connection::{Connection, HandshakeFailure, Ready, wait};
use crate::dial::{Deadline, dial};
use crate::remote_error::{RemoteError, RemoteReason, Stage};
use crate::stream::{Opening, Stream, Wire};
use crate::tls_stream::TlsStream;
use crate::{ClientError, TcpAddress, TransportError};

/// Most characters of a refusal that are shown.
const SHOWN_CHARACTERS: usize = 200;

/// A connection, and what there is to say of how it was made.
pub(crate) struct Connected {
    pub(crate) connection: Connection,
    pub(crate) notice: Option<String>,
}

/// Connects within this time.
pub(crate) fn connect(address: &TcpAddress, limit: Duration) -> Result<Connected, ClientError> {
    let failed = |reason| ClientError::NotConnected(Box::new(RemoteError::new(address, reason)));
    let token = address.token.as_ref();
    let token = token.ok_or(RemoteReason::NoToken).map_err(failed)?;
    let mut request = request(address).map_err(failed)?;
    show_token(&mut request, token).map_err(failed)?;
    let deadline = Deadline::after(limit);
    let mut trust = match address.tls {
        true => Some(Trust::read(address).map_err(failed)?),
        false => None,
    };
    let wire = Wire::new(dial(address, deadline).map_err(failed)?);
    let opening = wire.opening();
    let busy = || ClientError::Transport(TransportError::Busy);
    let stream = match &mut trust {
        None => Stream::tcp(wire),
        Some(trust) => match trust.shake_hands(wire, deadline) {
            Ok(stream) => Stream::tls(stream),
            // It was said before anything else: nobody had time for more.
            Err(_) if is_busy(&opening) => return Err(busy()),
            Err(reason) => return Err(failed(reason)),
        },
    };
    match Connection::handshake(stream, request, || deadline.left()) {
        Ok(mut connection) => {
            if connection.is_earlier() {
                let left = deadline.left().unwrap_or_default();
                match connection.knows_token(left) {
                    Ok(true) => {}
                    Ok(false) => return Err(failed(RemoteReason::Unauthorized)),
                    Err(TransportError::NoAnswer) => {
                        return Err(failed(deadline.missed(Stage::WebSocket)));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(Connected {
                connection,
                notice: trust.and_then(|trust| trust.notice),
            })
        }
        // Other refusals of this status are not for want of room.
        Err(HandshakeFailure::Ws(WsError::Http(response)))
            if response.status() == 503 && "busy".starts_with(&words(&response)) =>
        {
            Err(busy())
        }
        Err(failure) => {
            let notice = trust.as_mut().and_then(|trust| trust.notice.take());
            let mut error = RemoteError::new(address, reason(failure, trust, &opening, deadline));
            error.notice = notice;
            Err(ClientError::NotConnected(Box::new(error)))
        }
    }
}

fn is_busy(opening: &Opening) -> bool {
    opening.bytes().starts_with(b"HTTP/1.1 503 ")
}

/// A connection to a server of which nothing may be known, good for pairing alone.
pub(crate) struct Unproven {
    pub(crate) connection: Connection,
    pub(crate) store: Store,
    /// What the server showed; it has the key.
    pub(crate) server: Certificate,
    /// What we showed.
    pub(crate) own: CertificateFingerprint,
}

/// Connects within this time to a server that is to be paired with. No token is sent.
pub(crate) fn connect_to_pair(
    address: &TcpAddress,
    deadline: Deadline,
) -> Result<Unproven, RemoteReason> {
    let mut request = request(address)?;
    let name = HeaderValue::from_static(PAIRING);
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    let mut trust = Trust::to_pair(address)?;
    let wire = Wire::new(dial(address, deadline)?);
    let opening = wire.opening();
    // Nothing is pinned before the server has shown that it knows the code.
    let stream = trust.shake_hands_only(wire, deadline)?;
    let Some(server) = trust.tls.pinned().map(|it| it.certificate.clone()) else {
        return Err(RemoteReason::Closed);
    };
    let own = trust.own.ok_or(RemoteReason::Closed)?;
    let is_wanted = stream.agreed_protocol() == Some(PAIRING.as_bytes());
    let shaken = Connection::handshake(Stream::tls(stream), request, || deadline.left());
    let connection = match shaken {
        // It would not hear what we say as what it is.
        Ok(_) if !is_wanted => return Err(RemoteReason::Unauthorized),
        Ok(connection) => connection,
        Err(failure) => return Err(reason(failure, Some(trust), &opening, deadline)),
    };
    Ok(Unproven {
        connection,
        store: trust.store,
        server,
        own,
    })
}

/// Adds the token.
fn show_token(request: &mut Request, token: &Token) -> Result<(), RemoteReason> {
    let bearer = Zeroizing::new(format!("Bearer {}", token.reveal()));
    let mut bearer = HeaderValue::from_str(&bearer).map_err(|error| {
        let error = WsError::from(tungstenite::http::Error::from(error));
        RemoteReason::Protocol(Box::new(error))
    })?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, bearer);
    Ok(())
}

/// The handshake of the WebSocket, without the token.
fn request(address: &TcpAddress) -> Result<Request, RemoteReason> {
    let protocol = |error| RemoteReason::Protocol(Box::new(error));
    let mut request = "ws://localhost/".into_client_request().map_err(protocol)?;
    let headers = request.headers_mut();
    // The name of an interface means nothing at the other end.
    let shown = address.peer.to_string();
    let host = match (shown.find('%'), shown.find(']')) {
        (Some(from), Some(to)) => format!("{}{}", &shown[..from], &shown[to..]),
        _ => shown,
    };
    let text = |value: &str| {
        HeaderValue::from_str(value)
            .map_err(|error| protocol(WsError::from(tungstenite::http::Error::from(error))))
    };
    headers.insert(HOST, text(&host)?);
    Ok(request)
}

/// Whom this user believes, and who they are themselves.
struct Trust {
    store: Store,
    tls: ClientTls,
    own: Option<CertificateFingerprint>,
    peer: PeerAddress,
    notice: Option<String>,
}

impl Trust {
    fn read(address: &TcpAddress) -> Result<Self, RemoteReason> {
        let (store, now) = open(address)?;
        let own = store.own(now).map_err(RemoteReason::Identity)?;
        let pins = store.pins().map_err(RemoteReason::Identity)?;
        let tls = ClientTls::new(address.peer.clone(), pins, own.as_ref(), now);
        Self::of(address, store, own.as_ref(), tls)
    }

    /// The same for a server that nothing may be known of, with a certificate of our
    /// own, made if there is none.
    fn to_pair(address: &TcpAddress) -> Result<Self, RemoteReason> {
        let (store, now) = open(address)?;
        let own = store.own_or_make(now).map_err(RemoteReason::Identity)?;
        let pins = store.pins().map_err(RemoteReason::Identity)?;
        let tls = ClientTls::for_pairing(address.peer.clone(), pins, &own, now);
        Self::of(address, store, Some(&own), tls)
    }

    fn of(
        address: &TcpAddress,
        store: Store,
        own: Option<&OwnIdentity>,
        tls: Result<ClientTls, rustls::Error>,
    ) -> Result<Self, RemoteReason> {
        let broken = |error| RemoteReason::Tls(pythond_tls::TlsTrouble::Broken(error));
        Ok(Self {
            store,
            tls: tls.map_err(broken)?,
            own: own.map(|own| own.pair.certificate.fingerprint()),
            peer: address.peer.clone(),
            notice: None,
        })
    }

    /// A stream whose other end is the one that is pinned.
    fn shake_hands(
        &mut self,
        wire: Wire,
        deadline: Deadline,
    ) -> Result<TlsStream<Wire>, RemoteReason> {
        let stream = self.shake_hands_only(wire, deadline)?;
        if let Some(pinned) = self.tls.pinned().filter(|it| it.without_address) {
            let pinned = self.store.pin(&pinned.certificate, Some(&self.peer));
            pinned.map_err(RemoteReason::Identity)?;
            self.notice = Some(format!(
                "the certificate that was pinned without an address is pinned to `{}` now",
                self.peer
            ));
        }
        Ok(stream)
    }

    /// The same, and no pin gets an address by it.
    fn shake_hands_only(
        &mut self,
        wire: Wire,
        deadline: Deadline,
    ) -> Result<TlsStream<Wire>, RemoteReason> {
        let session = self.tls.connection();
        let session = session.map_err(|error| RemoteReason::Tls(self.tls.explain(error)))?;
        let mut stream = TlsStream::new(session, wire);
        while !stream.shake_hands().map_err(|error| self.explain(error))? {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, stream.wants_write());
            let Some(left) = deadline.left() else {
                return Err(deadline.missed(Stage::Tls));
            };
            let ready = wait(stream.wire(), flags, &[], Some(left)).map_err(RemoteReason::Io)?;
            if ready == Ready::TimeIsUp {
                return Err(deadline.missed(Stage::Tls));
            }
        }
        match self.tls.pinned() {
            Some(_) => Ok(stream),
            // rustls asks for the check before it says that it has finished.
            None => Err(RemoteReason::Closed),
        }
    }

    fn explain(&self, error: std::io::Error) -> RemoteReason {
        match self.tls.explain_io(&error) {
            Some(trouble) => RemoteReason::Tls(trouble),
            None => of_io(error),
        }
    }
}

/// The files of this user, and what time it is, which decides what certificates are worth.
fn open(address: &TcpAddress) -> Result<(Store, UnixTime), RemoteReason> {
    let home = address.home.as_deref().filter(|home| home.is_absolute());
    let home: &Path = home.ok_or(RemoteReason::NoHome)?;
    let store = Store::open(home).map_err(RemoteReason::Identity)?;
    Ok((store, UnixTime::now()))
}

fn of_io(error: std::io::Error) -> RemoteReason {
    match error.kind() {
        ErrorKind::UnexpectedEof
        | ErrorKind::BrokenPipe
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted => RemoteReason::Closed,
        _ => RemoteReason::Io(error),
    }
}

/// The first line of what came with a status, as far as it has come.
fn words(response: &Response) -> String {
    let body = response.body().as_deref().unwrap_or_default();
    let text = String::from_utf8_lossy(body);
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().take(SHOWN_CHARACTERS).collect()
}

/// Why the daemon's own handshake failed.
fn reason(
    failure: HandshakeFailure,
    trust: Option<Trust>,
    opening: &Opening,
    deadline: Deadline,
) -> RemoteReason {
    // A record of TLS: an alert, or the beginning of a handshake.
    if trust.is_none() && matches!(opening.bytes(), [0x15 | 0x16, 3, ..]) {
        return RemoteReason::SpeaksTls;
    }
    let error = match failure {
        HandshakeFailure::TimeIsUp => return deadline.missed(Stage::WebSocket),
        HandshakeFailure::Io(error) => return of_io(error),
        HandshakeFailure::Ws(error) => error,
    };
    match error {
        WsError::Io(error) => match trust {
            Some(trust) => trust.explain(error),
            None => of_io(error),
        },
        WsError::Http(response) => match response.status().as_u16() {
            401 => RemoteReason::Unauthorized,
            403 => RemoteReason::Forbidden(words(&response)),
            429 => RemoteReason::TooManyWrongTokens,
            status => RemoteReason::Http(status, words(&response)),
        },
        other => match TransportError::from(other) {
            TransportError::Closed => RemoteReason::Closed,
            TransportError::Protocol(error) => RemoteReason::Protocol(error),
            TransportError::Io(error) => RemoteReason::Io(error),
            TransportError::HandshakeRefused { status } => {
                RemoteReason::Http(status, String::new())
            }
            TransportError::NotBegun
            | TransportError::NoAnswer
            | TransportError::Silent(_)
            | TransportError::Busy => RemoteReason::Closed,
        },
    }
}
