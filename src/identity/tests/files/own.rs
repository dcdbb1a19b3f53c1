//! This machine's pair: made once, kept, refused when it is damaged, rotated.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::support::{Home, at, now, replace};
use pythond_identity::{IdentityError, Overlap, Rotation, Store, ValidityState};

const WEEK: u64 = 7 * 24 * 3600;

#[test]
fn a_pair_is_made_once_and_kept() {
    let home = Home::new();
    assert!(home.store().own(now()).unwrap().is_none());
    let made = home.store().own_or_make(now()).unwrap();
    let again = home.store().own_or_make(now()).unwrap();
    assert_eq!(made.pair.certificate, again.pair.certificate);
    for name in ["cert.pem", "key.pem"] {
        let mode = std::fs::metadata(home.tls(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    let certificate = &made.pair.certificate;
    let years = |years: u64| now().as_secs() + years * 365 * 24 * 3600;
    for (time, state) in [
        (now().as_secs(), ValidityState::Valid),
        (now().as_secs() - 1800, ValidityState::Valid),
        (now().as_secs() - 7200, ValidityState::NotYetValid),
        (years(9), ValidityState::Valid),
        (years(11), ValidityState::Expired),
    ] {
        assert_eq!(certificate.validity().at(at(time)), state, "{time}");
    }
}

#[test]
fn nothing_shows_a_key() {
    let home = Home::new();
    let own = home.store().own_or_make(now()).unwrap();
    let text = std::fs::read_to_string(home.tls("key.pem")).unwrap();
    let shown = format!("{own:?}");
    let line = text.lines().nth(1).unwrap();
    assert!(!shown.contains(line));
    assert!(shown.contains("elided"), "{shown}");
}

#[test]
fn a_pair_of_no_use_is_an_error_until_somebody_rotates() {
    let other = Home::new();
    other.store().own_or_make(now()).unwrap();
    let other_key = std::fs::read(other.tls("key.pem")).unwrap();
    type Harm<'a> = (&'a str, Option<&'a [u8]>, fn(&IdentityError) -> bool);
    let harms: [Harm<'_>; 8] = [
        ("key.pem", None, |e| {
            matches!(e, IdentityError::OwnHalf { .. })
        }),
        ("cert.pem", None, |e| {
            matches!(e, IdentityError::OwnHalf { .. })
        }),
        ("key.pem", Some(b""), |e| {
            matches!(e, IdentityError::OwnKey { .. })
        }),
        ("cert.pem", Some(b""), |e| {
            matches!(e, IdentityError::OwnCertificate { .. })
        }),
        ("key.pem", Some(b"\0\xff"), |e| {
            matches!(e, IdentityError::OwnKey { .. })
        }),
        (
            "cert.pem",
            Some(crate::support::AUTHORITY.as_bytes()),
            |e| matches!(e, IdentityError::OwnCertificate { .. }),
        ),
        ("key.pem", Some(&other_key), |e| {
            matches!(e, IdentityError::OwnMismatch { .. })
        }),
        (
            "cert.pem",
            Some(crate::support::RSA_CERTIFICATE.as_bytes()),
            |e| matches!(e, IdentityError::OwnMismatch { .. }),
        ),
    ];
    for (name, content, expected) in harms {
        let home = Home::new();
        home.store().own_or_make(now()).unwrap();
        match content {
            Some(content) => replace(&home.tls(name), content),
            None => std::fs::remove_file(home.tls(name)).unwrap(),
        }
        let before = home.listing();
        for error in [
            home.store().own(now()).unwrap_err(),
            home.store().own_or_make(now()).unwrap_err(),
        ] {
            assert!(expected(&error), "{name}: {error:?}");
            assert!(error.hint().unwrap().contains("pyctl cert rotate"));
        }
        assert_eq!(home.listing(), before, "nothing is made in its place");
        let overlap = Overlap::For(Duration::from_secs(WEEK));
        let (done, _) = home.store().rotate(overlap, now()).unwrap();
        assert_eq!(done, Rotation::Repaired);
        home.store().own(now()).unwrap().unwrap();
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::new();
    home.store().own_or_make(now()).unwrap();
    set_permissions(home.tls("cert.pem"), Permissions::from_mode(0o644)).unwrap();
    home.store().own(now()).unwrap().unwrap();
    set_permissions(home.tls("key.pem"), Permissions::from_mode(0o640)).unwrap();
    let error = home.store().own(now()).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn a_pair_of_rsa_is_taken() {
    let home = Home::new();
    home.store();
    replace(
        &home.tls("cert.pem"),
        crate::support::RSA_CERTIFICATE.as_bytes(),
    );
    replace(&home.tls("key.pem"), crate::support::RSA_KEY.as_bytes());
    let own = home.store().own(now()).unwrap().unwrap();
    assert_eq!(
        own.pair.certificate.to_pem(),
        crate::support::RSA_CERTIFICATE
    );
}

#[test]
fn an_announced_pair_takes_over_when_its_time_has_come() {
    let home = Home::new();
    let old = home.store().own_or_make(now()).unwrap();
    let overlap = Overlap::For(Duration::from_secs(WEEK));
    let (done, own) = home.store().rotate(overlap, now()).unwrap();
    assert_eq!(done, Rotation::Announced);
    assert_eq!(own.pair.certificate, old.pair.certificate);
    let announced = own.announced.as_ref().unwrap();
    assert_eq!(announced.used_from, at(now().as_secs() + WEEK));
    let new = announced.pair.certificate.clone();
    assert_eq!(new.validity().at(announced.used_from), ValidityState::Valid);
    let error = home.store().rotate(overlap, now()).unwrap_err();
    assert!(matches!(error, IdentityError::RotationUnderWay { .. }));

    let just_before = at(announced.used_from.as_secs() - 1);
    let own = home.store().own(just_before).unwrap().unwrap();
    assert_eq!(own.pair.certificate, old.pair.certificate);
    let own = home.store().own(announced.used_from).unwrap().unwrap();
    assert_eq!(own.pair.certificate, new);
    assert!(own.announced.is_none());
    assert_eq!(
        home.listing(),
        ["cert.pem", "key.pem"],
        "the old key is gone"
    );
}

#[test]
fn a_rotation_can_be_finished_at_once() {
    let home = Home::new();
    let old = home.store().own_or_make(now()).unwrap();
    let overlap = Overlap::For(Duration::from_secs(WEEK));
    let (_, own) = home.store().rotate(overlap, now()).unwrap();
    let new = own.announced.as_ref().unwrap().pair.certificate.clone();
    let (done, own) = home.store().rotate(Overlap::None, now()).unwrap();
    assert_eq!(done, Rotation::Finished);
    assert_eq!(own.pair.certificate, new);
    assert_eq!(new.validity().at(now()), ValidityState::Valid);
    assert_eq!(home.listing(), ["cert.pem", "key.pem"]);
    let (done, own) = home.store().rotate(Overlap::None, now()).unwrap();
    assert_eq!(done, Rotation::Replaced);
    assert_ne!(own.pair.certificate, new);
    assert_ne!(own.pair.certificate, old.pair.certificate);
}

#[test]
fn every_state_that_a_cut_installation_can_leave_is_finished() {
    let names = ["cert.pem", "key.pem", "next-cert.pem", "next-key.pem"];
    let home = Home::new();
    home.store().own_or_make(now()).unwrap();
    home.store()
        .rotate(Overlap::For(Duration::from_secs(WEEK)), now())
        .unwrap();
    let [old_cert, old_key, new_cert, new_key] =
        names.map(|name| std::fs::read(home.tls(name)).unwrap());
    let new = String::from_utf8(new_cert.clone()).unwrap();
    let states: [[Option<&[u8]>; 4]; 6] = [
        // With an old pair: the key was renamed, or the certificate, or both.
        [Some(&old_cert), Some(&new_key), Some(&new_cert), None],
        [Some(&new_cert), Some(&old_key), None, Some(&new_key)],
        [Some(&new_cert), Some(&new_key), None, None],
        // With none.
        [None, None, Some(&new_cert), Some(&new_key)],
        [None, Some(&new_key), Some(&new_cert), None],
        [Some(&new_cert), None, None, Some(&new_key)],
    ];
    for state in states {
        let home = Home::new();
        home.store();
        for (name, content) in names.iter().zip(state) {
            if let Some(content) = content {
                replace(&home.tls(name), content);
            }
        }
        let own = home.store().own(now()).unwrap().unwrap();
        assert_eq!(own.pair.certificate.to_pem(), new);
        assert_eq!(home.listing(), ["cert.pem", "key.pem"]);
    }
}

#[test]
fn two_who_ask_first_get_the_same_pair() {
    let home = Home::new();
    let path = home.path();
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(path).unwrap();
                    store.own_or_make(now()).unwrap().pair.certificate.clone()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(made.iter().all(|certificate| *certificate == made[0]));
}

#[test]
fn an_announced_pair_of_no_use_is_an_error_until_somebody_rotates() {
    type Harm = (&'static str, Option<&'static [u8]>);
    let harms: [Harm; 4] = [
        ("next-cert.pem", Some(b"")),
        ("next-key.pem", Some(b"")),
        ("next-from", Some(b"soon")),
        ("next-from", None),
    ];
    for (name, content) in harms {
        let home = Home::new();
        let overlap = Overlap::For(Duration::from_secs(WEEK));
        let old = home.store().own_or_make(now()).unwrap();
        home.store().rotate(overlap, now()).unwrap();
        match content {
            Some(content) => replace(&home.tls(name), content),
            None => std::fs::remove_file(home.tls(name)).unwrap(),
        }
        let error = home.store().own(now()).unwrap_err();
        assert!(
            error.hint().unwrap().contains("pyctl cert rotate"),
            "{name}"
        );
        let (done, own) = home.store().rotate(overlap, now()).unwrap();
        assert_eq!(done, Rotation::Announced);
        assert_eq!(own.pair.certificate, old.pair.certificate, "{name}");
        home.store().own(now()).unwrap().unwrap();
    }
}
