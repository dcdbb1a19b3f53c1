//! Lanes to a host, held by a test: what a daemon would hear there. While such a
//! control lane is there the daemon has none.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pythond_protocol::lane::{
    Attach, CellSpec, Decoder, HELLO_TAG, Hello, HostCommand, HostEvent, HostInfo, LINK_VERSION,
    Lane, TerminalCommand, TerminalEvent, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::support::TestDaemon;

/// A lane of the test's own.
pub(crate) struct HostLane {
    stream: UnixStream,
    tag: u64,
    decoder: Decoder,
}

impl HostLane {
    fn connect(daemon: &TestDaemon, kind: Lane, tag: u64) -> Self {
        let sockets = daemon.host_sockets();
        let [socket] = sockets.as_slice() else {
            panic!("{sockets:?}")
        };
        let path = daemon.runtime_dir().join(socket);
        let stream = pythond_private_fs::connect_at(&path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut lane = Self {
            stream,
            tag: HELLO_TAG,
            decoder: Decoder::new(tag),
        };
        let hello = Hello {
            version: LINK_VERSION,
            tag,
            lane: kind,
        };
        lane.say(&hello, b"");
        lane.tag = tag;
        lane
    }

    /// Opens a control lane to the one session of a daemon.
    pub(crate) fn open(daemon: &TestDaemon, tag: u64) -> (Self, HostInfo) {
        let mut lane = Self::connect(daemon, Lane::Control, tag);
        match lane.next() {
            HostEvent::Welcome(info) => (lane, *info),
            other => panic!("{other:?}"),
        }
    }

    /// Opens a cell lane to that session, which takes the place of the daemon's.
    pub(crate) fn cells(daemon: &TestDaemon, tag: u64) -> Self {
        let mut lane = Self::connect(daemon, Lane::Cell, tag);
        match lane.next() {
            HostEvent::CellLaneReady => lane,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a cell.
    pub(crate) fn run(&mut self, request: u64, source: &str) {
        let command = HostCommand::Run {
            request,
            how: CellSpec::default(),
            after: None,
        };
        self.say(&command, source.as_bytes());
    }

    /// Attaches a terminal to that session.
    pub(crate) fn attach(daemon: &TestDaemon, tag: u64) -> Self {
        let mut lane = Self::connect(daemon, Lane::Terminal, tag);
        lane.say(&TerminalCommand::Attach(Attach::default()), b"");
        match lane.hear() {
            TerminalEvent::Attached { .. } => lane,
            other => panic!("{other:?}"),
        }
    }

    /// Types something at it.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.say(&TerminalCommand::Input, text.as_bytes());
    }

    /// The next word of the host.
    pub(crate) fn next(&mut self) -> HostEvent {
        self.hear()
    }

    fn hear<E: DeserializeOwned>(&mut self) -> E {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message.header;
            }
            let count = self.stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the host closed the lane");
            self.decoder.extend(&buffer[..count]);
        }
    }

    pub(crate) fn send(&mut self, command: &HostCommand) {
        self.say(command, b"");
    }

    fn say(&mut self, words: &impl Serialize, body: &[u8]) {
        let message = encode(self.tag, words, body).unwrap();
        self.stream.write_all(&message).unwrap();
    }
}
