//! Which key an address has.

use std::os::unix::fs::symlink;

use pythond_identity::{
    Certificate, Fingerprint, IdentityError, PeerAddress, PinVerdict, ValidityState,
};

use crate::support::{
    AUTHORITY, Home, RSA_CERTIFICATE, at, certificate, certificate_from, now, replace,
};

fn address(text: &str) -> PeerAddress {
    text.parse().unwrap()
}

fn key(certificate: &Certificate) -> Fingerprint {
    Fingerprint::Key(certificate.key())
}

#[test]
fn each_way_to_be_wrong_has_its_own_verdict() {
    let home = Home::new();
    let store = home.store();
    let [a, b] = [certificate(), certificate()];
    let [here, there] = ["Host:7399", "[::1]"].map(address);
    let check = |address: &PeerAddress, presented: &Certificate, time| {
        home.store()
            .pins()
            .unwrap()
            .check(address, presented, at(time))
    };
    let today = now().as_secs();
    assert_eq!(
        check(&here, &a, today),
        PinVerdict::Unpinned { met: key(&a) }
    );

    assert!(store.pin(&a, Some(&here)).unwrap());
    assert!(
        !store.pin(&a, Some(&address("HOST."))).unwrap(),
        "it is pinned so"
    );
    assert_eq!(check(&here, &a, today), PinVerdict::Matches);
    let until = a.validity().not_after;
    assert_eq!(
        check(&here, &a, until.as_secs() + 1),
        PinVerdict::Expired { since: until }
    );
    let from = a.validity().not_before;
    assert_eq!(
        check(&here, &a, from.as_secs() - 1),
        PinVerdict::NotYetValid { from }
    );
    assert_eq!(
        check(&there, &a, today),
        PinVerdict::WrongAddress {
            met: key(&a),
            known_at: vec![here.clone()]
        }
    );
    assert_eq!(
        check(&address("host:7398"), &a, today),
        PinVerdict::WrongAddress {
            met: key(&a),
            known_at: vec![here.clone()]
        },
        "another port is another address"
    );
    store.pin(&b, Some(&there)).unwrap();
    assert_eq!(
        check(&here, &b, today),
        PinVerdict::Changed {
            pinned: vec![key(&a)],
            met: key(&b),
            known_at: vec![there]
        }
    );
    // Both are good while a certificate is rotated, until the old one is unpinned.
    store.pin(&b, Some(&here)).unwrap();
    assert_eq!(check(&here, &a, today), PinVerdict::Matches);
    assert_eq!(check(&here, &b, today), PinVerdict::Matches);
    let gone = store.unpin_key(key(&a)).unwrap();
    assert_eq!(gone.len(), 1);
    assert!(matches!(
        check(&here, &a, today),
        PinVerdict::Changed { .. }
    ));
    assert_eq!(store.unpin_address(&here).unwrap().len(), 1);
    assert!(store.unpin_address(&here).unwrap().is_empty());
    assert!(matches!(
        check(&here, &b, today),
        PinVerdict::WrongAddress { .. }
    ));
}

#[test]
fn a_pin_without_an_address_is_good_for_the_first_and_for_no_other() {
    let home = Home::new();
    let store = home.store();
    let a = certificate();
    let [here, there] = ["here", "there"].map(address);
    store.pin(&a, None).unwrap();
    let check = |address| home.store().pins().unwrap().check(address, &a, now());
    assert_eq!(check(&here), PinVerdict::MatchesWithoutAddress);
    assert_eq!(check(&there), PinVerdict::MatchesWithoutAddress);
    store.pin(&a, Some(&here)).unwrap();
    assert_eq!(check(&here), PinVerdict::Matches);
    assert!(matches!(check(&there), PinVerdict::WrongAddress { .. }));
    assert_eq!(store.pins().unwrap().pins.len(), 1);
}

#[test]
fn an_address_with_a_pin_takes_no_key_that_is_pinned_without_one() {
    let home = Home::new();
    let [a, b] = [certificate(), certificate()];
    let here = address("here");
    home.store().pin(&a, Some(&here)).unwrap();
    home.store().pin(&b, None).unwrap();
    let verdict = home.store().pins().unwrap().check(&here, &b, now());
    assert!(matches!(verdict, PinVerdict::Changed { .. }), "{verdict:?}");
}

