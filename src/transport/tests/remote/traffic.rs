//! Messages of all sizes over TLS, in both directions.

use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::mpsc::channel;

use pythond_protocol::SessionPath;
use pythond_protocol::verbs::attach::TerminalSize;
use pythond_protocol::verbs::submit::SubmitOptions;
use pythond_transport::{AttachOptions, Attachment, Client, Streamed};
use tungstenite::Message;

use crate::far::{Clients, Machine, VERSIONS, admitted, encrypted, listen};
use crate::{DEADLINE, EMPTY_LIST, local, way};

/// A stream that moves little at a time.
struct Narrow {
    stream: TcpStream,
    read: usize,
    written: usize,
}

impl Read for Narrow {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = buffer.len().min(self.read);
        self.stream.read(&mut buffer[..most])
    }
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.stream.write(&bytes[..bytes.len().min(self.written)])
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}

/// A daemon that answers by this function, over a stream like that, and a client
/// that has connected to it.
fn connected(
    version: usize,
    (read, written): (usize, usize),
    answer: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
) -> Client {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[version]);
    let port = listen(move |stream| {
        let narrow = Narrow {
            stream,
            read,
            written,
        };
        let Some(mut socket) = admitted(encrypted(&config, narrow)) else {
            return;
        };
        while let Ok(Message::Text(frame)) = socket.read() {
            // All in one go, so that records hold more than one message.
            for text in answer(&frame) {
                socket.write(Message::text(text)).unwrap();
            }
            if socket.flush().is_err() {
                return;
            }
        }
    });
    here.pins(&far, Some(&local(port)));
    Client::connect(&way(&here, port, true)).unwrap()
}

const WIDE: usize = 1 << 20;

fn cell(stdout: &str) -> String {
    format!(
        r#"{{"session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007","kind":"run","status":"done","ok":true,"result":null,"started_at":null,"duration_ms":1.5,"output_bytes":1,"truncated":0,"host":"h","changed":[],"stdout":"{stdout}","stderr":"","error":null}}"#
    )
}

fn piece(offset: usize, data: &str) -> String {
    format!(
        r#"{{"event":"output","cell_id":"00ab00000007","stream":1,"offset":{offset},"data":"{data}"}}"#
    )
}

/// What a run wrote, pieces and reply together.
fn run(client: &mut Client, code: &str) -> String {
    let name: SessionPath = "work".parse().unwrap();
    let options = SubmitOptions {
        stream: true,
        ..SubmitOptions::default()
    };
    let mut running = client.run(&name, code, &options).unwrap();
    let mut output = String::new();
    loop {
        match running.next(&[]).unwrap() {
            Streamed::Event(event) => {
                let event: serde_json::Value = serde_json::from_str(event.json()).unwrap();
                output.push_str(event["data"].as_str().unwrap());
            }
            Streamed::Reply(reply) => {
                output.push_str(std::str::from_utf8(&reply.value.stdout.0).unwrap());
                return output;
            }
            Streamed::Woken => panic!("nothing else is listened to"),
        }
    }
}

#[test]
fn large_code_and_large_output_arrive_whole() {
    for (version, count) in [(0, 1 << 20), (1, 1 << 16)] {
        // The code comes back twice: 20 MB at most.
        let mut client = connected(version, (1 << 12, WIDE), |frame| {
            let code = frame.split_once('\n').unwrap().1;
            vec![cell(&format!("{code}{code}"))]
        });
        let code = "0123456789".repeat(count);
        let output = run(&mut client, &code);
        assert_eq!(output.len(), 2 * code.len());
        assert!(output == code.repeat(2));
    }
}

#[test]
fn many_messages_in_one_record_are_all_seen() {
    for version in 0..2 {
        let mut client = connected(version, (WIDE, WIDE), |_| {
            let mut messages: Vec<_> = (0..20_000).map(|n| piece(n, &format!("{n},"))).collect();
            messages.push(cell("end"));
            messages
        });
        let expected: String = (0..20_000).map(|n| format!("{n},")).collect();
        // Twice, as the end of the first must not be mixed with the second.
        for _ in 0..2 {
            assert!(run(&mut client, "1") == format!("{expected}end"));
        }
    }
}

#[test]
fn an_answer_that_comes_byte_by_byte_is_understood() {
    for version in 0..2 {
        let mut client = connected(version, (1, 1), |frame| {
            vec![piece(0, "a"), piece(1, "b"), cell(&frame[..3])]
        });
        assert_eq!(run(&mut client, "1"), "abrun");
    }
}

