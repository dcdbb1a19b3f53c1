//! Clients against servers of rustls, all in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use pythond_identity::{Certificate, OwnIdentity, PeerAddress, Store, UnixTime};
use pythond_tls::{ClientTls, ServerNotTrusted, TlsTrouble};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConnection, DigitallySignedStruct, DistinguishedName,
    Error, ServerConfig, ServerConnection, SignatureScheme, SupportedProtocolVersion,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A time in 2027; no test asks the clock.
const NOW: u64 = 1_800_000_000;
const YEAR: u64 = 365 * 24 * 3600;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// The files of one machine.
struct Machine {
    _home: tempfile::TempDir,
    store: Store,
}

impl Machine {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        Self { _home: home, store }
    }

    fn identity(&self) -> OwnIdentity {
        self.store.own_or_make(at(NOW)).unwrap()
    }

    fn certificate(&self) -> Certificate {
        self.identity().pair.certificate.clone()
    }

    fn pins(&self, other: &Self, address: Option<&str>) {
        let address: Option<PeerAddress> = address.map(|it| it.parse().unwrap());
        self.store
            .pin(&other.certificate(), address.as_ref())
            .unwrap();
    }

    /// The client's end, with its own certificate if it has one.
    fn client(&self, now: u64) -> ClientTls {
        let own = self.store.own(at(now)).unwrap();
        let pins = self.store.pins().unwrap();
        ClientTls::new(address(), pins, own.as_ref(), at(now)).unwrap()
    }
}

fn address() -> PeerAddress {
    "far.example:7399".parse().unwrap()
}

/// How a server treats certificates of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    NotAsked,
    Asked,
    Demanded,
    Refused,
}

#[derive(Debug)]
struct ClientPolicy(Clients);

impl ClientCertVerifier for ClientPolicy {
    fn client_auth_mandatory(&self) -> bool {
        self.0 != Clients::Asked
    }

    fn offer_client_auth(&self) -> bool {
        self.0 != Clients::NotAsked
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.0 {
            Clients::Refused => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// A server that shows this certificate and has the key of this machine.
fn server_showing(
    certificate: CertificateDer<'static>,
    key_of: &Machine,
    clients: Clients,
    version: &'static SupportedProtocolVersion,
) -> ServerConnection {
    let key = ring::sign::any_supported_type(key_of.identity().pair.key()).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap();
    let config = match clients {
        Clients::NotAsked => config.with_no_client_auth(),
        clients => config.with_client_cert_verifier(Arc::new(ClientPolicy(clients))),
    };
    ServerConnection::new(Arc::new(config.with_cert_resolver(Arc::new(shown)))).unwrap()
}

fn server(
    machine: &Machine,
    clients: Clients,
    version: &'static SupportedProtocolVersion,
) -> ServerConnection {
    server_showing(
        machine.certificate().der().clone(),
        machine,
        clients,
        version,
    )
}

/// Moves bytes until nobody has anything to say. What went wrong at the client,
/// and the server's end as it is then.
fn shake_hands(tls: &ClientTls, server: &mut ServerConnection) -> Result<ClientConnection, Error> {
    let mut client = tls.connection().unwrap();
    let mut failed = None;
    while client.wants_write() || server.wants_write() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        let mut rest = &sent[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            // What it does not like it says to the client.
            let _ = server.process_new_packets();
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        let mut rest = &answer[..];
        while !rest.is_empty() && failed.is_none() {
            client.read_tls(&mut rest).unwrap();
            failed = client.process_new_packets().err();
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(client),
    }
}

fn trouble(tls: &ClientTls, mut server: ServerConnection) -> TlsTrouble {
    let error = shake_hands(tls, &mut server).expect_err("it must fail");
    tls.explain(error)
}

fn not_trusted(tls: &ClientTls, server: ServerConnection) -> ServerNotTrusted {
    match trouble(tls, server) {
        TlsTrouble::NotTrusted(why) => {
            assert_eq!(tls.pinned(), None);
            *why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pinned_server_is_believed_whatever_its_name() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        let tls = here.client(NOW);
        assert_eq!(tls.pinned(), None);
        let mut server = server(&far, Clients::NotAsked, version);
        let client = shake_hands(&tls, &mut server).unwrap();
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.protocol_version(), Some(version.version));
        let pinned = tls.pinned().unwrap();
        assert_eq!(pinned.certificate, far.certificate());
        assert!(!pinned.without_address);
    }
}

#[test]
fn a_pin_without_an_address_is_told() {
    let (here, far) = (Machine::new(), Machine::new());
    here.pins(&far, None);
    let tls = here.client(NOW);
    shake_hands(&tls, &mut server(&far, Clients::NotAsked, VERSIONS[0])).unwrap();
    assert!(tls.pinned().unwrap().without_address);
}

#[test]
fn a_server_that_is_not_pinned_is_refused_with_its_key() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        let tls = here.client(NOW);
        let why = not_trusted(&tls, server(&far, Clients::NotAsked, version));
        assert_eq!(why.code(), "server_unpinned");
        let text = why.to_string();
        assert!(text.contains("far.example:7399"), "{text}");
        assert!(
            text.contains(&far.certificate().key().to_string()),
            "{text}"
        );
        assert!(why.hint().contains("`pyctl pin CERT far.example:7399`"));
    }
}

#[test]
fn a_changed_key_is_refused_with_both_keys_and_a_warning() {
    for version in VERSIONS {
        let (here, far, other) = (Machine::new(), Machine::new(), Machine::new());
        here.pins(&other, Some("far.example"));
        here.pins(&far, Some("elsewhere:1"));
        let tls = here.client(NOW);
        let why = not_trusted(&tls, server(&far, Clients::NotAsked, version));
        assert_eq!(why.code(), "server_key_changed");
        let text = why.to_string();
        for part in [
            far.certificate().key().to_string(),
            other.certificate().key().to_string(),
            "elsewhere:1".to_owned(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
        assert!(why.hint().starts_with("somebody may be in between"));
    }
}

#[test]
fn a_key_of_another_address_is_refused_with_that_address() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("other.example"));
        let tls = here.client(NOW);
        let why = not_trusted(&tls, server(&far, Clients::NotAsked, version));
        assert_eq!(why.code(), "server_wrong_address");
        assert!(why.to_string().contains("`other.example:7399`"), "{why}");
    }
}

#[test]
fn a_certificate_is_refused_before_and_after_its_time() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        for (now, code, day) in [
            (NOW + 11 * YEAR, "certificate_expired", "2037-01-12"),
            (NOW - YEAR, "certificate_not_yet_valid", "2027-01-15"),
        ] {
            let tls = here.client(now);
            let why = not_trusted(&tls, server(&far, Clients::NotAsked, version));
            assert_eq!(why.code(), code);
            assert!(why.to_string().contains(day), "{why}");
        }
    }
}