/// What 0.4's `pyctl pin` leaves.
fn pinned_by_earlier(home: &Home, certificate: &Certificate) {
    let fingerprint = certificate.fingerprint().to_string();
    let name = format!("{}.pem", fingerprint.replace(':', "").split_at(16).0);
    let dir = home.tls("trusted_servers");
    home.store().begin_trusted_clients().unwrap();
    home.store().pins().unwrap();
    replace(&dir.join(&name), certificate.to_pem().as_bytes());
    let beside = dir.join(format!("{name}.fingerprint"));
    replace(&beside, format!("{fingerprint}\n").as_bytes());
}

#[test]
fn what_earlier_versions_pinned_is_a_pin_without_an_address() {
    let home = Home::new();
    let a = certificate();
    pinned_by_earlier(&home, &a);
    let [here, there] = ["here", "there"].map(address);
    let check = |address| home.store().pins().unwrap().check(address, &a, now());
    assert_eq!(check(&here), PinVerdict::MatchesWithoutAddress);
    home.store().pin(&a, Some(&here)).unwrap();
    assert_eq!(check(&here), PinVerdict::Matches);
    assert!(matches!(check(&there), PinVerdict::WrongAddress { .. }));
    // Without its line the old file must not be good for every address again.
    assert_eq!(home.store().unpin_address(&here).unwrap().len(), 1);
    assert_eq!(check(&there), PinVerdict::Unpinned { met: key(&a) });
    let left = std::fs::read_dir(home.tls("trusted_servers"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[test]
fn a_fingerprint_without_its_certificate_fits_that_certificate_alone() {
    let home = Home::new();
    let a = certificate();
    pinned_by_earlier(&home, &a);
    let dir = home.tls("trusted_servers");
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let pins = home.store().pins().unwrap();
    assert_eq!(pins.pins[0].key, None);
    let here = address("here");
    assert_eq!(
        pins.check(&here, &a, now()),
        PinVerdict::MatchesWithoutAddress
    );
    assert!(matches!(
        pins.check(&here, &certificate(), now()),
        PinVerdict::Unpinned { .. }
    ));
    let gone = home
        .store()
        .unpin_key(Fingerprint::Certificate(a.fingerprint()));
    assert_eq!(gone.unwrap().len(), 1);
    assert!(home.store().pins().unwrap().pins.is_empty());
}

#[test]
fn a_damaged_file_of_pins_is_an_error_and_is_not_written_over() {
    let home = Home::new();
    let a = certificate();
    home.store().pin(&a, Some(&address("here"))).unwrap();
    let path = home.tls("pins");
    let mut content = std::fs::read(&path).unwrap();
    content.truncate(content.len() - 5);
    replace(&path, &content);
    let errors = [
        home.store().pins().unwrap_err(),
        home.store().pin(&a, None).unwrap_err(),
        home.store().unpin_key(key(&a)).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(error, IdentityError::Pins { line: 1, .. }),
            "{error}"
        );
    }
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn what_is_planted_for_the_file_of_pins_is_refused() {
    let home = Home::new();
    let victim = home.path().join("victim");
    replace(&victim, b"");
    for link in [true, false] {
        home.store();
        let path = home.tls("pins");
        if link {
            symlink(&victim, &path).unwrap();
        } else {
            std::fs::hard_link(&victim, &path).unwrap();
        }
        assert!(matches!(home.store().pins(), Err(IdentityError::Fs(_))));
        assert!(home.store().pin(&certificate(), None).is_err());
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"");
}

#[test]
fn comments_stay_and_an_authority_is_no_certificate() {
    let home = Home::new();
    home.store();
    replace(&home.tls("pins"), b"# the machine in the cellar\n");
    let rsa = Certificate::from_pem(RSA_CERTIFICATE.as_bytes()).unwrap();
    home.store().pin(&rsa, Some(&address("cellar"))).unwrap();
    let text = std::fs::read_to_string(home.tls("pins")).unwrap();
    assert!(
        text.starts_with("# the machine in the cellar\ncellar:7399 SHA256:"),
        "{text}"
    );
    for text in [AUTHORITY, crate::support::SIGNER] {
        let error = Certificate::from_pem(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("authority"), "{error}");
    }
    let later = certificate_from(at(now().as_secs() + 7200));
    assert_eq!(later.validity().at(now()), ValidityState::NotYetValid);
}
