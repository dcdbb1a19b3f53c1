//! What a listener demands of clients, as the files were at one moment.

use std::sync::Arc;

use pythond_identity::{
    Certificate, CertificateDer, CertificateError, CertificateFingerprint, IdentityError, Store,
    Token, TrustVerdict, TrustedClients, UnixTime,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme,
};

use crate::PAIRING;
use crate::provider::{VERSIONS, provider};

/// Why a listener cannot let anybody in.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The files cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate was removed while it was in use.
    #[error("this machine's certificate was removed")]
    NoPair,
    /// What says which clients are trusted was removed while it was in use.
    #[error("the directory of trusted clients was removed")]
    NoClients,
    /// The token was removed while it was in use.
    #[error("the token was removed")]
    NoToken,
    /// The certificate or its key are of no use for TLS.
    #[error("this machine's certificate cannot be used for TLS: {0}")]
    Pair(#[source] Error),
}

impl KeysError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Identity(error) => error.hint(),
            Self::NoPair => Some("`pyctl cert` makes another"),
            Self::NoClients => Some("`pyctl trust` makes it again"),
            Self::NoToken => Some("`pyctl token rotate` makes another"),
            Self::Pair(_) => Some("make another with `pyctl cert rotate --now`"),
        }
    }
}

/// Why a client is not let in, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientRefused {
    /// It showed no certificate, and must.
    #[error("a client certificate is needed")]
    NoCertificate,
    /// Nobody said that it may connect.
    #[error("the client certificate is not trusted")]
    Unknown,
    /// It might, had its certificate not expired.
    #[error("the client certificate has expired")]
    Expired,
    /// It might, were its certificate valid already.
    #[error("the client certificate is not valid yet")]
    NotYetValid,
    /// It is no certificate that speaks for itself alone.
    #[error("the client certificate cannot be used: {0}")]
    Unusable(CertificateError),
}

/// Who may come in, and who we are to them. Does not change: load it again when
/// [`pythond_identity::Watch`] says so, and at [`Self::used_until`].
#[derive(Debug)]
pub struct ServerKeys {
    config: Arc<ServerConfig>,
    pairing: Arc<ServerConfig>,
    certificate: CertificateFingerprint,
    used_until: Option<UnixTime>,
    trusted: Arc<TrustedClients>,
    token: Token,
}

impl ServerKeys {
    /// Reads everything; makes a certificate and a token where there are none.
    ///
    /// # Errors
    /// [`KeysError`]: nobody may be let in then.
    pub fn load(store: &Store, now: UnixTime) -> Result<Self, KeysError> {
        store.own_or_make(now)?;
        store.token_or_make()?;
        store.begin_trusted_clients()?;
        Self::load_again(store, now)
    }

    /// Reads everything; what was there before and is not any more was taken away by
    /// somebody, and is not made again.
    ///
    /// # Errors
    /// [`KeysError`]: nobody may be let in then.
    pub fn load_again(store: &Store, now: UnixTime) -> Result<Self, KeysError> {
        let own = store.own(now)?.ok_or(KeysError::NoPair)?;
        let token = store.token()?.ok_or(KeysError::NoToken)?;
        if !store.has_trusted_clients()? {
            return Err(KeysError::NoClients);
        }
        let trusted = Arc::new(store.trusted_clients()?);
        let provider = provider();
        let config = |admits| {
            let verifier = Arc::new(ClientVerifier {
                admits,
                provider: Arc::clone(&provider),
            });
            let chain = vec![own.pair.certificate.der().clone()];
            let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(VERSIONS)
                .and_then(|builder| {
                    builder
                        .with_client_cert_verifier(verifier)
                        .with_single_cert(chain, own.pair.key().clone_key())
                })
                .map_err(KeysError::Pair)?;
            // A session that is taken up again shows no certificate: one whose client
            // is trusted no more would come in.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            // Ours is the order of strength.
            config.ignore_client_order = true;
            Ok::<_, KeysError>(config)
        };
        let mut pairing = config(Admits::Anybody)?;
        pairing.alpn_protocols = vec![PAIRING.as_bytes().to_vec()];
        Ok(Self {
            config: Arc::new(config(Admits::Trusted(Arc::clone(&trusted)))?),
            pairing: Arc::new(pairing),
            certificate: own.pair.certificate.fingerprint(),
            used_until: own.announced.map(|announced| announced.used_from),
            trusted,
            token,
        })
    }

