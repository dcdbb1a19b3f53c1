//! Whom a client believes before it says the token, and who believes it.

use std::sync::mpsc::channel;

use pythond_identity::PinVerdict;
use pythond_transport::Client;
use tungstenite::Message;

use crate::far::{Clients, Machine, VERSIONS, admitted, admitted_if, encrypted, listen};
use crate::{DEADLINE, EMPTY_LIST, address, local, not_connected, way};

/// A daemon with one answer.
fn daemon(far: &Machine, clients: Clients, version: usize) -> u16 {
    let config = far.tls(clients, VERSIONS[version]);
    listen(move |stream| {
        if let Some(mut socket) = admitted(encrypted(&config, stream)) {
            while let Ok(Message::Text(_)) = socket.read() {
                socket.send(Message::text(EMPTY_LIST)).unwrap();
            }
        }
    })
}

#[test]
fn a_pinned_server_gets_the_token_and_answers() {
    for version in 0..2 {
        let (here, far) = (Machine::new(), Machine::new());
        let port = daemon(&far, Clients::NotAsked, version);
        here.pins(&far, Some(&local(port)));
        let mut client = Client::connect(&way(&here, port, true)).unwrap();
        assert_eq!(client.take_notice(), None);
        assert!(client.list().unwrap().value.sessions.is_empty());
    }
}

#[test]
fn a_server_that_is_not_pinned_sees_no_token() {
    let (here, far) = (Machine::new(), Machine::new());
    let (said, hears) = channel();
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let came = admitted_if(encrypted(&config, stream), |_| true);
        said.send(came.is_some()).unwrap();
    });
    let error = not_connected(&way(&here, port, true));
    assert_eq!(error.code(), "server_unpinned");
    assert!(error.is_final());
    assert!(!hears.recv_timeout(DEADLINE).unwrap());

    here.pins(&Machine::new(), Some(&local(port)));
    let error = not_connected(&way(&here, port, true));
    assert_eq!(error.code(), "server_key_changed");
    for _ in 0..3 {
        assert!(!hears.recv_timeout(DEADLINE).unwrap());
    }
}

#[test]
fn a_pin_without_an_address_is_pinned_to_the_first_one_and_that_is_told() {
    let (here, far) = (Machine::new(), Machine::new());
    let port = daemon(&far, Clients::NotAsked, 0);
    here.pins(&far, None);
    let mut client = Client::connect(&way(&here, port, true)).unwrap();
    let notice = client.take_notice().unwrap();
    assert!(notice.contains(&local(port)), "{notice}");
    let verdict = here.store.pins().unwrap().check(
        &local(port).parse().unwrap(),
        &far.identity().pair.certificate,
        pythond_identity::UnixTime::now(),
    );
    assert_eq!(verdict, PinVerdict::Matches);
    let mut again = Client::connect(&way(&here, port, true)).unwrap();
    assert_eq!(again.take_notice(), None);
    let other = daemon(&far, Clients::NotAsked, 0);
    let error = not_connected(&way(&here, other, true));
    assert_eq!(error.code(), "server_wrong_address");
}

#[test]
fn a_demanded_certificate_is_sent_and_its_want_is_told() {
    for version in 0..2 {
        let (here, far) = (Machine::new(), Machine::new());
        let port = daemon(&far, Clients::Demanded, version);
        here.pins(&far, Some(&local(port)));
        // It comes late in TLS 1.3, and may cross our request on its way.
        let error = not_connected(&way(&here, port, true));
        assert_eq!(error.code(), "client_certificate_required");
        assert!(error.hint().unwrap().contains("`pyctl cert`"));
        here.identity();
        let mut client = Client::connect(&way(&here, port, true)).unwrap();
        assert!(client.list().unwrap().value.sessions.is_empty());
    }
}

#[test]
fn a_certificate_that_the_server_does_not_trust_is_told() {
    for version in 0..2 {
        let (here, far) = (Machine::new(), Machine::new());
        let port = daemon(&far, Clients::Refused, version);
        here.pins(&far, Some(&local(port)));
        here.identity();
        let error = not_connected(&way(&here, port, true));
        assert_eq!(error.code(), "client_certificate_refused");
    }
}

#[test]
fn damaged_pins_believe_nobody() {
    let (here, far) = (Machine::new(), Machine::new());
    let port = daemon(&far, Clients::NotAsked, 0);
    here.pins(&far, Some(&local(port)));
    let pins = here.home.path().join(".pythond/tls/pins");
    let mut lines = std::fs::read(&pins).unwrap();
    lines.extend(b"damaged\n");
    std::fs::remove_file(&pins).unwrap();
    {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&pins)
            .unwrap();
        file.write_all(&lines).unwrap();
    }
    let error = not_connected(&way(&here, port, true));
    assert_eq!(error.code(), "pins_damaged");
}

#[test]
fn without_a_token_nobody_is_asked() {
    let (here, far) = (Machine::new(), Machine::new());
    here.pins(&far, None);
    // Nobody listens, which would be told otherwise.
    for tls in [true, false] {
        let error = not_connected(&address(&here, "127.0.0.1:1", tls, None));
        assert_eq!(error.code(), "no_token");
        assert!(error.hint().unwrap().contains("`pyctl token show`"));
    }
}