#[test]
fn a_wait_ends_for_another_descriptor_and_goes_on_afterwards() {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let (answer, may_answer) = channel();
    let may_answer = std::sync::Mutex::new(may_answer);
    let port = listen(move |stream| {
        let mut socket = admitted(encrypted(&config, stream)).unwrap();
        socket.read().unwrap();
        may_answer.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        socket.send(Message::text(cell("late"))).unwrap();
    });
    here.pins(&far, Some(&local(port)));
    let mut client = Client::connect(&way(&here, port, true)).unwrap();
    let (woken, mut wakes) = std::io::pipe().unwrap();
    wakes.write_all(b"x").unwrap();
    let name: SessionPath = "work".parse().unwrap();
    let mut running = client.run(&name, "1", &SubmitOptions::default()).unwrap();
    let found = running.next(&[woken.as_fd()]).unwrap();
    assert!(matches!(found, Streamed::Woken), "{found:?}");
    answer.send(()).unwrap();
    let found = running.next(&[]).unwrap();
    assert!(matches!(found, Streamed::Reply(_)), "{found:?}");
}

#[test]
fn a_server_that_dies_ends_the_wait() {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let mut socket = admitted(encrypted(&config, stream)).unwrap();
        socket.read().unwrap();
        socket.send(Message::text(EMPTY_LIST)).unwrap();
        // No word of TLS says that this is the end.
        socket.read().unwrap();
    });
    here.pins(&far, Some(&local(port)));
    let mut client = Client::connect(&way(&here, port, true)).unwrap();
    client.list().unwrap();
    let error = client.list().unwrap_err();
    assert!(error.is_broken_connection(), "{error:?}");
}

#[test]
fn a_message_that_nobody_has_room_for_is_an_error() {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let mut socket = admitted(encrypted(&config, stream)).unwrap();
        socket.read().unwrap();
        let greatest = [&[0x81, 127, 0x7f][..], &[0xff; 7]].concat();
        let stream = socket.get_mut();
        stream.write_all(&greatest).unwrap();
        stream.flush().unwrap();
        // Until the client has gone.
        let _ = socket.read();
    });
    here.pins(&far, Some(&local(port)));
    let mut client = Client::connect(&way(&here, port, true)).unwrap();
    let error = client.list().unwrap_err();
    assert!(error.to_string().contains("protocol"), "{error}: {error:?}");
}

/// A client of a daemon that answers a request with this and then sends pings
/// without end.
fn pinged_without_end(answer: Option<&'static str>) -> Client {
    let (here, far) = (Machine::new(), Machine::new());
    let config = far.tls(Clients::NotAsked, VERSIONS[0]);
    let port = listen(move |stream| {
        let mut socket = admitted(encrypted(&config, stream)).unwrap();
        socket.read().unwrap();
        if let Some(answer) = answer {
            socket.send(Message::text(answer)).unwrap();
        }
        let pings = [0x89, 0].repeat(8 << 10);
        while socket.get_mut().write_all(&pings).is_ok() {}
    });
    here.pins(&far, Some(&local(port)));
    Client::connect(&way(&here, port, true)).unwrap()
}

#[test]
fn a_flood_that_says_nothing_does_not_hold_up_a_terminal() {
    let mut client = pinged_without_end(Some(
        r#"{"ok":true,"session":"work","session_id":"00","gen":1,"rows":24,"cols":80,"read_only":false,"held":false,"attached":1,"host":"h"}"#,
    ));
    let (says, hears) = channel();
    // A thread of its own, as it would not end if this fails.
    std::thread::spawn(move || {
        let name: SessionPath = "work".parse().unwrap();
        let options = AttachOptions {
            size: TerminalSize { rows: 24, cols: 80 },
            read_only: false,
            term: None,
            colorterm: None,
            input: None,
        };
        client.attach(&name, &options).unwrap().wait().unwrap();
        let mut terminal = Attachment::of(client, name);
        // More than what could be there before the pings.
        for _ in 0..100 {
            says.send(terminal.take().is_ok()).unwrap();
        }
    });
    for _ in 0..100 {
        assert_eq!(hears.recv_timeout(DEADLINE), Ok(true));
    }
}

#[test]
fn a_flood_that_says_nothing_does_not_keep_a_wait_from_being_ended() {
    let mut client = pinged_without_end(None);
    let (woken, mut wakes) = std::io::pipe().unwrap();
    wakes.write_all(b"x").unwrap();
    let (says, hears) = channel();
    // A thread of its own, as it would not end if this fails.
    std::thread::spawn(move || {
        let name: SessionPath = "work".parse().unwrap();
        let mut running = client.run(&name, "1", &SubmitOptions::default()).unwrap();
        let found = running.next(&[woken.as_fd()]);
        says.send(matches!(found, Ok(Streamed::Woken))).unwrap();
    });
    assert_eq!(hears.recv_timeout(DEADLINE), Ok(true));
}
