//! Another machine, as far as a client can see it: keys of its own and a port
//! that does what a test wants.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use pythond_identity::{OwnIdentity, Store, UnixTime};
use rustls::crypto::ring;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use tungstenite::WebSocket;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::WebSocketConfig;

/// Both that we speak.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS13, &rustls::version::TLS12];

/// The token of every daemon here.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The files of one user of one machine.
pub(crate) struct Machine {
    pub(crate) home: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        Self { home, store }
    }

    pub(crate) fn identity(&self) -> OwnIdentity {
        self.store.own_or_make(UnixTime::now()).unwrap()
    }

    /// Believes another machine, at an address or wherever it is met first.
    pub(crate) fn pins(&self, other: &Self, address: Option<&str>) {
        let certificate = other.identity().pair.certificate.clone();
        let address = address.map(|it| it.parse().unwrap());
        self.store.pin(&certificate, address.as_ref()).unwrap();
    }

    /// How this machine speaks TLS as a server.
    pub(crate) fn tls(
        &self,
        clients: Clients,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        let own = self.identity();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap();
        let config = match clients {
            Clients::NotAsked => config.with_no_client_auth(),
            clients => config.with_client_cert_verifier(Arc::new(Policy(clients))),
        };
        let chain = vec![own.pair.certificate.der().clone()];
        Arc::new(
            config
                .with_single_cert(chain, own.pair.key().clone_key())
                .unwrap(),
        )
    }
}

/// How a server treats certificates of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    NotAsked,
    Demanded,
    Refused,
}

#[derive(Debug)]
struct Policy(Clients);

impl ClientCertVerifier for Policy {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.0 {
            Clients::Refused => {
                Err(rustls::CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Listens on a port of its own until the process ends; each connection is served
/// on a thread.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                serve(stream);
            });
        }
    });
    port
}

/// The server's end of TLS.
pub(crate) fn encrypted<S: Read + Write>(
    config: &Arc<ServerConfig>,
    stream: S,
) -> StreamOwned<ServerConnection, S> {
    StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), stream)
}

/// The server's end of a WebSocket for whoever knows the token; none if the client
/// went away, or does not know it.
pub(crate) fn admitted<S: Read + Write>(stream: S) -> Option<WebSocket<S>> {
    admitted_if(stream, |request| {
        let said = request.headers().get("authorization");
        said.is_some_and(|it| it == &format!("Bearer {TOKEN}"))
    })
}

/// The same for whoever passes this check.
#[expect(
    clippy::result_large_err,
    reason = "the signature is that of tungstenite"
)]
pub(crate) fn admitted_if<S: Read + Write>(
    stream: S,
    check: impl FnOnce(&Request) -> bool,
) -> Option<WebSocket<S>> {
    let config = WebSocketConfig::default()
        .max_frame_size(None)
        .max_message_size(None);
    let callback = |request: &Request, mut response: Response| {
        if check(request) {
            let chosen = tungstenite::http::HeaderValue::from_static("pythond.1");
            response
                .headers_mut()
                .insert("sec-websocket-protocol", chosen);
            return Ok(response);
        }
        let mut refusal = ErrorResponse::new(None);
        *refusal.status_mut() = tungstenite::http::StatusCode::UNAUTHORIZED;
        Err(refusal)
    };
    tungstenite::accept_hdr_with_config(stream, callback, Some(config)).ok()
}