    /// For the handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The same for a client that wants to be trusted ([`PAIRING`]): it must show a
    /// certificate and prove that it has its key, whatever certificate that is. What
    /// comes by such a connection may do nothing but that.
    #[must_use]
    pub fn pairing_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.pairing)
    }

    /// The certificate that clients are shown.
    #[must_use]
    pub fn certificate(&self) -> CertificateFingerprint {
        self.certificate
    }

    /// When another certificate takes its place.
    #[must_use]
    pub fn used_until(&self) -> Option<UnixTime> {
        self.used_until
    }

    /// What clients must know.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Clients need a certificate.
    #[must_use]
    pub fn demand_certificates(&self) -> bool {
        self.trusted.are_demanded()
    }

    /// Who may come in with a certificate.
    #[must_use]
    pub fn trusted(&self) -> &TrustedClients {
        &self.trusted
    }

    /// Whether a client with this certificate, or with none, may be here.
    ///
    /// # Errors
    /// [`ClientRefused`].
    pub fn admit(
        &self,
        presented: Option<&Certificate>,
        now: UnixTime,
    ) -> Result<(), ClientRefused> {
        match presented {
            _ if !self.trusted.are_demanded() => Ok(()),
            None => Err(ClientRefused::NoCertificate),
            Some(presented) => admit(&self.trusted, presented, now),
        }
    }
}

/// The certificate that a client showed in its handshake.
///
/// # Errors
/// [`ClientRefused::Unusable`].
pub fn presented(chain: &[CertificateDer<'_>]) -> Result<Option<Certificate>, ClientRefused> {
    let first = chain.first().map(|first| first.clone().into_owned());
    let read = first.map(Certificate::from_der).transpose();
    read.map_err(ClientRefused::Unusable)
}

fn admit(
    trusted: &TrustedClients,
    presented: &Certificate,
    now: UnixTime,
) -> Result<(), ClientRefused> {
    match trusted.check(presented, now) {
        TrustVerdict::Trusted => Ok(()),
        TrustVerdict::Unknown => Err(ClientRefused::Unknown),
        TrustVerdict::Expired => Err(ClientRefused::Expired),
        TrustVerdict::NotYetValid => Err(ClientRefused::NotYetValid),
    }
}

/// Whose certificates are good.
#[derive(Debug)]
enum Admits {
    /// Those that somebody said to trust; no authority and no name counts.
    Trusted(Arc<TrustedClients>),
    /// Whoever has the key of the one that they show.
    Anybody,
}

impl Admits {
    fn are_demanded(&self) -> bool {
        match self {
            Self::Trusted(trusted) => trusted.are_demanded(),
            Self::Anybody => true,
        }
    }
}

/// Looks at what clients show in the handshake.
#[derive(Debug)]
struct ClientVerifier {
    admits: Admits,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        // Who is asked shows one, and nobody here would look at it.
        self.admits.are_demanded()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.admits.are_demanded()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let Admits::Trusted(trusted) = &self.admits else {
            return Ok(ClientCertVerified::assertion());
        };
        let presented = Certificate::from_der(end_entity.clone().into_owned());
        let admitted = presented
            .map_err(ClientRefused::Unusable)
            .and_then(|presented| admit(trusted, &presented, now));
        match admitted {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(refused) => Err(alert(refused)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}

/// Why a handshake failed, in words.
#[must_use]
pub fn why(failed: &std::io::Error) -> String {
    use rustls::CertificateError as Kind;
    let Some(inner) = failed.get_ref() else {
        return failed.to_string();
    };
    match inner.downcast_ref::<Error>() {
        Some(Error::InvalidCertificate(Kind::Other(OtherError(refused)))) => refused.to_string(),
        Some(Error::InvalidCertificate(Kind::Expired)) => ClientRefused::Expired.to_string(),
        Some(Error::InvalidCertificate(Kind::NotValidYet)) => {
            ClientRefused::NotYetValid.to_string()
        }
        Some(Error::NoCertificatesPresented) => ClientRefused::NoCertificate.to_string(),
        _ => inner.to_string(),
    }
}

/// What the client is told by the alert of its kind, and our log in words.
fn alert(refused: ClientRefused) -> Error {
    use rustls::CertificateError as Kind;
    match refused {
        ClientRefused::Expired => Kind::Expired.into(),
        ClientRefused::NotYetValid => Kind::NotValidYet.into(),
        other => Kind::Other(OtherError(Arc::new(other))).into(),
    }
}
