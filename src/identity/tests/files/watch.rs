//! Changes are noticed.

use std::os::unix::fs::PermissionsExt as _;

use pythond_identity::{Fingerprint, Overlap, Watch};

use crate::support::{Home, certificate, now, replace};

#[test]
fn every_change_is_noticed_and_nothing_else() {
    let home = Home::new();
    let store = home.store();
    let a = certificate();
    let mut watch = Watch::new(home.path());
    let mut expect = |what: &str| {
        assert!(watch.changed(), "{what}");
        // Once more, for what was written within one tick of the clock.
        assert!(watch.changed(), "{what}");
        assert!(!watch.changed(), "{what}");
    };
    expect("the first look");
    store.own_or_make(now()).unwrap();
    expect("a certificate");
    store.trust(&a).unwrap();
    expect("a trusted client");
    store.untrust(Fingerprint::Key(a.key())).unwrap();
    expect("a client that is trusted no more");
    store.pin(&a, None).unwrap();
    expect("a pin");
    store.unpin_key(Fingerprint::Key(a.key())).unwrap();
    expect("a pin that is gone");
    store.token_or_make().unwrap();
    expect("a token");
    store.rotate_token().unwrap();
    expect("another token");
    store.rotate(Overlap::None, now()).unwrap();
    expect("another certificate");
    let planted = home.tls("trusted_servers").join("x");
    replace(&planted, b"x");
    expect("what somebody else wrote");
    replace(&planted, b"longer");
    expect("what somebody else wrote in place");
    let moved = home.path().join("moved");
    std::fs::rename(home.path().join(".pythond"), &moved).unwrap();
    home.store();
    expect("other directories in place of the old ones");
}

#[test]
fn what_cannot_be_looked_at_counts_as_changed() {
    let home = Home::new();
    home.store();
    let mut watch = Watch::new(home.path());
    while watch.changed() {}
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(home.path().join(".pythond"), permissions).unwrap();
    };
    mode(0o755);
    for _ in 0..3 {
        assert!(watch.changed());
    }
    mode(0o700);
    assert!(watch.changed());
}
