//! The client's end: whom to believe, and what to show of ourselves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use pythond_identity::{
    Certificate, CertificateDer, OwnIdentity, PeerAddress, PinVerdict, Pins, UnixTime,
    ValidityState,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::ServerName;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
};

use crate::own::OwnCertificate;
use crate::provider::{VERSIONS, provider};
use crate::{PAIRING, ServerNotTrusted, TlsTrouble};

/// What is asked for where the host has no name that TLS can carry. Every
/// certificate of ours has it; nobody checks it.
const OTHER_NAME: &str = "pythond";

/// One connection to one address: its configuration, and what was found out about
/// the server while it was made. A pin is all that is asked for: no name and no
/// authority of the certificate counts.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
    own: Arc<OwnCertificate>,
}

/// A server that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// What it presented.
    pub certificate: Certificate,
    /// It is pinned to no address yet: pin it to this one, and say so.
    pub without_address: bool,
}

impl ClientTls {
    /// What a connection to this address needs.
    ///
    /// # Errors
    /// If rustls cannot use our own key.
    pub fn new(
        address: PeerAddress,
        pins: Pins,
        own: Option<&OwnIdentity>,
        now: UnixTime,
    ) -> Result<Self, Error> {
        Self::with(address, pins, own, now, Believes::Pinned)
    }

    /// What a connection needs that is made to pair: a server is believed of which
    /// nothing is known yet, for nothing but that. One that has another key than the
    /// one that is pinned to the address is not.
    ///
    /// # Errors
    /// If rustls cannot use our own key.
    pub fn for_pairing(
        address: PeerAddress,
        pins: Pins,
        own: &OwnIdentity,
        now: UnixTime,
    ) -> Result<Self, Error> {
        Self::with(address, pins, Some(own), now, Believes::New)
    }

    fn with(
        address: PeerAddress,
        pins: Pins,
        own: Option<&OwnIdentity>,
        now: UnixTime,
        believes: Believes,
    ) -> Result<Self, Error> {
        let provider = provider();
        let verifier = Arc::new(Verifier {
            address,
            pins,
            now,
            believes,
            algorithms: provider.signature_verification_algorithms,
            found: OnceLock::new(),
            proven: AtomicBool::new(false),
        });
        let own = Arc::new(OwnCertificate::new(own)?);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_client_cert_resolver(Arc::clone(&own) as _);
        // Each connection looks at the pins as they are then.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        if believes == Believes::New {
            config.alpn_protocols = vec![PAIRING.as_bytes().to_vec()];
        }
        Ok(Self {
            config: Arc::new(config),
            verifier,
            own,
        })
    }

    /// For rustls. Good for one connection: what is found out is kept here.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// What the server is told that we look for.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        let host = self.verifier.address.host();
        ServerName::try_from(host).unwrap_or_else(|_| {
            ServerName::try_from(OTHER_NAME).expect("this is a name that DNS could have")
        })
    }

    /// The state of the connection, for whoever moves the bytes.
    ///
    /// # Errors
    /// If rustls cannot begin, for example because there are no random numbers.
    pub fn connection(&self) -> Result<ClientConnection, Error> {
        ClientConnection::new(self.config(), self.server_name())
    }

    /// The server, once the handshake is over; none if it is not believed.
    #[must_use]
    pub fn pinned(&self) -> Option<&Pinned> {
        let found = self.verifier.found.get()?.as_ref().ok()?;
        self.verifier.is_proven().then_some(found)
    }

    /// What an error of this connection means. Those that tell why the other end
    /// does not want us may come after the handshake: in TLS 1.3 a client has
    /// finished before its certificate was looked at.
    #[must_use]
    pub fn explain(&self, error: Error) -> TlsTrouble {
        match self.verifier.found.get() {
            Some(Err(why)) => why.clone().into(),
            Some(Ok(_)) if !self.verifier.is_proven() => {
                let address = self.verifier.address.clone();
                let not_trusted = match &error {
                    Error::InvalidCertificate(CertificateError::BadSignature)
                    | Error::PeerMisbehaved(_) => ServerNotTrusted::KeyNotProven { address },
                    // Its key was not even tried.
                    Error::InvalidCertificate(_) => ServerNotTrusted::Unusable {
                        address,
                        reason: pythond_identity::CertificateError::Unsuitable,
                    },
                    _ => return TlsTrouble::of(error, &self.own),
                };
                Box::new(not_trusted).into()
            }
            _ => TlsTrouble::of(error, &self.own),
        }
    }

    /// The same for what a stream of rustls reports; none if the trouble is not one
    /// of TLS.
    #[must_use]
    pub fn explain_io(&self, error: &std::io::Error) -> Option<TlsTrouble> {
        let tls = error.get_ref()?.downcast_ref::<Error>()?;
        Some(self.explain(tls.clone()))
    }
}

/// Which servers are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Believes {
    /// Those that are pinned.
    Pinned,
    /// Those of which nothing is known here, too.
    New,
}

/// Believes who is pinned, or is about to be.
#[derive(Debug)]
struct Verifier {
    believes: Believes,
    address: PeerAddress,
    pins: Pins,
    now: UnixTime,
    algorithms: WebPkiSupportedAlgorithms,
    found: OnceLock<Result<Pinned, Box<ServerNotTrusted>>>,
    /// It has the key of its certificate.
    proven: AtomicBool,
}

impl Verifier {
    fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    fn proves(
        &self,
        checked: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proven.store(checked.is_ok(), Ordering::Relaxed);
        checked
    }

    fn look_at(&self, presented: &CertificateDer<'_>) -> Result<Pinned, Box<ServerNotTrusted>> {
        let address = &self.address;
        let certificate =
            Certificate::from_der(presented.clone().into_owned()).map_err(|reason| {
                Box::new(ServerNotTrusted::Unusable {
                    address: address.clone(),
                    reason,
                })
            })?;
        let without_address = match self.pins.check(address, &certificate, self.now) {
            PinVerdict::Matches => false,
            PinVerdict::MatchesWithoutAddress => true,
            // It will have this address beside those that it has.
            PinVerdict::Unpinned { .. } | PinVerdict::WrongAddress { .. }
                if self.believes == Believes::New =>
            {
                let validity = certificate.validity();
                match validity.at(self.now) {
                    ValidityState::Valid => false,
                    ValidityState::Expired => {
                        return Err(Box::new(ServerNotTrusted::Expired {
                            address: address.clone(),
                            since: validity.not_after,
                        }));
                    }
                    ValidityState::NotYetValid => {
                        return Err(Box::new(ServerNotTrusted::NotYetValid {
                            address: address.clone(),
                            from: validity.not_before,
                        }));
                    }
                }
            }
            bad => return Err(Box::new(ServerNotTrusted::of(address, bad))),
        };
        Ok(Pinned {
            certificate,
            without_address,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.look_at(end_entity);
        let believed = found.is_ok();
        // A connection shows one certificate; another one is never believed.
        if self.found.set(found).is_err() || !believed {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proves(verify_tls12_signature(message, cert, dss, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proves(verify_tls13_signature(message, cert, dss, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
