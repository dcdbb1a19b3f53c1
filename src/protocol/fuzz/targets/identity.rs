//! Certificates that somebody copied or a peer sent, the file of pins, and what
//! people type for addresses and fingerprints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_identity::{
    Certificate, CertificateDer, Fingerprint, PeerAddress, PinVerdict, Pins, Token,
};

fuzz_target!(|data: &[u8]| {
    let der = CertificateDer::from(data.to_vec());
    for certificate in [Certificate::from_pem(data), Certificate::from_der(der)] {
        let Ok(certificate) = certificate else {
            continue;
        };
        let again = Certificate::from_pem(certificate.to_pem().as_bytes());
        assert_eq!(
            again.as_ref(),
            Ok(&certificate),
            "what we write is the same"
        );
        let (key, now) = (certificate.key(), certificate.validity().not_before);
        let line = format!("host {key} {}\n", certificate.fingerprint());
        let pins = Pins::parse(line.as_bytes()).expect("our own line is one");
        let address = "host".parse().expect("it is one");
        let verdict = pins.check(&address, &certificate, now);
        let backwards = certificate.validity().not_after < now;
        assert!(backwards || verdict == PinVerdict::Matches, "{verdict:?}");
    }
    if let Ok(Pins { pins }) = Pins::parse(data) {
        for pin in pins {
            assert!(pin.key.is_some());
            if let Some(address) = pin.address {
                assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(address) = text.parse::<PeerAddress>() {
        let shown = address.to_string();
        assert!(
            !shown.contains(char::is_whitespace),
            "it is one word of a line"
        );
        assert_eq!(shown.parse(), Ok(address));
    }
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    }
    if let Ok(token) = Token::new(text) {
        assert!(token.matches(data));
        assert!(!token.matches(&data[1..]));
    }
});
