//! What answers, or does not, and how that is told.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use pythond_protocol::ExitCode;
use pythond_transport::{Client, ClientError, RemoteReason, Stage, TransportError};

use crate::far::{Clients, Machine, VERSIONS, admitted_if, encrypted, listen};
use crate::{DEADLINE, EMPTY_LIST, address, local, not_connected, not_connected_within, way};

/// For tests that wait for the end of it.
const SHORT: Duration = Duration::from_millis(300);

/// Reads the head of a request.
fn head(stream: &mut impl std::io::Read) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    head
}

#[test]
fn the_request_has_the_token_the_host_and_no_origin() {
    let (here, far) = (Machine::new(), Machine::new());
    for tls in [true, false] {
        let (said, hears) = channel();
        let config = far.tls(Clients::NotAsked, VERSIONS[0]);
        let answer = |mut socket: tungstenite::WebSocket<_>| {
            if socket.read().is_ok() {
                let _ = socket.send(tungstenite::Message::text(EMPTY_LIST));
            }
        };
        let port = listen(move |stream| {
            let check = |request: &tungstenite::handshake::server::Request| {
                said.send(request.headers().clone()).unwrap();
                true
            };
            let stream: Box<dyn ReadWrite> = match tls {
                true => Box::new(encrypted(&config, stream)),
                false => Box::new(stream),
            };
            admitted_if(stream, check).map(answer).unwrap();
        });
        here.pins(&far, Some(&local(port)));
        let mut client = Client::connect(&way(&here, port, tls)).unwrap();
        assert!(client.list().unwrap().value.sessions.is_empty());
        let headers = hears.recv_timeout(DEADLINE).unwrap();
        assert_eq!(headers["host"], local(port).as_str());
        assert_eq!(
            headers["authorization"],
            format!("Bearer {}", crate::TOKEN).as_str()
        );
        assert!(!headers.contains_key("origin"));
        let offered = &headers["sec-websocket-protocol"];
        assert_eq!(offered, "pythond.1, pythond.0.4");
    }
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

#[test]
fn each_refusal_has_its_own_words() {
    let (here, far) = (Machine::new(), Machine::new());
    for (status, code, exit) in [
        ("401 Unauthorized", "unauthorized", ExitCode::Refused),
        ("403 Forbidden", "forbidden", ExitCode::Refused),
        (
            "429 Too Many Requests",
            "too_many_wrong_tokens",
            ExitCode::Refused,
        ),
        ("503 Service Unavailable", "connection", ExitCode::NoDaemon),
        (
            "500 Internal Server Error",
            "connection",
            ExitCode::NoDaemon,
        ),
        ("200 OK", "connection", ExitCode::NoDaemon),
    ] {
        for tls in [true, false] {
            let config = far.tls(Clients::NotAsked, VERSIONS[0]);
            let port = listen(move |mut stream| {
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nno!\n");
                if tls {
                    let mut stream = encrypted(&config, stream);
                    head(&mut stream);
                    let _ = stream.write_all(answer.as_bytes());
                    let _ = stream.flush();
                } else {
                    head(&mut stream);
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            here.pins(&far, Some(&local(port)));
            let error = not_connected(&way(&here, port, tls));
            assert_eq!((error.code(), error.exit()), (code, exit), "{status} {tls}");
            assert!(error.to_string().contains(&local(port)), "{error}");
            // Who waits gets in where nothing is wrong with the token.
            assert_eq!(
                error.is_final(),
                ["unauthorized", "forbidden"].contains(&code)
            );
            let tells = !["unauthorized", "too_many_wrong_tokens"].contains(&code);
            assert_eq!(error.to_string().ends_with(": no!"), tells, "{error}");
        }
    }
}

#[test]
fn a_daemon_that_is_full_may_say_so_before_tls() {
    let (here, far) = (Machine::new(), Machine::new());
    let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nbusy\n";
    for (before_tls, tls) in [(true, true), (false, true), (true, false)] {
        let config = far.tls(Clients::NotAsked, VERSIONS[0]);
        let port = listen(move |mut stream| {
            if before_tls {
                let _ = stream.write_all(busy.as_bytes());
                let _ = stream.read(&mut [0; 4096]);
            } else {
                let mut stream = encrypted(&config, stream);
                head(&mut stream);
                let _ = stream.write_all(busy.as_bytes());
            }
        });
        here.pins(&far, Some(&local(port)));
        let found = Client::connect(&way(&here, port, tls));
        assert!(
            matches!(found, Err(ClientError::Transport(TransportError::Busy))),
            "{found:?}"
        );
    }
}

#[test]
fn who_speaks_no_tls_and_who_speaks_it_unasked_are_told_apart() {
    let (here, far) = (Machine::new(), Machine::new());
    for greeting in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let port = listen(move |mut stream| {
            let _ = stream.write_all(greeting.as_bytes());
            let _ = stream.read(&mut [0; 4096]);
        });
        let error = not_connected(&way(&here, port, true));
        assert_eq!(error.code(), "no_tls", "{greeting}");
        let error = not_connected(&way(&here, port, false));
        assert!(!error.code().contains("tls"), "{greeting} {error}");
        assert_eq!(error.exit(), ExitCode::NoDaemon);
    }
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let _ = encrypted(&config, stream).read(&mut [0; 1]);
    });
    let error = not_connected(&way(&here, port, false));
    assert_eq!(error.code(), "tls_needed");
    assert_eq!(error.hint().as_deref(), Some("set `PYTHOND_TLS=1`"));
}

#[test]
fn a_server_that_closes_in_the_middle_is_told_as_that() {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    // After so many bytes of ours, or after the handshake of TLS.
    for bytes in [Some(0), Some(1), Some(100), None] {
        for tls in [true, false] {
            let config = config.clone();
            let port = listen(move |mut stream| match bytes {
                Some(bytes) => {
                    let _ = stream.read_exact(&mut vec![0; bytes]);
                }
                None if tls => {
                    head(&mut encrypted(&config, stream));
                }
                None => {
                    head(&mut stream);
                }
            });
            here.pins(&far, Some(&local(port)));
            let error = not_connected(&way(&here, port, tls));
            assert_eq!(error.code(), "connection", "{bytes:?} {tls} {error:?}");
            assert!(matches!(error.reason, RemoteReason::Closed), "{error:?}");
            assert!(!error.is_final());
        }
    }
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_longer_than_told() {
    let (here, far) = (Machine::new(), Machine::new());
    let (keep, kept) = channel();
    let port = listen(move |stream| keep.send(stream).unwrap());
    for (tls, expected) in [(true, Stage::Tls), (false, Stage::WebSocket)] {
        let error = not_connected_within(&way(&here, port, tls), SHORT);
        let RemoteReason::TimedOut { stage, limit } = error.reason else {
            panic!("{error:?}")
        };
        assert_eq!((stage, limit), (expected, SHORT));
        assert_eq!(
            (error.code(), error.exit()),
            ("no_answer", ExitCode::NoDaemon)
        );
    }
    drop(kept);

    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let mut stream = encrypted(&config, stream);
        head(&mut stream);
        // Until the client has had enough.
        let _ = stream.read(&mut [0]);
    });
    here.pins(&far, Some(&local(port)));
    // Within it there must be time for TLS.
    let error = not_connected_within(&way(&here, port, true), Duration::from_secs(3));
    let RemoteReason::TimedOut { stage, .. } = error.reason else {
        panic!("{error:?}")
    };
    assert_eq!(stage, Stage::WebSocket);
}