#[test]
fn an_authority_and_what_is_no_certificate_are_refused() {
    let authority = include_str!("../../identity/tests/files/made/authority.pem");
    let authority = {
        use rustls::pki_types::pem::PemObject as _;
        CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()
    };
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        for (shown, word) in [
            (authority.clone(), "authority"),
            (CertificateDer::from(vec![7; 100]), "no X.509"),
        ] {
            let tls = here.client(NOW);
            let server = server_showing(shown, &far, Clients::NotAsked, version);
            let why = not_trusted(&tls, server);
            assert_eq!(why.code(), "certificate_refused");
            assert!(why.to_string().contains(word), "{why}");
        }
    }
}

#[test]
fn who_shows_a_pinned_certificate_and_has_another_key_is_refused() {
    for version in VERSIONS {
        let (here, far, thief) = (Machine::new(), Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        for clients in [Clients::NotAsked, Clients::Demanded] {
            let tls = here.client(NOW);
            let shown = far.certificate().der().clone();
            let why = not_trusted(&tls, server_showing(shown, &thief, clients, version));
            assert_eq!(why.code(), "server_key_not_proven");
        }
    }
}

#[test]
fn our_certificate_is_sent_only_if_it_is_asked_for() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        let own = here.certificate();
        for (clients, is_sent) in [
            (Clients::NotAsked, false),
            (Clients::Asked, true),
            (Clients::Demanded, true),
        ] {
            let mut server = server(&far, clients, version);
            shake_hands(&here.client(NOW), &mut server).unwrap();
            let sent = server.peer_certificates().map(|chain| chain[0].clone());
            assert_eq!(sent, is_sent.then(|| own.der().clone()), "{clients:?}");
        }
    }
}

#[test]
fn a_machine_without_a_certificate_gets_in_where_none_is_demanded() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        shake_hands(
            &here.client(NOW),
            &mut server(&far, Clients::Asked, version),
        )
        .unwrap();
        let why = trouble(&here.client(NOW), server(&far, Clients::Demanded, version));
        assert!(matches!(why, TlsTrouble::CertificateDemanded), "{why:?}");
        assert!(why.hint().unwrap().contains("`pyctl cert`"));
    }
}

#[test]
fn a_certificate_that_the_server_does_not_trust_is_told() {
    for version in VERSIONS {
        let (here, far) = (Machine::new(), Machine::new());
        here.pins(&far, Some("far.example"));
        here.identity();
        let why = trouble(&here.client(NOW), server(&far, Clients::Refused, version));
        assert!(matches!(why, TlsTrouble::CertificateRefused), "{why:?}");
        assert!(why.hint().unwrap().contains("`pyctl trust CERT`"));
    }
}

#[test]
fn other_alerts_and_what_is_no_tls_are_told_apart() {
    let here = Machine::new();
    let tls = here.client(NOW);
    let alert = tls.explain(Error::AlertReceived(AlertDescription::HandshakeFailure));
    assert_eq!(
        alert.to_string(),
        "the server ended the TLS handshake (handshake_failure)"
    );
    for greeting in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let mut client = tls.connection().unwrap();
        client.read_tls(&mut greeting.as_bytes()).unwrap();
        let why = tls.explain(client.process_new_packets().unwrap_err());
        assert!(matches!(why, TlsTrouble::NoTls), "{greeting}: {why:?}");
    }
}

#[test]
fn every_address_has_a_name_to_ask_for() {
    let here = Machine::new();
    for (address, name) in [
        ("far.example", "far.example"),
        ("under_score:1", "under_score"),
        ("10.0.0.5", "10.0.0.5"),
        ("[::1]:1", "::1"),
        ("[fe80::1%eth0]:1", "pythond"),
    ] {
        let address = address.parse().unwrap();
        let tls = ClientTls::new(address, here.store.pins().unwrap(), None, at(NOW)).unwrap();
        assert_eq!(tls.server_name().to_str(), name);
        tls.connection().unwrap();
    }
}