#[test]
fn nobody_no_way_and_no_name_are_told_apart() {
    let here = Machine::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    for tls in [true, false] {
        let error = not_connected(&way(&here, port, tls));
        assert_eq!(
            (error.code(), error.exit()),
            ("no_daemon", ExitCode::NoDaemon)
        );
        assert!(error.hint().unwrap().contains("`pyctl start"));
    }
    // No connection leads to a group.
    let error = not_connected(&address(&here, "224.0.0.1:9", true, Some(crate::TOKEN)));
    assert_eq!(
        (error.code(), error.exit()),
        ("unreachable", ExitCode::NoDaemon)
    );
    // RFC 6761: no such name ever exists.
    let error = not_connected(&address(&here, "no.such.invalid", true, Some(crate::TOKEN)));
    assert!(
        ["unknown_host", "no_answer"].contains(&error.code()),
        "{error}"
    );
    assert_eq!(error.exit(), ExitCode::NoDaemon);
}

#[test]
fn a_port_that_takes_no_connection_is_not_waited_for_longer_than_told() {
    let here = Machine::new();
    let full = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(
        &full,
        &std::net::SocketAddrV4::new([127, 0, 0, 1].into(), 0),
    )
    .unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let full = TcpListener::from(full);
    let place = full.local_addr().unwrap();
    // The queue has room for one; others are not answered.
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&place, SHORT) {
        waiting.push(stream);
        assert!(waiting.len() < 10);
    }
    let error = not_connected_within(&way(&here, place.port(), true), SHORT);
    let RemoteReason::TimedOut { stage, .. } = error.reason else {
        panic!("{error:?}")
    };
    assert_eq!(stage, Stage::Tcp);
}

#[test]
fn a_name_may_stand_for_this_machine() {
    let here = Machine::new();
    let port = listen(|stream| {
        let mut socket = crate::far::admitted(stream).unwrap();
        socket.read().unwrap();
        socket.send(tungstenite::Message::text(EMPTY_LIST)).unwrap();
    });
    // It may have an IPv6 address as well, where nobody listens.
    let host = format!("localhost:{port}");
    let mut client = Client::connect(&address(&here, &host, false, Some(crate::TOKEN))).unwrap();
    assert!(client.list().unwrap().value.sessions.is_empty());
}
